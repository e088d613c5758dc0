"""The configuration of a small training."""

import pytest
from omegaconf import DictConfig

from tests.test_config import composed


@pytest.fixture(scope="module")
def small() -> DictConfig:
    return composed("train", "model=rnan", "datamodule=photos", "base=none")
