"""Pillow plugin for .italic files: `import italic.pillow_plugin` registers it.

    Image.open("a.italic")                                   reads the file; `load` decodes it
    image.save("a.italic", steps=16, model="cifar10")        takes options of `italic.compress`

Supported modes are 1, L, LA, P, RGB, RGBA and I;16. Pillow has no mode for the other kinds of
pictures; `italic decompress` converts those to PNG files. Metadata such as profile, transparency
and texts are represented as Pillow represents them for PNG files, for reading and for writing. They
are available before the pixels are decoded; those of a JPEG file as soon as they are.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageFile, JpegImagePlugin, PngImagePlugin

from italic.coding.files import pictures
from italic.coding.files.container import (
    JPEG_METHODS,
    MAGIC,
    MAX_AREA,
    Colour,
    FileFormatError,
    Record,
    kind_of,
    unpack,
)

FORMAT = "ITALIC"
# Maximum work of decoding a file, as for `italic.decompress`; programs may change it, as Pillow's
# Image.MAX_IMAGE_PIXELS.
MAX_WORK: float | None = None
MODES = {
    Colour.BILEVEL: "1",
    Colour.GREY: "L",
    Colour.GREY_ALPHA: "LA",
    Colour.PALETTE: "P",
    Colour.RGB: "RGB",
    Colour.RGB_ALPHA: "RGBA",
    Colour.GREY16: "I;16",
}


class ItalicImageFile(ImageFile.ImageFile):
    """A file of one picture, decoded on first access to its pixels.

    Opening raises a ValueError if the file is damaged or an archive, or if Pillow has no mode for
    the picture or can't read its metadata. Loading raises a ValueError if the model is not
    installed or the decoded pixels do not match their checksum.
    """

    format = FORMAT
    format_description = "ITALIC lossless image compression"
    _coded: tuple[bytes, Record] | None = None  # the model's hash and the picture, until decoded

    def _open(self) -> None:
        assert self.fp is not None
        head = self.fp.read(6)
        if kind_of(head) == "archive":
            raise ValueError(
                "the file is an archive of pictures: unpack it with 'italic decompress' first"
            )
        # No limit on the size here: Pillow applies its own limit next.
        self._coded = unpack(head + self.fp.read(), MAX_AREA)
        record = self._coded[1]
        if record.colour not in MODES:
            raise ValueError(
                f"Pillow has no mode for a picture of kind {record.colour.name}: decode the file "
                "with 'italic decompress' or italic.decompress"
            )
        self._size, self._mode = (record.width, record.height), MODES[record.colour]
        black = _as_png(pictures.without_samples(record.colour, record.chunks))
        self.info, self.palette = black.info, black.palette

    def load(self) -> Image.core.PixelAccess | None:
        """Decode the picture."""
        if self._coded is not None:
            image = _decode(*self._coded)
            self.im, self.palette = image.im, image.palette
            if self._coded[1].method in JPEG_METHODS:
                self.info, self._exif = image.info, None  # read before: without the file's
            self._coded = None
            if self._exclusive_fp and self.fp is not None:
                self.fp.close()
            self.fp = None
        return Image.Image.load(self)


def _accept(prefix: bytes) -> bool:
    return prefix.startswith(MAGIC)


def _decode(model_hash: bytes, record: Record) -> Image.Image:
    from italic.compressor.decompression import decompress_records, model_for

    needed = model_for(model_hash, [record])
    (picture,) = decompress_records([record], needed, max_work=MAX_WORK)
    image: Image.Image
    if picture.jpeg is not None:
        image = JpegImagePlugin.JpegImageFile(io.BytesIO(picture.jpeg))
    else:
        image = _as_png(picture)
    image.load()
    return image


def _as_png(picture: pictures.Picture) -> Image.Image:
    """The picture as a Pillow image that was read from a PNG file."""
    try:
        return PngImagePlugin.PngImageFile(io.BytesIO(pictures.to_png(picture)))
    except Exception as error:  # Pillow's parsers raise exceptions of many types
        raise FileFormatError(
            f"Pillow can't read the metadata of the picture ({error}): decode the file with "
            "'italic decompress' or italic.decompress"
        ) from error


def _save(image: Image.Image, file: IO[bytes], filename: str | bytes) -> None:
    from italic.compressor.argument_checks import whole_number
    from italic.compressor.compression import compress_each

    if image.mode not in MODES.values():
        raise OSError(f"cannot write mode {image.mode} as {FORMAT}: convert the image first")
    options: dict[str, Any] = dict(image.encoderinfo)
    name: str | Path | None = options.pop("model", None)
    steps: int | None = options.pop("steps", None)
    if steps is not None:
        steps = whole_number("steps", steps)
    png = io.BytesIO()
    image.save(png, "PNG", **options)
    picture = pictures.read(png.getvalue())
    samples = np.asarray(image) * np.uint8(255) if image.mode == "1" else np.asarray(image)
    if not np.array_equal(picture.samples, samples):
        reason = "an option changes its samples"
        if image.mode == "P":
            reason = "it uses colours that its palette does not have"
        raise OSError(f"cannot write the image: {reason}")
    (compressed,) = compress_each([picture], name, steps)
    file.write(compressed.to_file())


Image.register_open(FORMAT, ItalicImageFile, _accept)
Image.register_save(FORMAT, _save)
Image.register_extension(FORMAT, ".italic")
Image.register_mime(FORMAT, "image/x-italic")
