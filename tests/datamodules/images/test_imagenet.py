import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from italic.coding.base_codes.base import BPG
from italic.datamodules.images.batch_files import read_batch
from italic.datamodules.images.files import DataError
from italic.datamodules.images.imagenet import DownsampledImageNet, TinyImageNet
from italic.datamodules.pairs import make_pairs

SIZE = 16


def pictures(count: int, seed: int = 0, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def batch(images: np.ndarray) -> dict[str, Any]:
    """The content of a batch file of the data set."""
    data = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return {"data": data, "labels": list(range(len(images))), "mean": data.mean(0)}


def as_set(images: np.ndarray) -> set[bytes]:
    return {image.tobytes() for image in images}


@pytest.fixture(params=["pickled", "npz"])
def data_dir(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Ten training files of 5 images and one of 12 for test."""
    names = [*(f"train_data_batch_{number}" for number in range(1, 11)), "val_data"]
    for seed, name in enumerate(names):
        content = batch(pictures(12 if name == "val_data" else 5, seed))
        if request.param == "npz":
            np.savez(tmp_path / name, **content)
        else:
            (tmp_path / name).write_bytes(pickle.dumps(content, protocol=4))
    return tmp_path


def source(data_dir: Path, **settings: Any) -> DownsampledImageNet:
    settings = {"validation": 13, **settings}
    return DownsampledImageNet(
        str(data_dir), SIZE, cache_dir=str(data_dir / "kept" / "images"), **settings
    )


def test_splits_are_the_files_images_without_overlap(data_dir: Path) -> None:
    train, validation, test = (source(data_dir).load(s) for s in ("train", "validation", "test"))  # type: ignore[arg-type]
    assert [len(images) for images in (train, validation, test)] == [37, 13, 12]
    assert all(isinstance(images, np.memmap) for images in (train, validation, test))
    everything = as_set(np.concatenate([pictures(5, seed) for seed in range(10)]))
    assert as_set(train) | as_set(validation) == everything
    assert not as_set(train) & as_set(validation)
    assert as_set(test) == as_set(pictures(12, 10))
    for seed in range(10):  # the numbers of images per file differ by at most one
        assert len(as_set(validation) & as_set(pictures(5, seed))) in (1, 2)
    assert not np.array_equal(source(data_dir, seed=1).load("validation"), validation)


def test_files_are_read_once_and_again_when_they_change(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = source(data_dir).load("train")
    with monkeypatch.context() as patch:
        patch.setattr("italic.datamodules.images.imagenet.read_batch", None)
        assert np.array_equal(source(data_dir).load("train"), first)
    (changed,) = data_dir.glob("train_data_batch_3*")
    changed.unlink()
    changed.with_suffix("").write_bytes(pickle.dumps(batch(pictures(6, 99))))
    assert len(source(data_dir).load("train")) == 38


def test_npz_files_are_preferred_to_pickles(data_dir: Path) -> None:
    (path,) = data_dir.glob("val_data*")
    if path.suffix == ".npz":
        path.with_suffix("").write_bytes(b"damaged")
    else:
        path.with_suffix("").write_bytes(pickle.dumps(batch(pictures(4, 50))))
        np.savez(data_dir / "val_data", **batch(pictures(12, 10)))
    assert as_set(source(data_dir).load("test")) == as_set(pictures(12, 10))


def test_keys_follow_settings_splits_and_files(data_dir: Path) -> None:
    splits = ("train", "validation", "test")
    keys = {source(data_dir).key(split) for split in splits}
    assert keys == {source(data_dir).key(split) for split in splits} and len(keys) == 3
    assert source(data_dir, seed=1).key("train") not in keys
    (changed,) = data_dir.glob("train_data_batch_3*")
    changed.write_bytes(changed.read_bytes())
    assert not keys & {source(data_dir).key(split) for split in ("train", "validation")}
    assert source(data_dir).key("test") in keys
    assert not (data_dir / "kept").exists()  # no image was read


def test_pairs_of_mapped_images_do_not_keep_them_twice(data_dir: Path, tmp_path: Path) -> None:
    images = source(data_dir).load("validation")[:3]
    for _ in range(2):
        pairs = make_pairs(images, BPG(qp=40), tmp_path / "pairs")
        assert np.array_equal(pairs.images, images) and pairs.bases.shape == images.shape
    (folder,) = (path for path in (tmp_path / "pairs").iterdir() if path.is_dir())
    assert sorted(path.name for path in folder.iterdir()) == ["base_bits.npy", "bases.npy"]
    again = make_pairs(np.array(images), BPG(qp=40), tmp_path / "pairs")
    assert np.array_equal(again.images, images) and np.array_equal(again.bases, pairs.bases)


def test_what_is_missing_or_wrong_is_named_and_leaves_nothing(data_dir: Path) -> None:
    with pytest.raises(DataError, match="would take all 5 of"):
        source(data_dir, validation=50).load("train")
    (last,) = data_dir.glob("train_data_batch_10*")
    whole = last.read_bytes()
    last.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"train_data_batch_10.* can't be read as a batch file"):
        source(data_dir).load("train")
    last.unlink()
    with pytest.raises(DataError, match=r"train_data_batch_10' is missing .* image-net\.org"):
        source(data_dir).load("train")
    last.with_suffix("").write_bytes(pickle.dumps(batch(pictures(5, size=8))))
    with pytest.raises(DataError, match=r"expected images of 16×16 pixels, uint8 \(N, 768\)"):
        source(data_dir).load("train")
    assert not [path for path in (data_dir / "kept" / "images").iterdir() if path.is_dir()]
    (data_dir / "kept" / "file").touch()
    elsewhere = DownsampledImageNet(
        str(data_dir), SIZE, cache_dir=str(data_dir / "kept" / "file" / "images")
    )
    with pytest.raises(DataError, match="can't be written to"):
        elsewhere.load("test")


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("order", "CF")
def test_pickles_of_every_protocol_are_read(tmp_path: Path, protocol: int, order: Any) -> None:
    content = batch(pictures(3))
    content["data"] = np.array(content["data"], order=order)
    content["labels"] = [np.int64(1), np.float32(0.5), None, True, 10**30, b"x", "ä"]
    (tmp_path / "batch").write_bytes(pickle.dumps(content, protocol))
    assert np.array_equal(read_batch(tmp_path / "batch", SIZE), batch(pictures(3))["data"])


def test_a_pickle_of_python_2_is_read(tmp_path: Path) -> None:
    """A pickle of Python 2, with bytes as strings and an old numpy."""
    data = bytes(range(192)) * 4
    (tmp_path / "batch").write_bytes(
        b"\x80\x02}q\x00U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
        b"U\x01b\x87R(K\x01K\x01M\x00\x03\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T\x00\x03\x00\x00" + data + b"tbs."
    )
    assert read_batch(tmp_path / "batch", SIZE).tobytes() == data


class Trap:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_would_run_something_is_refused(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "mark"
    for trap in (Trap(Path.touch, mark), Trap(eval, f"open({str(mark)!r}, 'w')")):
        content = {**batch(pictures(2)), "extra": trap}
        (tmp_path / "batch").write_bytes(pickle.dumps(content, protocol))
        with pytest.raises(DataError, match=r"it asks for .*, which was not run"):
            read_batch(tmp_path / "batch", SIZE)
    assert not mark.exists()


@pytest.mark.parametrize(
    "content",
    [{"labels": [1]}, [1], {"data": 3}, {"data": np.zeros((2, 768))}, {"data": np.array([None])}],
    ids=str,
)
@pytest.mark.parametrize("suffix", ["", ".npz"])
def test_other_contents_are_refused_in_a_sentence(
    tmp_path: Path, content: Any, suffix: str
) -> None:
    path = tmp_path / f"batch{suffix}"
    if suffix and isinstance(content, dict):
        np.savez(path, **content)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match="expected"):
        read_batch(path, SIZE)


def test_damaged_npz_files_are_refused_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "batch.npz"
    np.savez(path, **batch(pictures(3)))
    whole = path.read_bytes()
    middle = whole.index(batch(pictures(3))["data"].tobytes())
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for damaged in (flipped, whole[: len(whole) // 2], b"", b"no archive"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"batch\.npz' can't be read .* download it again"):
            read_batch(path, SIZE)
    np.savez(path, data=np.array([[Trap(Path.touch, tmp_path / "mark")]]))
    with pytest.raises(DataError, match="data of object"):
        read_batch(path, SIZE)
    assert not (tmp_path / "mark").exists()


def test_sizes_are_checked_before_an_array_is_read(tmp_path: Path) -> None:
    """The file says that it holds terabytes."""
    with zipfile.ZipFile(tmp_path / "batch.npz", "w") as archive:
        header = io.BytesIO()
        described = {"descr": "|u1", "fortran_order": False, "shape": (2**30, 3 * SIZE**2)}
        np.lib.format.write_array_header_1_0(header, described)
        archive.writestr("data.npy", header.getvalue())
    with pytest.raises(DataError, match=r"holds data of uint8 \(1073741824, 768\): expected"):
        read_batch(tmp_path / "batch.npz", SIZE)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny-imagenet-200"
    for index in range(9):
        images = ("train/n0/images", "val/images", "test/images")[index % 3]
        (folder / images).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pictures(1, index, 64)[0]).save(folder / images / f"{index}.JPEG")
    (folder / "train" / "n0" / "n0_boxes.txt").touch()
    grey = Image.fromarray(pictures(1, 9, 64)[0, ..., 0])  # some images of the data set are grey
    grey.save(folder / "train" / "n0" / "images" / "9.JPEG")
    return folder


def test_tiny_imagenet_has_its_own_splits(tiny: Path) -> None:
    source = TinyImageNet(str(tiny), cache_dir=str(tiny / "kept"))
    for split, name in TinyImageNet.FOLDERS.items():
        images = source.load(split)
        files = (tiny / name).rglob("*.JPEG")
        expected = as_set(np.stack([np.asarray(Image.open(path).convert("RGB")) for path in files]))
        assert images.shape == (len(expected), 64, 64, 3) and as_set(images) == expected
        assert isinstance(images, np.memmap)


def test_tiny_imagenet_says_what_is_wrong(tiny: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.*is missing.*tiny-imagenet-200\.zip"):
        TinyImageNet("nowhere").load("train")
    source = TinyImageNet(str(tiny))
    key = source.key("test")
    Image.fromarray(pictures(1, 0, 32)[0]).save(tiny / "test" / "images" / "small.JPEG")
    assert source.key("test") != key  # the new file is part of the split
    with pytest.raises(DataError, match=r"small\.JPEG' has 32×32 pixels"):
        TinyImageNet(str(tiny), cache_dir=str(tiny / "kept")).load("test")
