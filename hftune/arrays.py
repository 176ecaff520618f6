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


def width(longest: int) -> int:
    """The padded length of rows: a little more than the longest, so that few shapes occur.

    Matrix libraries keep code for every shape that they met: without this a long run on ragged rows grows by gigabytes.
    """
    step = 4 if longest <= 32 else 8 if longest <= 128 else 16
    return -(-longest // step) * step


def fitting(bound: int) -> int:
    """The longest row whose padded length is at most `bound`; 1 where no row's is."""
    return next((longest for longest in range(bound, 0, -1) if width(longest) <= bound), 1)


def pad(rows: Sequence[Any], fill: float, side: str = "right", dtype: Any = np.int64) -> npt.NDArray[Any]:
    """Rows to one array [rows, width(longest)], filled with `fill` on the given side."""
    columns = width(max((len(row) for row in rows), default=0))
    out = np.full((len(rows), columns), fill, dtype)
    for line, row in zip(out, rows, strict=True):
        line[: len(row)] = row
        if side == "left" and len(row) < columns:
            line[:] = np.roll(line, columns - len(row))
    return out


def inputs(rows: Sequence[dict[str, Any]], tokenizer: Any) -> dict[str, Any]:
    """The model's inputs: int64 [rows, longest] `input_ids`, `attention_mask`, and `token_type_ids` where it has them."""
    side, ids = tokenizer.padding_side, [row["input_ids"] for row in rows]
    filler = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0  # never attended to
    batch = {"input_ids": pad(ids, filler, side), "attention_mask": pad([np.ones(len(row)) for row in ids], 0, side)}
    if "token_type_ids" in tokenizer.model_input_names:
        types = [row["token_type_ids"] if "token_type_ids" in row else np.zeros(len(row["input_ids"])) for row in rows]
        batch["token_type_ids"] = pad(types, tokenizer.pad_token_type_id, side)
    return batch
