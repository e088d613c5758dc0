from pathlib import Path

from italic.datamodules.images import CIFAR10, Folder, Photos
from tests.datamodules.images.drawn import picture, save


def test_keys_follow_settings_splits_and_files(class_folders: Path) -> None:
    sources = (
        lambda **settings: CIFAR10(str(class_folders), **settings),
        lambda **settings: Folder(str(class_folders), **settings),
        Photos,
    )
    for source, setting in zip(sources, ({"seed": 1}, {"size": 16}, {"size": 16}), strict=True):
        keys = [source().key(split) for split in ("train", "test")]
        assert keys == [source().key(split) for split in ("train", "test")]
        assert len({*keys, source(**setting).key("test")}) == 3
    before = [source().key("test") for source in sources]
    assert before[1] == Folder(str(class_folders), crop=32).key("test")  # the same images
    for path in class_folders.glob("test/*/*.png"):
        save(path, picture(99))
    assert [source().key("test") == old for source, old in zip(sources, before, strict=True)] == [
        *(False, False, True)
    ]
