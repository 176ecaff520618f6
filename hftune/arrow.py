"""Arrow arrays from and to numpy and lists of texts, by their buffers.

pyarrow's own `array` and `to_numpy` import pandas wherever it is installed: up to half a second of a start.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def numbers(array: npt.NDArray[Any]) -> pa.Array:
    """One-dimensional numpy numbers, without a copy."""
    array = np.ascontiguousarray(array)
    return pa.Array.from_buffers(pa.from_numpy_dtype(array.dtype), len(array), [None, pa.py_buffer(array)])


def texts(strings: Sequence[str]) -> pa.Array:
    """Texts as large_string.

    Raises:
        UnicodeEncodeError: a text that is not valid Unicode (a lone surrogate).
    """
    parts = [text.encode() for text in strings]
    data = pa.py_buffer(b"".join(parts))
    return pa.LargeStringArray.from_buffers(len(parts), pa.py_buffer(_offsets(parts)), data)


def lists(rows: Sequence[Sequence[str]]) -> pa.Array:
    """Lists of texts as large_list of large_string."""
    return pa.LargeListArray.from_arrays(numbers(_offsets(rows)), texts(list(chain.from_iterable(rows))))


def view(array: pa.Array) -> npt.NDArray[Any]:
    """Numbers of which none is missing, without a copy."""
    dtype = np.dtype(array.type.to_pandas_dtype())
    if not len(array):
        return np.zeros(0, dtype)
    return np.frombuffer(array.buffers()[1], dtype, len(array), array.offset * dtype.itemsize)


def _offsets(rows: Sequence[Any]) -> npt.NDArray[np.int64]:
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, rows), np.int64, len(rows)), out=offsets[1:])
    return offsets
