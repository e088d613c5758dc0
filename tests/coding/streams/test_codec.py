"""The codec: images to streams and back."""

import numpy as np
import pytest
import torch

from italic.coding.base_codes.base import BPG, NoBase
from italic.coding.exact import make_exact
from italic.coding.streams.codec import Codec, Coded
from italic.coding.streams.entropy import StreamError, Writer
from italic.coding.streams.pixel_sources import writing
from italic.models import step_network
from italic.models.lattice import LatticeNetwork
from italic.models.likelihood import GaussianMixture, Mixture
from italic.models.network import Network
from italic.models.rnan import RNAN
from italic.schedule import Schedule
from tests.coding.streams.smooth import images


@pytest.mark.parametrize("base", [NoBase(), BPG(qp=40)])
@pytest.mark.parametrize("steps", [1, 2, 7, 64])
def test_what_is_decoded_is_what_was_encoded(network: RNAN, base: object, steps: int) -> None:
    originals = images(3, 16, 16)
    codec = Codec(network, base, Schedule(), steps)  # type: ignore[arg-type]
    assert np.array_equal(codec.decode(codec.encode(originals), 16, 16), originals)


@pytest.mark.parametrize("base", [NoBase(), BPG(qp=40)])
def test_bits_are_those_of_the_coded_images(network: RNAN, base: object) -> None:
    originals = images(3, 16, 16)
    codec = Codec(network, base, Schedule(), 8)  # type: ignore[arg-type]
    pixels, bases = codec.bits(originals)
    assert pixels.shape == (3, 16, 16)
    for coded, total in zip(codec.encode(originals), pixels.sum((1, 2)) + bases, strict=True):
        assert abs(coded.bits - total) < 8.1
    with pytest.raises(ValueError, match="expected images as uint8"):
        codec.bits(originals[0])


@pytest.mark.parametrize("base", [NoBase(), BPG(qp=40)])
def test_a_sample_is_what_random_bytes_decode_to(network: RNAN, base: object) -> None:
    codec = Codec(network, base, Schedule(), 4)  # type: ignore[arg-type]
    bases = [coded.base for coded in codec.encode(images(2, 16, 16))]
    samples, same, other = (
        codec.sample(bases, 16, 16, np.random.default_rng(seed)) for seed in (0, 0, 1)
    )
    assert np.array_equal(samples, same) and not np.array_equal(samples, other)
    random = np.random.default_rng(0)
    for stream in _streams(codec, bases, samples):  # encoding gives the original bytes
        drawn = random.bytes(3 * 3 * 16 * 16 + 8)
        assert len(stream) > 100 and stream[:-8] == drawn[: len(stream) - 8]


def _streams(codec: Codec, bases: list[bytes], pictures: np.ndarray) -> list[bytes]:
    """Streams of images that are coded with the base codes of other images."""
    writers = [Writer() for _ in bases]
    decoded = np.stack([codec.base.decode(base, 16, 16) for base in bases])
    codec._fill(decoded, writing(writers, pictures))
    return [writer.finish() for writer in writers]


@pytest.mark.parametrize("base", [NoBase(), BPG(qp=40)])
def test_after_some_steps_their_pixels_are_exact(network: RNAN, base: object) -> None:
    originals = images(2, 16, 16)
    codec = Codec(network, base, Schedule(), 4)  # type: ignore[arg-type]
    coded = codec.encode(originals)
    partition = codec.partition(16, 16)
    order, bounds = partition.order, partition.bounds
    for done in range(5):
        known = codec.decode(coded, 16, 16, None, done).reshape(2, 256, 3)
        same = (known == originals.reshape(2, 256, 3)).all(-1)[:, order]
        assert same[:, : bounds[done]].all()
        assert done == 4 or same[:, bounds[done] :].mean() < 0.5
    nothing = codec.expect([item.base for item in coded], 16, 16)
    assert np.array_equal(codec.decode(coded, 16, 16, None, 0), nothing)
    with pytest.raises(ValueError, match="from 0 to 4 steps done; got 5"):
        codec.decode(coded, 16, 16, None, 5)


def test_later_parts_of_the_stream_are_not_read(network: RNAN) -> None:
    codec = Codec(network, NoBase(), Schedule(), 4)
    (coded,) = codec.encode(images(1, 16, 16))
    half = len(coded.stream) // 2
    foreign = Coded(coded.base, coded.stream[:half] + bytes(half))
    early, late = (
        [codec.decode([item], 16, 16, None, done) for item in (coded, foreign)] for done in (2, 3)
    )
    assert np.array_equal(*early) and not np.array_equal(*late)


def test_what_is_expected_of_a_step_is_the_mean_of_its_mixtures(network: RNAN) -> None:
    codec = Codec(network, NoBase(), Schedule(), 3)
    (coded,) = codec.encode(images(1, 16, 16))

    def check(step: int, due: np.ndarray, mixture: Mixture, pixels: torch.Tensor) -> None:
        assert step == 0 or torch.equal(pixels, mixture.expectation().round())

    codec.decode([coded], 16, 16, check, 1)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 3), (13, 24)])
def test_any_size_in_as_many_steps_as_pixels(network: RNAN, size: tuple[int, int]) -> None:
    originals = images(1, *size)
    codec = Codec(network, NoBase(), Schedule(sizes="equal"), size[0] * size[1])
    assert np.array_equal(codec.decode(codec.encode(originals), *size), originals)


@pytest.mark.parametrize("remembered", [0, 2**20])
def test_pictures_of_several_tiles_come_back(
    network: RNAN, remembered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_network, "TILE", 16)
    monkeypatch.setattr(step_network, "HALO", 3)
    monkeypatch.setattr(step_network, "CACHED_PIXELS", remembered)
    originals = images(2, 33, 50)
    codec = Codec(network, NoBase(), Schedule(), 5)
    assert np.array_equal(codec.decode(codec.encode(originals), 33, 50), originals)


@pytest.mark.parametrize("order", ["normal", "raster", "uneven_1", "uneven_2", "quad"])
def test_every_order(network: RNAN, order: str) -> None:
    originals = images(2, 16, 16)
    codec = Codec(network, NoBase(), Schedule(order, "equal"), 16)
    assert np.array_equal(codec.decode(codec.encode(originals), 16, 16), originals)


def test_coded_size_keeps_to_the_estimate(network: RNAN) -> None:
    originals = images(4, 32, 32)
    estimated = np.zeros(len(originals))

    def count(step: int, due: np.ndarray, mixture: Mixture, pixels: torch.Tensor) -> None:
        estimated[:] += mixture.bits(pixels).sum((1, 2)).double().numpy()

    coded = Codec(network, NoBase(), Schedule(), 8).encode(originals, count)
    for item, estimate in zip(coded, estimated, strict=True):
        assert item.bits <= 1.005 * estimate + 64


def test_segments_hold_what_the_decoder_reads_in_their_steps(network: RNAN) -> None:
    codec = Codec(network, NoBase(), Schedule(), 5)
    image = np.random.default_rng(0).integers(0, 256, (12, 9, 3), np.uint8)
    (coded,) = codec.encode(image[None])
    base, segments = codec.encode_segments(image)
    assert b"".join(segments) == coded.stream and len(segments) == 5
    for done in range(5):
        head = b"".join(segments[:done])
        whole, part = (
            codec.decode([Coded(base, stream)], 12, 9, steps_done=done)
            for stream in (coded.stream, head)
        )
        assert np.array_equal(whole, part)
        assert codec.steps_held(Coded(base, head), 12, 9) == done
        assert codec.steps_held(Coded(base, head[:-1]), 12, 9) == max(0, done - 1)


def test_damaged_streams_never_pass_for_whole(network: RNAN) -> None:
    originals = images(1, 8, 8)
    codec = Codec(network, NoBase(), Schedule(), 4)
    (coded,) = codec.encode(originals)
    errors = 0
    for length in range(len(coded.stream)):
        try:
            decoded = codec.decode([Coded(b"", coded.stream[:length])], 8, 8)
        except StreamError:
            errors += 1
            continue
        # A change of the last bytes may be undetected; files have a checksum of the pixels.
        assert (decoded != originals).any()
    assert errors >= len(coded.stream) - 8


def test_images_of_another_kind_are_refused(network: RNAN) -> None:
    with pytest.raises(ValueError, match="expected images as uint8"):
        Codec(network, NoBase(), Schedule(), 4).encode(np.zeros((1, 8, 8, 3), np.float32))
    with pytest.raises(ValueError, match="from 1 to the number of pixels"):
        Codec(network, NoBase(), Schedule(), 65).encode(images(1, 8, 8))


@pytest.mark.parametrize("kind", [RNAN, LatticeNetwork])
def test_a_gaussian_mixture_is_coded_in_the_bits_of_its_likelihood(kind: type) -> None:
    torch.manual_seed(0)
    settings = {"recurrent": False} | {"groups": 1} if kind is RNAN else {"blocks": 1}
    network = kind(features=8, components=3, likelihood="gaussian", **settings).eval()
    originals = images(2, 16, 16)
    estimated = np.zeros(len(originals))

    def count(step: int, due: np.ndarray, mixture: Mixture, pixels: torch.Tensor) -> None:
        assert type(mixture) is GaussianMixture
        estimated[:] += mixture.bits(pixels).sum((1, 2)).double().numpy()

    exact = make_exact(network, lambda floating: _encode(floating, originals))
    codec = Codec(exact, NoBase(), Schedule(), 4)
    coded = codec.encode(originals, count)
    assert np.array_equal(codec.decode(coded, 16, 16), originals)
    assert [item.bits for item in coded] == pytest.approx(estimated, rel=0.005, abs=64)


def _encode(network: Network, originals: np.ndarray) -> None:
    Codec(network, NoBase(), Schedule(), 4).encode(originals)
