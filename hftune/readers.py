"""Rows of a local file, one reader a format: `(text, source, rejects) -> (place, row)`, place a line or `line:column`.

Why not datasets' loaders: they read the words "NA" and "null" of a CSV as missing numbers, "001" as 1, a list under
a key as one row, take columns of changing types, and say neither file nor line of a fault.
"""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Literal

from . import jsonrows
from .errors import UserError
from .lines import LONGEST, Rejects, Text
from .paths import File, safe, shown
from .schema import Source

SEPARATOR = re.compile(r'"?sep=([;,|\t])"?\s*', re.IGNORECASE)
Placed = Iterator[tuple[int | str, dict[str, Any]]]

csv.field_size_limit(LONGEST)  # its default of 128 KiB is less than a document


def read(file: File, source: Source, encoding: str, rejects: Rejects) -> Placed:
    """The rows of a file with their places; broken ones go to `rejects`.

    Raises:
        UserError: the file as a whole cannot be read.
    """
    rows, before = 0, rejects.count
    if file.format == "parquet":
        placed = _parquet(file)
    else:
        placed = READERS[file.format](Text(file, encoding, rejects), source, rejects)
    for item in placed:
        rows += 1
        yield item
    if not rows and rejects.count == before:
        hint = "a header or blank lines alone are no rows; remove the file, or write it again"
        rejects.add(UserError("the file holds no rows", hint=hint, where=file.name), "")


def table(text: Text, source: Source, rejects: Rejects) -> Placed:
    """CSV by RFC 4180, or TSV: every field is text as written. A row's place is the line on which it begins.

    A first line `sep=;`, as programs write it for Excel, is no header, and names the separator.
    """
    lines = iter(text)
    first = next(lines, "")
    said = SEPARATOR.fullmatch(first)
    delimiter = source.delimiter or (said[1] if said else "\t" if text.file.format == "tsv" else ",")
    lines = chain([] if said else [first], lines)
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if source.quotes else csv.QUOTE_NONE
    last = [""]
    rows, name = csv.reader(_noted(lines, last), delimiter=delimiter, quoting=quoting, strict=True), text.file.name
    header: list[str] = []
    while True:
        start = rows.line_num + 1 + bool(said)
        try:
            fields = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            fault = _broken_table(error, f"{name}:{start}", text.number - start, last[0], delimiter)
            rejects.add(fault, str(error))
            continue
        if text.bad >= start and not header:
            raise UserError("the header cannot be decoded", hint="set data.encoding", where=f"{name}:{start}")
        if text.bad >= start or not fields:
            continue
        if not header:
            header = _unique(fields, f"{name}:{start}")
        elif len(fields) == len(header):
            yield start, dict(zip(header, fields, strict=True))
        else:
            line = delimiter.join(fields)
            message = f"{len(fields)} fields where the header has {len(header)}: {shown(line)}"
            quote = 'a field that holds the separator, a quote or a line end must stand in "double quotes"'
            hint = separated(header) or quote
            rejects.add(UserError(message, hint=hint, where=f"{name}:{start}"), line)


def _noted(lines: Iterable[str], last: list[str]) -> Iterator[str]:
    """The lines, of which the newest is at hand."""
    for line in lines:
        last[0] = line
        yield line


def separated(header: Sequence[str]) -> str | None:
    """What to do about a header of one column whose name holds what separates columns elsewhere."""
    marks = [mark for mark in ";\t|," if mark in header[0]] if len(header) == 1 else []
    return _give(marks[0]) if marks else None


def _give(mark: str) -> str:
    return f"give the source its separator: {{path: ..., delimiter: {json.dumps(mark)}}}"


def _unique(names: list[str], where: str) -> list[str]:
    if twice := [name for name in names if names.count(name) > 1]:
        hint = (
            "rename one" if twice[0] else "name them, or remove them: a separator that ends a line begins such a column"
        )
        raise UserError(f"two columns are named {shown(twice[0])}", hint=hint, where=where)
    return names


def _broken_table(error: csv.Error, where: str, further: int, line: str, delimiter: str) -> UserError:
    """The fault of one row, found in its last line; raised where going on would lose the rows behind it without a word."""
    if "unexpected end" in str(error) or "field limit" in str(error):
        message = "a quote that opens in this row is never closed"
        raise UserError(message, hint="close it, or set quotes: false if quotes are text", where=where) from None
    if "new-line" in str(error):
        raise UserError("a bare CR in a line", hint="convert the line ends to LF", where=where) from None
    span = f" (the row takes {further + 1} lines)" if further > 0 else ""
    hint = 'a quote within a quoted field is written twice (""); or set quotes: false if quotes are text'
    closing = [mark for mark in re.findall(r'"([;\t|])', line) if mark != delimiter]
    hint = f"{_give(closing[0])}; or {hint}" if closing else hint
    return UserError(f"broken quotes: {safe(str(error))}{span}", hint=hint, where=where)


def text_lines(text: Text, source: Source, rejects: Rejects) -> Placed:
    """The column `text`: lines, paragraphs (up to a blank line) or the whole file. What is blank is passed over."""
    unit = source.sample_by or text.file.unit
    if unit == "line":
        for line in text:
            if text.bad != text.number and not line.isspace():
                yield text.number, {"text": line.rstrip("\r\n")}
        return
    held: list[str] = []
    start, size = 1, 0
    for line in text:
        if unit == "paragraph" and line.isspace():
            if held and text.bad < start:
                yield start, {"text": "".join(held).rstrip("\r\n")}
            held, size = [], 0
        elif held or not line.isspace():
            start = start if held else text.number
            held.append(line)
            size += len(line)
        if size > LONGEST:
            raise text.too_long(f"{text.file.name}:{start}")
    if held and text.bad < start:
        yield start, {"text": "".join(held).rstrip("\r\n")}


def _parquet(file: File) -> Placed:
    """Rows of a Parquet file; some 16 MB of them are held at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        # else a group of rows is read whole, which may be all of the file
        with pq.ParquetFile(file.path, buffer_size=1 << 20, pre_buffer=False) as table:
            _unique(table.schema_arrow.names, file.name)
            groups = (table.metadata.row_group(i) for i in range(table.num_row_groups))
            width = sum(group.total_byte_size for group in groups) // max(1, table.metadata.num_rows)
            for batch in table.iter_batches(batch_size=max(1, min(1024, 2**24 // max(1, width)))):
                names = batch.schema.names
                columns = [_cells(batch[name], name, file.name, number + 1) for name in names]
                for values in zip(*columns, strict=True):
                    number += 1
                    yield f" row {number}", dict(zip(names, values, strict=True))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        where = f"{file.name}: row {number + 1}" if number else file.name
        message = f"not a whole Parquet file: {safe(str(error).splitlines()[0])}"
        raise UserError(message, hint="fetch or write it again", where=where) from None


def _cells(column: Any, name: str, before: str, first: int) -> list[Any]:
    """The values of a column, of which the first stands in row `first`.

    Raises:
        UserError: one is none that Python can hold: a date beyond the year 9999, a time zone that nobody knows.
    """
    try:
        found: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        raise
    except (ValueError, OverflowError):
        for number, value in enumerate(column, first):
            try:
                value.as_py()
            except (ValueError, OverflowError) as error:
                message = f"a value of {shown(name)} that cannot be read ({column.type}): {safe(str(error))}"
                hint = "write the file without this column, or with it as text"
                raise UserError(message, hint=hint, where=f"{before}: row {number}") from None
        raise
    return found


READERS: dict[str, Callable[[Text, Source, Rejects], Placed]] = {
    "jsonl": jsonrows.lines,
    "json": jsonrows.document,
    "csv": table,
    "tsv": table,
    "text": text_lines,
}
