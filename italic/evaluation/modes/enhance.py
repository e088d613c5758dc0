"""mode=enhance: quality of enhanced images compared with the decoded BPG images."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.figure import Figure
from rich.progress import track

from italic.coding.base_codes.base import BPG
from italic.coding.model_files.model import Model
from italic.coding.streams.codec import Codec
from italic.evaluation.sources import Inputs
from italic.measuring.figures import save_figure
from italic.measuring.metrics import means, measured
from italic.measuring.quality import draw_grid, mean_psnr, psnr, squared_errors, ssim
from italic.measuring.results import write_table
from italic.run_directory import RunError
from italic.schedule import steps_text

log = logging.getLogger(__name__)

STEPS = [1, 4]  # default numbers of steps
WINDOW = 11  # side of the window of SSIM in pixels


def measure(inputs: Inputs) -> None:
    """Measure PSNR and SSIM of BPG images and of their enhanced versions.

    The versions are the mean of the predictive distribution for each number of steps, its average
    with the mean of the mirrored images for the smallest number of steps, and a sample for the
    largest number of steps.

    Raises:
        RunError: the images are too small for SSIM, or a model lacks the base code
            `evaluate.enhance.qp`.
        ModelError: a model does not start from BPG.
    """
    cfg, images = inputs.cfg.evaluate, inputs.images
    if min(images.shape[1:3]) < WINDOW:
        raise RunError(
            f"mode=enhance measures SSIM: expected images of at least {WINDOW}×{WINDOW} pixels"
        )
    steps = sorted(set(inputs.steps(STEPS)))
    models = {name: inputs.planned(model) for name, model in inputs.models.items()}
    codecs = {name: _codecs(model, steps, cfg.enhance.qp) for name, model in models.items()}
    for name, of_model in codecs.items():
        rows = []
        versions, bits = _versions(of_model, images, cfg.batch_size)
        for title, version in versions.items():
            values = means(measured(inputs.metrics, images, version, bits))
            rows.append(
                {"picture": title, "images": len(images), **_score(version, images), **values}
            )
            log.info(
                "%s: %s: PSNR %.3f dB (%.3f dB from the mean squared error of all images), "
                "SSIM %.4f",
                *(name, title, rows[-1]["psnr"], rows[-1]["psnr_of_mse"], rows[-1]["ssim"]),
            )
        write_table(rows, inputs.file("enhance.csv", name))
        if cfg.pictures:
            path = inputs.file("enhance.png", name)
            save_figure(_grid(versions, images, cfg.pictures), path)
            log.info("drew %s", path)


def _codecs(model: Model, steps: Sequence[int], qp: int | None) -> list[Codec]:
    codecs = [model.enhancer(number, 51 if qp is None else qp) for number in steps]
    if qp is not None and codecs[0].base.qp != qp:  # type: ignore[attr-defined]
        known = ", ".join(str(base.qp) for base in model.bases if isinstance(base, BPG))
        raise RunError(
            f"the model '{model.name}' knows qp {known}: expected one of these as "
            "evaluate.enhance.qp"
        )
    return codecs


def _versions(
    codecs: Sequence[Codec], images: np.ndarray, batch: int
) -> tuple[dict[str, np.ndarray], list[int]]:
    """BPG and enhanced versions of images, uint8 (N, H, W, 3), by title, and bits of the codes."""
    parts, bits = defaultdict(list), []
    for start in track(range(0, len(images), batch), "enhancing", transient=True):
        some = images[start : start + batch]
        codes = [codecs[0].base.encode(image) for image in some]
        bits += [8 * len(code) for code in codes]
        for title, version in _versions_of_batch(codecs, codes, *some.shape[1:3]):
            parts[title].append(version)
    return {title: np.concatenate(batches) for title, batches in parts.items()}, bits


def _versions_of_batch(
    codecs: Sequence[Codec], codes: Sequence[bytes], height: int, width: int
) -> Iterator[tuple[str, np.ndarray]]:
    base = codecs[0].base
    title = f"BPG, qp {base.qp}"  # type: ignore[attr-defined]
    yield title, np.stack([base.decode(code, height, width) for code in codes])
    for codec in codecs:
        yield _title("mean", codec.steps), codec.expect(codes, height, width)
        if codec is codecs[0]:
            average = codec.expect(codes, height, width, mirrored=True)
            yield _title("mirrored", codec.steps), average
    samples = codecs[-1].sample(codes, height, width, np.random.default_rng(0))
    yield _title("sample", codecs[-1].steps), samples


def _title(kind: str, steps: int) -> str:
    return f"{kind}, {steps_text(steps)}"


def _score(version: np.ndarray, images: np.ndarray) -> dict[str, float]:
    errors = squared_errors(version, images)
    return {
        "psnr": round(mean_psnr(errors), 4),
        "psnr_of_mse": round(float(psnr(errors.mean())), 4),
        "ssim": round(float(ssim(version, images).mean()), 5),
    }


def _grid(versions: dict[str, np.ndarray], images: np.ndarray, count: int) -> Figure:
    columns = [version[:count] for version in versions.values()]
    quality = [psnr(squared_errors(column, images[:count])) for column in columns]
    captions = [["", *(f"{value:.1f} dB" for value in row)] for row in np.transpose(quality)]
    grid = np.stack([images[:count], *columns], axis=1)
    return draw_grid(grid, ["original", *versions], captions)
