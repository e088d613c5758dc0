from torch import nn

from italic.errors import MAX_LENGTH, reason


def test_what_pytorch_says_is_a_short_line() -> None:
    network = nn.Sequential(*(nn.Linear(1, 1) for _ in range(100)))
    try:
        network.load_state_dict({})
    except RuntimeError as error:
        assert len(str(error)) > 1000
        assert len(reason(error)) <= MAX_LENGTH and "\n" not in reason(error)
    assert reason(ValueError("a\n b")) == "a b"
