"""YAML 1.2 in and out: every value with its place, no tags, nothing unbounded.

ruamel.yaml turns the text into events; this module turns the events into nodes. Two things could not be left
to a constructor: ruamel resolves tags, which can name objects, and forgets where a value stood. Values follow
the core schema of YAML 1.2.2 (section 10.3.2), whatever version a file claims: `no` is text, `2e-5` and `1e5`
are numbers, `010` is ten. Keys are always text.
"""

import json
import math
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .errors import UserError

MAX_BYTES = 2**20
MAX_DEPTH = 32
MAX_VALUES = 10_000  # aliases count as often as they are used, and long text once per 100 characters
_FORBIDDEN = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
_CONSTANTS = {
    **dict.fromkeys(["", "~", "null", "Null", "NULL"], None),
    **dict.fromkeys(["true", "True", "TRUE"], True),
    **dict.fromkeys(["false", "False", "FALSE"], False),
}
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"[-+]?\.(inf|Inf|INF)")
_NAN = (".nan", ".NaN", ".NAN")
# Narrower than the core schema asks, so that a reader of YAML 1.1 sees the same text.
_PLAIN = re.compile(r"(?!(?:null|true|false|yes|no|on|off|y|n)$)[^\W\d_][\w./+-]*(?: [\w./+-]+)*", re.IGNORECASE)
_HINTS = {
    "tags": "put a text that begins with ! in quotes",
    "'\\t'": "indent with spaces, not with tabs",
    "cannot start any token": "put a text that begins with this character in quotes",
    "mapping values": "indent the keys of one block alike, and put a text that holds ': ' in quotes",
    "stream end": "the file ends too early, or a bracket is not closed",
    "end of stream": "the file ends too early, or a quote is not closed",
    "could not find expected ':'": "a key is followed by a colon and a space; is the file complete?",
    "escape": "in double quotes a backslash begins an escape; use single quotes",
}


@dataclass(frozen=True, slots=True)
class Node:
    """A value and where it stands.

    Attributes:
        value: dict of nodes, list of nodes, or a scalar (str, int, float, bool, None).
        where: place of the key that holds the value, or of the value itself in a list.
        text: a scalar as it was written.
        size: values in it, as `MAX_VALUES` counts them.
        height: levels in it.
    """

    value: Any
    where: str
    text: str = ""
    size: int = 1
    height: int = 0

    def plain(self) -> Any:
        """The value without its places."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        return [node.plain() for node in self.value] if isinstance(self.value, list) else self.value


def shown(text: str, limit: int = 60) -> str:
    """Text from a file fit for one line of a terminal: cut short, control characters escaped."""
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut)


def read(path: Path, where: str | None = None) -> str:
    """Text of a file of YAML.

    Raises:
        UserError: not a readable file, larger than `MAX_BYTES`, or not UTF-8 text without control characters.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its other end
            raise UserError(f"{shown(str(path))} is not a file", hint="give the path of a recipe file", where=where)
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else getattr(error, "strerror", None) or error
        raise UserError(
            f"{shown(str(path), 200)}: {reason}",
            hint="give the path of a recipe file; hftune recipes lists the shipped ones",
            where=where,
        ) from None
    if len(data) > MAX_BYTES:
        raise UserError(f"larger than {MAX_BYTES >> 20} MiB", hint="is this a recipe?", where=shown(str(path), 200))
    return _decode(data, shown(str(path), 200))


def _decode(data: bytes, name: str) -> str:
    for mark, encoding in (
        (b"\xff\xfe", "UTF-16"),
        (b"\xfe\xff", "UTF-16"),
        (b"\xef\xbb\xbf", "UTF-8 with a byte order mark"),
    ):
        if data.startswith(mark):
            raise UserError(
                f"the file is {encoding}", hint="save it as UTF-8 without a byte order mark", where=f"{name}:1:1"
            )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        place = _line_column(name, data[: error.start].decode("utf-8"))
        raise UserError(
            f"byte 0x{data[error.start]:02x} is not UTF-8", hint="save the file as UTF-8", where=place
        ) from None
    if bad := _FORBIDDEN.search(text):
        what = "a NUL; the file is damaged or not text" if bad[0] == "\0" else f"the character U+{ord(bad[0]):04X}"
        place = _line_column(name, text[: bad.start()])
        raise UserError(
            f"holds {what}", hint='write such a character as an escape in double quotes, "\\uXXXX"', where=place
        )
    return text


def _line_column(name: str, before: str) -> str:
    return f"{name}:{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"


def scalar(text: str) -> Any:
    """The value of a scalar without quotes: None, bool, int, float or str.

    Raises:
        ValueError: a number that no setting can hold (not a number, or beyond 64 bits).
    """
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INTEGER.fullmatch(text):
        return checked(int(text, {"0o": 8, "0x": 16}.get(text[:2], 10)) if len(text) < 100 else 2**64)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _INFINITE.fullmatch(text):
        return -math.inf if text[0] == "-" else math.inf
    return checked(math.nan if text in _NAN else text)


def checked(value: Any) -> Any:
    """The scalar itself, if it can be written to a file and read again as it was.

    Raises:
        ValueError: NaN, an integer beyond 64 bits, or text with a NUL or half a surrogate pair.
    """
    if isinstance(value, float) and math.isnan(value):
        raise ValueError("is not a number")
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise ValueError("is an integer of more than 64 bits")
    if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
        raise ValueError("holds a NUL or half a surrogate pair")
    return value


def parse(text: str, place: Callable[[int, int], str], faults: list[UserError]) -> Node:
    """The one document of a text.

    Args:
        text: YAML.
        place: names the place at (line, column), both from 0.
        faults: receives what does not stop the reading (duplicate keys, impossible numbers).

    Raises:
        UserError: not YAML, a tag, more than one document, or beyond a limit.
    """
    return _Reader(text, place, faults).document()


class _Reader:
    """Events to nodes. An anchor is known once its node is whole, so nothing can hold itself."""

    def __init__(self, text: str, place: Callable[[int, int], str], faults: list[UserError]):
        self.place, self.faults = place, faults
        self.anchors: dict[str, Node] = {}
        self.spent = 0
        self.last = place(0, 0)
        self.events = self._events(text)

    def _events(self, text: str) -> Iterator[Any]:
        from ruamel.yaml import YAML
        from ruamel.yaml.error import MarkedYAMLError, YAMLError
        from ruamel.yaml.scanner import Scanner, ScannerError

        class Untagged(Scanner):
            def fetch_tag(self) -> None:
                raise ScannerError(problem="tags (!) are not allowed in a recipe", problem_mark=self.reader.get_mark())

        yaml = YAML(typ="safe", pure=True)
        yaml.Scanner = Untagged
        try:
            for event in yaml.parse(text):
                self.last = self._at(event.start_mark)
                yield event
        except MarkedYAMLError as error:
            raise self._syntax(error) from None
        except (YAMLError, ValueError) as error:  # ValueError: an escape beyond Unicode
            raise UserError(f"not YAML: {shown(str(error))}", where=self.last) from None

    def _syntax(self, error: Any) -> UserError:
        problem = " ".join(str(error.problem).replace("<stream end>", "stream end").split())
        mark, begun = error.problem_mark or error.context_mark, error.context_mark
        if error.context and begun and (begun.line, begun.column) != (mark.line, mark.column):
            problem += f", {error.context} begun in line {begun.line + 1}"
        hint = next(
            (hint for part, hint in _HINTS.items() if part in problem),
            "look at the indentation, colons and quotes here",
        )
        return UserError(f"not YAML: {shown(problem, 200)}", hint=hint, where=self._at(mark))

    def _at(self, mark: Any) -> str:
        return self.place(mark.line, mark.column) if mark else self.last

    def document(self) -> Node:
        node = Node(None, self.place(0, 0))
        documents = 0
        for event in self.events:
            kind = type(event).__name__
            if kind == "DocumentStartEvent":
                documents += 1
                if documents > 1:
                    raise UserError(
                        "a second document begins", hint="a recipe is one document: remove the ---", where=self.last
                    )
            elif kind not in ("StreamStartEvent", "DocumentEndEvent", "StreamEndEvent"):
                node = self._node(event, self.last, 0)
        return node

    def _node(self, event: Any, where: str, depth: int) -> Node:
        kind = type(event).__name__
        if kind == "AliasEvent":
            if event.anchor not in self.anchors:
                hint = "put a text that begins with * in quotes"
                raise UserError(f"the alias *{shown(event.anchor)} refers to nothing", hint=hint, where=where)
            node = replace(self.anchors[event.anchor], where=where)
            self.spent += node.size
        elif kind == "ScalarEvent":
            node = self._scalar(event, where)
            self.spent += node.size
        else:
            self.spent += 1
            collect = self._mapping if kind == "MappingStartEvent" else self._list
            value, parts = collect(depth) if depth < MAX_DEPTH else (None, [])
            node = Node(
                value, where, size=1 + sum(n.size for n in parts), height=1 + max((n.height for n in parts), default=0)
            )
        if depth + node.height > MAX_DEPTH:
            raise UserError(f"nested deeper than {MAX_DEPTH} levels", hint="is this a recipe?", where=where)
        if self.spent > MAX_VALUES:
            raise UserError(
                f"more than {MAX_VALUES:,} values, aliases written out", hint="is this a recipe?", where=where
            )
        if kind != "AliasEvent" and event.anchor:
            self.anchors[event.anchor] = node
        return node

    def _scalar(self, event: Any, where: str) -> Node:
        size = 1 + len(event.value) // 100
        try:
            value = scalar(event.value) if event.style is None else checked(event.value)
        except ValueError as error:
            hint = "write a number of at most 64 bits, or other text"
            self.faults.append(UserError(f"{shown(event.value)} {error}", hint=hint, where=where))
            value = None
        return Node(value, where, event.value, size)

    def _list(self, depth: int) -> tuple[list[Node], list[Node]]:
        items: list[Node] = []
        for event in self.events:
            if type(event).__name__ == "SequenceEndEvent":
                break
            items.append(self._node(event, self.last, depth + 1))
        return items, items

    def _mapping(self, depth: int) -> tuple[dict[str, Node], list[Node]]:
        entries: dict[str, Node] = {}
        for event in self.events:
            kind, where = type(event).__name__, self.last
            if kind == "MappingEndEvent":
                break
            if kind != "ScalarEvent":
                hint = "a text that begins with {, [ or * goes in quotes"
                raise UserError("a key must be text", hint=hint, where=where)
            key = self._key(event, where)
            node = self._node(next(self.events), where, depth + 1)
            if key in entries:
                first = entries[key].where
                self.faults.append(
                    UserError(f"the key {shown(key)} is given twice", hint=f"first at {first}", where=where)
                )
            entries[key] = node
        return entries, list(entries.values())

    def _key(self, event: Any, where: str) -> str:
        try:
            key: str = checked(event.value)
        except ValueError as error:
            raise UserError(f"the key {shown(event.value)} {error}", where=where) from None
        self.spent += len(key) // 100
        return key


def dump(value: Any) -> str:
    """A mapping as YAML: block style, text in quotes wherever it could be read otherwise, floats exact."""
    return "".join(line + "\n" for line in _lines(value, ""))


def _lines(value: Any, indent: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            name = _text(key)
            # a key of more than 1024 characters must be announced (YAML 1.2.2, section 7.4.2)
            head = f"{indent}{name}:" if len(name) < 1000 else f"{indent}? {name}\n{indent}:"
            yield from _entry(head, item, indent + "  ")
    else:
        for item in value:
            if _nested(item):
                first, *rest = _lines(item, indent + "  ")
                yield f"{indent}- {first[len(indent) + 2 :]}"
                yield from rest
            else:
                yield f"{indent}- {_value(item)}"


def _entry(head: str, item: Any, indent: str) -> Iterator[str]:
    if _nested(item):
        yield head
        yield from _lines(item, indent)
    else:
        yield f"{head} {_value(item)}"


def _nested(value: Any) -> bool:
    return isinstance(value, (dict, list, tuple)) and bool(value)


def _value(value: Any) -> str:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, float):
        if math.isinf(value):
            return ".inf" if value > 0 else "-.inf"
        digits = repr(value)
        return digits if "." in digits else digits.replace("e", ".0e")  # 1e-05 is text to YAML 1.1
    if isinstance(value, (dict, list, tuple)):
        return "{}" if isinstance(value, dict) else "[]"
    return "null" if value is None else str(value).lower()


def _text(text: str) -> str:
    if _PLAIN.fullmatch(text):
        return text
    return "".join(c if c.isprintable() else _escape(c) for c in json.dumps(text, ensure_ascii=False))


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 2**16 else f"\\U{code:08x}"
