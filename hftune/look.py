"""One look at the rows of a split: all are read, a sample of them is kept to be tried, and what recurs is counted."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import xxhash

from .clean import essence, length

SAMPLE = 256  # rows kept to be tried, up to twice as many; spread over the whole split
SAMPLE_CHARS = 300_000  # of text in them
LONG = 100_000  # characters; a row of more is read, and not tried


@dataclass
class Look:
    """What was seen.

    Attributes:
        rows: how many.
        sample: some of them, in order, the longest and the shortest among them.
        texts: a hash of each row's text, where they are to be compared with other rows.
        again: rows whose text is among those compared with.
        report: see data.Reader.
    """

    rows: int = 0
    sample: list[Any] = field(default_factory=list)
    texts: set[bytes] = field(default_factory=set)
    again: dict[str, set[bytes]] = field(default_factory=dict)
    report: dict[str, int] = field(default_factory=dict)


def look(reader: Any, columns: Sequence[str], keep: bool, against: dict[str, "Look"]) -> Look:
    """Read a split from its first to its last row.

    Args:
        reader: data.Reader.
        columns: its columns of text.
        keep: remember a hash of each text.
        against: other splits, looked at before with `keep`.

    Raises:
        UserError: a row is broken.
    """
    seen, stride = Look(again={name: set() for name in against}), 1
    kept: list[tuple[int, Any]] = []
    longest: tuple[int, int, Any] | None = None
    shortest: tuple[int, int, Any] | None = None
    for number, row in enumerate(reader):
        seen.rows += 1
        size = sum(length(row[name]) for name in columns)
        if size <= LONG and number % stride == 0:
            kept.append((number, row))
            if len(kept) >= 2 * SAMPLE:
                kept, stride = [pair for pair in kept if pair[0] % (2 * stride) == 0], 2 * stride
        if size <= LONG and (longest is None or size > longest[0]):
            longest = (size, number, row)
        if size <= LONG and (shortest is None or size < shortest[0]):
            shortest = (size, number, row)
        if keep or against:
            text = _key(row, columns)
            if keep:
                seen.texts.add(text)
            for name, other in against.items():
                if text in other.texts:
                    seen.again[name].add(text)
    ends = [(number, row) for _, number, row in filter(None, (longest, shortest))]
    seen.sample = _bounded(dict(sorted([*kept, *ends], key=lambda pair: pair[0])), [n for n, _ in ends], columns)
    seen.report = dict(reader.report)
    return seen


def _bounded(rows: dict[int, Any], first: list[int], columns: Sequence[str]) -> list[Any]:
    """Rows of at most SAMPLE_CHARS together; those of `first` before the others."""
    chosen, chars = set(), 0
    for number in [*first, *rows]:
        size = sum(length(rows[number][name]) for name in columns)
        if number in chosen or chars + size > SAMPLE_CHARS:
            continue
        chosen.add(number)
        chars += size
    return [row for number, row in rows.items() if number in chosen]


def _key(row: Any, columns: Sequence[str]) -> bytes:
    return xxhash.xxh3_128_digest(b"\0".join(essence(part) for name in columns for part in _strings(row[name])))


def _strings(value: Any) -> list[str]:
    if isinstance(value, (list, dict)):
        return [text for part in (value.values() if isinstance(value, dict) else value) for text in _strings(part)]
    return [str(value)]
