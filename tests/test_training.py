import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from italic.training import WholeCheckpoints, moving_average

SAVE = """
import itertools, sys
import torch
from italic.training import WholeCheckpoints

for count in itertools.count():
    WholeCheckpoints().save_checkpoint({"weights": torch.full((10**6,), count)}, sys.argv[1])
"""


def test_the_moving_average_begins_short_and_ends_at_its_decay() -> None:
    update = moving_average(0.9)
    average, value = [torch.zeros(2)], [torch.ones(2)]
    update(average, value, 0)
    assert average[0].tolist() == pytest.approx([0.9, 0.9])  # decay 1/10
    average = [torch.zeros(2)]
    update(average, value, torch.tensor(10**6))
    assert average[0].tolist() == pytest.approx([0.1, 0.1])
    constant = [torch.full((2,), 3.0)]
    for count in range(50):
        update(constant, [torch.full((2,), 3.0)], count)
    assert constant[0].tolist() == pytest.approx([3.0, 3.0])


def test_a_checkpoint_is_whole_however_its_writer_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    for pause in (0.0, 0.007):
        path.unlink(missing_ok=True)
        process = subprocess.Popen([sys.executable, "-c", SAVE, str(path)])
        while not path.exists() and process.poll() is None:
            time.sleep(0.001)
        time.sleep(pause)
        process.kill()
        process.wait()
        weights = torch.load(path)["weights"]
        assert (weights == weights[0]).all()
    WholeCheckpoints().save_checkpoint({"weights": torch.ones(3)}, path)
    assert torch.load(path)["weights"].tolist() == [1, 1, 1]
