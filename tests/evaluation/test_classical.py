import numpy as np

from italic.evaluation.classical import CODECS, measure


def test_every_codec_is_lossless_and_sees_structure() -> None:
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    flat = np.full((2, 32, 32, 3), 77, np.uint8)
    for name, noisy, simple in zip(
        CODECS, measure(noise, progress=False), measure(flat, progress=False), strict=True
    ):
        assert noisy.codec == simple.codec == name
        assert noisy.lossless and simple.lossless
        assert noisy.bpsp > 8 > 1 > simple.bpsp
