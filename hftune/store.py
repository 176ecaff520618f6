"""Encoded rows on disk: Arrow files, memory-mapped, keyed by the content of all that made them.

A key names a folder of parts, each written aside and renamed, so that a run killed while it prepares loses
only the part it was at. A part that is truncated or was made by something else is made again.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from . import arrow
from .arrays import Ragged
from .files import read_json
from .keys import cache_folder as cache_folder
from .keys import code_fingerprint as code_fingerprint
from .keys import key_of as key_of

PART_CHARS = 16_000_000  # text of one part: what a kill can cost, and what is held in memory at once
BATCH_CHARS = 2_000_000  # text handed to the tokenizer at once
STALE = 3600  # seconds after which nobody still writes a part


def _size(row: dict[str, Any]) -> int:
    return sum(map(_chars, row.values()))


def _chars(value: Any) -> int:
    """Characters of a text, of a list or object those of all in it; a number, and what holds a part, counts as 8."""
    if isinstance(value, (list, dict)):
        return sum(8 + _chars(part) for part in (value.values() if isinstance(value, dict) else value))
    return len(value) if isinstance(value, str) else 8


def batches(rows: Iterable[Any], most: int | None = None) -> Iterator[list[Any]]:
    """Rows to be tokenized at once: some BATCH_CHARS of text, and at most so many rows."""
    batch: list[Any] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += _size(row) + 64
        if size >= BATCH_CHARS or len(batch) == most:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _to_arrow(column: Any) -> pa.Array:
    if isinstance(column, Ragged):
        return pa.LargeListArray.from_arrays(
            arrow.numbers(column.offsets.astype(np.int64)), arrow.numbers(column.values)
        )
    if isinstance(column, list) and any(
        isinstance(value, str) for row in column if isinstance(row, list) for value in row[:1]
    ):
        return arrow.lists(column)
    if len(column) and isinstance(column[0], (list, np.ndarray)):
        return _to_arrow(Ragged.of(column, np.asarray(column[0]).dtype if len(column[0]) else np.int32))
    if isinstance(column, list) and all(isinstance(value, str) for value in column):
        return arrow.texts(column)
    array = np.asarray(column)
    return arrow.numbers(array) if array.dtype.kind in "iuf" else pa.array(column)


def _from_arrow(array: pa.Array) -> Any:
    kind = array.type
    if pa.types.is_large_list(kind) and not pa.types.is_large_string(kind.value_type):
        return Ragged(arrow.view(array.values), arrow.view(array.offsets))
    if (pa.types.is_integer(kind) or pa.types.is_floating(kind)) and not array.null_count:
        return arrow.view(array)
    whole = pa.types.is_large_string(kind) or pa.types.is_nested(kind) or pa.types.is_string(kind)
    return array if whole else array.to_numpy(zero_copy_only=False)


def counts(columns: dict[str, Any]) -> dict[str, int]:
    """Take out what is no column but a count."""
    return {name: columns.pop(name) for name in [n for n, column in columns.items() if isinstance(column, int)]}


@dataclass
class _Part:
    columns: dict[str, Any]  # Ragged, numpy array, or a pyarrow array (strings)
    rows: int
    taken: int = 0  # raw rows that went into it
    counted: dict[str, int] = field(default_factory=dict)  # what encoding them counted

    @classmethod
    def open(cls, path: Path, key: str) -> "_Part | None":
        """The part, or None if it is missing, cut short, or made by something else."""
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            meta = reader.schema.metadata or {}
            if meta.get(b"key") != key.encode():
                return None
            table, taken, counted = (
                reader.read_all().combine_chunks(),
                int(meta[b"taken"]),
                json.loads(meta[b"counted"]),
            )
        except (OSError, pa.ArrowException, KeyError, ValueError):
            return None
        columns: dict[str, Any] = {}
        for name in table.column_names:
            array = table.column(name)
            columns[name] = _from_arrow(array.chunk(0) if array.num_chunks else pa.array([], array.type))
        return cls(columns, table.num_rows, taken, counted)


def _write(path: Path, key: str, columns: dict[str, Any], taken: int, counted: dict[str, int]) -> None:
    table = pa.table({name: _to_arrow(column) for name, column in columns.items()})
    table = table.replace_schema_metadata({"key": key, "taken": str(taken), "counted": json.dumps(counted)})
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=max(1, table.num_rows))
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)  # of a full disk the room, and of a run that is stopped


def merge(columns: list[dict[str, Any]]) -> dict[str, Any]:
    """Columns of several batches as one."""
    if len(columns) == 1:
        return columns[0]
    merged: dict[str, Any] = {}
    for name in columns[0]:
        parts = [c[name] for c in columns]
        if isinstance(parts[0], Ragged):
            shift = np.cumsum([0] + [p.offsets[-1] - p.offsets[0] for p in parts])
            offsets = [p.offsets[:-1] - p.offsets[0] + s for p, s in zip(parts, shift[:-1], strict=True)]
            values = [p.values[p.offsets[0] : p.offsets[-1]] for p in parts]
            merged[name] = Ragged(np.concatenate(values), np.concatenate([*offsets, shift[-1:]]).astype(np.int64))
        elif isinstance(parts[0], np.ndarray):
            merged[name] = np.concatenate(parts)
        else:
            merged[name] = [value for part in parts for value in part]
    return merged


@dataclass
class Encoded:
    """Encoded rows: `rows[i]` is a dict of numpy arrays and scalars.

    Attributes:
        key: content key of all that made them.
        lengths: int64 [rows], tokens of each row (all list columns of ids together).
        report: what reading and cleaning counted.
    """

    key: str
    parts: list[_Part]
    report: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._starts = np.cumsum([0] + [part.rows for part in self.parts])
        self.lengths: np.ndarray[Any, np.dtype[np.int64]] = np.concatenate(
            [self._lengths(part) for part in self.parts] or [np.zeros(0, np.int64)]
        )

    @staticmethod
    def _lengths(part: _Part) -> np.ndarray[Any, np.dtype[np.int64]]:
        ids = [c for name, c in part.columns.items() if isinstance(c, Ragged) and name in ("input_ids", "labels")]
        sizes = [np.diff(c.offsets) for c in ids] or [np.ones(part.rows, np.int64)]
        return np.asarray(np.sum(sizes, axis=0), np.int64)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, row: int) -> dict[str, Any]:
        at = int(np.searchsorted(self._starts, row, side="right")) - 1
        local = int(row - self._starts[at])
        found = {name: column[local] for name, column in self.parts[at].columns.items()}
        return {name: v.as_py() if isinstance(v, pa.Scalar) else v for name, v in found.items()}

    def column(self, name: str) -> Any:
        """A scalar column, whole."""
        return np.concatenate([part.columns[name] for part in self.parts])

    @property
    def documents(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """int64 [rows], the number of the row of text that each row is of; the first of its rows has `begins` 1."""
        if not self.has("begins"):
            return np.arange(len(self))
        return np.cumsum(self.column("begins"), dtype=np.int64) - 1

    def has(self, name: str) -> bool:
        """Whether the rows have that column."""
        return bool(self.parts) and name in self.parts[0].columns


def in_memory(columns: dict[str, Any]) -> Encoded:
    """Columns that a task's encode gave, without the disk."""
    kept = {
        name: column if isinstance(column, (Ragged, np.ndarray)) else _from_arrow(_to_arrow(column))
        for name, column in columns.items()
        if not isinstance(column, int)  # a count
    }
    return Encoded("", [_Part(kept, len(next(iter(kept.values()))))])


def encode(reader: Iterable[Any], function: Any, key: str, folder: Path) -> Encoded:
    """Rows of text through `function(list of rows) -> columns`, kept under `folder / key`.

    Args:
        reader: rows, iterable again; its `report` dict is kept with the result.
        function: a task's encode, bound to its tokenizer and options; what it counts is added to the report.
        key: content key, see key_of.
        folder: cache folder; several runs may share it, since parts are written aside and renamed.
    """
    home = folder / key
    done = home / "done.json"
    if (found := _open(home, key)) is not None:
        return found
    home.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    done.unlink(missing_ok=True)
    parts: list[_Part] = []
    while (part := _Part.open(home / f"part-{len(parts):05d}.arrow", key)) is not None:
        parts.append(part)
    rows = iter(reader)
    for _ in islice(rows, sum(part.taken for part in parts)):
        pass  # read again, not encoded again
    waiting: list[dict[str, Any]] = []
    taken = size = 0
    counted: Counter[str] = Counter()

    def flush() -> None:
        nonlocal waiting, taken, size
        path = home / f"part-{len(parts):05d}.arrow"
        _write(path, key, merge(waiting), taken, counted)
        part = _Part.open(path, key)
        if part is None:
            raise OSError(f"{path} cannot be read back after it was written")
        parts.append(part)
        waiting, taken, size = [], 0, 0
        counted.clear()

    for batch in batches(rows):
        columns = function(batch)
        counted.update(counts(columns))
        waiting.append(columns)
        taken += len(batch)
        size += sum(map(_size, batch))
        if size >= PART_CHARS:
            flush()
    if waiting:
        flush()
    report = Counter(getattr(reader, "report", {}))
    for part in parts:
        report.update(part.counted)
    aside = done.with_name(f".done.{os.getpid()}")
    aside.write_text(json.dumps({"parts": len(parts), "report": report}), encoding="utf-8")
    os.replace(aside, done)
    return Encoded(key, parts, dict(report))


def _sweep(folder: Path) -> None:
    """Remove parts that a killed process was writing, of whatever key: each is written at once, and named after its process.

    What was touched lately may be of a process on another machine, or in another container, that shares the folder.
    """
    for left in folder.glob("*/.part-*.arrow.*"):
        with suppress(OSError, ValueError):
            if time.time() - left.stat().st_mtime > STALE and not _lives(int(left.suffix[1:])):
                left.unlink()


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        pass
    return True


def _open(home: Path, key: str) -> Encoded | None:
    """What an earlier run finished, if it is whole."""
    state = read_json(home / "done.json")
    number, report = state.get("parts"), state.get("report")
    if not isinstance(number, int) or not isinstance(report, dict):
        return None
    parts = [_Part.open(home / f"part-{i:05d}.arrow", key) for i in range(number)]
    return None if None in parts else Encoded(key, [p for p in parts if p], report)
