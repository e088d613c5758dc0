"""BPG files (specification 0.9.8): encoded by x265, decoded by FFmpeg's hevc decoder.

PyAV does the HEVC coding. The BPG container is in `bpg_file`, the colour conversion in
`bpg_colour`, and the parameter sets that BPG leaves out are in `hevc_headers`. Decoding is exact:
it gives the same pixels as libbpg 0.9.8 (bpgdec) on every machine. FFmpeg does not detect damage,
so stored files need a checksum.
"""

from __future__ import annotations

import os
import re
import weakref
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from italic.coding.base_codes import bpg_colour
from italic.coding.base_codes.bpg_file import (
    CHROMA_FORMATS,
    COSITED,
    INTRA_OFFSET,
    WHOLE,
    Header,
    check_settings,
    check_size,
    file_header,
    min_block,
    pack,
    picture_size,
    split_file,
    unpack,
)
from italic.coding.base_codes.hevc_headers import (
    START_CODE,
    BitReader,
    BitWriter,
    BPGError,
    CodingTools,
    NalType,
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
    "WHOLE",
    "BPGError",
    "Encoder",
    "check_image",
    "check_settings",
    "chroma",
    "decode",
    "encode",
    "encoder_version",
    "pack",
    "picture_size",
    "quality",
    "unpack",
]

FFMPEG_FORMATS = ("gray", "yuv420p", "yuv422p", "yuv444p")  # by chroma_format_idc

# Each image is coded independently and without delay: intra only, one thread, no lookahead. The
# other options save bytes at equal PSNR, 3 % at 32×32 and qp 49: psycho-visual optimisation lowers
# the PSNR, and on small images deeper transform trees and sample adaptive offsets cost more bits
# than they save.
X265_PRESET = "veryslow"
X265_PARAMETERS = (
    "keyint=1:bframes=0:rc-lookahead=0:frame-threads=1:pools=none:wpp=0:log-level=none"
    ":psy-rd=0:psy-rdoq=0:tu-intra-depth=1:sao=0"
)


def encode(image: np.ndarray, qp: int, chroma: str = "420") -> bytes:
    """Encode an image as a .bpg file, 8 bit, full range BT.601.

    `image` is uint8 (H, W, 3), from 1×1 pixels up to sides of `MAX_SIDE` and `MAX_SAMPLES` pixels.
    `qp` is 0..51, as in libbpg with x265 (bpgenc -q). `chroma` is "420", "422" or "444". Other
    arguments raise a BPGError. The bytes depend on `encoder_version()`.
    """
    check_image(image)
    return Encoder(image.shape[0], image.shape[1], qp, chroma).encode(image)


def encode_lossless(image: np.ndarray) -> bytes:
    """Encode an image, uint8 (H, W, 3), losslessly as a .bpg file, RGB 4:4:4.

    Limits and errors are those of `encode`.
    """
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


def quality(data: bytes) -> int:
    """The `qp` of `encode` that gives the quality of a .bpg file, read from its slice header.

    BPGError as in `decode`, or if the file states no qp or may be lossless.
    """
    header, tools, hevc = _open(data)
    return slice_qp(split_nals(hevc), tools.sao, header.chroma_format) + INTRA_OFFSET


def chroma(data: bytes) -> str:
    """The chroma format of a .bpg file: grey, 420, 422 or 444; BPGError if it is damaged."""
    header, _, _ = _open(data)
    return ("grey", "420", "422", "444")[header.chroma_format]


@cache
def encoder_version() -> str:
    """Versions of PyAV and x265, which determine the bytes of `encode`: "av X, x265 Y".

    Raises:
        RuntimeError: x265 does not state its version.
    """
    import av

    context = _open_x265(16, 16, 32, "yuv420p", info=True)
    packets = context.encode(av.VideoFrame(16, 16, "yuv420p"))
    found = re.search(rb"x265 \(build \d+\) - ([^:\s]+)", b"".join(bytes(p) for p in packets))
    if found is None:
        raise RuntimeError("the version of x265 is missing in its output; use av 18")
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
        check_size(height, width)
        check_settings(qp, chroma)
        self.height, self.width, self.qp, self.chroma = height, width, qp, chroma
        self.lossless = lossless
        self._block = min_block(height, width)
        self._context: Any = None
        self._count = 0

    def __reduce__(self) -> tuple[type[Encoder], tuple[int, int, int, str, bool]]:
        return Encoder, (self.height, self.width, self.qp, self.chroma, self.lossless)

    def encode(self, image: np.ndarray) -> bytes:
        """Encode an image, uint8 (H, W, 3) of this encoder's size, as a .bpg file.

        Raises:
            BPGError: the image has another type, shape or size.
            RuntimeError: x265 writes another stream than expected.
        """
        check_image(image)
        if image.shape[:2] != (self.height, self.width):
            raise BPGError(
                f"this encoder expects images of {self.height}×{self.width} pixels, "
                f"not {image.shape[0]}×{image.shape[1]}"
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
            raise RuntimeError("x265 did not return one packet for one image; use av 18")
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
            raise RuntimeError("x265 wrote NAL units other than one intra slice; use av 18")
        tools = CodingTools.from_sps(nals[1])
        header = tools.to_bpg()
        body = BitWriter().ue7(len(header)).bytes() + header
        body += nals[2] + START_CODE + set_slice_loop_filter_flag(nals[3], tools.sao)
        pixel_format = CHROMA_FORMATS[self.chroma]
        colour_space = bpg_colour.RGB if self.lossless else 0  # 0 is BT.601
        return file_header(self.height, self.width, pixel_format, colour_space, len(body)) + body


_open_encoders: weakref.WeakSet[Encoder] = weakref.WeakSet()


def _close_encoders() -> None:
    for encoder in list(_open_encoders):
        encoder.close()
    _open_encoders.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_close_encoders)


def check_image(image: np.ndarray) -> None:
    """BPGError unless `image` is uint8 (H, W, 3)."""
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
            return
        found = f"{image.dtype} of shape {image.shape}"
    else:
        found = type(image).__name__
    raise BPGError(f"an image to encode must be a uint8 array of shape (H, W, 3), not {found}")


def _open(data: bytes) -> tuple[Header, CodingTools, bytes]:
    """The header of a BPG file, its coding tools, and its NAL units without VPS and SPS."""
    header, hevc = split_file(data)
    bits = BitReader(hevc[:5])
    end = bits.ue7() + bits.position // 8
    if end > len(hevc):
        raise BPGError("the BPG file's HEVC header has a wrong length: the file is damaged")
    return header, CodingTools.from_bpg(hevc[bits.position // 8 : end]), hevc[end:]


def _decode_hevc(header: Header, tools: CodingTools, data: bytes) -> list[np.ndarray]:
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
        raise BPGError(f"the image in the BPG file can't be decoded: {error}") from error
    if len(frames) != 1:
        raise BPGError("the image in the BPG file can't be decoded: the file is damaged")
    frame = frames[0]
    form = FFMPEG_FORMATS[header.chroma_format]
    if (frame.height, frame.width, frame.format.name) != (height, width, form):
        raise BPGError("the image in the BPG file has another size or format than its header")
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
