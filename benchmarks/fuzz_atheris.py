"""Coverage-guided fuzzing of records, from their bytes to pictures; beside `fuzz.py`.

Needs atheris (`pip install atheris`, which brings libFuzzer along); takes libFuzzer's options:

    OMP_NUM_THREADS=1 python benchmarks/fuzz_atheris.py -max_total_time=120

An input is a byte and a record. Checksums and compression are put right before the record is
opened, since no fuzzer finds its way past those: the bits of the first byte say which chunks have
their first byte outside of zlib, as planes do. Anything but a picture or a ValueError is a crash.
"""

from __future__ import annotations

import sys
import tempfile
import zlib
from dataclasses import replace
from pathlib import Path

import atheris

# Compiled code takes no instruments.
with atheris.instrument_imports(include=["italic"], exclude=["italic.coding.streams.range_coder"]):
    from italic.coding.files.container import Method, Record
    from italic.compressor.compression import decompress_records

import fuzz
import torch

MAX_PIXELS = 2**14
MAX_STEPS = 8


def seeds() -> list[bytes]:
    """The records of all files of the corpus, their chunks uncompressed."""
    made = []
    for layer in fuzz.corpus(Path(FOLDER)):
        if layer.record is None:
            continue
        planes, chunks = 0, []
        for place, (kind, content) in enumerate(layer.record.chunks):
            start = 0 if content[:1] == b"\x78" else 1
            planes |= start << place
            plain = zlib.decompress(content[start:]) if content[start:] else b""
            chunks.append((kind, content[:start] + plain))
        made.append(bytes([planes]) + replace(layer.record, chunks=tuple(chunks)).to_bytes())
    return made


def one_input(data: bytes) -> None:
    """Open a record."""
    try:
        record = Record.from_bytes(data[1:], MAX_PIXELS)
        if record.steps > MAX_STEPS:
            return
        chunks = []
        for place, (kind, content) in enumerate(record.chunks):
            start = data[0] >> place & 1
            body = zlib.compress(content[start:], 1) if content[start:] else b""
            chunks.append((kind, content[:start] + body))
        record = replace(record, chunks=tuple(chunks))
        if record.method == Method.RAW:
            record = replace(record, checksum=zlib.crc32(record.stream))
        decompress_records([record], MODELS[bool(record.base)])
    except ValueError:
        pass


if __name__ == "__main__":
    torch.set_num_threads(1)
    FOLDER = tempfile.mkdtemp()
    for number, seed in enumerate(seeds()):
        Path(FOLDER, f"{number}.seed").write_bytes(seed)
    MODELS = [fuzz.load_model(Path(FOLDER, f"{name}.safetensors")) for name in ("plain", "based")]
    for path in Path(FOLDER).glob("*.safetensors"):
        path.unlink()
    atheris.Setup([*sys.argv, FOLDER], one_input)
    atheris.Fuzz()
