"""Model files: an exact network and its settings, everything that a decoder needs.

A model is one .safetensors file with the tensors and, under the key `italic` of its metadata, a
JSON text. The SHA-256 of the file identifies the model; compressed files store its first 8 bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from italic.atomic import write_whole
from italic.coding import exact
from italic.coding.base_codes.base import BPG, BaseCode
from italic.coding.files.container import Plan
from italic.coding.model_files.recipe import Recipe
from italic.coding.streams.codec import Codec, Coded
from italic.errors import check_whole
from italic.models.network import Network

FORMAT = 4  # version of model files and of the streams coded with them
# Enhancement makes a BPG file worse if its qp is lower than all training qps by more than the first
# number, or if its chroma format is another one and its qp lower than the second number. Measured:
# docs/results.md, "Enhancement".
MAX_QP_DIFFERENCE, OTHER_CHROMA_QP = 6, 34


class ModelError(ValueError):
    """A model that is unknown, damaged, unsuitable or of another version."""


@dataclass(frozen=True, eq=False)
class Model:
    """An exact network with its base codes and step sizes.

    Attributes:
        name: name of its file, without the suffix.
        sha256: SHA-256 of its file, 64 hexadecimal digits.
        recipe: settings of the model.
        network: the exact network.
    """

    name: str
    sha256: str
    recipe: Recipe
    network: Network

    @property
    def hash(self) -> bytes:
        """The first 8 bytes of the SHA-256, which compressed files store."""
        return bytes.fromhex(self.sha256)[:8]

    @property
    def steps(self) -> int:
        """The default number of steps."""
        return self.recipe.steps

    @property
    def bases(self) -> list[BaseCode]:
        """New coders of its base codes."""
        return self.recipe.bases

    @property
    def device(self) -> torch.device:
        """The device of its network."""
        return next(self.network.parameters()).device

    def encode(self, images: np.ndarray, steps: int | None = None) -> list[Coded]:
        """Encode images of one size by the estimator alone, without the container.

        Args:
            images: uint8 (B, H, W, 3).
            steps: number of steps, at most the number of pixels; None for the model's default.

        Raises:
            ValueError: the images have another type or shape, or the number of steps is not from 1
                to the number of pixels.
        """
        if not isinstance(images, np.ndarray) or images.ndim != 4 or not images.size:
            found = getattr(images, "shape", type(images).__name__)
            raise ValueError(f"expected uint8 (B, H, W, 3), not empty; got {found}")
        return self._codec(steps, *images.shape[1:3]).encode(images)

    def decode(
        self, coded: Sequence[Coded], height: int, width: int, steps: int | None = None
    ) -> np.ndarray:
        """Invert `encode` to uint8 (B, height, width, 3).

        Args:
            coded: results of `encode`.
            height: height of the images.
            width: width of the images.
            steps: the number of steps that was given to `encode`.

        Raises:
            ValueError: a stream is damaged, or was coded with another size, model or number of
                steps and this was detected; there is no checksum.
        """
        if not coded or not all(isinstance(item, Coded) for item in coded):
            raise ValueError("expected results of encode, at least one")
        check_whole("height", height, 1)
        check_whole("width", width, 1)
        return self._codec(steps, height, width).decode(coded, height, width)

    def _codec(self, steps: int | None, height: int, width: int) -> Codec:
        """The codec for images of one size; None for the default number of steps."""
        if steps is not None:
            check_whole("steps", steps, 1, height * width)
        return self.codec(self.steps if steps is None else steps)

    @property
    def bpg_bases(self) -> dict[int, BPG]:
        """New coders of its BPG base codes, by their indices among its base codes."""
        return {rung: base for rung, base in enumerate(self.bases) if isinstance(base, BPG)}

    @property
    def base_qps(self) -> list[int]:
        """The qps of its BPG base codes, in increasing order."""
        return sorted(base.qp for base in self.bpg_bases.values())

    def enhancer(self, steps: int, qp: int, chroma: str | None = None) -> Codec:
        """A codec with the BPG base code that is nearest to that of a BPG file.

        It is the one of the nearest qp; at a qp below `OTHER_CHROMA_QP`, those of the chroma format
        of the file come first.

        Args:
            steps: number of steps.
            qp: qp of the file.
            chroma: chroma format of the file: grey, 420, 422 or 444; None if it is not known.

        Raises:
            ModelError: the model has no BPG base code, or enhancement would make the file worse.
        """
        bases = self.bpg_bases
        if not bases:
            raise ModelError(
                f"the model '{self.name}' has no BPG base code: expected one that has, see: italic "
                "models"
            )

        def differs(rung: int) -> bool:
            """Whether the chroma format differs from that of the file, and this matters."""
            return qp < OTHER_CHROMA_QP and chroma not in (None, "grey", bases[rung].chroma)

        rung = min(bases, key=lambda rung: (differs(rung), abs(bases[rung].qp - qp)))
        if qp < bases[rung].qp - MAX_QP_DIFFERENCE:
            raise ModelError(
                f"the model '{self.name}' can't improve a BPG file of qp {qp}: it was trained on "
                f"qp {', '.join(map(str, self.base_qps))}"
            )
        if differs(rung):
            raise ModelError(
                f"the model '{self.name}' can't improve a BPG file of chroma format {chroma} and "
                f"qp {qp}: it was trained on {bases[rung].chroma}, and helps others from qp "
                f"{OTHER_CHROMA_QP}"
            )
        return self.codec(steps, rung=rung)

    def codec(self, steps: int, plan: Plan | None = None, rung: int | None = None) -> Codec:
        """The codec for a number of steps; plan and rung are those of the model by default."""
        recipe = self.recipe
        schedule = recipe.schedule if plan is None else plan.schedule(recipe.schedule)
        if rung is None:
            most = max(map(int, recipe.rungs), default=0)
            rung = recipe.rungs.get(str(min(steps, most)), 0)
        return Codec(self.network, self.bases[rung], schedule, steps, rung)


def save_model(path: Path, network: Network, recipe: Recipe) -> str:
    """Write a model file, whole or not at all.

    Args:
        path: its name ends in .safetensors.
        network: an exact network, see `exact.make_exact`.
        recipe: settings of the model.

    Returns:
        The file's SHA-256, in hexadecimal digits.
    """
    text = json.dumps({"format": FORMAT, **asdict(recipe)}, sort_keys=True)
    data = save(exact.integer_state(network), {"italic": text})
    write_whole(path, data)
    return hashlib.sha256(data).hexdigest()
