"""The base code: a lossy picture that the network starts from, and its bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from italic.coding.base_codes import bpg
from italic.errors import SettingError

OPEN_ENCODERS = 4  # a data set of one size needs one; a folder of photographs no more than these


class BaseCode(Protocol):
    """A lossy code for pictures, uint8 (H, W, 3)."""

    @property
    def identity(self) -> str:
        """Everything that determines bytes and pixels, for cache keys."""

    def encode(self, image: np.ndarray) -> bytes:
        """Encode a picture, uint8 (H, W, 3)."""

    def decode(self, data: bytes, height: int, width: int) -> np.ndarray:
        """Decode to uint8 (height, width, 3); ValueError if `data` is not of this size."""


class BPG:
    """BPG files of a fixed quality, without what follows from the settings and the size.

    `qp` is 0..51 and `chroma` "420", "422" or "444", as for `bpg.encode`; ValueError otherwise.
    Keeps the encoders of the last picture sizes open; may be pickled, and inherited by forks.
    """

    def __init__(self, qp: int = 49, chroma: str = "420") -> None:
        bpg.check_settings(qp, chroma)
        self.qp, self.chroma = qp, chroma
        self._encoders: dict[tuple[int, int], bpg.Encoder] = {}  # the last used one is last

    @property
    def identity(self) -> str:
        """The settings, and the versions and options of the encoder."""
        return (
            f"packed BPG qp={self.qp} chroma={self.chroma}, {bpg.encoder_version()}, "
            f"{bpg.X265_PRESET} {bpg.X265_PARAMETERS}"
        )

    def encode(self, image: np.ndarray) -> bytes:
        """Encode a picture, uint8 (H, W, 3), as a packed .bpg file; BPGError as `bpg.encode`."""
        bpg.check_image(image)
        size = image.shape[0], image.shape[1]
        encoder = self._encoders.pop(size, None) or bpg.Encoder(*size, self.qp, self.chroma)
        self._encoders[size] = encoder
        if len(self._encoders) > OPEN_ENCODERS:
            del self._encoders[next(iter(self._encoders))]
        return bpg.pack(encoder.encode(image), *size, self.qp, self.chroma)

    def decode(self, data: bytes, height: int, width: int) -> np.ndarray:
        """Decode a packed .bpg file, uint8 (height, width, 3); BPGError as `bpg.decode`.

        BPGError, before anything is decoded, if it is one of another size.
        """
        file = self.file(data, height, width)
        size = bpg.picture_size(file)
        if size != (height, width):
            raise bpg.BPGError(
                f"The base code holds a picture of {size[0]}×{size[1]} pixels, "
                f"but one of {height}×{width} is due; do they belong together?"
            )
        return bpg.decode(file)

    def file(self, data: bytes, height: int, width: int) -> bytes:
        """The whole .bpg file, which any BPG decoder reads, of a packed one; BPGError."""
        return bpg.unpack(data, height, width, self.qp, self.chroma)


class Ladder:
    """Several base codes that one network serves, a bitrate ladder.

    The first rung is for many steps, and the one that is validated; which one a number of steps
    takes is found with its step sizes, see `italic.training.planning`.

    Args:
        qps: quality of each rung, as of `BPG`; None for no base code.
        chroma: as of `BPG`.

    Raises:
        SettingError: no rung, or one twice.
    """

    def __init__(self, qps: Sequence[int | None], chroma: str = "420") -> None:
        if not qps or len(set(qps)) != len(qps):
            raise SettingError(
                f"a ladder's rungs must differ, and be one at least; got {list(qps)}"
            )
        self.rungs: list[BaseCode] = [NoBase() if qp is None else BPG(qp, chroma) for qp in qps]


class NoBase:
    """No base code: no bytes, and a picture of constant mid-gray 128."""

    identity = "none"

    def encode(self, image: np.ndarray) -> bytes:
        """Nothing, whatever the picture."""
        return b""

    def decode(self, data: bytes, height: int, width: int) -> np.ndarray:
        """A picture of 128, uint8 (height, width, 3); ValueError if there are bytes."""
        if data:
            raise ValueError(f"Without a base code there are no bytes to decode, but {len(data)}.")
        return np.full((height, width, 3), 128, np.uint8)
