"""The base code: a lossy code of the image; its reconstruction is an input of the network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from italic.coding.base_codes import bpg
from italic.errors import SettingError

OPEN_ENCODERS = 4  # a data set of one size needs one encoder; a folder of photographs a few


class BaseCode(Protocol):
    """A lossy code for images, uint8 (H, W, 3)."""

    @property
    def identity(self) -> str:
        """A text with all settings that determine bytes and pixels; used in cache keys."""

    def encode(self, image: np.ndarray) -> bytes:
        """Encode an image, uint8 (H, W, 3)."""

    def decode(self, data: bytes, height: int, width: int) -> np.ndarray:
        """Decode to uint8 (height, width, 3).

        Raises:
            ValueError: `data` is damaged or of another size.
        """


class BPG:
    """BPG files of a fixed quality, without the bytes implied by the settings and the size.

    The encoders of the most recent image sizes stay open. Objects can be pickled and survive forks.

    Args:
        qp: quantisation parameter of HEVC, 0 (best quality) to 51.
        chroma: chroma sub-sampling: 420, 422 or 444.

    Raises:
        BPGError: a setting is out of range.
    """

    def __init__(self, qp: int = 49, chroma: str = "420") -> None:
        bpg.check_settings(qp, chroma)
        self.qp, self.chroma = qp, chroma
        self._encoders: dict[tuple[int, int], bpg.Encoder] = {}  # in order of their last use

    @property
    def identity(self) -> str:
        """A text with the settings, and the versions and options of the encoder."""
        return (
            f"packed BPG qp={self.qp} chroma={self.chroma}, {bpg.encoder_version()}, "
            f"{bpg.X265_PRESET} {bpg.X265_PARAMETERS}"
        )

    def encode(self, image: np.ndarray) -> bytes:
        """Encode an image, uint8 (H, W, 3), as a packed .bpg file; BPGError as `bpg.encode`."""
        bpg.check_image(image)
        size = image.shape[0], image.shape[1]
        encoder = self._encoders.pop(size, None) or bpg.Encoder(*size, self.qp, self.chroma)
        self._encoders[size] = encoder
        if len(self._encoders) > OPEN_ENCODERS:
            del self._encoders[next(iter(self._encoders))]
        return bpg.pack(encoder.encode(image), *size, self.qp, self.chroma)

    def decode(self, data: bytes, height: int, width: int) -> np.ndarray:
        """Decode a packed .bpg file to uint8 (height, width, 3); BPGError as `bpg.decode`.

        The size in the file is checked before decoding; BPGError if it is another size.
        """
        file = self.file(data, height, width)
        size = bpg.picture_size(file)
        if size != (height, width):
            raise bpg.BPGError(
                f"the base code holds an image of {size[0]}×{size[1]} pixels, but expected "
                f"{height}×{width}: use the base code of this image"
            )
        return bpg.decode(file)

    def file(self, data: bytes, height: int, width: int) -> bytes:
        """Restore the complete .bpg file, readable by any BPG decoder, from a packed one.

        BPGError as `bpg.unpack`.
        """
        return bpg.unpack(data, height, width, self.qp, self.chroma)


class Ladder:
    """A bitrate ladder: several base codes (rungs), all supported by one network.

    The first rung is for many steps and is used in validation. The rung of each number of steps is
    chosen together with the step sizes, see `italic.training.planning`. So a ladder needs
    masks.sizes=planned.

    Args:
        qps: quantisation parameter of each rung, 0 (best quality) to 51; None for no base code.
            Training uses the first rung for half of the images, and for large numbers of steps.
        chroma: chroma sub-sampling of all rungs: 420, 422 or 444.
        chromas: chroma sub-sampling of each rung; empty for `chroma` in all rungs.

    Raises:
        SettingError: there is no rung, two rungs are equal, or `chromas` has another length.
        BPGError: a setting is out of range.
    """

    def __init__(
        self,
        qps: Sequence[int | None] = (None, 40, 20),
        chroma: str = "420",
        chromas: Sequence[str] = (),
    ) -> None:
        if chromas and len(chromas) != len(qps):
            raise SettingError(
                f"expected one chroma sub-sampling for each of the {len(qps)} rungs of a ladder, "
                f"or none; got {list(chromas)}"
            )
        rungs = list(zip(qps, chromas or [chroma] * len(qps), strict=True))
        different = {(qp, None if qp is None else of_rung) for qp, of_rung in rungs}
        if not rungs or len(different) != len(rungs):
            raise SettingError(
                "expected at least one rung in a ladder, and no rung twice; got the qps "
                f"{list(qps)} with the chroma sub-sampling {list(chromas) or chroma}"
            )
        self.rungs: list[BaseCode] = [
            NoBase() if qp is None else BPG(qp, of_rung) for qp, of_rung in rungs
        ]


class NoBase:
    """No base code: zero bytes, and a constant mid-grey image of value 128."""

    identity = "none"

    def encode(self, image: np.ndarray) -> bytes:
        """Return zero bytes for any image, uint8 (H, W, 3)."""
        return b""

    def decode(self, data: bytes, height: int, width: int) -> np.ndarray:
        """An image of 128, uint8 (height, width, 3); ValueError if `data` is not empty."""
        if data:
            raise ValueError(f"expected no bytes, since there is no base code; got {len(data)}")
        return np.full((height, width, 3), 128, np.uint8)
