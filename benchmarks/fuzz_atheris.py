"""Coverage-guided fuzzing of records, from their bytes to pictures; complements `fuzz.py`.

Needs atheris (`pip install atheris`, which includes libFuzzer); takes the options of libFuzzer:

    OMP_NUM_THREADS=1 python benchmarks/fuzz_atheris.py -max_total_time=120

An input is a byte and a record. Checksums and compression are corrected before the record is
opened, since a fuzzer can't satisfy them. The bits of the first byte mark the chunks whose first
byte is not compressed, such as planes. Anything but a picture or a ValueError is a crash.
"""

from __future__ import annotations

import sys
import tempfile
import zlib
from dataclasses import replace
from pathlib import Path

import atheris

# Compiled code can't be instrumented.
with atheris.instrument_imports(include=["italic"], exclude=["italic.coding.streams.range_coder"]):
    from italic.coding.files.container import Method, Record
    from italic.compressor.decompression import decompress_records

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # the checkout, for its tests

from italic.coding.model_files.loading import load_model
from tests.fuzzing.corpus import corpus

MAX_PIXELS = 2**14
MAX_STEPS = 8


def seeds() -> list[bytes]:
    """The records of all files of the corpus, with uncompressed chunks."""
    inputs = []
    for layer in corpus(Path(FOLDER)):
        if layer.record is None:
            continue
        planes, chunks = 0, []
        for place, (kind, content) in enumerate(layer.record.chunks):
            start = 0 if content[:1] == b"\x78" else 1
            planes |= start << place
            plain = zlib.decompress(content[start:]) if content[start:] else b""
            chunks.append((kind, content[:start] + plain))
        inputs.append(bytes([planes]) + replace(layer.record, chunks=tuple(chunks)).to_bytes())
    return inputs


def one_input(data: bytes) -> None:
    """Open the record of an input."""
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
    MODELS = [load_model(Path(FOLDER, f"{name}.safetensors")) for name in ("plain", "based")]
    for path in Path(FOLDER).glob("*.safetensors"):
        path.unlink()
    atheris.Setup([*sys.argv, FOLDER], one_input)
    atheris.Fuzz()
