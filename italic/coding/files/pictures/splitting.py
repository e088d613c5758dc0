"""Pictures to main pictures and chunks, and back."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from italic.coding.files.container import REPEATABLE, Box, Chunk, Colour
from italic.coding.files.pictures.errors import damaged, inflated, not_of_this_kind
from italic.coding.files.pictures.forms import RANKS, samples_of
from italic.coding.files.pictures.picture import (
    CHUNKS_LIMIT,
    LAYOUTS,
    METADATA_LIMIT,
    Picture,
    big_endian,
    from_array,
    native,
)
from italic.coding.files.pictures.planes import (
    pack_palette,
    pack_plane,
    palette_indices,
    palette_of,
    sorted_palette,
    unpack_plane,
)
from italic.coding.files.pictures.png_chunks import STORED, serialised, unpack_head


def split(picture: Picture) -> tuple[Colour, np.ndarray, list[tuple[Chunk, bytes]]]:
    """Split a picture into the main picture, 8-bit RGB for the network, and chunks.

    The main picture has the height and width of the picture. Its samples depend on the kind:

        RGB               the samples
        grey, bilevel     the samples, three times
        16 bits           the high bytes, as above; LOW_BYTES holds the low bytes
        palette           the colours; PALETTE or PALETTE_DIFFERENCES holds the palette. If it has
                          equal colours, LOW_BYTES holds the rank of each pixel's index among them.
                          Without this chunk all ranks are 0.

    ALPHA holds the alpha samples, or the body of tRNS for kinds without alpha. COLOUR_SPACE, TEXT
    and PIXEL_SIZE hold PNG chunks with their lengths, types and bodies. Each type of chunk occurs
    at most once.

    Returns:
        The kind of samples, the main picture, uint8 (H, W, 3), and the chunks.
    """
    colour = picture.colour
    size, colours, alpha = LAYOUTS[colour]
    height, width = picture.samples.shape[:2]
    samples = big_endian(picture.samples).reshape(height, width, -1, size)
    chunks = []
    if picture.palette is not None:
        _, _, ranks = sorted_palette(picture.palette)
        main = np.frombuffer(picture.palette, np.uint8).reshape(-1, 3)[picture.samples]
        chunks.append(pack_palette(picture.palette))
        rank = ranks[picture.samples][..., None]
        if rank.any():
            chunks.append((Chunk.LOW_BYTES, pack_plane(rank, np.uint8(0))))
    else:
        main = np.empty((height, width, 3), np.uint8)
        main[:] = samples[:, :, :colours, 0]
        if size == 2:
            chunks.append(
                (Chunk.LOW_BYTES, pack_plane(samples[:, :, :colours, 1], main[..., :colours]))
            )
    if alpha:
        chunks.append((Chunk.ALPHA, pack_plane(samples[:, :, -1], np.uint8(255))))
    for kind, content in (
        (Chunk.ALPHA, picture.transparency),
        (Chunk.ICC, picture.icc),
        (Chunk.EXIF, picture.exif),
    ):
        if content is not None:
            chunks.append((kind, zlib.compress(content, 9)))
    for kind, names in STORED.items():
        content = serialised(chunk for chunk in picture.chunks if chunk[0] in names)
        if content:
            chunks.append((kind, zlib.compress(content, 9)))
    return colour, main, chunks


def chunks_beside_samples(
    colour: Colour, chunks: Iterable[tuple[Chunk, bytes]]
) -> list[tuple[Chunk, bytes]]:
    """The chunks of `split` that do not hold samples: palette, transparency and metadata."""
    samples = {Chunk.LOW_BYTES, Chunk.ALPHA} if LAYOUTS[colour][2] else {Chunk.LOW_BYTES}
    return [chunk for chunk in chunks if chunk[0] not in samples]


def join(
    colour: Colour,
    main: np.ndarray,
    chunks: Iterable[tuple[int, bytes]],
    region: tuple[Box, tuple[int, int]] | None = None,
) -> Picture:
    """Invert `split`, for each of the `forms` of the main picture.

    For any chunks, memory is bounded by about 40 bytes per pixel of the main picture plus a few
    times `METADATA_LIMIT`.

    Args:
        colour: kind of the samples.
        main: main picture, uint8 (H, W, 3); or the samples of the picture, see `Picture.samples`.
            Then there are no chunks of samples.
        chunks: types and contents of the chunks.
        region: if `main` is a region of the main picture: its place, and the height and width of
            the picture. The result is this region of the picture, with all metadata.

    Raises:
        PictureError: a chunk is damaged, missing, unknown, or inconsistent with the others.
    """
    if colour != Colour.RGB and (main.dtype != np.uint8 or main.shape[2:] != (3,)):
        reader = _ChunkReader(chunks)
        picture = Picture(main, **reader.all_but_samples(colour))
        reader.finish()
        return picture
    reader = _ChunkReader(chunks, region)
    rest = reader.all_but_samples(colour)
    size, colours, alpha = LAYOUTS[colour]
    shape = main.shape[:2]
    ranks_beside = [(kind, reader.take(kind)) for kind in RANKS if kind in reader]
    main = samples_of(colour, main, ranks_beside, clip=False)
    if colours == 1 and colour != Colour.PALETTE and (main != main[..., :1]).any():
        raise damaged(f"it is {colour.name}, but its main picture is not grey")
    samples = np.empty((*shape, colours + alpha, size), np.uint8)  # the last axis is big-endian
    if rest["palette"] is not None:
        ranks = np.zeros((*shape, 1), np.uint8)
        if Chunk.LOW_BYTES in reader:
            ranks = reader.plane(Chunk.LOW_BYTES, ranks.shape, np.uint8(0))
        samples[:, :, 0] = palette_indices(rest["palette"], main, ranks[..., 0])[..., None]
    else:
        samples[:, :, :colours, 0] = main[..., :colours]
        if size == 2:
            low = reader.plane(Chunk.LOW_BYTES, (*shape, colours), main[..., :colours])
            samples[:, :, :colours, 1] = low
    if alpha:
        samples[:, :, -1] = reader.plane(Chunk.ALPHA, (*shape, size), np.uint8(255))
    reader.finish()
    pixels = samples.view(f">u{size}").reshape(*shape, colours + alpha)
    if pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    return Picture(native(pixels), **rest)


def preview(colour: Colour, main: np.ndarray, chunks: Iterable[tuple[int, bytes]]) -> Picture:
    """A main picture in which some pixels are expectations, as a picture of 8-bit RGB.

    Args:
        colour: kind of the samples.
        main: the main picture, uint8 (H, W, 3).
        chunks: types and contents of the chunks; only those of ranks are read.

    Raises:
        PictureError: as `samples_of`.
    """
    return from_array(samples_of(colour, main, chunks, clip=True))


def without_samples(colour: Colour, chunks: Iterable[tuple[int, bytes]]) -> Picture:
    """A black picture of one pixel with the palette and metadata of the chunks, see `join`.

    Raises:
        PictureError: a chunk is damaged or missing; chunks of samples are not checked.
    """
    size, colours, alpha = LAYOUTS[colour]
    shape = (1, 1) if colours + alpha == 1 else (1, 1, colours + alpha)
    rest = _ChunkReader(chunks).all_but_samples(colour)
    return Picture(np.zeros(shape, f"u{size}"), **rest)


class _ChunkReader:
    """Reads the contents of untrusted chunks within limits of size."""

    def __init__(
        self,
        chunks: Iterable[tuple[int, bytes]],
        region: tuple[Box, tuple[int, int]] | None = None,
    ) -> None:
        self._region = region
        self._contents: dict[int, list[bytes]] = {}
        self._budget = METADATA_LIMIT
        for kind, content in chunks:
            self._contents.setdefault(kind, []).append(content)
        for kind, contents in self._contents.items():
            if len(contents) > 1 and kind not in REPEATABLE:
                raise damaged(f"it has several chunks of type {kind:d}")

    def __contains__(self, kind: Chunk) -> bool:
        return kind in self._contents

    def all_but_samples(self, colour: Colour) -> dict[str, Any]:
        """All arguments of a `Picture` of this kind except its samples."""
        palette = transparency = None
        if colour == Colour.PALETTE:
            if Chunk.PALETTE_DIFFERENCES in self:
                palette = palette_of(self._content(Chunk.PALETTE_DIFFERENCES, 768))
            else:
                palette = self._content(Chunk.PALETTE, 768)
        if Chunk.ALPHA in self and not LAYOUTS[colour][2]:
            transparency = self._content(Chunk.ALPHA, 256)
        return {
            "palette": palette,
            "transparency": transparency,
            "bilevel": colour == Colour.BILEVEL,
            "icc": self._metadata(Chunk.ICC),
            "exif": self._metadata(Chunk.EXIF),
            "chunks": tuple(chunk for item in STORED.items() for chunk in self._png(*item)),
        }

    def _content(self, kind: Chunk, limit: int) -> bytes:
        """The single content of a type, decompressed, at most `limit` bytes."""
        return inflated(self.take(kind), limit, f"{kind.name} chunk")

    def plane(
        self, kind: Chunk, shape: tuple[int, ...], reference: np.ndarray | np.uint8
    ) -> np.ndarray:
        """Samples of a plane, or of the region of it, see `pack_plane`."""
        box, size = self._region or (Box(0, 0, *shape[:2]), shape[:2])
        whole = (*size, *shape[2:])
        return unpack_plane(self.take(kind), whole, reference, f"{kind.name} chunk", box)

    def _metadata(self, kind: Chunk) -> bytes | None:
        """The single content of a type, decompressed; None if there is no such chunk."""
        return self._within_budget(kind, self.take(kind)) if kind in self else None

    def _png(self, kind: Chunk, names: tuple[bytes, ...]) -> Iterator[tuple[bytes, bytes]]:
        """The PNG chunks in all contents of a type."""
        for content in self._contents.pop(kind, []):
            data = self._within_budget(kind, content)
            position = 0
            for _ in range(CHUNKS_LIMIT + 1):
                if position == len(data):
                    break
                length, name = unpack_head(data, position)
                body = data[position + 8 : position + 8 + length]
                if name not in names or len(body) != length:
                    raise damaged(f"its {kind.name} chunk holds other data than PNG chunks")
                yield name, body
                position += 8 + length
            else:
                raise damaged(f"its {kind.name} chunk holds too many chunks")

    def finish(self) -> None:
        """Check that all chunks were used."""
        for kind in self._contents:
            raise not_of_this_kind(kind)

    def take(self, kind: Chunk) -> bytes:
        """The single content of a type, as it is stored."""
        if kind not in self:
            raise damaged(f"its {kind.name} chunk is missing")
        return self._contents.pop(kind)[0]

    def _within_budget(self, kind: Chunk, content: bytes) -> bytes:
        data = inflated(content, self._budget, f"{kind.name} chunk")
        self._budget -= len(data)
        return data
