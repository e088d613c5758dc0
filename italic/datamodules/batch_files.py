"""Batch files of images, pickled or .npz, read without running anything that they say."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from italic.datamodules.images import DataError


def read_batch(path: Path, size: int) -> np.ndarray:
    """The images of a batch file: its entry `data`, uint8 (N, 3·size·size), red, green, blue plane.

    Args:
        path: a pickled dict, or an .npz file.
        size: side of the images in pixels.

    Raises:
        DataError: it can't be read, holds images of another size, or more than data.
    """
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                data = arrays["data"]
        else:
            with open(path, "rb") as file:
                data = _Unpickler(file, encoding="latin1").load()["data"].uint8()
    except Exception as error:  # a damaged pickle may raise anything
        raise DataError(
            f"'{path}' can't be read as a batch file ({error or type(error).__name__}): expected a "
            "dict with the images as `data`; fetch it anew"
        ) from error
    if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3 * size**2 or not len(data):
        raise DataError(
            f"'{path}' holds data of {data.dtype} {data.shape}: expected images of {size}×{size} "
            f"pixels, uint8 (N, {3 * size**2})"
        )
    return data


class _Array:
    """In the place of a pickled numpy array: its parts as they were pickled."""

    def __init__(self, *_: Any) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def uint8(self) -> np.ndarray:
        """The array, without a copy; of another type, an error."""
        _, shape, dtype, columns_first, raw = self.state
        if dtype.code not in ("u1", "uint8"):
            raise ValueError(f"its data is of type {dtype.code}, not of uint8")
        raw = raw.encode("latin1") if isinstance(raw, str) else raw  # by Python 2
        return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if columns_first else "C")


class _Dtype:
    """In the place of a pickled numpy dtype."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code = code

    def __setstate__(self, _: Any) -> None: ...


def _from_buffer(raw: Any, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
    """An array as pickle's protocol 5 has it."""
    array = _Array()
    array.state = (1, shape, dtype, order == "F", raw)
    return array


def _scalar(_: _Dtype, raw: Any) -> Any:
    """A numpy number, of which nothing is needed."""
    return raw


def _encode(text: str, encoding: str) -> bytes:
    """Bytes as pickle's protocols before 3 have them."""
    if encoding != "latin1":
        raise ValueError(f"bytes encoded in {encoding}")
    return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
    """Of dicts, lists, text, bytes, numbers and numpy arrays; none of numpy's own code is run."""

    ADMITTED: ClassVar[dict[str, Callable[..., Any]]] = {
        "_codecs.encode": _encode,
        "numpy.ndarray": _Array,
        "numpy.dtype": _Dtype,
        **{
            f"numpy.{core}.{name}": stand_in
            for core in ("core", "_core")  # its name before numpy 2, and since
            for name, stand_in in (
                ("multiarray._reconstruct", _Array),
                ("multiarray.scalar", _scalar),
                ("numeric._frombuffer", _from_buffer),
            )
        },
    }

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for what a pickle names."""
        if f"{module}.{name}" not in self.ADMITTED:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which was not run; images need numpy arrays, "
                "lists, text and numbers alone"
            )
        return self.ADMITTED[f"{module}.{name}"]
