"""ITALIC: iterative and attentive lossless image compression."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from italic.coding.model_files.loading import load_model
    from italic.compressor.arrays import (
        bits,
        compress,
        compress_jpeg,
        compress_many,
        decompress,
        decompress_jpeg,
        decompress_many,
    )
    from italic.compressor.enhancement import enhance

__all__ = [
    "bits",
    "compress",
    "compress_jpeg",
    "compress_many",
    "decompress",
    "decompress_jpeg",
    "decompress_many",
    "enhance",
    "load_model",
]
_ELSEWHERE = {
    "enhance": "italic.compressor.enhancement",
    "load_model": "italic.coding.model_files.loading",
}


def __getattr__(name: str) -> Any:
    """Import the compressor on first access, because importing PyTorch takes seconds."""
    if name in __all__:
        module = import_module(_ELSEWHERE.get(name, "italic.compressor.arrays"))
        return getattr(module, name)
    if name == "__version__":
        from importlib.metadata import version

        return version("italic")
    raise AttributeError(f"module 'italic' has no attribute '{name}'")
