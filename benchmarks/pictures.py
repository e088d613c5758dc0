"""Pictures of unusual sizes and kinds: exactness, size compared to PNG and JPEG XL, time, memory.

Each picture is compressed and decompressed in a separate process. Prints a table and writes CSV:

    file, PNG, JPEG XL  bytes of the whole files
    method              coding method of the file: the estimator or a classical codec
    estimator           bytes that the estimator alone would need for the main picture
    encode, decode      time of the estimator in seconds
    MiB                 peak memory of the process

    python benchmarks/pictures.py --model cifar10 --steps 4
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from italic.measuring.results import write_table


def photograph(height: int, width: int) -> np.ndarray:
    """A photograph of any size, extended by mirroring: uint8 (H, W, 3)."""
    from skimage import data

    image = data.astronaut()
    pad = [(0, max(0, size - 512)) for size in (height, width)]
    return np.ascontiguousarray(np.pad(image, [*pad, (0, 0)], "symmetric")[:height, :width])


def sixteen_bits(image: np.ndarray) -> np.ndarray:
    """Extend to 16 bits by random low bytes."""
    noise = np.random.default_rng(0).integers(0, 256, image.shape)
    return (image.astype(np.uint16) * 256 + noise).astype(np.uint16)


def with_alpha(image: np.ndarray) -> np.ndarray:
    """Add an alpha channel with an opaque disc."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    alpha = np.clip(300 - 2 * np.hypot(y - 128, x - 128), 0, 255).astype(np.uint8)
    return np.dstack([image, alpha])


PICTURES: dict[str, Callable[[], np.ndarray]] = {
    "1×1": lambda: photograph(1, 1),
    "1×500": lambda: photograph(1, 500),
    "500×1": lambda: photograph(500, 1),
    "31×33": lambda: photograph(31, 33),
    "512×512": lambda: photograph(512, 512),
    "1920×1080": lambda: photograph(1080, 1920),
    "24 megapixels": lambda: photograph(4000, 6000),
    "grey": lambda: photograph(256, 256)[..., 1].copy(),
    "grey and alpha": lambda: with_alpha(photograph(256, 256))[..., 2:].copy(),
    "alpha": lambda: with_alpha(photograph(256, 256)),
    "palette": lambda: (photograph(256, 256) // 64) * 64,
    "bilevel": lambda: ((photograph(256, 256)[..., 1] > 127) * 255).astype(np.uint8),
    "16-bit": lambda: sixteen_bits(photograph(256, 256)),
    "16-bit grey": lambda: sixteen_bits(photograph(256, 256)[..., 1]),
    "noise": lambda: np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8),
    "flat": lambda: np.full((256, 256, 3), 77, np.uint8),
}


def main() -> None:
    """Measure each picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="name or path; default: the default model")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--only", nargs="+", choices=PICTURES, default=list(PICTURES))
    parser.add_argument("--csv", type=Path, default=Path(__file__).with_suffix(".csv"))
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        print(json.dumps(measured(arguments.work, arguments.model, arguments.steps)))
        return
    rows = []
    for name in arguments.only:
        command = [sys.executable, __file__, "--work", name, "--steps", str(arguments.steps)]
        command += ["--model", arguments.model] if arguments.model else []
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        rows.append({"picture": name, **json.loads(done.stdout)})
        if len(rows) == 1:
            print("  ".join(f"{column:>14}" for column in rows[0]))
        print("  ".join(f"{value!s:>14}" for value in rows[-1].values()), flush=True)
    write_table(rows, arguments.csv)
    sys.exit(not all(row["exact"] for row in rows))


def measured(name: str, model_name: str | None, steps: int) -> dict[str, object]:
    """The row of a picture."""
    import imagecodecs

    from italic.coding.files.container import unpack
    from italic.coding.files.pictures import from_array, split, to_png
    from italic.coding.model_files.model import load_model
    from italic.compressor.compression import compress_pictures, decompress_records, to_file

    array = PICTURES[name]()
    picture = from_array(array)
    model = load_model(model_name)
    _, main_picture, _ = split(picture)
    codec = model.codec(min(steps, main_picture[..., 0].size))
    model.codec(1).encode(np.zeros((1, 8, 8, 3), np.uint8))  # warm-up: compiles the coder
    begin = time.perf_counter()
    coded = codec.encode(main_picture[None])
    encoded = time.perf_counter()
    decoded = codec.decode(coded, *main_picture.shape[:2])
    end = time.perf_counter()
    exact = np.array_equal(decoded[0], main_picture)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    estimated = coded[0].bits // 8
    del decoded, coded
    (record,) = compress_pictures([picture], model, steps)
    file = to_file(record, model)
    (back,) = decompress_records([unpack(file)[1]], model)
    exact = exact and np.array_equal(back.samples, array)
    return {
        "exact": exact,
        "file": len(file),
        "PNG": len(to_png(picture)),
        "JPEG XL": len(imagecodecs.jpegxl_encode(array, lossless=True, effort=7)),
        "method": record.method.name,
        "estimator": estimated,
        "encode": round(encoded - begin, 2),
        "decode": round(end - encoded, 2),
        "MiB": round(memory),
    }


if __name__ == "__main__":
    main()
