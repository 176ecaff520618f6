"""Raw rows of files and Hub data sets: columns mapped, text cleaned, duplicates dropped, splits chosen; streamed."""

import difflib
import json
import math
import os
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import Any

import xxhash

from .clean import Cleaner, essence, length
from .errors import UserError
from .lines import Rejects, check_encoding
from .paths import safe, shown
from .readers import separated
from .schema import Data, Source
from .sources import HubRows, origin

ROWS = 2  # raise when the same bytes and settings come to give other rows, so that caches are made anew
KINDS = {str: "text", int: "a number", float: "a number", bool: "true or false", list: "a list", dict: "an object"}


class Row(dict[str, Any]):
    """Column -> value.

    Attributes:
        where: `file:line`, `file:line:column` or `file: row N`, for the message of every later fault.
        source: index of its source in `Reader.sources`.
        prefix: text that a task puts before its input.
    """

    __slots__ = ("prefix", "source", "where")
    where: str
    source: int
    prefix: str


class Reader:
    """The rows of a split; each iteration reads them anew.

    Attributes:
        sources: the recipe's sources, which `Row.source` counts.
        remote: whether any of them is on the Hub.
        formats: of the local files.
        mappings: for each source `column of a row -> column of its files`.
        heard: called for each row, with how many were read.
        reject_path: with on_error: skip, the file for what is passed over: objects with where, why, text; None: none.
        report: counts of the last iteration: rows `read`, `broken` and passed over (on_error: skip), `short` and
            `duplicate` and dropped, on the other side of validation_fraction (`held_out`, or of a validation split
            `for_training`), and given (`rows`);
            and `clean.Cleaner.counts`.
    """

    def __init__(
        self,
        data: Data,
        split: str,
        side: bool | None,
        texts: Sequence[str],
        columns: Sequence[str],
        optional: Sequence[str] = (),
        filled: Sequence[str] = (),
    ):
        """`side` of validation_fraction: True gives the rows held out, False the others, None all."""
        self.data, self.split, self.side, self.texts = data, split, side, tuple(texts)
        self.optional, self.filled = frozenset(optional), tuple(filled)
        self.other_side = "for_training" if side else "held_out"
        self.required = tuple(dict.fromkeys([*columns, *texts]))
        self.heard: Callable[[int], None] = lambda rows: None
        self.reject_path: str | os.PathLike[str] | None = None
        named = split if side is None else "train"
        self.sources: list[Source] = getattr(data, named)
        encoding = check_encoding(data.encoding)
        self.origins = [origin(source, named, encoding) for source in self.sources]
        self.remote = any(isinstance(origin, HubRows) for origin in self.origins)
        self.formats = {file.format for origin in self.origins for file in getattr(origin, "files", ())}
        self.mappings = [data.columns | source.columns for source in self.sources]
        self.report: dict[str, int] = {}

    def _rejects(self, path: str | os.PathLike[str] | None = None) -> Rejects:
        return Rejects(self.data.on_error == "skip", self.data.max_errors, path)

    def __iter__(self) -> Iterator[Row]:
        rejects, cleaner, why_not = self._rejects(self.reject_path), Cleaner(self.data.clean), self._chooser()
        report = self.report = dict.fromkeys(("read", "broken", "short", self.other_side, "duplicate", "rows"), 0)
        check = _Check(self.required, self.texts, self.filled, self.data.clean.control)
        for index, source in enumerate(self.sources):
            for where, raw in islice(self.origins[index](rejects), source.limit):
                report["read"] += 1
                self.heard(report["read"])
                try:
                    row = Row(mapped(raw, self.mappings[index], where, self.optional))
                    row.where, row.source, row.prefix = where, index, source.prefix
                    check(row)
                except UserError as fault:
                    rejects.add(fault, json.dumps(raw, default=str))
                    continue
                if cleaner.steps:
                    for name in self.texts:
                        row[name] = cleaner(row[name])
                if why := why_not(row):
                    report[why] += 1
                    continue
                report["rows"] += 1
                yield row
        report |= cleaner.counts | {"broken": rejects.count}
        if not report["rows"]:
            whys = [why for why in ("broken", "short", self.other_side) if report[why]]
            lost = ", ".join(f"{report[why]} {why.replace('_', ' ')}" for why in whys)
            message = f"no row is left of {report['read']} read" + (f": {lost}" if lost else "")
            hint = "relax data.clean, change data.validation_fraction, or give more rows"
            raise UserError(message, hint=hint, where=f"data.{self.split}")

    def _chooser(self) -> Callable[[Row], str]:
        """`row -> why it is dropped`, empty if it is not. Remembers a 128-bit hash of each row to know duplicates."""
        texts, clean, side = self.texts, self.data.clean, self.side
        bound = int(self.data.validation_fraction * 2**64)
        seen: set[bytes] = set()

        def why_not(row: Row) -> str:
            if clean.min_chars and any(length(row[name]) < clean.min_chars for name in texts):
                return "short"
            if side is None and not clean.deduplicate:
                return ""
            values = [row[name] for name in texts] if texts else [dict(row)]  # all, where a task names none
            if side is not None and (xxhash.xxh3_64_intdigest(b"\0".join(map(essence, values))) < bound) != side:
                return self.other_side
            if clean.deduplicate:
                before = len(seen)
                seen.add(xxhash.xxh3_128_digest(_content(values).encode()))
                return "duplicate" if len(seen) == before else ""
            return ""

        return why_not

    def first(self, source: int = 0) -> dict[str, Any]:
        """The first whole row of a source, after the mapping.

        Raises:
            UserError: the source has no row, or the mapping names a column that it does not have.
        """
        for where, row in self.origins[source](self._rejects()):
            return mapped(row, self.mappings[source], where, self.optional)
        raise UserError("no whole row", hint="see data.max_errors", where=self.sources[source].path)

    def fingerprint(self) -> str:
        """Hash of the content and of every setting that decides the rows; never of a file's name or time."""
        state = xxhash.xxh3_128()
        settings: list[Any] = [ROWS, self.texts, self.required, self.side]
        settings.append(self.data.model_dump(include={"clean", "encoding", "on_error"}))
        if self.side is not None:
            settings.append(self.data.validation_fraction)
        if self.filled and self.data.on_error == "skip":  # else such a row ends the reading
            settings.append(self.filled)
        for source, mapping, rows in zip(self.sources, self.mappings, self.origins, strict=True):
            settings += [mapping, source.model_dump(exclude={"path", "weight", "columns"})]
            rows.digest(state)
        state.update(json.dumps(settings, sort_keys=True).encode())
        return state.hexdigest()


class _Check:
    """That a row has the columns, each with a value of the type that it had in the rows before."""

    def __init__(self, required: Sequence[str], texts: Sequence[str], filled: Sequence[str], nul_allowed: bool):
        self.required, self.texts, self.filled = required, texts, filled
        self.nul_allowed = texts if nul_allowed else ()  # it is cleaned away
        self.first: dict[str, tuple[str, str]] = {}

    def __call__(self, row: Row) -> None:
        for name in self.required:
            try:
                value = row[name]
            except KeyError:
                raise UserError(f"no {shown(name)} in this row", hint=_has(row, name), where=row.where) from None
            kind = KINDS.get(type(value)) or type(value).__name__
            empty = name in self.filled and kind == "text" and not value.strip()
            if value is None or empty or (isinstance(value, float) and not math.isfinite(value)):
                hint = (
                    "fill in the value, or drop the row; training and eval pass over such rows with data.on_error: skip"
                )
                raise UserError(f"{shown(name)} is {'empty' if empty else _word(value)}", hint=hint, where=row.where)
            if name in self.texts and kind not in ("text", "a list", "an object"):
                hint = f"write it as text, in JSON in quotes, or map a column of text: data.columns.{name}"
                raise UserError(f"{shown(name)} is {_word(value)}, not text", hint=hint, where=row.where)
            first, there = self.first.setdefault(name, (kind, row.where))
            if kind != first:
                message = f"{shown(name)} is {kind} here ({_word(value)}) and {first} at {there}"
                raise UserError(message, hint="write all rows alike, e.g. numbers in quotes", where=row.where)
            if kind == "text" and "\0" in value and name not in self.nul_allowed:
                at = value.index("\0")
                message = f"{shown(name)} holds a NUL character: {shown(value[max(0, at - 20) : at + 20])}"
                hint = "data.clean.control: true removes control characters from text"
                raise UserError(message, hint=hint, where=row.where)


def texts(rows: Sequence[Any], name: str) -> list[str]:
    """A column of rows, all of it text; of rows to be predicted too.

    Raises:
        UserError: a value is something else, e.g. a list of words.
    """
    found = [row[name] for row in rows]
    for row, value in zip(rows, found, strict=True):
        if not isinstance(value, str):
            kind = KINDS.get(type(value)) or type(value).__name__
            raise UserError(
                f"{shown(name)} is {kind}, wanted text: {_word(value)}",
                hint=f"map it to a column of text: data.columns.{name}",
                where=getattr(row, "where", None),
            )
    return found


def check_parts(value: Any, name: str, where: str | None) -> None:
    """That a text which stands for several labels or tags is no list as Python or JSON writes it: brackets would be of their names.

    Raises:
        UserError: it is one, such as pandas writes into a CSV.
    """
    if isinstance(value, str) and value.strip().startswith("[") and value.strip().endswith("]"):
        hint = "keep lists in a file of JSON lines or Parquet, or write them without brackets and quotes"
        raise UserError(f"{shown(name)} is a list written as text: {shown(value)}", hint=hint, where=where)


def prefixed(rows: Sequence[Any], name: str) -> list[str]:
    """A column of text, each behind the prefix of its row's source.

    Raises:
        UserError: a value is not text.
    """
    return [getattr(row, "prefix", "") + text for row, text in zip(rows, texts(rows, name), strict=True)]


def open_split(
    data: Data,
    split: str,
    text_columns: Sequence[str] = (),
    columns: Sequence[str] = (),
    optional: Sequence[str] = (),
    filled: Sequence[str] = (),
) -> Reader | None:
    """The rows of `train`, `validation` or `test`; None where the recipe names none.

    Args:
        data: the block of the recipe.
        split: which rows.
        text_columns: columns (after the mapping) that are cleaned, compared for duplicates, and hashed to choose the
            validation rows: rows whose texts are equal but for white space and Unicode form are on one side.
        columns: further columns that every row must have, each of one type throughout.
        optional: columns that a row may lack, even if the recipe maps them.
        filled: columns in which text that is empty or blank is no value, so that its row is broken.

    Raises:
        UserError: a file is missing or of no known format, or an option does not fit it.
    """
    held_out = split == "validation" and not data.validation and data.validation_fraction > 0
    if not (data.train if held_out else getattr(data, split)):
        return None
    side = held_out if held_out or (split == "train" and data.validation_fraction) else None
    return Reader(data, split, side, text_columns, columns, optional, filled)


def check_columns(
    reader: Reader, wanted: Sequence[str], otherwise: Mapping[str, Sequence[str]] = MappingProxyType({})
) -> None:
    """That each source has the columns.

    Args:
        reader: the rows.
        wanted: the columns.
        otherwise: what might be set instead, and the columns that would be wanted then; see Task.otherwise.

    Raises:
        UserError: one is missing; the message lists those that exist, the hint says for what these are the right ones, or maps
            the nearest, and says what else could be read.
    """
    for index, source in enumerate(reader.sources):
        first = reader.first(index)
        found = list(first)
        for name in wanted:
            if name not in found:
                listed = ", ".join(map(shown, found[:20])) + (", …" if len(found) > 20 else "")
                free = [column for column in found if column not in wanted]
                near = difflib.get_close_matches(name, free, 1, 0.4) or free
                need = f"each row needs {shown(name)}" if found else "the first row is empty"
                nearest = _mapping(name, near[0], first[near[0]]) if near else need
                fitting = [f"set {change}" for change, columns in otherwise.items() if {*columns} <= {*found}]
                others = [
                    f"{change} reads {' and '.join(them)}" for change, them in otherwise.items() if name not in them
                ]
                hint = separated(found) or ", or ".join(fitting) or "; ".join([nearest, *others])
                raise UserError(f"no column {shown(name)}; there are {listed or 'none'}", hint=hint, where=source.path)


def _mapping(name: str, column: str, value: Any) -> str:
    """How a column of the file is called by the task's name; of an object, one of its keys."""
    if not isinstance(value, dict) or not value:
        return f"map it: data.columns.{name}={safe(column)[:60]}"
    keys = ", ".join(safe(key)[:30] for key in list(value)[:12])
    return f"map it: data.columns.{name}={safe(column)[:60]}.KEY, where KEY is one of {keys}"


def mapped(row: dict[str, Any], mapping: dict[str, str], where: str, optional: Container[str]) -> dict[str, Any]:
    """The row with columns renamed; `a.b` is the key b of the object in column a."""
    if not mapping:
        return row
    taken, renamed = set(mapping.values()), {}
    for name, column in mapping.items():
        try:
            renamed[name] = _at(row, column, where)
        except UserError:
            if name not in optional:
                raise
    return {name: value for name, value in row.items() if name not in taken} | renamed


def _at(row: dict[str, Any], column: str, where: str) -> Any:
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        if not isinstance(value, dict) or part not in value:
            raise UserError(f"no column {shown(column)}", hint=_has(row, column), where=where)
        value = value[part]
    return value


def _has(row: dict[str, Any], name: str) -> str:
    near = difflib.get_close_matches(name, row, 1)
    return f"the row has {', '.join(map(shown, list(row)[:12]))}" + (f"; is {shown(near[0])} meant?" if near else "")


def _word(value: Any) -> str:
    return "null" if value is None else shown(value) if isinstance(value, str) else str(value)[:60]


def _content(values: list[Any]) -> str:
    """Texts, lists and objects as one string."""
    return "\0".join([v if isinstance(v, str) else json.dumps(v, sort_keys=True, default=str) for v in values])
