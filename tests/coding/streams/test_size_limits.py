"""Encoding ends early if no stream can stay within its limit."""

import pytest

from italic.coding.base_codes.base import BPG, NoBase
from italic.coding.streams.codec import Codec, Coded
from italic.models.rnan import RNAN
from italic.schedule import Schedule
from tests.coding.streams.smooth import images


@pytest.mark.parametrize("base", [NoBase(), BPG(qp=40)])
def test_coding_ends_when_no_image_can_stay_within_its_limit(network: RNAN, base: object) -> None:
    originals = images(3, 48, 48)
    codec = Codec(network, base, Schedule(), 8)  # type: ignore[arg-type]
    coded = codec.encode(originals)
    sizes = [item.bits // 8 for item in coded]
    seen: list[int] = []

    def within(limits: list[int]) -> list[Coded | None]:
        seen.clear()
        return codec.encode_within(originals, limits, lambda step, *_: seen.append(step))

    assert within(sizes) == coded and seen[-1] == 7
    assert within([sizes[0], sizes[1] - 1, sizes[2]]) == [coded[0], None, coded[2]]
    assert within([size // 2 for size in sizes]) == [None] * 3 and seen[-1] < 6
    assert within([0] * 3) == [None] * 3


@pytest.mark.parametrize("side", [5, 12, 33])
def test_a_small_image_is_within_its_own_size_in_any_number_of_steps(
    network: RNAN, side: int
) -> None:
    originals = images(2, side, side)
    for steps in (1, 3, 16, 25):
        codec = Codec(network, NoBase(), Schedule(), steps)
        coded = codec.encode(originals)
        assert codec.encode_within(originals, [len(item.stream) for item in coded]) == coded


def test_an_image_within_its_limit_does_not_depend_on_the_other_images(network: RNAN) -> None:
    originals = images(3, 48, 48)
    originals[2, ::2] = 128  # hard after an easy beginning
    codec = Codec(network, NoBase(), Schedule(), 32)
    sizes = [len(item.stream) for item in codec.encode(originals)]
    for share in (0.5, 0.8, 0.95, 1.0):
        limits = [round(share * size) for size in sizes]
        alone = [
            codec.encode_within(image[None], [limit])[0]
            for image, limit in zip(originals, limits, strict=True)
        ]
        for unlimited in range(3):  # the batch runs to its end for one image
            some = [10**6 if i == unlimited else limits[i] for i in range(3)]
            found = codec.encode_within(originals, some)
            assert all(found[i] == alone[i] for i in range(3) if i != unlimited)
