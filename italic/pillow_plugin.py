"""Makes Pillow read and write .italic files: `import italic.pillow_plugin` is enough.

    Image.open("a.italic")                                   reads the header; `load` decodes
    image.save("a.italic", steps=16, model="cifar10")        as `italic.compress` has it

Modes 1, L, LA, P, RGB, RGBA and I;16; Pillow has none for the other kinds of pictures, which
`italic decompress` turns into PNG files. Profile, transparency, texts and the like are what Pillow
makes of those of PNG files, in both directions.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageFile, PngImagePlugin

from italic.coding import pictures
from italic.coding.container import (
    HEAD,
    MAGIC,
    MAX_AREA,
    Colour,
    FileFormatError,
    kind_of,
    peek,
    unpack,
)

FORMAT = "ITALIC"
MODES = {
    Colour.BILEVEL: "1",
    Colour.GRAY: "L",
    Colour.GRAY_ALPHA: "LA",
    Colour.PALETTE: "P",
    Colour.RGB: "RGB",
    Colour.RGB_ALPHA: "RGBA",
    Colour.GRAY16: "I;16",
}


class ItalicImageFile(ImageFile.ImageFile):
    """A file of one picture, decoded when its pixels are first asked for.

    Opening one raises a ValueError if Pillow has no mode for the picture, or if it is an archive;
    loading one if it is damaged or its model not installed.
    """

    format = FORMAT
    format_description = "ITALIC lossless image compression"

    def _open(self) -> None:
        assert self.fp is not None
        head = self.fp.read(HEAD)
        if kind_of(head) == "archive":
            raise ValueError(
                "the file is an archive of pictures: unpack it with 'italic decompress' first"
            )
        height, width, colour = peek(head)
        if colour not in MODES:
            raise ValueError(
                f"Pillow has no mode for a picture of kind {colour.name}: decode the file with "
                "'italic decompress' or italic.decompress"
            )
        self._size, self._mode = (width, height), MODES[colour]
        self._coded = True

    def load(self) -> Image.core.PixelAccess | None:
        """Decode the picture."""
        if self._coded:
            assert self.fp is not None
            self.fp.seek(0)
            image = _decode(self.fp.read())
            if (image.mode, image.size) != (self.mode, self.size):
                raise FileFormatError("the file changed while it was open")
            self.im, self.palette = image.im, image.palette
            self.info.update(image.info)
            self._coded = False
            if self._exclusive_fp:
                self.fp.close()
            self.fp = None
        return Image.Image.load(self)


def _accept(prefix: bytes) -> bool:
    return prefix.startswith(MAGIC)


def _decode(data: bytes) -> Image.Image:
    from italic.compression import decompress_records, model_for

    # Of any size: Pillow has its own limit, and has applied it.
    model_hash, record = unpack(data, MAX_AREA)
    (picture,) = decompress_records([record], model_for(model_hash, [record]))
    image = PngImagePlugin.PngImageFile(io.BytesIO(pictures.to_png(picture)))
    image.load()
    return image


def _save(image: Image.Image, file: IO[bytes], filename: str | bytes) -> None:
    from italic.coding.model import load_model
    from italic.compression import compress_pictures, to_file

    if image.mode not in MODES.values():
        raise OSError(f"cannot write mode {image.mode} as {FORMAT}: convert the image first")
    options: dict[str, Any] = dict(image.encoderinfo)
    name: str | Path | None = options.pop("model", None)
    steps: int | None = options.pop("steps", None)
    png = io.BytesIO()
    image.save(png, "PNG", **options)
    picture = pictures.read(png.getvalue())
    samples = np.asarray(image) * np.uint8(255) if image.mode == "1" else np.asarray(image)
    if not np.array_equal(picture.samples, samples):
        raise OSError("cannot write the image: it uses colours that its palette does not have")
    model = load_model(name)
    (record,) = compress_pictures([picture], model, steps)
    file.write(to_file(record, model))


Image.register_open(FORMAT, ItalicImageFile, _accept)
Image.register_save(FORMAT, _save)
Image.register_extension(FORMAT, ".italic")
Image.register_mime(FORMAT, "image/x-italic")
