import math
from typing import Any

import numpy as np
import pytest
from torch import nn

from italic.errors import LARGEST, MAX_LENGTH, SettingError, check_range, check_whole, reason


def test_what_pytorch_says_is_a_short_line() -> None:
    network = nn.Sequential(*(nn.Linear(1, 1) for _ in range(100)))
    try:
        network.load_state_dict({})
    except RuntimeError as error:
        assert len(str(error)) > 1000
        assert len(reason(error)) <= MAX_LENGTH and "\n" not in reason(error)
    assert reason(ValueError("a\n b")) == "a b"


@pytest.mark.parametrize(
    "value, least, most, said",
    [
        (0, 1, LARGEST, "width must be 1 or more; got 0"),
        (5, 1, 4, "width must be from 1 to 4; got 5"),
        (math.nan, 0, LARGEST, "width must be 0 or more; got nan"),
        (math.inf, 0, LARGEST, "width must be a finite number; got inf"),
        (-math.inf, 0, LARGEST, "width must be 0 or more; got -inf"),
        (10**20, 1, LARGEST, f"width must be from 1 to {2**53}; got {10**20}"),
        ("4", 1, 4, "width must be a number; got '4'"),
        (True, 0, 4, "width must be a number; got True"),
        ([1], 0, 4, "width must be a number; got [1]"),
    ],
)
def test_a_setting_out_of_range_is_named(value: Any, least: int, most: int, said: str) -> None:
    with pytest.raises(SettingError) as error:
        check_range("width", value, least, most)
    assert str(error.value) == said
    for inside in (least, most, None):
        check_range("width", inside, least, most)


@pytest.mark.parametrize("value", [None, 2.5, "2", True, -1, 5])
def test_a_whole_number_is_expected(value: Any) -> None:
    with pytest.raises(SettingError, match="width must be"):
        check_whole("width", value, 0, 4)
    check_whole("width", np.int64(4), 0, 4)
