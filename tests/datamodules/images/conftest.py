from pathlib import Path

import pytest

from tests.datamodules.images.drawn import picture, save


@pytest.fixture(autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Image caches are written to another folder."""
    monkeypatch.chdir(tmp_path_factory.mktemp("caches"))


@pytest.fixture
def class_folders(tmp_path: Path) -> Path:
    for index in range(30):
        part = "train" if index < 20 else "test"
        save(tmp_path / part / f"class{index % 3}" / f"{index}.png", picture(index))
    return tmp_path
