from pathlib import Path

import numpy as np
import pytest

from italic.datamodules.images import CIFAR10, DataError
from tests.datamodules.images.drawn import as_set, picture, save


def test_class_folders_split_without_overlap_whatever_the_names(class_folders: Path) -> None:
    source = CIFAR10(str(class_folders), validation=6)
    train, validation, test = (source.load(split) for split in ("train", "validation", "test"))
    assert (len(train), len(validation), len(test)) == (14, 6, 10)
    assert not as_set(train) & as_set(validation)
    assert as_set(train) | as_set(validation) == as_set(np.stack([picture(i) for i in range(20)]))
    for path in (class_folders / "train").glob("*/*.png"):
        path.rename(path.with_name(f"x{hash(path) % 1000}-{path.name}"))
    assert np.array_equal(CIFAR10(str(class_folders), validation=6).load("train"), train)


def test_validation_leaves_images_for_training(class_folders: Path) -> None:
    for split in ("train", "validation"):
        with pytest.raises(DataError, match="20 validation images would take all 20 of"):
            CIFAR10(str(class_folders), validation=20).load(split)  # type: ignore[arg-type]


def test_decoded_images_are_kept_until_the_folder_changes(
    class_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = str(class_folders / "cache")
    images = CIFAR10(str(class_folders), cache_dir=cache).load("test")
    with monkeypatch.context() as patch:
        patch.setattr("italic.datamodules.images.cifar10.read_rgb", None)
        assert np.array_equal(CIFAR10(str(class_folders), cache_dir=cache).load("test"), images)
    save(class_folders / "test" / "class0" / "new.png", picture(99))
    assert len(CIFAR10(str(class_folders), cache_dir=cache).load("test")) == 11


def test_the_key_of_torchvisions_files_needs_them(tmp_path: Path) -> None:
    source = CIFAR10(str(tmp_path), download=False)
    with pytest.raises(DataError, match="cifar-10-batches-py"):
        source.key("train")
    (tmp_path / "cifar-10-batches-py").mkdir()
    assert source.key("train") != source.key("validation")


def test_missing_cifar10_names_the_ways_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)cifar-10-batches-py.*class folders.*=photos"):
        CIFAR10(str(tmp_path), download=False).load("train")
