"""The container of BPG files: header, limits, and the bytes that follow from the settings."""

from __future__ import annotations

from dataclasses import dataclass

from italic.coding.base_codes.hevc_headers import (
    START_CODE,
    BitReader,
    BitWriter,
    BPGError,
    CodingTools,
    NalType,
    escape,
)

MAGIC = int.from_bytes(b"BPG\xfb", "big")
CHROMA_FORMATS = {"420": 1, "422": 2, "444": 3}  # chroma_format_idc, and `pixel_format` of BPG
COSITED = {4: 1, 5: 2}  # `pixel_format` with MPEG-2 chroma positions, to chroma_format_idc

# The largest picture of HEVC's highest level, 6.2 (H.265, table A.8): 35 megapixels. The limit also
# bounds the memory that a damaged header can make a decoder allocate.
MAX_SAMPLES = 35_651_584
MAX_SIDE = 16_888

# First byte of a packed file that stores the complete BPG file. Slice data never start with it:
# their first nine bits are neither 510 nor 511 (H.265, 9.3.2.5).
WHOLE = 0xFF

# x265 codes intra pictures with a qp that is lower than the requested one by this number, as it
# does in libbpg.
INTRA_OFFSET = 3


@dataclass(frozen=True)
class Header:
    """The header of a BPG file: sides in pixels, and fields of `heic_file`."""

    height: int
    width: int
    pixel_format: int
    colour_space: int
    limited_range: bool

    @property
    def chroma_format(self) -> int:
        """chroma_format_idc: 0 grey, 1 4:2:0, 2 4:2:2, 3 4:4:4."""
        return COSITED.get(self.pixel_format, self.pixel_format)


def picture_size(data: bytes) -> tuple[int, int]:
    """Height and width of a .bpg file in pixels, read from its header; BPGError as in `decode`."""
    header, _ = split_file(data)
    return header.height, header.width


def pack(data: bytes, height: int, width: int, qp: int, chroma: str = "420") -> bytes:
    """Remove the bytes of a .bpg file that follow from the other arguments, 25 bytes or more.

    The other arguments are the sides in pixels and the settings of the encoder. Any other data,
    such as files of other encoders, are stored completely, with one extra byte. BPGError if the
    arguments are out of range.
    """
    payload = data.partition(_implied_body(height, width, qp, chroma))[2]
    if payload and payload[0] != WHOLE and unpack(payload, height, width, qp, chroma) == data:
        return payload
    return bytes([WHOLE]) + data


def unpack(data: bytes, height: int, width: int, qp: int, chroma: str = "420") -> bytes:
    """Invert `pack`, given the same arguments; the result does not depend on the version of x265.

    BPGError if `data` is empty or the arguments are out of range. Other damage is left to `decode`.
    """
    implied = _implied_body(height, width, qp, chroma)
    if not data:
        raise BPGError("the packed BPG file is empty: it is damaged; get a whole copy")
    if data[0] == WHOLE:
        return data[1:]
    body = implied + data
    return file_header(height, width, CHROMA_FORMATS[chroma], 0, len(body)) + body


def check_settings(qp: int, chroma: str) -> None:
    """BPGError unless `qp` is an integer 0..51 and `chroma` "420", "422" or "444"."""
    if isinstance(qp, bool) or not isinstance(qp, int) or not 0 <= qp <= 51:
        raise BPGError(f"the qp of BPG is an integer from 0 to 51, not {qp!r}")
    if chroma not in CHROMA_FORMATS:
        raise BPGError(f'the chroma of BPG is "420", "422" or "444", not {chroma!r}')


def check_size(height: int, width: int) -> None:
    """BPGError unless there is a pixel and the sides are within the limits."""
    if height < 1 or width < 1:
        raise BPGError(f"a BPG image must have at least one pixel, not {height}×{width}")
    # Coded sides are rounded up to multiples of the block size, which is 64 pixels at most.
    if max(height, width) > MAX_SIDE or (height + 63) * (width + 63) > MAX_SAMPLES:
        raise BPGError(
            f"an image of {height}×{width} pixels is too large: expected sides of at most "
            f"{MAX_SIDE}, and at most {MAX_SAMPLES} pixels if 63 are added to each side; cut it "
            "into parts"
        )


def min_block(height: int, width: int) -> int:
    """Side in pixels of the blocks to which `encode` pads: x265 needs sides of at least 16."""
    return 16 if min(height, width) <= 8 else 8


def file_header(
    height: int, width: int, pixel_format: int, colour_space: int, length: int
) -> bytes:
    """The header of a BPG file with `length` bytes of image data."""
    head = BitWriter().u(32, MAGIC)
    head.u(3, pixel_format).u(1, 0).u(4, 0)  # no alpha, 8 bit
    head.u(4, colour_space).u(4, 0)  # full range, no extension, no animation
    return head.ue7(width).ue7(height).ue7(length).bytes()


def _implied_body(height: int, width: int, qp: int, chroma: str) -> bytes:
    """The image data of a file of `encode` up to the slice data.

    This repeats the choices that `encode` leaves to x265, since packed files must not depend on the
    version of x265. Any change makes all existing packed files unreadable.
    """
    check_size(height, width)
    check_settings(qp, chroma)
    block = min_block(height, width)
    side = -(-min(height, width) // block) * block
    # Coding tree blocks are the largest that fit into the image, up to 64 pixels. Transform blocks
    # are from 4 pixels up to that size, at most 32.
    log2_min, log2_max = block.bit_length() - 1, min(side.bit_length() - 1, 6)
    sizes = (log2_min - 3, log2_max - log2_min, 0, min(log2_max, 5) - 2, 0)
    tools = CodingTools(sizes, sao=0, pcm=None, strong_intra_smoothing=1).to_bpg()

    pps = BitWriter().ue(0, 0).u(6, 1)  # sign data hiding
    pps.u(1, 0).ue(0, 0, 0).u(3, 0).ue(0, 0)  # QP 26, no offsets
    pps.u(6, 0).u(1, 1).u(3, 0).ue(0).u(2, 0)  # loop filter across slices
    pps.u(1, 1)  # stop bit

    delta = max(qp - INTRA_OFFSET, 0) - 26
    header = BitWriter().u(2, 0b10).ue(0, 2)  # first slice of the picture, intra
    header.ue(2 * delta - 1 if delta > 0 else -2 * delta)
    header.u(1, 1).u(1, 1)  # loop filter across slices; stop bit
    return (
        BitWriter().ue7(len(tools)).bytes()
        + tools
        + bytes([NalType.PPS << 1, 1])
        + escape(pps.bytes())
        + START_CODE
        + bytes([NalType.IDR_N_LP << 1, 1])
        + escape(header.bytes())
    )


def split_file(data: bytes) -> tuple[Header, bytes]:
    """The checked header of a BPG file, and its image data (`hevc_header_and_data`).

    Raises:
        BPGError: the file is not a BPG file, is truncated, of an unsupported kind, or too large.
    """
    bits = BitReader(data[:32])
    if len(data) < 4 or bits.u(32) != MAGIC:
        raise BPGError("not a BPG file: it does not start with the bytes 42 50 47 fb")
    pixel_format, alpha1, depth = bits.u(3), bits.u(1), bits.u(4)
    colour_space, extension, alpha2 = bits.u(4), bits.u(1), bits.u(1)
    limited_range, animation = bits.u(1), bits.u(1)
    if alpha1 or alpha2:
        raise BPGError("the BPG file has an alpha or CMYK plane; only three colours are supported")
    if animation:
        raise BPGError("the BPG file is an animation; only single images are supported")
    if depth:
        raise BPGError(f"the BPG file has {8 + depth} bits per sample; only 8 bits are supported")
    if pixel_format > 5 or colour_space > 4 or (pixel_format == 0 and colour_space):
        raise BPGError("the BPG file has a pixel format or colour space that BPG does not define")
    width, height, length = bits.ue7(), bits.ue7(), bits.ue7()
    check_size(height, width)
    extension_length = bits.ue7() if extension else 0
    start = bits.position // 8 + extension_length
    end = start + length if length else len(data)  # length 0: up to the end of the file
    if end > len(data):
        raise BPGError(
            f"the BPG file is truncated: it has {len(data)} of {end} bytes; get a whole copy"
        )
    return Header(height, width, pixel_format, colour_space, bool(limited_range)), data[start:end]
