"""Pictures of all sizes and kinds: exactness, sizes beside classical codecs, time, memory.

Each picture is compressed and decompressed in a separate process. Prints a table and writes CSV:

    file, PNG, JPEG XL  bytes of the whole files
    method              coding method of the file: the estimator or a classical codec
    estimator           bytes that the estimator alone would need for the main picture
    encode, decode      time of the estimator in seconds
    MiB                 peak memory of the process

    python benchmarks/pictures.py --model cifar10 --steps 4

With --photos, it codes the photographs of a folder, pictures from scikit-image, and drawn pictures
(screenshots, icons, drawings, grey, 16 bits, palettes, alpha) as `italic compress` does, in one
process. The table has the bytes and the seconds of both ways beside the smallest of several PNG
settings, WebP, and JPEG XL of efforts 7 and 9; `over` is the excess over the smallest of these in
bytes. It ends with the sum over the photographs and fails if a picture does not come back or
exceeds the smallest by more than 0.5 % and 32 bytes.

    python benchmarks/pictures.py --photos FOLDER

With --untried too, it prints the pictures that the estimator is not tried on, see
`italic.compressor.rivals`, and the bytes that it would have saved, in 256×256 pixels of each.

    python benchmarks/pictures.py --photos FOLDER --untried
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
from typing import Any

import imagecodecs
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from italic.coding.files.pictures import Picture, from_array, read, split, to_png
from italic.coding.model_files.loading import load_model
from italic.compressor.compression import compress_each
from italic.compressor.decompression import from_file
from italic.compressor.rivals import Rival, size
from italic.measuring import classical
from italic.measuring.results import write_table

Row = dict[str, Any]


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


def screenshot(height: int, width: int, wallpaper: bool = False) -> np.ndarray:
    """A window with a menu, a list, text and buttons; in front of a gradient if asked for."""
    random = np.random.default_rng(height + width)
    image = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    draw.rectangle((0, 0, width, 28), fill="#2b3a4a")
    draw.text((10, 6), "File   Edit   View   Help", fill="white", font=font)
    draw.rectangle((0, 28, width // 6, height), fill="#f0f0f3")
    words = ["lossless", "image", "compression", "estimator", "step", "mask", "pixel", "range"]
    for y in range(40, height - 20, 18):
        draw.text((12, y), " ".join(random.choice(words, 2)), fill="#333", font=font)
        draw.text((width // 5, y), " ".join(random.choice(words, 12)), fill="#111", font=font)
    for y in range(60, height - 100, 110):
        box, colour = (width - 220, y, width - 30, y + 80), random.integers(60, 220, 3).tolist()
        draw.rounded_rectangle(box, 12, fill=tuple(colour), outline="#888", width=2)
        draw.text((width - 200, y + 30), "Button", fill="white", font=font)
    made = np.array(image)
    if wallpaper:
        y, x = np.mgrid[:height, : width // 3]
        made[:, width // 3 : 2 * (width // 3)] = np.stack(
            [y * 255 // height, x * 255 // (width // 3), 0 * x + 128], axis=2
        )
    return made


def drawing(height: int, width: int, seed: int) -> np.ndarray:
    """Coloured shapes with black outlines, smoothed, as in a comic."""
    random = np.random.default_rng(seed)
    image = Image.new("RGB", (2 * width, 2 * height), "#cfe8ff")
    draw = ImageDraw.Draw(image)
    for _ in range(40):
        x, y, size = (int(random.integers(most)) for most in (2 * width, 2 * height, height // 2))
        colour = tuple(random.integers(0, 256, 3).tolist())
        box = (x - size, y - size, x + size, y + size // 2)
        draw.ellipse(box, fill=colour, outline="black", width=5)
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))


def icon(side: int) -> np.ndarray:
    """A round icon with smooth edges, RGBA."""
    image = Image.new("RGBA", (4 * side, 4 * side))
    draw = ImageDraw.Draw(image)
    draw.ellipse((8, 8, 4 * side - 8, 4 * side - 8), fill=(220, 60, 40, 255))
    points = [(2 * side, side // 2), (4 * side - side, 3 * side), (side, 3 * side)]
    draw.polygon(points, fill=(255, 240, 200, 255))
    return np.asarray(image.resize((side, side), Image.Resampling.LANCZOS))


def linear_light(image: np.ndarray) -> np.ndarray:
    """The light of a picture reduced to half its size, uint16: more than 8 bits carry signal."""
    light = (image / 255.0) ** 2.2
    height, width = (2 * (side // 2) for side in image.shape[:2])
    blocks = light[:height, :width].reshape(height // 2, 2, width // 2, 2, *image.shape[2:])
    return (65535 * blocks.mean(axis=(1, 3))).round().astype(np.uint16)


def in_colours(image: np.ndarray, colours: int) -> Picture:
    """A picture with a palette."""
    reduced = Image.fromarray(image).quantize(colours)
    palette = bytes(reduced.getpalette() or ())[: 3 * colours]
    return Picture(np.asarray(reduced), palette)


def gallery(folder: Path) -> dict[str, Picture]:
    """The pictures of the table: photographs of the folder, and about twenty others."""
    from skimage import data

    files = sorted(path for path in folder.iterdir() if path.suffix in (".png", ".webp"))
    pictures = {f"photograph {path.stem}": read(path) for path in files}
    first = next(iter(pictures.values())).samples[:384, :512].copy()
    arrays = {
        f"scikit-image {name}": getattr(data, name)()
        for name in ("astronaut", "coffee", "camera", "coins", "moon", "page", "text", "brick")
    }
    arrays |= {
        "screenshot": screenshot(800, 1280),
        "screenshot, wallpaper": screenshot(800, 1280, wallpaper=True),
        "screenshot, small": screenshot(300, 400),
        **{f"icon {side}": icon(side) for side in (16, 48, 128)},
        "drawing": drawing(400, 600, 1),
        "drawing, small": drawing(120, 160, 2),
        "grey": first[..., 1].copy(),
        "grey and alpha": with_alpha(first)[..., 2:].copy(),
        "alpha": with_alpha(first),
        "16 bits": linear_light(first),
        "16 bits, grey": linear_light(first[..., 1]),
        "thumbnail": np.asarray(Image.fromarray(first).resize((64, 48))),
    }
    pictures |= {name: from_array(np.ascontiguousarray(array)) for name, array in arrays.items()}
    pictures["palette of 256"] = in_colours(first, 256)
    pictures["palette of 16"] = in_colours(first, 16)
    return pictures


def row_beside_codecs(name: str, picture: Picture, model: str | None, steps: int | None) -> Row:
    """The row of a picture in the table with --photos."""
    begin = time.perf_counter()
    (compressed,) = compress_each([picture], model, steps)
    file = compressed.to_file()
    middle = time.perf_counter()
    back = from_file(file)
    end = time.perf_counter()
    height, width = picture.samples.shape[:2]
    row: Row = {
        "picture": name,
        "size": f"{width}×{height}",
        "exact": np.array_equal(back.samples, picture.samples) and back.palette == picture.palette,
        "method": compressed.record.method.name,
        "file": len(file),
        "encode": round(middle - begin, 2),
        "decode": round(end - middle, 2),
    }
    samples = picture.samples
    if picture.palette is not None:
        samples = np.frombuffer(picture.palette, np.uint8).reshape(-1, 3)[samples]
    for codec, (encode, decode) in CODECS.items():
        begin = time.perf_counter()
        try:
            data = encode(picture, samples)
        except Exception:  # the codec has no such samples
            row |= {codec: None, f"{codec} encode": None, f"{codec} decode": None}
            continue
        middle = time.perf_counter()
        decode(data)
        end = time.perf_counter()
        row |= {
            codec: len(data),
            f"{codec} encode": round(middle - begin, 2),
            f"{codec} decode": round(end - middle, 2),
        }
    best = min(row[codec] for codec in CODECS if row[codec] is not None)
    return row | {"over": len(file) - best, "good": len(file) <= 1.005 * best + 32}


def _png(picture: Picture, samples: np.ndarray) -> bytes:
    """The smallest of several PNG files."""
    tried = [to_png(picture)]
    for level, filters in ((9, 0x08), (9, 0x10), (9, 0x80), (9, 0xF8)):
        if picture.palette is None:
            tried.append(bytes(imagecodecs.png_encode(samples, level=level, filter=filters)))
    return min(tried, key=len)


def _webp(_: Picture, samples: np.ndarray) -> bytes:
    if samples.dtype != np.uint8 or samples.shape[2:] == (2,):
        raise ValueError("WebP has no such samples")
    colours = samples if samples.ndim == 3 else samples[..., None].repeat(3, axis=2)
    return _encoded("WebP", np.ascontiguousarray(colours))


def _encoded(codec: str, samples: np.ndarray) -> bytes:
    encode, _ = classical.CODECS[codec]
    return bytes(encode(samples))


def _decode(codec: str) -> Callable[[bytes], object]:
    return classical.CODECS[codec][1]


CODECS: dict[str, tuple[Callable[[Picture, np.ndarray], bytes], Callable[[bytes], object]]] = {
    "PNG": (_png, _decode("PNG")),
    "WebP": (_webp, _decode("WebP")),
    "JPEG XL 7": (lambda _, samples: _encoded("JPEG XL e7", samples), _decode("JPEG XL e7")),
    "JPEG XL 9": (lambda _, samples: _encoded("JPEG XL e9", samples), _decode("JPEG XL e9")),
}


def beside_codecs(pictures: dict[str, Picture], arguments: argparse.Namespace) -> bool:
    """Print and write the table with --photos; whether all pictures are as they should be."""
    if arguments.only:
        pictures = {name: pictures[name] for name in arguments.only}
    warm_up = from_array(photograph(48, 48))
    from_file(compress_each([warm_up], arguments.model)[0].to_file())
    rows: list[Row] = []
    for name, picture in pictures.items():
        rows.append(row_beside_codecs(name, picture, arguments.model, arguments.steps))
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    photographs = [row for row in rows if str(row["picture"]).startswith("photograph")]
    if photographs:
        sums = {column: sum(row[column] for row in photographs) for column in ("file", *CODECS)}
        print("photographs in sum:", sums)
    write_table(rows, arguments.csv)
    return all(row["exact"] and row["good"] for row in rows)


def untried(pictures: dict[str, Picture], model: str | None) -> None:
    """Print what the test for graphics and noise costs."""
    codec, count = load_model(model).codec(16), 0
    for name, picture in pictures.items():
        if picture.palette is None:
            picture = from_array(np.ascontiguousarray(picture.samples[:256, :256]))
        rival = Rival(picture)
        if not rival.promising:
            count += 1
            estimated = min(
                codec.encode(main[None])[0].bits // 8 + sum(len(content) for _, content in chunks)
                for main, chunks in rival.forms
            )
            print(f"{name}: {size(rival.record)} bytes, by the estimator {estimated}", flush=True)
    print(f"{count} of {len(pictures)} pictures are not tried")


def main() -> None:
    """Measure each picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="name or path; default: the default model")
    parser.add_argument("--steps", type=int, help="default: 4; with --photos that of the model")
    parser.add_argument("--only", nargs="+", help="names of pictures; default: all")
    parser.add_argument("--untried", action="store_true", help="what the test before costs")
    parser.add_argument("--photos", type=Path, help="folder of photographs, PNG or WebP")
    parser.add_argument("--csv", type=Path, default=Path(__file__).with_suffix(".csv"))
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        print(json.dumps(measured(arguments.work, arguments.model, arguments.steps)))
        return
    photographs = gallery(arguments.photos) if arguments.photos else {}
    names = (photographs or PICTURES).keys()
    if unknown := set(arguments.only or ()) - names:
        parser.error(f"unknown pictures {sorted(unknown)}: expected some of {sorted(names)}")
    if arguments.photos and arguments.untried:
        untried(photographs, arguments.model)
        return
    if arguments.photos:
        sys.exit(not beside_codecs(photographs, arguments))
    rows: list[Row] = []
    for name in arguments.only or PICTURES:
        steps = str(arguments.steps or 4)
        command = [sys.executable, __file__, "--work", name, "--steps", steps]
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
    (compressed,) = compress_each([picture], model, steps)
    file = compressed.to_file()
    back = from_file(file, model)
    exact = exact and np.array_equal(back.samples, array)
    return {
        "exact": exact,
        "file": len(file),
        "PNG": len(to_png(picture)),
        "JPEG XL": len(_encoded("JPEG XL e7", array)),
        "method": compressed.record.method.name,
        "estimator": estimated,
        "encode": round(encoded - begin, 2),
        "decode": round(end - encoded, 2),
        "MiB": round(memory),
    }


if __name__ == "__main__":
    main()
