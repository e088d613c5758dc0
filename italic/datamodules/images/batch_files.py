"""Batch files of images, .npz or pickles; pickles are read with a restricted unpickler."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.lib import format as npy

from italic.datamodules.images.files import DataError
from italic.errors import reason

MAX_IMAGES = 2**18  # in a file; the data set's largest files have 128,123
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_batch(path: Path, size: int) -> np.ndarray:
    """Read the images of a batch file, uint8 (N, 3·size·size): red, green and blue plane.

    Args:
        path: an .npz file or a pickled dict with the images as `data`.
        size: side of the images in pixels.

    Raises:
        DataError: the file can't be read, holds images of another size, or holds code.
    """
    try:
        if path.suffix == ".npz":
            data = _read_npz(path, size)
        else:
            with open(path, "rb") as file:
                data = _Unpickler(file, encoding="latin1").load()["data"].uint8()
    except DataError:
        raise
    except Exception as error:  # a damaged file may raise any exception
        raise DataError(
            f"'{path}' can't be read as a batch file ({reason(error) or type(error).__name__}): "
            "expected a dict with the images as `data`; download it again"
        ) from error
    _check(path, data.shape, data.dtype, size)
    return data


def _check(path: Path, shape: tuple[int, ...], dtype: np.dtype, size: int) -> None:
    """Check that an array holds 1 to `MAX_IMAGES` images of a size."""
    if dtype != np.uint8 or shape[1:] != (3 * size**2,) or not 1 <= shape[0] <= MAX_IMAGES:
        raise DataError(
            f"'{path}' holds data of {dtype} {shape}: expected images of {size}×{size} "
            f"pixels, uint8 (N, {3 * size**2}) with N from 1 to {MAX_IMAGES}"
        )


def _read_npz(path: Path, size: int) -> np.ndarray:
    """The array `data` of an .npz file; its type and size are checked before it is read."""
    with zipfile.ZipFile(path) as archive:
        with archive.open("data.npy") as file:
            shape, _, dtype = HEADERS[npy.read_magic(file)](file)
        _check(path, shape, dtype, size)
        with archive.open("data.npy") as file:
            data = npy.read_array(file, allow_pickle=False)
            if file.read(1):  # at the end of the file its checksum is verified
                raise ValueError("its data is longer than the array")
    return data


class _Array:
    """Stand-in for a pickled numpy array; holds the state from the pickle."""

    def __init__(self, *_: Any) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def uint8(self) -> np.ndarray:
        """The array as a view of the pickled bytes.

        Raises:
            ValueError: the data is not uint8.
        """
        _, shape, dtype, columns_first, raw = self.state
        if dtype.code not in ("u1", "uint8"):
            raise ValueError(f"its data has type {dtype.code} instead of uint8")
        raw = raw.encode("latin1") if isinstance(raw, str) else raw  # pickled by Python 2
        return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if columns_first else "C")


class _Dtype:
    """Stand-in for a pickled numpy dtype."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code = code

    def __setstate__(self, _: Any) -> None: ...


def _from_buffer(raw: Any, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
    """Stand-in for numpy's function for arrays in pickle protocol 5."""
    array = _Array()
    array.state = (1, shape, dtype, order == "F", raw)
    return array


def _scalar(_: _Dtype, raw: Any) -> Any:
    """Stand-in for numpy's function for scalars, whose values are not needed."""
    return raw


def _encode(text: str, encoding: str) -> bytes:
    """Stand-in for `codecs.encode`, which pickle protocols before 3 use for bytes."""
    if encoding != "latin1":
        raise ValueError(f"its bytes are encoded in {encoding} instead of latin1")
    return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
    """Loads dicts, lists, strings, bytes, numbers and numpy arrays without importing any code."""

    ADMITTED: ClassVar[dict[str, Callable[..., Any]]] = {
        "_codecs.encode": _encode,
        "numpy.ndarray": _Array,
        "numpy.dtype": _Dtype,
        **{
            f"numpy.{core}.{name}": stand_in
            for core in ("core", "_core")  # name of the package before numpy 2 and since
            for name, stand_in in (
                ("multiarray._reconstruct", _Array),
                ("multiarray.scalar", _scalar),
                ("numeric._frombuffer", _from_buffer),
            )
        },
    }

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a class or function named in the pickle."""
        if f"{module}.{name}" not in self.ADMITTED:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which was not run; expected only numpy arrays, "
                "lists, strings and numbers"
            )
        return self.ADMITTED[f"{module}.{name}"]
