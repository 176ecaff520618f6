"""Rows of a local file, one reader a format: `(text, source) -> (place, row)`, place being a line or `line:column`.

Why not datasets' loaders: they read the words "NA" and "null" of a CSV as missing numbers, "001" as 1, a list under
a key as one row, take columns of changing types, and say neither file nor line of a fault.
"""

import csv
import json
import re
from collections.abc import Iterator
from typing import Any

from .errors import UserError
from .lines import LONGEST, Rejects, Text
from .paths import File, shown
from .schema import Source

Placed = tuple[int | str, dict[str, Any]]

csv.field_size_limit(LONGEST)  # its default of 128 KiB is less than a document


def read(file: File, source: Source, encoding: str, rejects: Rejects) -> Iterator[Placed]:
    """The rows of a file with their places; broken ones go to `rejects`.

    Raises:
        UserError: the file as a whole cannot be read, or is empty.
    """
    rows, before = 0, rejects.count
    if file.format == "parquet":
        placed = _parquet(file)
    else:
        text = Text(file, encoding, rejects)
        if not text.stream.peek(1):
            rejects.add(UserError("the file is empty", hint="remove it, or write it again", where=file.name), "")
            return
        placed = READERS[file.format](text, source, rejects)
    for item in placed:
        rows += 1
        yield item
    if not rows and rejects.count == before:
        hint = "a header or blank lines alone are no rows; remove it, or write it again"
        rejects.add(UserError("the file holds no rows", hint=hint, where=file.name), "")


class Strict:
    """JSON by RFC 8259, with what Python's parser would let pass found and named."""

    def __init__(self) -> None:
        self.flaw = ""
        self.decoder = json.JSONDecoder(object_pairs_hook=self._object, parse_constant=self._constant, parse_float=self._float)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            self.flaw = f"the key {shown(next(k for k in keys if keys.count(k) > 1))} occurs twice"
        return found

    def _constant(self, word: str) -> None:
        self.flaw = f"{word} is no JSON value"

    def _float(self, digits: str) -> float:
        value = float(digits)
        if value in (float("inf"), float("-inf")):
            self.flaw = f"the number {shown(digits)} is too large"
        return value

    def check(self, value: Any, text: str, start: int, end: int) -> str:
        """What is wrong with a row that was parsed from text[start:end]; empty if nothing."""
        flaw, self.flaw = self.flaw, ""
        if not flaw and not isinstance(value, dict):
            flaw = f"a row must be an object {{...}}, not {shown(text[start:end])}"
        if not flaw and text.find("\\u", start, end) >= 0:  # nothing else can make half a surrogate pair
            try:
                json.dumps(value, ensure_ascii=False).encode()
            except UnicodeEncodeError as error:
                flaw = f"half of a surrogate pair, {shown(error.object[error.start : error.start + 1])}"
        return flaw


def _broken_json(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        snippet = error.doc[max(0, error.pos - 20) : error.pos + 20]
        return f"not JSON: {error.msg[:1].lower() + error.msg[1:]}" + (f", near {shown(snippet)}" if snippet.strip() else "")
    return "nested too deeply" if isinstance(error, RecursionError) else "a number of too many digits"


def jsonl(text: Text, source: Source, rejects: Rejects) -> Iterator[Placed]:
    """One object a line; blank lines are passed over."""
    strict, name = Strict(), text.file.name
    decode, check = strict.decoder.decode, strict.check
    for line in text:
        if text.bad == text.number or line.isspace():
            continue
        try:
            row = decode(line)
            flaw, column = check(row, line, 0, len(line)), 0
        except (ValueError, RecursionError) as error:
            flaw, column = _broken_json(error), getattr(error, "colno", 0)
            strict.flaw = ""
        if flaw:
            where = f"{name}:{text.number}:{column}" if column else f"{name}:{text.number}"
            rejects.add(UserError(flaw, hint="each line must be one JSON object", where=where), line)
        else:
            yield text.number, row


class Cursor:
    """A place in JSON text of any length, of which only a window is held."""

    def __init__(self, text: Text):
        self.chunks, self.file, self.too_long = text.chunks(), text.file, text.too_long
        self.window, self.at, self.line, self.column, self.strict = "", 0, 1, 1, Strict()

    def _more(self) -> bool:
        """Double what is ahead, so that parsing a long value again and again stays linear; False at the end."""
        parts, wanted = [self.window[self.at :]], max(len(self.window) - self.at, 1)
        while wanted > 0 and (chunk := next(self.chunks, None)) is not None:
            parts.append(chunk)
            wanted -= len(chunk)
        if len(parts) > 1:
            self.window, self.at = "".join(parts), 0
        return len(parts) > 1

    def _advance(self, end: int) -> None:
        if lines := self.window.count("\n", self.at, end):
            self.line, self.column = self.line + lines, end - self.window.rfind("\n", self.at, end)
        else:
            self.column += end - self.at
        self.at = end

    def peek(self) -> str:
        """The next character that is not white space, or nothing at the end."""
        while True:
            end = SPACE.match(self.window, self.at).end()  # type: ignore[union-attr]
            self._advance(end)
            if end < len(self.window):
                return self.window[end]
            if not self._more():
                return ""

    def take(self, wanted: str) -> str:
        """The next character, which must be one of `wanted`."""
        found = self.peek()
        if not found or found not in wanted:
            what = f"{shown(self.window[self.at : self.at + 20])}" if found else "the end of the file"
            raise self.fault(f"not JSON: {' or '.join(wanted)} expected, found {what}")
        self._advance(self.at + 1)
        return found

    def value(self) -> tuple[Any, str]:
        """The next value with what is wrong with it as a row."""
        self.peek()
        while True:
            try:
                found, end = self.strict.decoder.raw_decode(self.window, self.at)
                if end < len(self.window) or not self._more():  # 12 at the end of the window may go on as 123
                    break
            except json.JSONDecodeError as error:
                # A token cut by the window's end fails near it, but a string where it began.
                cut = error.msg.startswith("Unterminated string") or error.pos > len(self.window) - 12
                if not cut or not self._more():
                    self._advance(error.pos)
                    raise self.fault(_broken_json(error)) from None
            except (ValueError, RecursionError) as error:
                raise self.fault(_broken_json(error)) from None
            if len(self.window) > 2 * LONGEST:
                raise self.too_long(self.place())
            self.strict.flaw = ""
        flaw = self.strict.check(found, self.window, self.at, end)
        self._advance(end)
        return found, flaw

    def place(self) -> str:
        """file:line:column of the next character."""
        return f"{self.file.name}:{self.line}:{self.column}"

    def fault(self, message: str) -> UserError:
        """A fault here."""
        return UserError(message, hint="a .json file must be a list of objects, or one object a line", where=self.place())


SPACE = re.compile(r"[ \t\r\n]*")


def json_document(text: Text, source: Source, rejects: Rejects) -> Iterator[Placed]:
    """A list of objects, at the top or under the key `source.field`; or, as many .json files are, an object a line."""
    cursor = Cursor(text)
    if source.field is not None:
        _enter(cursor, source.field)
    elif cursor.peek() == "{":
        row, flaw = cursor.value()
        if cursor.peek():
            text.stream.close()
            yield from jsonl(Text(text.file, text.given, rejects), source, rejects)
            return
        lists = [key for key, value in row.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
        if lists:
            message = f"the file is one object; rows may be under {' or '.join(map(shown, lists))}"
            raise UserError(message, hint=f"set field: {lists[0]} (or format: jsonl if it is one row)", where=text.file.name)
        if flaw:
            raise cursor.fault(flaw)
        yield 1, row
        return
    cursor.take("[")
    following = cursor.peek() if cursor.peek() != "]" else cursor.take("]")
    while following != "]":
        cursor.peek()
        where, start = cursor.place(), f"{cursor.line}:{cursor.column}"
        row, flaw = cursor.value()
        if flaw:
            rejects.add(UserError(flaw, hint="each element must be one JSON object", where=where), str(row))
        else:
            yield start, row
        following = cursor.take(",]")
    if source.field is None and cursor.peek():
        raise cursor.fault("text after the end of the list")


def _enter(cursor: Cursor, field: str) -> None:
    """Go to the value under a key of the object at the top."""
    keys: list[str] = []
    mark = cursor.take("{")
    while mark != "}" and cursor.peek() != "}":
        if cursor.peek() != '"':
            cursor.take('"')
        keys.append(cursor.value()[0])
        cursor.take(":")
        if keys[-1] == field:
            return
        cursor.value()
        mark = cursor.take(",}")
    listed = ", ".join(map(shown, keys[:8])) or "none"
    raise UserError(f"no key {shown(field)}", hint=f"keys at the top: {listed}", where=cursor.file.name)


def table(text: Text, source: Source, rejects: Rejects) -> Iterator[Placed]:
    """CSV by RFC 4180, or TSV: every field is text as written. A row's place is the line on which it begins."""
    delimiter = source.delimiter or ("\t" if text.file.format == "tsv" else ",")
    quoting = csv.QUOTE_MINIMAL if source.quotes else csv.QUOTE_NONE
    rows, name = csv.reader(text, delimiter=delimiter, quoting=quoting, strict=True), text.file.name
    header: list[str] = []
    while True:
        start = rows.line_num + 1
        try:
            fields = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            rejects.add(_broken_table(error, f"{name}:{start}", text.number - start), str(error))
            continue
        if text.bad >= start or not fields:
            if text.bad >= start and not header:
                raise UserError("the header cannot be decoded", hint="set data.encoding", where=f"{name}:{start}")
            continue
        if not header:
            header = _header(fields, f"{name}:{start}")
        elif len(fields) == len(header):
            yield start, dict(zip(header, fields, strict=True))
        else:
            message = f"{len(fields)} fields where the header has {len(header)}, near {shown(delimiter.join(fields))}"
            hint = 'a field that holds the separator, a quote or a line end must stand in "double quotes"'
            rejects.add(UserError(message, hint=hint, where=f"{name}:{start}"), delimiter.join(fields))


def _header(fields: list[str], where: str) -> list[str]:
    twice = [field for field in fields if fields.count(field) > 1]
    if twice:
        raise UserError(f"two columns are named {shown(twice[0])}", hint="rename one in the header", where=where)
    return fields


def _broken_table(error: csv.Error, where: str, further: int) -> UserError:
    """Raises (rather than returns) where what follows would be lost without a word."""
    if "unexpected end" in str(error) or "field limit" in str(error):
        message = "a quote is opened in this row and never closed"
        raise UserError(message, hint="close it; or set quotes: false if quotes are part of the text", where=where) from None
    if "new-line" in str(error):
        raise UserError("lines end in a bare CR", hint="convert the line ends to LF", where=where) from None
    message = f"broken quotes: {error}" + (f" (the row runs over {further + 1} lines)" if further > 0 else "")
    hint = 'a quote inside a quoted field is written twice (""); or set quotes: false'
    return UserError(message, hint=hint, where=where)


def text_lines(text: Text, source: Source, rejects: Rejects) -> Iterator[Placed]:
    """The column `text`: lines, paragraphs (between blank lines) or the whole file. What is blank is passed over."""
    unit = source.sample_by or ("document" if text.file.path.lower().removesuffix(text.file.packing).endswith(".md") else "line")
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
            continue
        start = start if held else text.number
        held.append(line)
        size += len(line)
        if size > LONGEST:
            raise text.too_long(f"{text.file.name}:{start}")
    if held and text.bad < start and not all(map(str.isspace, held)):
        yield start, {"text": "".join(held).rstrip("\r\n")}


def _parquet(file: File) -> Iterator[Placed]:
    """Rows of a Parquet file; a batch is held at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(file.path) as table:
            names = table.schema_arrow.names
            if len(set(names)) < len(names):
                _header(names, file.name)
            bytes_a_row = sum(table.metadata.row_group(i).total_byte_size for i in range(table.num_row_groups)) // max(
                1, table.metadata.num_rows
            )
            for batch in table.iter_batches(batch_size=max(1, min(1024, 2**24 // max(1, bytes_a_row)))):
                for row in batch.to_pylist():
                    number += 1
                    yield f" row {number}", row
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        where = f"{file.name}: row {number + 1}" if number else file.name
        message = f"not a whole Parquet file: {str(error).splitlines()[0]}"
        raise UserError(message, hint="fetch or write it again", where=where) from None


READERS = {"jsonl": jsonl, "json": json_document, "csv": table, "tsv": table, "text": text_lines}
