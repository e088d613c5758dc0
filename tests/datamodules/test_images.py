from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from italic.datamodules.image_files import DataError
from italic.datamodules.images import CIFAR10, Folder, Photos


@pytest.fixture(autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Image caches are written to another folder."""
    monkeypatch.chdir(tmp_path_factory.mktemp("caches"))


def save(path: Path, array: np.ndarray, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array, mode).save(path)


def picture(seed: int, height: int = 32, width: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def as_set(images: np.ndarray) -> set[bytes]:
    return {image.tobytes() for image in images}


@pytest.fixture
def class_folders(tmp_path: Path) -> Path:
    for index in range(30):
        part = "train" if index < 20 else "test"
        save(tmp_path / part / f"class{index % 3}" / f"{index}.png", picture(index))
    return tmp_path


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


def test_decoded_images_are_kept_until_the_folder_changes(class_folders: Path) -> None:
    CIFAR10(str(class_folders)).load("test")
    kept = class_folders / ".test.npz"
    assert kept.is_file()
    kept.write_bytes(kept.read_bytes()[:100])  # damaged: read again
    assert len(CIFAR10(str(class_folders)).load("test")) == 10
    save(class_folders / "test" / "class0" / "new.png", picture(99))
    assert len(CIFAR10(str(class_folders)).load("test")) == 11


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


def test_the_key_of_torchvisions_files_needs_them(tmp_path: Path) -> None:
    source = CIFAR10(str(tmp_path), download=False)
    with pytest.raises(DataError, match="cifar-10-batches-py"):
        source.key("train")
    (tmp_path / "cifar-10-batches-py").mkdir()
    assert source.key("train") != source.key("validation")


def test_missing_cifar10_names_the_ways_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)cifar-10-batches-py.*class folders.*=photos"):
        CIFAR10(str(tmp_path), download=False).load("train")


def test_photographs_of_the_splits_differ() -> None:
    source = Photos(32)
    splits = [source.load(split) for split in ("train", "validation", "test")]
    assert [len(images) for images in splits] == [9094, 260, 126]
    assert all(images.shape[1:] == (32, 32, 3) for images in splits)
    sets = [as_set(images) for images in splits]
    assert not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])
    assert np.array_equal(Photos(32).load("test"), splits[2])


def test_photographs_may_be_resized_first() -> None:
    # The cat's 300×451 pixels become 75×113: 2×3 tiles.
    assert Photos(32, scale=0.25).load("test").shape == (6, 32, 32, 3)
    assert len(
        Photos(32, scale=0.125).load("train")
    )  # some photographs at half size are smaller than a tile
    for size, scale in ((65, 0.25), (8, 0.01), (8, 2)):
        with pytest.raises(ValueError, match="must be from 1"):
            Photos(size, scale)


def test_folder_splits_files_and_cuts_tiles(tmp_path: Path) -> None:
    for index in range(10):
        save(tmp_path / "deep" / f"{index}.png", picture(index, 40, 70))
    source = Folder(str(tmp_path), size=32, validation=0.3, test=0.3)
    splits = [source.load(split) for split in ("train", "validation", "test")]
    assert all(len(images) % 2 == 0 for images in splits)  # two tiles per file
    assert sum(map(len, splits)) == len(as_set(np.concatenate(splits))) == 20


def test_a_file_that_is_added_moves_no_other(tmp_path: Path) -> None:
    def splits() -> list[set[bytes]]:
        source = Folder(str(tmp_path), validation=0.3, test=0.3)
        return [as_set(source.load(split)) for split in ("train", "validation", "test")]

    for index in range(20):
        save(tmp_path / "deep" / f"{index}.png", picture(index))
    before = splits()
    save(tmp_path / "another.png", picture(99))
    after = splits()
    assert all(old <= new for old, new in zip(before, after, strict=True))
    assert set.union(*after) - set.union(*before) == {picture(99).tobytes()}


def test_folder_takes_named_splits(tmp_path: Path) -> None:
    for index, split in enumerate(("train", "val", "test")):
        save(tmp_path / split / "a.png", picture(index))
        loaded = Folder(str(tmp_path)).load("validation" if split == "val" else split)  # type: ignore[arg-type]
        assert np.array_equal(loaded, picture(index)[None])


def test_named_splits_are_all_there_or_none(tmp_path: Path) -> None:
    for index in range(3):
        save(tmp_path / f"{index}.png", picture(index))
    save(tmp_path / "test" / "a.png", picture(3))
    assert len(Folder(str(tmp_path)).load("test")) == 1
    with pytest.raises(DataError, match="folder test but none for train"):
        Folder(str(tmp_path)).load("train")


def test_gray_and_palette_are_converted_without_loss(tmp_path: Path) -> None:
    gray = picture(0)[..., 0]
    save(tmp_path / "train" / "gray.png", gray)
    assert np.array_equal(Folder(str(tmp_path)).load("train")[0], np.repeat(gray[..., None], 3, 2))

    image = Image.fromarray(picture(1)).quantize(16)
    image.save(tmp_path / "train" / "gray.png")
    assert np.array_equal(Folder(str(tmp_path)).load("train")[0], np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    "array, kind",
    [
        (np.zeros((32, 32, 4), np.uint8), "rgb alpha"),
        (np.zeros((32, 32), np.uint16), "gray16"),
        (np.zeros((32, 32, 3), np.uint16), "rgb16"),  # Pillow would convert them to 8 bits
    ],
)
def test_alpha_and_16_bit_are_refused_by_name(tmp_path: Path, array: np.ndarray, kind: str) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "odd.png").write_bytes(imagecodecs.png_encode(array))
    with pytest.raises(DataError, match=rf"odd\.png' is of kind {kind}:"):
        Folder(str(tmp_path)).load("train")


def test_the_sources_of_a_splits_images_are_read(tmp_path: Path) -> None:
    for name in ("train/a.png", "train/b.png", "train/c.png", "validation/d.png", "test/e.png"):
        save(tmp_path / name, picture(len(name)))
    source = Folder(str(tmp_path))
    assert source.credits("train") == []
    (tmp_path / "sources.csv").write_text(
        "file,width,source,author,licence\n"
        "train/a.png,32,shop,Ann,CC0\ntrain/b.png,32,shop,Ann,CC0\n"
        'train/c.png,32,shop,"Bo, Co",CC BY\nvalidation/d.png,32,shop,Di,CC0\n'
    )
    assert source.credits("train") == [
        {"source": "shop", "author": "Ann", "licence": "CC0"},
        {"source": "shop", "author": "Bo, Co", "licence": "CC BY"},
    ]
    (tmp_path / "sources.csv").write_text("file,author,licence\ntrain/a.png,Ann,CC0\n")
    with pytest.raises(DataError, match="expected the columns file, source, author, licence"):
        source.credits("train")


def test_hidden_files_and_folders_named_like_pictures_are_passed_over(tmp_path: Path) -> None:
    for name in ("train/._0.png", "train/.trash/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"no picture")
    save(tmp_path / "train" / "set.png" / "0.png", picture(0))
    assert np.array_equal(Folder(str(tmp_path)).load("train"), picture(0)[None])


def test_folders_that_cannot_serve_say_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        Folder(str(tmp_path / "none")).load("train")
    with pytest.raises(DataError, match="no images in"):
        Folder(str(tmp_path)).load("train")
    save(tmp_path / "a.png", picture(0, 8, 8))
    with pytest.raises(DataError, match=r"none of the 1 images .* is left for"):
        [Folder(str(tmp_path), size=8).load(split) for split in ("train", "validation", "test")]
    for index in range(20):
        save(tmp_path / f"{index}.png", picture(0, 8, 8))
    with pytest.raises(DataError, match=r"smaller datamodule\.images\.size"):
        Folder(str(tmp_path)).load("train")
    (tmp_path / "d.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="can't be read as an image"):
        [Folder(str(tmp_path), size=8).load(split) for split in ("train", "validation", "test")]


@pytest.mark.parametrize("wrong", [{"crop": 0}, {"reduced": 0.5}, {"crop": 8, "reduced": 2.0}])
def test_crops_out_of_range_are_refused(tmp_path: Path, wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"expected a crop size|must be"):
        Folder(str(tmp_path), **wrong)  # type: ignore[arg-type]
