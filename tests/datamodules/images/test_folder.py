from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from italic.datamodules.images import DataError, Folder
from tests.datamodules.images.drawn import as_set, picture, save


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
        (np.zeros((32, 32), np.uint16), "grey16"),
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
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file' is not a folder.*datamodule\.images\.path="):
        Folder(str(tmp_path / "file")).load("train")
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


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop": 0},
        {"reduced": 0.5},
        {"crop": 8, "reduced": 2.0},
        {"altered": 0.5},
        {"crop": 8, "altered": -1},
        {"seed": -1},
    ],
)
def test_crops_out_of_range_are_refused(tmp_path: Path, wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"expected a crop size|must be"):
        Folder(str(tmp_path), **wrong)  # type: ignore[arg-type]
