from pathlib import Path

import pytest
from PIL import Image

from italic.datamodules.images.files import DataError, read_rgb
from tests.datamodules.images.drawn import picture


@pytest.mark.parametrize("name", ["odd.png", "odd.webp", "odd.tif"])
def test_several_frames_are_refused(tmp_path: Path, name: str) -> None:
    first, second = (Image.fromarray(picture(seed)) for seed in range(2))
    first.save(tmp_path / name, save_all=True, append_images=[second])
    with pytest.raises(DataError, match=r"odd\.\w+' can't be read.*(animated|several)"):
        read_rgb(tmp_path / name)


def test_a_transparent_colour_is_refused(tmp_path: Path) -> None:
    Image.fromarray(picture(0)).save(tmp_path / "odd.png", transparency=(1, 2, 3))
    with pytest.raises(DataError, match="is of kind rgb with transparency"):
        read_rgb(tmp_path / "odd.png")
