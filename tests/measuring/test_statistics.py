import math

import numpy as np
import pytest
import torch

from italic.measuring.statistics import bootstrapped_bpsp, milliseconds, one_thread


def test_an_interval_covers_the_true_rate_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(60):
        bits = random.gamma(4, 1000, 200)  # the mean is 4000
        interval = bootstrapped_bpsp(bits, np.full(200, 1000))
        assert interval.low < interval.estimate < interval.high
        covered += interval.low < 4 < interval.high
    assert 52 <= covered <= 60


def test_large_images_count_more() -> None:
    bits, subpixels = np.array([100, 4000]), np.array([100, 1000])
    interval = bootstrapped_bpsp(bits, subpixels)
    assert interval.estimate == pytest.approx(4100 / 1100)
    assert interval == bootstrapped_bpsp(bits, subpixels)
    assert (interval.low, interval.high) == (1, 4)


def test_one_image_has_no_interval() -> None:
    low, estimate, high = bootstrapped_bpsp(np.array([300]), np.array([100]))
    assert estimate == 3 and math.isnan(low) and math.isnan(high)


def test_times_are_medians_and_quartiles() -> None:
    assert milliseconds([0.004, 0.001, 0.002, 0.003, 0.1]) == (2, 3, 4)
    assert all(map(math.isnan, milliseconds([])))


def test_the_number_of_threads_comes_back() -> None:
    threads = torch.get_num_threads()
    with pytest.raises(ValueError), one_thread():
        assert torch.get_num_threads() == 1
        raise ValueError
    assert torch.get_num_threads() == threads
