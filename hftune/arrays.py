"""Ragged columns and padding, shared by the tasks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Ragged:
    """Rows of differing length in two buffers: row i is `values[offsets[i]:offsets[i + 1]]`.

    Attributes:
        values: one-dimensional array, all rows one after the other.
        offsets: int64 [rows + 1].
    """

    values: Ints
    offsets: Ints

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> Ints:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @classmethod
    def of(cls, rows: Sequence[Any], dtype: Any = np.int32) -> "Ragged":
        """From a list of lists or arrays."""
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        parts = [np.asarray(row, dtype) for row in rows]
        return cls(np.concatenate(parts) if parts else np.zeros(0, dtype), offsets)


def pad(rows: Sequence[Any], fill: float, side: str = "right", dtype: Any = np.int64) -> npt.NDArray[Any]:
    """Rows to one array [rows, longest], filled with `fill` on the given side."""
    width = max((len(row) for row in rows), default=0)
    out = np.full((len(rows), width), fill, dtype)
    for line, row in zip(out, rows, strict=True):
        line[: len(row)] = row
        if side == "left" and len(row) < width:
            line[:] = np.roll(line, width - len(row))
    return out
