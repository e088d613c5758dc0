"""ITALIC: iterative and attentive lossless image compression."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from italic.compressor.compression import (
        compress,
        compress_jpeg,
        decompress,
        decompress_jpeg,
    )

__all__ = ["compress", "compress_jpeg", "decompress", "decompress_jpeg"]


def __getattr__(name: str) -> Any:
    """Import the compressor on first access, because importing PyTorch takes seconds."""
    if name in __all__:
        from italic.compressor import compression

        return getattr(compression, name)
    if name == "__version__":
        from importlib.metadata import version

        return version("italic")
    raise AttributeError(f"module 'italic' has no attribute '{name}'")
