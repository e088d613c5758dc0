"""The HEVC parameter sets that a BPG file replaces with a short header.

ITU-T H.265 (2021), sections 7.3.1 (NAL units), 7.3.2.1-7.3.2.3 (VPS, SPS, PPS) and 9.2
(Exp-Golomb codes); BPG specification 0.9.8, `hevc_header`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum

START_CODE = b"\x00\x00\x01"


class NalType(IntEnum):
    """Values of nal_unit_type (H.265, table 7-1)."""

    BLA_W_LP = 16
    IDR_W_RADL = 19
    IDR_N_LP = 20
    CRA_NUT = 21
    VPS = 32
    SPS = 33
    PPS = 34


class BPGError(ValueError):
    """A BPG file that can't be decoded exactly, or invalid arguments of the encoder."""


class BitReader:
    """Reads bit fields, most significant bit first.

    Every method raises a BPGError at the end of the data, or if a number is malformed.
    """

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)
        self.position = 0

    def u(self, bits: int) -> int:
        """Unsigned integer of `bits` bits, u(n)."""
        if bits > self._left:
            raise BPGError("the BPG header is truncated: the file is damaged; get a whole copy")
        self._left -= bits
        self.position += bits
        return (self._value >> self._left) & ((1 << bits) - 1)

    def ue(self) -> int:
        """Unsigned 0-th order Exp-Golomb code of at most 32 bits, ue(v)."""
        zeros = 0
        while not self.u(1):
            zeros += 1
            if zeros > 32:
                raise BPGError("a BPG header field is too long: the file is damaged")
        return (1 << zeros) - 1 + self.u(zeros)

    def se(self) -> int:
        """Signed Exp-Golomb code, se(v)."""
        code = self.ue()
        return (code + 1) // 2 if code % 2 else -code // 2

    def ue7(self) -> int:
        """Unsigned integer below 2^32 in bytes of 7 bits, ue7(32) of the BPG specification."""
        value = 0
        for count in range(5):
            byte = self.u(8)
            value = value << 7 | byte & 0x7F
            if (count == 0 and byte == 0x80) or value >> 32:
                break
            if byte < 0x80:
                return value
        raise BPGError("the BPG header has a malformed number: the file is damaged")

    def skip_ue(self, count: int) -> None:
        """Skip `count` Exp-Golomb codes."""
        for _ in range(count):
            self.ue()


class BitWriter:
    """Writes bit fields, most significant bit first; every method returns the writer."""

    def __init__(self) -> None:
        self._value = 0
        self._bits = 0

    def u(self, bits: int, value: int) -> BitWriter:
        """Append an unsigned integer of `bits` bits, u(n)."""
        self._value = self._value << bits | value
        self._bits += bits
        return self

    def ue(self, *values: int) -> BitWriter:
        """Append unsigned Exp-Golomb codes, ue(v)."""
        for value in values:
            self.u(2 * (value + 1).bit_length() - 1, value + 1)
        return self

    def ue7(self, value: int) -> BitWriter:
        """Append an unsigned integer in bytes of 7 bits, ue7(32) of the BPG specification."""
        for shift in range((max(value.bit_length(), 1) - 1) // 7 * 7, 0, -7):
            self.u(8, 0x80 | value >> shift & 0x7F)
        return self.u(8, value & 0x7F)

    def bytes(self) -> bytes:
        """All bits written so far, padded with zeros to whole bytes."""
        fill = -self._bits % 8
        return (self._value << fill).to_bytes((self._bits + fill) // 8, "big")


def nal_type(nal: bytes) -> int:
    """`nal_unit_type` of a NAL unit, 0..63."""
    return nal[0] >> 1 & 63


def split_nals(stream: bytes) -> list[bytes]:
    """NAL units of a byte stream, without start codes (H.265, annex B)."""
    # Zero bytes before a start code belong to the code; a NAL unit never ends in a zero byte.
    return [nal.rstrip(b"\x00") for nal in stream.split(START_CODE) if nal.strip(b"\x00")]


def picture_units(nals: list[bytes]) -> list[bytes]:
    """Select the units of the picture, one PPS and one slice, of a stream without VPS and SPS.

    A decoder computes tables of the picture's size for each PPS, and each slice may cover the whole
    picture, so further units would make decoding far slower. No BPG encoder writes them. Units that
    do not affect the pixels, such as SEI messages, are dropped.

    Raises:
        BPGError: the picture consists of other units, or is not an intra picture.
    """
    selected = []
    for nal in nals:
        if len(nal) < 3 or nal[0] & 0x81 or nal[1] != 1:
            raise BPGError("the BPG file has a malformed NAL unit: the file is damaged")
        kind = nal_type(nal)
        # A second SPS would replace the one made from the BPG header.
        if not (NalType.BLA_W_LP <= kind <= NalType.CRA_NUT or kind >= NalType.PPS):
            raise BPGError(f"the BPG file has a NAL unit of type {kind}: the file is damaged")
        if kind <= NalType.PPS:
            selected.append(nal)
    is_slice = [nal_type(nal) <= NalType.CRA_NUT for nal in selected]
    # first_slice_segment_in_pic_flag of the slice must be set.
    if is_slice != [False, True] or not selected[1][2] >> 7:
        raise BPGError("the BPG file does not hold one intra picture of one slice")
    return selected


def unescape(nal: bytes) -> bytes:
    """Remove the emulation prevention bytes (H.265, 7.3.1.1)."""
    return nal.replace(b"\x00\x00\x03", b"\x00\x00")


def escape(rbsp: bytes) -> bytes:
    """Insert emulation prevention bytes (H.265, 7.3.1.1)."""
    return re.sub(rb"\x00\x00(?=[\x00-\x03])", b"\x00\x00\x03", rbsp)


@dataclass(frozen=True)
class CodingTools:
    """The SPS fields that a BPG file stores, named after the fields of H.265, 7.3.2.2.

    `block_sizes` are log2_min_luma_coding_block_size_minus3, the difference between log2 of the
    maximum and the minimum, log2_min_transform_block_size_minus2, the difference between log2 of
    the maximum and the minimum, and max_transform_hierarchy_depth_intra. `pcm` is None or (luma bit
    depth - 1, chroma bit depth - 1, log2 minimum size - 3, difference between log2 of the maximum
    and the minimum, loop filter disabled).
    `range_extension` is None or the nine flags of sps_range_extension.
    """

    block_sizes: tuple[int, int, int, int, int]
    sao: int
    pcm: tuple[int, int, int, int, int] | None
    strong_intra_smoothing: int
    range_extension: tuple[int, ...] | None = None

    @property
    def min_block(self) -> int:
        """Side of the smallest coding block in pixels; coded sides are multiples of it."""
        return 8 << self.block_sizes[0]

    @classmethod
    def from_bpg(cls, header: bytes) -> CodingTools:
        """Read a BPG `hevc_header` (without its length); BPGError if it can't be decoded."""
        bits = BitReader(header)
        sizes = (bits.ue(), bits.ue(), bits.ue(), bits.ue(), bits.ue())
        if sizes[0] + sizes[1] > 3 or sizes[2] + sizes[3] > 3 or sizes[4] > 4:
            raise BPGError("the BPG header sets blocks above 64 pixels: the file is damaged")
        sao = bits.u(1)
        pcm = (bits.u(4), bits.u(4), bits.ue(), bits.ue(), bits.u(1)) if bits.u(1) else None
        if pcm and max(pcm[2:4]) > 2:
            raise BPGError("the BPG header sets PCM blocks above 32 pixels: the file is damaged")
        strong_intra_smoothing = bits.u(1)
        range_extension = None
        if bits.u(1):
            has_range_extension = bits.u(1)
            if bits.u(7):
                raise BPGError("the BPG file uses an HEVC extension that BPG does not define")
            if has_range_extension:
                range_extension = tuple(bits.u(1) for _ in range(9))
        return cls(sizes, sao, pcm, strong_intra_smoothing, range_extension)

    def check_decodable(self) -> None:
        """BPGError for tools that FFmpeg's decoder does not support or interprets differently."""
        if self.range_extension is None:
            return
        _, _, implicit_rdpcm, _, extended_precision, _, _, _, bypass_alignment = (
            self.range_extension
        )
        if implicit_rdpcm:
            raise BPGError(
                "the BPG file uses implicit RDPCM, as bpgenc's JCTVC encoder does with -lossless; "
                "decode it with bpgdec"
            )
        if extended_precision or bypass_alignment:
            raise BPGError("the BPG file uses HEVC tools for high bit depths; use bpgdec")

    @classmethod
    def from_sps(cls, sps: bytes) -> CodingTools:
        """Read the SPS NAL unit of an intra-only x265 stream without sps_extension.

        Raises:
            BPGError: the SPS is truncated, or has tools that a BPG header can't describe.
        """
        bits = BitReader(unescape(sps[2:]))
        bits.u(4)
        if bits.u(3):
            raise BPGError("x265 wrote temporal sub-layers, which BPG can't hold")
        bits.u(1 + 96)  # profile, tier, level
        bits.ue()
        if bits.ue() == 3:
            bits.u(1)
        bits.skip_ue(2)  # width, height
        if bits.u(1):
            bits.skip_ue(4)  # conformance window
        bits.skip_ue(3)  # bit depths, POC length
        bits.u(1)
        bits.skip_ue(3)  # decoded picture buffer
        sizes = (bits.ue(), bits.ue(), bits.ue(), bits.ue())
        bits.ue()  # transform depth of inter blocks
        depth = bits.ue()
        if bits.u(1):
            raise BPGError("x265 wrote scaling lists, which BPG can't hold")
        bits.u(1)  # AMP; it does not affect intra pictures, nor does temporal MVP below
        sao = bits.u(1)
        if bits.u(1) or bits.ue() or bits.u(1):
            raise BPGError("x265 wrote PCM or reference pictures: expected an intra-only stream")
        bits.u(1)
        return cls((*sizes, depth), sao, None, bits.u(1))

    def to_bpg(self) -> bytes:
        """The BPG `hevc_header`, without its length."""
        bits = BitWriter().ue(*self.block_sizes)
        self._write_sao_and_pcm(bits)
        bits.u(1, self.strong_intra_smoothing)
        self._write_extension(bits)
        return bits.bytes()

    def to_parameter_sets(self, width: int, height: int, chroma_format: int) -> bytes:
        """VPS and SPS of an 8 bit picture as a byte stream, each after a start code.

        `width` and `height` are coded sides in pixels, multiples of `min_block`;
        `chroma_format` is chroma_format_idc: 0 grey, 1 4:2:0, 2 4:2:2, 3 4:4:4.
        """
        vps = BitWriter().u(4, 0).u(2, 3).u(6, 0).u(3, 0).u(1, 1).u(16, 0xFFFF)
        _write_profile(vps)
        vps.u(1, 1).ue(1, 0, 0).u(6, 0).ue(0).u(2, 0)

        sps = BitWriter().u(4, 0).u(3, 0).u(1, 1)
        _write_profile(sps)
        sps.ue(0, chroma_format)
        if chroma_format == 3:
            sps.u(1, 0)
        sps.ue(width, height).u(1, 0).ue(0, 0)
        sps.ue(4).u(1, 1).ue(1, 0, 0)  # 8 bit POC, one reference picture
        # BPG stores the transform depth of intra blocks only; inter blocks get the same value.
        sps.ue(*self.block_sizes, self.block_sizes[4]).u(1, 0).u(1, 1)
        self._write_sao_and_pcm(sps)
        sps.ue(0).u(1, 0).u(1, 1).u(1, self.strong_intra_smoothing).u(1, 0)
        self._write_extension(sps)
        return b"".join(
            START_CODE + bytes([kind << 1, 1]) + escape(bits.u(1, 1).bytes())
            for kind, bits in ((NalType.VPS, vps), (NalType.SPS, sps))
        )

    def _write_sao_and_pcm(self, bits: BitWriter) -> None:
        bits.u(1, self.sao).u(1, self.pcm is not None)
        if self.pcm:
            bits.u(4, self.pcm[0]).u(4, self.pcm[1]).ue(*self.pcm[2:4]).u(1, self.pcm[4])

    def _write_extension(self, bits: BitWriter) -> None:
        bits.u(1, self.range_extension is not None)
        if self.range_extension:
            bits.u(8, 0x80)
            for flag in self.range_extension:
                bits.u(1, flag)


def _write_profile(bits: BitWriter) -> None:
    """profile_tier_level of general_profile_idc 4, level 8.5.

    Profile 4 (format range extensions) makes decoders parse the range extension of the PPS.
    """
    bits.u(8, 4).u(32, 1 << 27).u(4, 0b1001).u(44, 0).u(8, 255)


def set_slice_loop_filter_flag(slice_nal: bytes, sao: int) -> bytes:
    """Set slice_loop_filter_across_slices_enabled_flag in an IDR slice NAL unit of x265.

    The flag has no effect in a picture of one slice, but x265 toggles it with the picture's number
    modulo 31. Setting it makes the bytes independent of the number of earlier pictures.

    Raises:
        BPGError: the slice header is another one than x265's.
    """
    bits = BitReader(slice_nal[2:])
    bits.u(2)
    bits.skip_ue(2)  # parameter set, slice type
    bits.u(2 * sao)
    bits.ue()  # slice_qp_delta; it is followed by the flag and the bits 1 0…0 that end the header
    mask = 1 << (7 - bits.position % 8)
    at = 2 + bits.position // 8
    bits.u(1)
    if bits.u(1) != 1 or bits.u(-bits.position % 8):
        raise BPGError("this version of x265 writes another slice header; use av 18")
    return slice_nal[:at] + bytes([slice_nal[at] | mask]) + slice_nal[at + 1 :]


def slice_qp(nals: list[bytes], sao: int, chroma_format: int) -> int:
    """SliceQpY of the first slice, 0..51 (H.265, 7.3.2.3 and 7.3.6.1).

    `sao` and `chroma_format` are SPS fields, since the stream has no VPS and SPS. BPGError if the
    picture is not an IDR picture, or its blocks may be lossless regardless of the qp.
    """
    pps = next((nal for nal in nals if nal_type(nal) == NalType.PPS), b"")
    first = next((nal for nal in nals if nal_type(nal) <= NalType.CRA_NUT), b"")
    if not first or nal_type(first) not in (NalType.IDR_W_RADL, NalType.IDR_N_LP):
        raise BPGError("the quality of the BPG file can't be read: expected an IDR picture")
    bits = BitReader(unescape(pps[2:]))
    bits.skip_ue(2)
    _, output_flag, extra_bits = bits.u(1), bits.u(1), bits.u(3)
    bits.u(2)
    bits.skip_ue(2)
    qp = 26 + bits.se()
    bits.u(2)
    bits.skip_ue(bits.u(1))  # depth of qp changes
    bits.skip_ue(2)  # offsets of the chroma's qp
    bits.u(3)
    if bits.u(1):
        raise BPGError("the BPG file may be lossless: there is nothing to enhance")
    bits = BitReader(unescape(first[2:]))
    bits.u(2)
    bits.ue()  # parameter set
    bits.u(extra_bits)
    bits.ue()  # slice type
    bits.u(output_flag + sao * (2 if chroma_format else 1))
    return qp + bits.se()
