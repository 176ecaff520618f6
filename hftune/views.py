"""Encoded rows seen in another way, to be evaluated: nothing is encoded again, nothing copied but the row asked for.

A view has what the loop asks of rows (`len`, `[row]`, `lengths`) and `documents`, int64 [rows], the number of the
document that each row is of. D documents, R rows of the data, V rows of the view.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from .task import Options

Ints = npt.NDArray[np.int64]


class Sliding:
    """Each document in overlapping windows, every token being a target in the first window that reaches it.

    The first window of a document holds its first `window` targets; each further one moves on by `stride`, or to the
    document's end, and counts only the targets that it is the first to reach. A target so has at least
    `window - stride` tokens of context, where the document has as many before it; with stride 1 it has all that the
    window can hold.

    Args:
        data: rows of `input_ids`, an id of context and then the ids that follow it, and of `begins`; the rows of a
            document follow each other.
        window: most tokens of input.
        stride: targets from one window to the next, at most `window`.
    """

    def __init__(self, data: Any, window: int, stride: int):
        self.data = data
        sizes = data.lengths - 1  # the targets of each row
        self.ends: Ints = np.cumsum(sizes)  # in the stream of all targets
        start_D = (self.ends - sizes)[np.flatnonzero(data.column("begins"))]
        total_D = np.diff(start_D, append=self.ends[-1])
        number_D = 1 + np.maximum(0, -((window - total_D) // stride))
        self.documents: Ints = np.repeat(np.arange(len(start_D)), number_D)
        turn_V = np.arange(len(self.documents)) - np.repeat(np.cumsum(number_D) - number_D, number_D)
        stop_V = np.minimum(window + turn_V * stride, total_D[self.documents])
        begin_V = np.maximum(0, stop_V - window)
        self.context: Ints = (
            np.where(turn_V > 0, window + (turn_V - 1) * stride, 0) - begin_V
        )  # targets of the one before
        self.begin: Ints = start_D[self.documents] + begin_V
        self.lengths: Ints = stop_V - begin_V + 1

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> dict[str, Any]:
        """`input_ids`, one longer than the model's input, and `trained`, 1 where an id counts."""
        begin, length = int(self.begin[row]), int(self.lengths[row])
        at = int(np.searchsorted(self.ends, begin, side="right"))
        ids = self.data[at]["input_ids"]
        parts = [ids[begin - int(self.ends[at]) + len(ids) - 1 :]]
        while sum(map(len, parts)) < length:
            at += 1
            parts.append(self.data[at]["input_ids"][1:])
        trained = np.arange(length) > self.context[row]
        return {"input_ids": np.concatenate(parts)[:length], "trained": trained.astype(np.int8)}


class Alone:
    """Each row once for every token that can be masked, with its place in the column `alone`.

    Args:
        data: rows of `input_ids`.
        ordinary: bool [vocabulary], which ids can be masked.
    """

    def __init__(self, data: Any, ordinary: Any):
        self.data = data
        places = [np.flatnonzero(ordinary[data[row]["input_ids"]]) for row in range(len(data))]
        self.rows: Ints = np.repeat(np.arange(len(places)), [len(found) for found in places])
        self.places: Ints = np.concatenate([*places, np.zeros(0, np.int64)])
        self.documents: Ints = data.documents[self.rows]
        self.lengths: Ints = data.lengths[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        """The row, and `alone`, the place of the token that is masked."""
        return {**self.data[int(self.rows[row])], "alone": int(self.places[row])}


def slide(data: Any, options: Options, stride: int) -> Sliding:
    """Task.slide of a causal model: windows of the task's max_length."""
    return Sliding(data, options.max_length, stride)  # type: ignore[attr-defined]
