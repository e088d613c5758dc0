import os
import sys
from collections.abc import Callable

import pytest

from italic import cli, evaluate, train
from italic.openmp import SPIN_COUNT


@pytest.mark.parametrize("main", [cli.main, train.main, evaluate.main])
@pytest.mark.parametrize("given", [{}, {"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}])
def test_threads_wait_actively_for_a_short_time_unless_the_user_chooses(
    main: Callable[[], object], given: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # so that the value before is restored
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["program", "nosuch=1"])  # is refused
    with pytest.raises(SystemExit):
        main()
    expected = given.get("GOMP_SPINCOUNT", None if given else SPIN_COUNT)
    assert os.environ.get("GOMP_SPINCOUNT") == expected
