from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from italic.coding.base_codes import hevc_headers
from italic.coding.base_codes.hevc_headers import BitReader, BitWriter, BPGError, CodingTools


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1))
def test_numbers_round_trip(values: list[int]) -> None:
    codes = BitWriter().ue(*values).bytes()
    reader = BitReader(codes)
    assert [reader.ue() for _ in values] == values
    for value in values:
        code = BitWriter().ue7(value).bytes()
        assert BitReader(code).ue7() == value


@pytest.mark.parametrize(
    ("code", "value"), [("08", 8), ("841e", 542), ("acbe17", 728855), ("00", 0), ("8100", 128)]
)
def test_ue7_examples_of_the_specification(code: str, value: int) -> None:
    assert BitWriter().ue7(value).bytes() == bytes.fromhex(code)
    assert BitReader(bytes.fromhex(code)).ue7() == value


@pytest.mark.parametrize("code", ["8008", "ffffffff7f", "ffffffffff01", "81", ""])
def test_malformed_ue7(code: str) -> None:
    with pytest.raises(BPGError):
        BitReader(bytes.fromhex(code)).ue7()


def test_ue_codes_of_the_standard() -> None:
    """H.265, table 9-2: 0 is 1, 1 is 010, 2 is 011, 3 is 00100."""
    assert BitWriter().ue(0, 1, 2, 3).bytes() == bytes([0b10100110, 0b01000000])
    with pytest.raises(BPGError):
        BitReader(bytes(9)).ue()


def test_se_codes_of_the_standard() -> None:
    """H.265, table 9-3."""
    reader = BitReader(BitWriter().ue(*range(7)).bytes())
    assert [reader.se() for _ in range(7)] == [0, 1, -1, 2, -2, 3, -3]


@given(st.lists(st.sampled_from([0, 0, 0, 1, 2, 3, 4, 255]), max_size=40).map(bytes))
def test_emulation_prevention(payload: bytes) -> None:
    escaped = hevc_headers.escape(payload)
    assert hevc_headers.unescape(escaped) == payload
    assert not any(bytes([0, 0, x]) in escaped for x in (0, 1, 2))


def test_split_nals() -> None:
    units = [b"\x44\x01\x80", b"\x28\x01\x00\x03\x80"]
    for code in (b"\x00\x00\x01", b"\x00\x00\x00\x01"):
        assert hevc_headers.split_nals(code.join([b"", *units])) == units
        assert hevc_headers.split_nals(code.join(units)) == units
    assert hevc_headers.split_nals(b"") == []


@pytest.mark.parametrize(
    "tools",
    [
        CodingTools((0, 2, 0, 3, 1), 1, None, 0),
        CodingTools((1, 0, 0, 2, 0), 0, (7, 7, 0, 2, 1), 1),
        CodingTools((0, 3, 0, 3, 4), 1, None, 1, (0, 1, 0, 0, 0, 1, 0, 1, 0)),
    ],
)
def test_coding_tools_round_trip(tools: CodingTools) -> None:
    assert CodingTools.from_bpg(tools.to_bpg()) == tools
    tools.check_decodable()


def test_sps_round_trip() -> None:
    tools = CodingTools((0, 2, 0, 3, 1), 1, None, 1)
    for chroma_format in range(4):
        stream = tools.to_parameter_sets(200, 104, chroma_format)
        _, sps = hevc_headers.split_nals(stream)
        assert hevc_headers.nal_type(sps) == hevc_headers.NalType.SPS
        assert CodingTools.from_sps(sps) == tools


def test_tools_that_cannot_be_decoded_exactly_are_refused() -> None:
    for flag in (2, 4, 8):
        flags = tuple(int(i == flag) for i in range(9))
        with pytest.raises(BPGError, match="bpgdec"):
            CodingTools((0, 2, 0, 3, 1), 1, None, 0, flags).check_decodable()


def test_too_large_blocks_are_refused() -> None:
    for sizes in [(0, 4, 0, 3, 1), (4, 0, 0, 3, 1), (0, 2, 0, 4, 1), (0, 2, 0, 3, 5)]:
        with pytest.raises(BPGError, match="block"):
            CodingTools.from_bpg(CodingTools(sizes, 0, None, 0).to_bpg())


def test_a_picture_is_one_pps_and_one_slice() -> None:
    pps, picture, more = b"\x44\x01\xc1", b"\x28\x01\xaf", b"\x28\x01\x2f"
    message = b"\x4e\x01\x05"
    assert hevc_headers.picture_units([pps, picture]) == [pps, picture]
    assert hevc_headers.picture_units([message, pps, message, picture]) == [pps, picture]
    for units in ([pps], [picture], [picture, pps], [pps, pps, picture], [pps, picture, more]):
        with pytest.raises(BPGError, match="one intra picture of one slice"):
            hevc_headers.picture_units(units)
    for units in ([pps, picture, picture], [pps, more], []):
        with pytest.raises(BPGError, match="one intra picture of one slice"):
            hevc_headers.picture_units(units)
    for unit in (b"\x42\x01\x01", b"\x40\x01\x01", b"\x02\x01\xaf", b"\xa8\x01\xaf", b"\x28\x01"):
        with pytest.raises(BPGError):
            hevc_headers.picture_units([pps, unit])


def test_slice_flag_is_set_once() -> None:
    slice_nal = bytes.fromhex("2801afa0e5805d")
    expected = bytes.fromhex("2801afe0e5805d")
    assert hevc_headers.set_slice_loop_filter_flag(slice_nal, sao=1) == expected
    assert hevc_headers.set_slice_loop_filter_flag(expected, sao=1) == expected
    with pytest.raises(BPGError):
        hevc_headers.set_slice_loop_filter_flag(bytes.fromhex("2801af00e5805d"), sao=1)
