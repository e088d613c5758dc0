import math

import pytest
from torch import nn

from italic.errors import MAX_LENGTH, SettingError, check_range, reason


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
        (0, 1, math.inf, "width must be 1 or more; got 0"),
        (5, 1, 4, "width must be from 1 to 4; got 5"),
        (math.nan, 0, math.inf, "width must be 0 or more; got nan"),
        (math.inf, 0, math.inf, "width must be a finite number; got inf"),
        (-math.inf, 0, math.inf, "width must be 0 or more; got -inf"),
    ],
)
def test_a_setting_out_of_range_is_named(value: float, least: int, most: float, said: str) -> None:
    with pytest.raises(SettingError) as error:
        check_range("width", value, least, most)
    assert str(error.value) == said
    for inside in (least, min(most, 10**400), None):
        check_range("width", inside, least, most)
