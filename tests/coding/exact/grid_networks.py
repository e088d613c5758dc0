"""Networks in the exact scheme "grids" with fixed weights similar to trained ones."""

import hashlib

import numpy as np
import torch
from torch import nn

from italic.coding.base_codes.base import NoBase
from italic.coding.exact import exact_arithmetic, make_exact
from italic.coding.streams.codec import Codec
from italic.models.rnan import RNAN
from italic.schedule import Schedule

FULL = {"features": 16, "groups": 2, "components": 3}
SMALL = {**FULL, "space_to_depth": 2, "mask_branch": False, "recurrent": False}
HOURGLASS = {**SMALL, "groups": 1, "deep": 2, "leak": 0.125, "largest_stride": 4}
OPTIONS = {"full": FULL, "small": SMALL, "hourglass": HOURGLASS}
# Hashes for the networks of `trained`, the same on all machines and libraries with IEEE 754.
GOLDEN = {
    "full": "491f61c1044cd80f9917c6418f0c7441bdf3978895f323ed4ac5294f0247d9ec",
    "small": "e24bb432e4a014e4658f7bc0f673c0e742cb3ce8244f852fe707bc3541615c7f",
    "hourglass": "ab7b900775be8c17e60d16844621180b9fa112f27e2bf6f9b0b9c1092fe7310b",
}


def weights(network: RNAN) -> RNAN:
    """Fixed weights similar to trained ones, computed identically on every machine."""
    with torch.no_grad():
        for number, parameter in enumerate(network.parameters()):
            values = np.arange(parameter.numel(), dtype=np.int64) + 1000003 * number
            values = (values * 2654435761 % 2**32) / 2**32 - 0.5
            scale = 0.6 / max(1.0, parameter[0].numel() ** 0.5) if parameter.ndim > 1 else 0.05
            parameter.copy_(torch.from_numpy(values * 2 * scale).view_as(parameter))
    return network.eval()


def pictures(count: int, height: int = 16, width: int = 16) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    kinds = np.arange(count)[:, None, None, None]
    colours = np.arange(3)
    smooth = 90 + 3 * y[..., None] + (2 + colours) * x[..., None] + 20 * kinds
    return ((smooth + (y * 37 + x * 101)[..., None] % 13) % 256).astype(np.uint8)


def trained(options: dict) -> RNAN:
    network = weights(RNAN(**options))

    def calibrate(untouched: nn.Module) -> None:
        Codec(untouched, NoBase(), Schedule(), 4).encode(pictures(2))

    return make_exact(network, calibrate)


def outputs(network: RNAN, batch: int, channels_last: bool = False) -> list[np.ndarray]:
    """Integer parameters of the entropy coder for six images, from two applications."""
    images = torch.from_numpy(pictures(6)).permute(0, 3, 1, 2).float()
    rank = torch.arange(256).view(16, 16) * 101 % 256
    fields = []
    for rows in images.split(batch):
        features = None
        for known in (0, 100):
            mask = (rank < known).float().expand(len(rows), 1, 16, 16).contiguous()
            arguments = [rows, torch.full_like(rows, 128), mask]
            if channels_last:
                arguments = [x.to(memory_format=torch.channels_last) for x in arguments]
            with torch.inference_mode(), exact_arithmetic():
                mixture, last = network(*arguments, features)
            features = last if network.recurrent else None
        fields.append([(field * 1024).round().long().numpy() for field in mixture])
    return [np.concatenate(parts) for parts in zip(*fields, strict=True)]


def digest(network: RNAN) -> str:
    """Hash of a network's outputs and of its streams."""
    parts = [field.tobytes() for field in outputs(network, 3)]
    parts += [coded.stream for coded in Codec(network, NoBase(), Schedule(), 3).encode(pictures(2))]
    return hashlib.sha256(b"".join(parts)).hexdigest()
