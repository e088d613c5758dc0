"""BPG files (specification 0.9.8): encoded by x265, decoded by FFmpeg's hevc decoder.

PyAV does the HEVC coding. The BPG container is in this module, the colour conversion in
`bpg_colour`, and the parameter sets that BPG leaves out in `hevc_headers`. Decoding is exact: it
gives the same pixels as libbpg 0.9.8 (bpgdec) on every machine. FFmpeg does not detect damage, so
stored files need a checksum.
"""

from __future__ import annotations

import os
import re
import weakref
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from italic.coding.base_codes import bpg_colour
from italic.coding.base_codes.hevc_headers import (
    START_CODE,
    BitReader,
    BitWriter,
    BPGError,
    CodingTools,
    NalType,
    escape,
    nal_type,
    picture_units,
    set_slice_loop_filter_flag,
    slice_qp,
    split_nals,
)

# PyAV loads FFmpeg's libraries, which takes 0.1 s: functions that code HEVC import it.
if TYPE_CHECKING:
    import av

__all__ = [
    "BPGError",
    "Encoder",
    "check_image",
    "check_settings",
    "decode",
    "encode",
    "encoder_version",
    "pack",
    "picture_size",
    "quality",
    "unpack",
]

MAGIC = int.from_bytes(b"BPG\xfb", "big")
CHROMA_FORMATS = {"420": 1, "422": 2, "444": 3}  # chroma_format_idc, and `pixel_format` of BPG
COSITED = {4: 1, 5: 2}  # `pixel_format` with MPEG-2 chroma positions, to chroma_format_idc
FFMPEG_FORMATS = ("gray", "yuv420p", "yuv422p", "yuv444p")  # by chroma_format_idc

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

# Each image is coded independently and without delay: intra only, one thread, no lookahead. The
# other options save bytes at equal PSNR, 3 % at 32×32 and qp 49: psycho-visual optimisation lowers
# the PSNR, and on small images deeper transform trees and sample adaptive offsets cost more bits
# than they save.
X265_PRESET = "veryslow"
X265_PARAMETERS = (
    "keyint=1:bframes=0:rc-lookahead=0:frame-threads=1:pools=none:wpp=0:log-level=none"
    ":psy-rd=0:psy-rdoq=0:tu-intra-depth=1:sao=0"
)


@dataclass(frozen=True)
class _Header:
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


def encode(image: np.ndarray, qp: int, chroma: str = "420") -> bytes:
    """Encode an image as a .bpg file, 8 bit, full range BT.601.

    `image` is uint8 (H, W, 3), from 1×1 pixels up to sides of `MAX_SIDE` and `MAX_SAMPLES` pixels.
    `qp` is 0..51, as in libbpg with x265 (bpgenc -q). `chroma` is "420", "422" or "444". Other
    arguments raise a BPGError. The bytes depend on `encoder_version()`.
    """
    check_image(image)
    return Encoder(image.shape[0], image.shape[1], qp, chroma).encode(image)


def encode_lossless(image: np.ndarray) -> bytes:
    """Encode an image losslessly as a .bpg file, RGB 4:4:4; limits and errors as for `encode`."""
    check_image(image)
    return Encoder(image.shape[0], image.shape[1], 0, "444", lossless=True).encode(image)


def decode(data: bytes) -> np.ndarray:
    """Decode a .bpg file to the same pixels as libbpg, uint8 (H, W, 3).

    Supported are 8 bit images: grey, 4:2:0, 4:2:2 (JPEG and MPEG-2 chroma positions), 4:4:4; YCbCr
    (BT.601, 709, 2020), RGB, YCgCo; full and limited range; lossless, except implicit RDPCM.
    Raises BPGError for other files, and for a file that is truncated or can't be parsed. Other
    damage is not detected and gives wrong pixels.
    """
    header, tools, hevc = _open(data)
    luma, *chroma = _decode_hevc(header, tools, hevc)
    if not chroma:  # grey is converted as three equal colours
        gray = np.repeat(luma[..., None], 3, axis=2)
        return bpg_colour.to_rgb(gray, bpg_colour.RGB, header.limited_range)
    planes = np.empty((header.height, header.width, 3), np.uint8)
    planes[..., 0] = luma
    if header.chroma_format == 3:
        planes[..., 1:] = np.stack(chroma, axis=2)
    else:
        planes[..., 1:] = bpg_colour.upsample(
            np.stack(chroma),
            header.height,
            header.width,
            vertically=header.chroma_format == 1,
            cosited=header.pixel_format in COSITED,
        ).transpose(1, 2, 0)
    return bpg_colour.to_rgb(planes, header.colour_space, header.limited_range)


def picture_size(data: bytes) -> tuple[int, int]:
    """Height and width of a .bpg file in pixels, read from its header; BPGError as in `decode`."""
    header, _ = _split_file(data)
    return header.height, header.width


def quality(data: bytes) -> int:
    """The `qp` of `encode` that gives the quality of a .bpg file, read from its slice header.

    BPGError as in `decode`, or if the file states no qp or may be lossless.
    """
    header, tools, hevc = _open(data)
    return slice_qp(split_nals(hevc), tools.sao, header.chroma_format) + INTRA_OFFSET


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
        raise BPGError("The packed BPG file is empty: it is damaged; get a whole copy.")
    if data[0] == WHOLE:
        return data[1:]
    body = implied + data
    return _file_header(height, width, CHROMA_FORMATS[chroma], 0, len(body)) + body


@cache
def encoder_version() -> str:
    """Versions of PyAV and x265, which determine the bytes of `encode`: "av X, x265 Y"."""
    import av

    context = _open_x265(16, 16, 32, "yuv420p", info=True)
    packets = context.encode(av.VideoFrame(16, 16, "yuv420p"))
    found = re.search(rb"x265 \(build \d+\) - ([^:\s]+)", b"".join(bytes(p) for p in packets))
    if found is None:
        raise RuntimeError("The version of x265 is missing in its output; use av 18.")
    return f"av {av.__version__}, x265 {found[1].decode()}"


class Encoder:
    """An x265 encoder that stays open for many images of one size; faster than `encode`.

    It gives the same bytes. Arguments are those of `encode`; BPGError if they are out of range.
    `lossless` codes RGB losslessly at any qp; chroma must then be "444". The encoder is opened for
    the first image and closed before the process forks, since its threads do not survive a fork.
    An Encoder can therefore be used in forked processes, and it can be pickled. It must not be
    shared between threads.
    """

    def __init__(
        self, height: int, width: int, qp: int, chroma: str = "420", lossless: bool = False
    ) -> None:
        _check_size(height, width)
        check_settings(qp, chroma)
        self.height, self.width, self.qp, self.chroma = height, width, qp, chroma
        self.lossless = lossless
        self._block = _min_block(height, width)
        self._context: Any = None
        self._count = 0

    def __reduce__(self) -> tuple[type[Encoder], tuple[int, int, int, str, bool]]:
        return Encoder, (self.height, self.width, self.qp, self.chroma, self.lossless)

    def encode(self, image: np.ndarray) -> bytes:
        """Encode an image, uint8 (H, W, 3) of this encoder's size, as a .bpg file."""
        check_image(image)
        if image.shape[:2] != (self.height, self.width):
            raise BPGError(
                f"This encoder expects images of {self.height}×{self.width} pixels, "
                f"not {image.shape[0]}×{image.shape[1]}."
            )
        frame = self._frame(image)
        if self._context is None:
            self._context = _open_x265(
                frame.height,
                frame.width,
                self.qp,
                frame.format.name,
                min_block=self._block,
                lossless=self.lossless,
            )
            _open_encoders.add(self)
        frame.pts = self._count
        self._count += 1
        packets = self._context.encode(frame)
        if len(packets) != 1:
            raise RuntimeError("x265 did not return one packet for one image; use av 18.")
        return self._file(bytes(packets[0]))

    def close(self) -> None:
        """Close x265; the next image opens it again."""
        self._context = None

    def _frame(self, image: np.ndarray) -> av.VideoFrame:
        """The planes of an image, padded to whole blocks by repeating the edges."""
        import av

        # The order of RGB planes is green, blue, red.
        pixels = image[..., [1, 2, 0]] if self.lossless else bpg_colour.rgb_to_ycc(image)
        luma, chroma = pixels[..., 0], pixels[..., 1:].transpose(2, 0, 1)
        if self.chroma != "444":
            chroma = bpg_colour.downsample(chroma, vertically=self.chroma == "420")
        frame = av.VideoFrame(
            -(-self.width // self._block) * self._block,
            -(-self.height // self._block) * self._block,
            FFMPEG_FORMATS[CHROMA_FORMATS[self.chroma]],
        )
        for target, plane in zip(frame.planes, (luma, *chroma), strict=True):
            padded = _pixels(target)
            fill = [(0, to - of) for to, of in zip(padded.shape, plane.shape, strict=True)]
            padded[:] = np.pad(plane, fill, mode="edge")
        return frame

    def _file(self, stream: bytes) -> bytes:
        """Convert an x265 stream to a BPG file: a short header replaces its VPS and SPS."""
        nals = split_nals(stream)
        expected = [NalType.VPS, NalType.SPS, NalType.PPS, NalType.IDR_N_LP]
        if [nal_type(nal) for nal in nals] != expected:
            raise RuntimeError("x265 wrote NAL units other than one intra slice; use av 18.")
        tools = CodingTools.from_sps(nals[1])
        header = tools.to_bpg()
        body = BitWriter().ue7(len(header)).bytes() + header
        body += nals[2] + START_CODE + set_slice_loop_filter_flag(nals[3], tools.sao)
        pixel_format = CHROMA_FORMATS[self.chroma]
        colour_space = bpg_colour.RGB if self.lossless else 0  # 0 is BT.601
        return _file_header(self.height, self.width, pixel_format, colour_space, len(body)) + body


_open_encoders: weakref.WeakSet[Encoder] = weakref.WeakSet()


def _close_encoders() -> None:
    for encoder in list(_open_encoders):
        encoder.close()
    _open_encoders.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_close_encoders)


def check_settings(qp: int, chroma: str) -> None:
    """BPGError unless `qp` is an integer 0..51 and `chroma` "420", "422" or "444"."""
    if isinstance(qp, bool) or not isinstance(qp, int) or not 0 <= qp <= 51:
        raise BPGError(f"The qp of BPG is an integer from 0 to 51, not {qp!r}.")
    if chroma not in CHROMA_FORMATS:
        raise BPGError(f'The chroma of BPG is "420", "422" or "444", not {chroma!r}.')


def check_image(image: np.ndarray) -> None:
    """BPGError unless `image` is uint8 (H, W, 3)."""
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
            return
        found = f"{image.dtype} of shape {image.shape}"
    else:
        found = type(image).__name__
    raise BPGError(f"An image to encode must be a uint8 array of shape (H, W, 3), not {found}.")


def _check_size(height: int, width: int) -> None:
    if height < 1 or width < 1:
        raise BPGError(f"A BPG image must have at least one pixel, not {height}×{width}.")
    # Coded sides are rounded up to multiples of the block size, which is 64 pixels at most.
    if max(height, width) > MAX_SIDE or (height + 63) * (width + 63) > MAX_SAMPLES:
        raise BPGError(
            f"An image of {height}×{width} pixels is too large: expected sides of at most "
            f"{MAX_SIDE}, and at most {MAX_SAMPLES} pixels if 63 are added to each side; cut it "
            "into parts."
        )


def _min_block(height: int, width: int) -> int:
    """Side in pixels of the blocks to which `encode` pads: x265 needs sides of at least 16."""
    return 16 if min(height, width) <= 8 else 8


def _file_header(
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
    _check_size(height, width)
    check_settings(qp, chroma)
    block = _min_block(height, width)
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


def _split_file(data: bytes) -> tuple[_Header, bytes]:
    """The checked header of a BPG file, and its image data (`hevc_header_and_data`)."""
    bits = BitReader(data[:32])
    if len(data) < 4 or bits.u(32) != MAGIC:
        raise BPGError("Not a BPG file: it does not start with the bytes 42 50 47 fb.")
    pixel_format, alpha1, depth = bits.u(3), bits.u(1), bits.u(4)
    colour_space, extension, alpha2 = bits.u(4), bits.u(1), bits.u(1)
    limited_range, animation = bits.u(1), bits.u(1)
    if alpha1 or alpha2:
        raise BPGError("The BPG file has an alpha or CMYK plane; only three colours are supported.")
    if animation:
        raise BPGError("The BPG file is an animation; only single images are supported.")
    if depth:
        raise BPGError(f"The BPG file has {8 + depth} bits per sample; only 8 bits are supported.")
    if pixel_format > 5 or colour_space > 4 or (pixel_format == 0 and colour_space):
        raise BPGError("The BPG file has a pixel format or colour space that BPG does not define.")
    width, height, length = bits.ue7(), bits.ue7(), bits.ue7()
    _check_size(height, width)
    extension_length = bits.ue7() if extension else 0
    start = bits.position // 8 + extension_length
    end = start + length if length else len(data)  # length 0: up to the end of the file
    if end > len(data):
        raise BPGError(
            f"The BPG file is truncated: it has {len(data)} of {end} bytes; get a whole copy."
        )
    return _Header(height, width, pixel_format, colour_space, bool(limited_range)), data[start:end]


def _open(data: bytes) -> tuple[_Header, CodingTools, bytes]:
    """The header of a BPG file, its coding tools, and its NAL units without VPS and SPS."""
    header, hevc = _split_file(data)
    bits = BitReader(hevc[:5])
    end = bits.ue7() + bits.position // 8
    if end > len(hevc):
        raise BPGError("The BPG file's HEVC header has a wrong length: the file is damaged.")
    return header, CodingTools.from_bpg(hevc[bits.position // 8 : end]), hevc[end:]


def _decode_hevc(header: _Header, tools: CodingTools, data: bytes) -> list[np.ndarray]:
    """The one or three planes of the image, uint8, without the padding to whole blocks."""
    import av

    tools.check_decodable()
    nals = picture_units(split_nals(data))
    height = -(-header.height // tools.min_block) * tools.min_block
    width = -(-header.width // tools.min_block) * tools.min_block
    stream = tools.to_parameter_sets(width, height, header.chroma_format)
    stream += b"".join(START_CODE + nal for nal in nals)
    context = av.CodecContext.create("hevc", "r")
    context.thread_count = 1
    # FFmpeg reads beyond the end of a damaged slice. A packet that FFmpeg allocates is padded with
    # zeros; one that wraps Python's bytes would expose the memory behind them.
    packet = av.Packet(len(stream))
    packet.update(stream)
    try:
        frames = [*context.decode(packet), *context.decode(None)]
    except av.FFmpegError as error:
        raise BPGError(f"The image in the BPG file cannot be decoded: {error}.") from error
    if len(frames) != 1:
        raise BPGError("The image in the BPG file cannot be decoded: the file is damaged.")
    frame = frames[0]
    form = FFMPEG_FORMATS[header.chroma_format]
    if (frame.height, frame.width, frame.format.name) != (height, width, form):
        raise BPGError("The image in the BPG file has another size or format than its header.")
    halved = (header.chroma_format == 1, header.chroma_format in (1, 2))
    chroma = tuple(
        (side + half) >> half
        for side, half in zip((header.height, header.width), halved, strict=True)
    )
    sizes = [(header.height, header.width), chroma, chroma]
    return [
        _pixels(plane)[:rows, :columns]
        for plane, (rows, columns) in zip(frame.planes, sizes, strict=False)
    ]


def _pixels(plane: Any) -> np.ndarray:
    """The samples of an FFmpeg plane, uint8 (H, W); a view without copying."""
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    return rows[: plane.height, : plane.width]


def _open_x265(
    height: int,
    width: int,
    qp: int,
    form: str,
    min_block: int = 8,
    lossless: bool = False,
    info: bool = False,
) -> Any:
    """Open x265 for images of one size, whose sides are multiples of `min_block`.

    With `info` the stream states the version of x265.
    """
    import av

    context: Any = av.CodecContext.create("libx265", "w")
    context.width, context.height, context.pix_fmt = width, height, form
    context.time_base, context.framerate = Fraction(1, 25), Fraction(25)
    parameters = f"{X265_PARAMETERS}:qp={qp}:info={int(info)}:lossless={int(lossless)}"
    if min_block == 16:
        parameters += ":min-cu-size=16:ctu=16"
    context.options = {"preset": X265_PRESET, "x265-params": parameters}
    context.open()
    return context
