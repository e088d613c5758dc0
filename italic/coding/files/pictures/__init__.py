"""Read and write picture files losslessly; files that can't be kept exactly are refused.

A `Picture` is the content of a file with its original sample type, palette and metadata. `split`
separates it into the main picture, 8-bit RGB, that the codec codes, and chunks of bytes. `join`
inverts `split`. Between them, `forms` can replace the samples by ranks.
"""

from italic.coding.files.pictures.errors import PictureError
from italic.coding.files.pictures.forms import forms
from italic.coding.files.pictures.levels import ranked
from italic.coding.files.pictures.picture import (
    LAYOUTS,
    METADATA_LIMIT,
    Picture,
    big_endian,
    from_array,
    native,
)
from italic.coding.files.pictures.pillow_formats import with_jpeg_metadata
from italic.coding.files.pictures.png import to_png
from italic.coding.files.pictures.png_chunks import PNG_SIGNATURE, png_chunks
from italic.coding.files.pictures.reading import pixels_in, read
from italic.coding.files.pictures.splitting import (
    chunks_beside_samples,
    join,
    preview,
    split,
    without_samples,
)

__all__ = [
    "LAYOUTS",
    "METADATA_LIMIT",
    "PNG_SIGNATURE",
    "Picture",
    "PictureError",
    "big_endian",
    "chunks_beside_samples",
    "forms",
    "from_array",
    "join",
    "native",
    "pixels_in",
    "png_chunks",
    "preview",
    "ranked",
    "read",
    "split",
    "to_png",
    "with_jpeg_metadata",
    "without_samples",
]
