"""mode=enhance: how much better than BPG's own the pictures are that the model makes of BPG."""

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
from italic.measuring.quality import draw_grid, psnr, squared_errors, ssim
from italic.measuring.results import write_table
from italic.run_directory import RunError

log = logging.getLogger(__name__)

STEPS = [1, 4]  # unless asked for others
WINDOW = 11  # pixels; side of SSIM's


def measure(inputs: Inputs) -> None:
    """PSNR and SSIM of BPG, of the mean in each number of steps, and of a sample in the most.

    Of the fewest steps also the average with the mean of the mirrored images.

    Raises:
        RunError: images too small for SSIM, or a model without the base code that is asked for.
        ModelError: a model that does not start from BPG.
    """
    cfg, images = inputs.cfg.evaluate, inputs.images
    if min(images.shape[1:3]) < WINDOW:
        raise RunError(f"SSIM needs images of {WINDOW}×{WINDOW} pixels or more")
    steps = sorted(set(inputs.steps(STEPS)))
    models = {name: inputs.planned(model) for name, model in inputs.models.items()}
    codecs = {name: _codecs(model, steps, cfg.qp) for name, model in models.items()}
    for name, of_model in codecs.items():
        folder, rows = inputs.folder(name), []
        pictures = _pictures(of_model, images, cfg.batch_size)
        for title, made in pictures.items():
            rows.append({"picture": title, "images": len(images), **_score(made, images)})
            log.info(
                "%s: %s: PSNR %.3f dB (%.3f dB of all images' mean squared error), SSIM %.4f",
                *(name, title, rows[-1]["psnr"], rows[-1]["psnr_of_mse"], rows[-1]["ssim"]),
            )
        write_table(rows, folder / "enhance.csv")
        if cfg.pictures:
            save_figure(_grid(pictures, images, cfg.pictures), folder / "enhance.png")
            log.info("drew %s", folder / "enhance.png")


def _codecs(model: Model, steps: Sequence[int], qp: int | None) -> list[Codec]:
    codecs = [model.enhancer(number, 51 if qp is None else qp) for number in steps]
    if qp is not None and codecs[0].base.qp != qp:  # type: ignore[attr-defined]
        known = ", ".join(str(base.qp) for base in model.bases if isinstance(base, BPG))
        raise RunError(f"the model '{model.name}' knows qp {known}: expected evaluate.qp of these")
    return codecs


def _pictures(codecs: Sequence[Codec], images: np.ndarray, batch: int) -> dict[str, np.ndarray]:
    """What is made of images' base codes, uint8 (N, H, W, 3), by name."""
    parts = defaultdict(list)
    for start in track(range(0, len(images), batch), "enhancing", transient=True):
        for title, made in _made(codecs, images[start : start + batch]):
            parts[title].append(made)
    return {title: np.concatenate(made) for title, made in parts.items()}


def _made(codecs: Sequence[Codec], images: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    base, height, width = codecs[0].base, *images.shape[1:3]
    codes = [base.encode(image) for image in images]
    title = f"BPG, qp {base.qp}"  # type: ignore[attr-defined]
    yield title, np.stack([base.decode(code, height, width) for code in codes])
    for codec in codecs:
        yield _title("mean", codec.steps), codec.expect(codes, height, width)
        if codec is codecs[0]:
            both = codec.expect(codes, height, width, mirrored=True)
            yield _title("mirrored", codec.steps), both
    samples = codecs[-1].sample(codes, height, width, np.random.default_rng(0))
    yield _title("sample", codecs[-1].steps), samples


def _title(kind: str, steps: int) -> str:
    return f"{kind}, {steps} step{'s'[: steps > 1]}"


def _score(pictures: np.ndarray, images: np.ndarray) -> dict[str, float]:
    errors = squared_errors(pictures, images)
    return {
        "psnr": round(float(psnr(errors).mean()), 4),
        "psnr_of_mse": round(float(psnr(errors.mean())), 4),
        "ssim": round(float(ssim(pictures, images).mean()), 5),
    }


def _grid(pictures: dict[str, np.ndarray], images: np.ndarray, count: int) -> Figure:
    columns = [made[:count] for made in pictures.values()]
    quality = [psnr(squared_errors(column, images[:count])) for column in columns]
    captions = [["", *(f"{value:.1f} dB" for value in row)] for row in np.transpose(quality)]
    grid = np.stack([images[:count], *columns], axis=1)
    return draw_grid(grid, ["original", *pictures], captions)
