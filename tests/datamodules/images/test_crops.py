import itertools
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from italic.coding.base_codes.base import BPG, BaseCode, Ladder, NoBase
from italic.datamodules.images import Folder, Photos
from italic.datamodules.images.crops import RandomCrops, centre_crops, mirror_at_random
from italic.datamodules.images.files import DataError
from italic.datamodules.images.sources import crops_of, whole_of
from italic.datamodules.pairs import BaseCodes
from italic.datamodules.partitions import TrainingPartitions
from italic.datamodules.splits import Splits
from italic.datamodules.step_masks import StepMasks
from italic.schedule import Schedule

SIZES = {"train": [(20, 30), (40, 24), (8, 50)], "validation": [(33, 17)], "test": [(16, 16)]}


@pytest.fixture
def photographs(tmp_path: Path) -> Folder:
    """Images whose pixels hold the image's number, the row and the column."""
    for split, sizes in SIZES.items():
        (tmp_path / split).mkdir()
        for number, size in enumerate(sizes):
            pixels = np.stack([np.full(size, number), *np.indices(size)], -1)
            image = Image.fromarray(pixels.astype(np.uint8))
            image.save(tmp_path / split / f"{number}.webp", lossless=True, exact=True)
    return Folder(str(tmp_path), crop=16, cache_dir=str(tmp_path / "cache"))


def unprepared(
    images: Splits, bases: Sequence[BaseCode] = (NoBase(),), **options: Any
) -> StepMasks:
    return StepMasks(images, BaseCodes(bases), TrainingPartitions(Schedule(), 4), **options)


def module(images: Splits, **options: Any) -> StepMasks:
    data = unprepared(images, batch_size=5, **options)
    data.prepare_data()
    data.setup("fit")
    return data


def test_whole_images_are_those_of_the_files_and_kept(photographs: Folder) -> None:
    images = photographs.whole("train")
    assert [image.shape[:2] for image in images] == SIZES["train"]
    assert all(np.array_equal(image[..., 2], np.indices(image.shape[:2])[1]) for image in images)
    (kept,) = photographs.cache_dir.glob("*/pixels")
    before = kept.stat().st_mtime_ns
    again = photographs.whole("train")
    assert all(map(np.array_equal, images, again)) and kept.stat().st_mtime_ns == before


def test_what_cannot_be_kept_says_where(photographs: Folder) -> None:
    photographs.cache_dir.write_bytes(b"")
    with pytest.raises(DataError, match=r"can't be written to .* datamodule\.images\.cache_dir"):
        photographs.whole("train")


def test_fixed_crops_lie_side_by_side(photographs: Folder) -> None:
    crops = photographs.load("validation")
    assert crops.shape == (2, 16, 16, 3)
    assert sorted(map(tuple, crops[:, 0, 0])) == [(0, 0, 0), (0, 16, 0)]
    assert np.array_equal(photographs.load("validation"), crops)
    assert len(photographs.load("train")) == 1 + 2  # one image is smaller than a tile
    photographs.crop = 64
    with pytest.raises(DataError, match=r"smaller datamodule\.images\.crop"):
        photographs.load("train")


def test_every_crop_of_every_image_is_as_likely(photographs: Folder) -> None:
    torch.manual_seed(0)
    crops = photographs.random_crops()
    assert len(crops) == (20 * 30 + 40 * 24) // 256
    drawn = crops.__getitems__(range(50_000))
    number, y, x = (drawn[:, channel, 0, 0].long() for channel in range(3))
    for image, (height, width) in enumerate(SIZES["train"][:2]):
        counts = torch.zeros(height - 15, width - 15)
        mine = number == image
        counts.index_put_((y[mine], x[mine]), torch.tensor(1.0), accumulate=True)
        expected = 50_000 / (5 * 15 + 25 * 9)
        assert ((counts - expected).abs() < 6 * expected**0.5).all()
    rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    assert torch.equal(drawn[:, 1].long(), y[:, None, None] + rows)
    assert torch.equal(drawn[:, 2].long(), x[:, None, None] + columns)


def test_reduced_crops_cover_up_to_twice_the_side() -> None:
    torch.manual_seed(0)
    ramp = np.repeat(np.arange(200, dtype=np.uint8)[None, :, None], 100, 0).repeat(3, 2)
    drawn = RandomCrops([ramp], 16, reduced=0.5).__getitems__(range(2000)).long()
    spans = drawn[:, 0, 8, 12] - drawn[:, 0, 8, 4]  # 8 columns, or up to 16 in downscaled crops
    assert spans.min() == 8 and spans.max() in (15, 16)
    assert (spans == 8).double().mean().item() == pytest.approx(0.5 + 0.5 / 16, abs=0.05)
    small = RandomCrops([ramp[:17]], 16, reduced=1.0).__getitems__(range(10))
    assert small.shape == (10, 3, 16, 16)  # no larger than the image


def test_a_fraction_of_the_crops_is_altered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("italic.datamodules.images.alterations.altered", lambda crop: crop + 100)
    torch.manual_seed(0)
    black = np.zeros((40, 40, 3), np.uint8)
    crops = RandomCrops([black], 16, altered=0.25).__getitems__(range(2000))
    assert set(crops.unique().tolist()) == {0, 100}
    assert (crops[:, 0, 0, 0] == 100).double().mean().item() == pytest.approx(0.25, abs=0.04)


def test_eight_symmetries_are_as_likely() -> None:
    torch.manual_seed(0)
    picture = torch.arange(9).reshape(3, 3)
    batch = picture.expand(8000, 1, 3, 3).clone()
    same = batch.clone()
    mirror_at_random((batch, same), transpose=True)
    assert torch.equal(batch, same)
    kinds, counts = batch.flatten(1).unique(dim=0, return_counts=True)
    turns = [torch.rot90(flipped, k) for flipped in (picture, picture.T) for k in range(4)]
    assert {tuple(k) for k in kinds.tolist()} == {tuple(turn.flatten().tolist()) for turn in turns}
    assert counts.min() > 850
    batch = picture.expand(100, 1, 3, 3).clone()
    mirror_at_random((batch,))
    assert len(batch.flatten(1).unique(dim=0)) == 2


def batches(data: StepMasks) -> torch.Tensor:
    return torch.cat([batch.image for batch in data.train_dataloader()])


def test_training_crops_follow_the_seed_the_epoch_and_the_process(photographs: Folder) -> None:
    seen = []
    for process in (0, 0, 1):
        torch.manual_seed(0)
        data = module(Splits(photographs))
        trainer: Any = SimpleNamespace(world_size=2, global_rank=process)
        data.trainer = trainer
        data.setup("fit")
        seen.append([batches(data), batches(data)])
    assert all(map(torch.equal, seen[0], seen[1]))
    for one, other in itertools.combinations([*seen[0], *seen[2]], 2):
        assert not torch.equal(one, other)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_crops_without_base_codes(photographs: Folder, workers: int) -> None:
    data = module(Splits(photographs), workers=workers)
    batch = next(iter(data.train_dataloader()))
    assert batch.image.shape == batch.base.shape == (5, 3, 16, 16)
    assert batch.image.dtype == batch.base.dtype == torch.uint8
    assert (batch.base == 128).all() and not batch.base_bits.any() and not batch.rung.any()
    assert batch.step_of_pixel.shape == (5, 16, 16)
    (whole,) = data.val_dataloader()
    expected = torch.from_numpy(photographs.load("validation")).permute(0, 3, 1, 2)
    assert torch.equal(whole.image, expected)


def test_an_epoch_fills_a_batch_and_a_limit_leaves_the_first_images(photographs: Folder) -> None:
    data = module(Splits(photographs, train_limit=1))
    images = batches(data)
    assert len(images) == 5 and not images[:, 0].any()


def test_overfitting_trains_on_fixed_crops(photographs: Folder) -> None:
    data = module(Splits(photographs, 2, 2, validate_on_train=True), flip=False)
    (trained,), (validated,) = data.train_dataloader(), data.val_dataloader()
    same = {tuple(image.flatten().tolist()) for image in trained.image}
    assert same == {tuple(image.flatten().tolist()) for image in validated.image}


@pytest.mark.parametrize("bases", [[BPG(40)], Ladder([None, 40]).rungs])
def test_crops_with_base_codes_are_refused_before_anything_is_read(bases: list[Any]) -> None:
    with pytest.raises(ValueError, match="expected base=none"):
        unprepared(Splits(Folder("nowhere", crop=16)), bases)
    unprepared(Splits(Folder("nowhere")), bases)


def test_crops_do_not_stay_on_the_device() -> None:
    with pytest.raises(ValueError, match=r"datamodule\.resident=false"):
        unprepared(Splits(Folder("nowhere", crop=16)), resident=True)


def test_only_square_images_are_transposed() -> None:
    data = unprepared(Splits(Folder("nowhere")), transpose=True)
    data._sampler(np.zeros((1, 8, 8, 3)))
    with pytest.raises(ValueError, match="16×8 pixels can't be transposed"):
        data._sampler(np.zeros((1, 8, 16, 3)))


def test_sources_without_crops_have_none() -> None:
    assert crops_of(Folder("nowhere")) is None
    source: Any = SimpleNamespace(load=None)
    assert crops_of(source) is None


def test_centre_crops_are_as_large_as_the_smallest_image_allows() -> None:
    images = [np.full((9, 30, 3), 1, np.uint8), np.arange(3 * 100 * 81, dtype=np.uint8)]
    images[1] = images[1].reshape(100, 81, 3)
    crops = centre_crops(images)
    assert crops.shape == (2, 9, 9, 3) and np.array_equal(crops[1], images[1][45:54, 36:45])
    assert centre_crops(images[1:]).shape == (1, 64, 64, 3)


def test_whole_images_have_the_names_of_their_files(tmp_path: Path) -> None:
    for name, side in (("b.png", 8), ("sub/a.png", 9)):
        for split in ("train", "validation", "test"):
            path = tmp_path / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (side, 8)).save(path)
    source = Folder(str(tmp_path), cache_dir=str(tmp_path / "cache"))
    assert len(source.names("all")) == len(source.whole("all")) == 6
    assert source.names("test") == ["test/b.png", "test/sub/a.png"]
    assert [image.shape[1] for image in source.whole("test")] == [8, 9]
    assert whole_of(source) is source and whole_of(Photos()) is None
