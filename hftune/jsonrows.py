"""Rows of JSON: an object a line, or a list of objects that is read piece by piece."""

import json
import re
from collections.abc import Iterator
from typing import Any

from .errors import UserError
from .lines import LONGEST, Rejects, Text
from .paths import shown
from .schema import Source

SPACE = re.compile(r"[ \t\r\n]*")


class Strict:
    """JSON by RFC 8259, with what Python's parser would let pass found and named."""

    def __init__(self) -> None:
        self.flaw = ""
        self.decoder = json.JSONDecoder(
            object_pairs_hook=self._object, parse_constant=self._constant, parse_float=self._float
        )

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
        if value - value:  # infinity
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


def _broken(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        near = error.doc[max(0, error.pos - 20) : error.pos + 20]
        return f"not JSON: {error.msg[0].lower()}{error.msg[1:]}" + (f", near {shown(near)}" if near.strip() else "")
    return "nested too deeply" if isinstance(error, RecursionError) else "a number of too many digits"


def lines(text: Text, source: Source, rejects: Rejects) -> Iterator[tuple[int, dict[str, Any]]]:
    """An object a line, as (line number, row); blank lines are passed over."""
    strict, name = Strict(), text.file.name
    decode, check = strict.decoder.decode, strict.check
    for line in text:
        if text.bad == text.number or line.isspace():
            continue
        column = 0
        try:
            row = decode(line)
            flaw = check(row, line, 0, len(line))
        except (ValueError, RecursionError) as error:
            flaw, column, strict.flaw = _broken(error), getattr(error, "colno", 0), ""
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
        if count := self.window.count("\n", self.at, end):
            self.line, self.column = self.line + count, end - self.window.rfind("\n", self.at, end)
        else:
            self.column += end - self.at
        self.at = end

    def peek(self) -> str:
        """The next character that is not white space, or nothing at the end."""
        while True:
            space = SPACE.match(self.window, self.at)
            assert space
            self._advance(space.end())
            if self.at < len(self.window):
                return self.window[self.at]
            if not self._more():
                return ""

    def take(self, wanted: str) -> str:
        """The next character, which must be one of `wanted`."""
        found = self.peek()
        if not found or found not in wanted:
            what = shown(self.window[self.at : self.at + 20]) if found else "the end of the file"
            raise self.fault(f"not JSON: {' or '.join(wanted)} expected, found {what}")
        self._advance(self.at + 1)
        return found

    def value(self) -> tuple[Any, str]:
        """The next value, and what is wrong with it as a row."""
        self.peek()
        while True:
            try:
                found, end = self.strict.decoder.raw_decode(self.window, self.at)
                if end + 2 < len(self.window) or not self._more():  # 1 or 1e+ at the window's end may go on as 1e+3
                    break
            except json.JSONDecodeError as error:
                # A token cut by the window's end fails near it; a string fails where it began.
                cut = error.msg.startswith("Unterminated string") or error.pos > len(self.window) - 12
                if not cut or not self._more():
                    self._advance(error.pos)
                    raise self.fault(_broken(error)) from None
            except (ValueError, RecursionError) as error:
                raise self.fault(_broken(error)) from None
            if len(self.window) > 2 * LONGEST:
                raise self.too_long(self.place())
        flaw = self.strict.check(found, self.window, self.at, end)
        self._advance(end)
        return found, flaw

    def place(self) -> str:
        """file:line:column of the next character."""
        return f"{self.file.name}:{self.line}:{self.column}"

    def fault(self, message: str) -> UserError:
        """A fault here."""
        hint = "a .json file must be a list of objects, or have one object a line"
        return UserError(message, hint=hint, where=self.place())


def document(text: Text, source: Source, rejects: Rejects) -> Iterator[tuple[str | int, dict[str, Any]]]:
    """A list of objects, at the top or under the key `source.field`; or, as many .json files are, an object a line."""
    cursor = Cursor(text)
    if source.field is not None:
        _enter(cursor, source.field)
    elif cursor.peek() == "{":
        row, flaw = cursor.value()
        if cursor.peek():
            text.stream.close()
            yield from lines(Text(text.file, text.given, rejects), source, rejects)
        elif tables := [shown(k) for k, v in row.items() if isinstance(v, list) and v and isinstance(v[0], dict)]:
            message = f"the file is one object; its rows may be under {' or '.join(tables)}"
            raise UserError(message, hint="set field to that key (or format: jsonl for one row)", where=text.file.name)
        elif flaw:
            raise cursor.fault(flaw)
        else:
            yield 1, row
        return
    cursor.take("[")
    following = cursor.take("]") if cursor.peek() == "]" else ","
    while following == ",":
        cursor.peek()
        place = f"{cursor.line}:{cursor.column}"
        row, flaw = cursor.value()
        if flaw:
            where = f"{text.file.name}:{place}"
            rejects.add(UserError(flaw, hint="each element must be one JSON object", where=where), str(row))
        else:
            yield place, row
        following = cursor.take(",]")
    if source.field is None and cursor.peek():
        raise cursor.fault("not JSON: text after the end of the list")


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
