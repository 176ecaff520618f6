"""The text of a local file: lines or chunks, decoded; and what becomes of broken rows."""

import codecs
import io
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from .errors import UserError
from .paths import DAMAGE, File, shown

LONGEST = 2**28  # bytes of one row: a file without line ends, or a gzip bomb, must not fill the memory
FOREIGN = {
    b"\x1f\x8b": ("a gzip file", "give its name the suffix .gz"),
    b"BZh91AY&SY": ("a bzip2 file", "give its name the suffix .bz2"),
    b"\xfd7zXZ": ("an xz file", "give its name the suffix .xz"),
    b"\x28\xb5\x2f\xfd": ("a Zstandard file", "give its name the suffix .zst"),
    b"PAR1\x15": ("a Parquet file", "set format: parquet"),
    b"PK\x03\x04": ("a zip archive", "unpack it first"),
    b"%PDF-1.": ("a PDF file", "extract its text first"),
    b"version https://git-lfs": ("a Git LFS pointer, not the data", "run git lfs pull"),
}


class Rejects:
    """What becomes of a broken row: a fault, or (skip) counted, written down and passed over.

    Args:
        skip: go on after a broken row.
        limit: with skip, how many are too many.
        path: file for the rejected rows, one JSON object a line: where, why, text.
    """

    def __init__(self, skip: bool = False, limit: int = 0, path: str | os.PathLike[str] | None = None):
        self.skip, self.limit, self.path, self.count = skip, limit, path, 0
        if path:
            Path(path).unlink(missing_ok=True)

    def add(self, fault: UserError, text: str) -> None:
        """One broken row more.

        Raises:
            UserError: the fault itself (not skip), or that there are too many.
        """
        if not self.skip:
            raise fault
        self.count += 1
        if self.path:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"where": fault.where, "why": fault.message, "text": text[:10_000]}) + "\n")
        if self.count > self.limit:
            message = f"more than {self.limit} broken rows; the last one: {fault.message}"
            raise UserError(message, hint="fix the file, or raise data.max_errors", where=fault.where)


class Text:
    """A file's text: lines (decoded, their ends kept) or chunks.

    Attributes:
        given: the encoding as it was asked for; a file that begins with the mark of UTF-8 is UTF-8 all the same.
        number: number of the line that was given last, from 1.
        offset: bytes before the line that comes next.
        bad: number of the last line that could not be decoded; it was given with replacement characters.
    """

    def __init__(self, file: File, encoding: str, rejects: Rejects):
        self.file, self.given, self.rejects = file, encoding, rejects
        self.number = self.bad = self.offset = 0
        self.stream, self.encoding = self._open(encoding)

    def _open(self, encoding: str) -> tuple[io.BufferedReader, str]:
        name = self.file.name
        try:
            stream = self.file.open()
            head = stream.peek(4096)[:4096]
            for mark, (what, hint) in FOREIGN.items():
                if head.startswith(mark):
                    raise UserError(f"this is {what}", hint=hint, where=name)
            if "\n".encode(encoding) != b"\n":
                stream = io.BufferedReader(_Narrowed(stream, encoding, self.undecodable), 1 << 20)
                encoding = "utf-8"
            elif wide := _wide(head):
                raise UserError(
                    f"the text is {wide.upper()}, not {encoding}", hint=f"set data.encoding: {wide}", where=name
                )
            if stream.peek(3).startswith(codecs.BOM_UTF8):
                self.offset = len(stream.read(3))
                encoding = "utf-8"  # the file says so itself
        except DAMAGE as error:
            raise self.file.damage(error) from None
        return stream, encoding

    def __iter__(self) -> Iterator[str]:
        encoding, read = self.encoding, partial(self.stream.readline, LONGEST + 1)
        with self.stream:
            while True:
                try:
                    raw = read()
                except DAMAGE as error:
                    raise self.file.damage(error) from None
                if not raw:
                    return
                self.number += 1
                if len(raw) > LONGEST:
                    raise self.too_long(f"{self.file.name}:{self.number}")
                try:
                    line = raw.decode(encoding)
                except UnicodeDecodeError as error:
                    line = self._undecoded(raw, error)
                self.offset += len(raw)
                raw = b""  # of a long line one copy less is held
                yield line

    def _undecoded(self, raw: bytes, error: UnicodeDecodeError) -> str:
        self.bad = self.number
        column = len(raw[: error.start].decode(self.encoding, "replace")) + 1
        fault = self.undecodable(error, self.offset, f":{self.number}:{column}")
        self.rejects.add(fault, raw.decode(self.encoding, "backslashreplace"))
        return raw.decode(self.encoding, "replace")

    def chunks(self) -> Iterator[str]:
        """Decoded text in pieces of about a megabyte."""
        decoder = Decoder(self.encoding, self.undecodable, self.offset)
        with self.stream:
            while not decoder.done:
                try:
                    raw = self.stream.read(1 << 20)
                except DAMAGE as error:
                    raise self.file.damage(error) from None
                yield decoder(raw)

    def undecodable(self, error: UnicodeDecodeError, start: int = 0, place: str = "") -> UserError:
        """The fault of bytes that are not of the encoding; `start` is the offset of the decoded piece in the file."""
        found = " ".join(f"0x{byte:02x}" for byte in error.object[error.start : error.end][:4])
        return UserError(
            f"not {error.encoding}: {found} at byte {start + error.start}",
            hint="set data.encoding to what the file is in, e.g. cp1252 for text from Windows",
            where=self.file.name + place,
        )

    def too_long(self, where: str) -> UserError:
        """The fault of a row that would fill the memory."""
        return UserError(
            f"a row of more than {LONGEST >> 20} MiB", hint="is each row on a line of its own?", where=where
        )


def _wide(head: bytes) -> str | None:
    """UTF-16 or UTF-32 by the mark at its start, or by every other byte being zero."""
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    even, odd = head[0::2].count(0), head[1::2].count(0)
    if max(even, odd) > max(1, len(head) // 4) and min(even, odd) == 0:
        return "utf-16-le" if odd else "utf-16-be"
    return None


class Decoder:
    """Bytes to text piece by piece; a fault names the byte. An empty piece ends the text."""

    def __init__(self, encoding: str, fault: Callable[[UnicodeDecodeError, int], UserError], start: int = 0):
        self.codec, self.fault, self.start, self.done = codecs.getincrementaldecoder(encoding)(), fault, start, False
        self.name = encoding

    def __call__(self, raw: bytes) -> str:
        """The characters that are whole by now."""
        pending, self.done = len(self.codec.getstate()[0]), not raw
        try:
            text = self.codec.decode(raw, final=self.done)
        except UnicodeDecodeError as error:
            raise self.fault(error, self.start - pending) from None
        except UnicodeError as error:  # UTF-16 and UTF-32 without the mark that says their order
            here = UnicodeDecodeError(self.name, raw[:4] or b"\0", 0, len(raw[:4]) or 1, str(error))
            raise self.fault(here, self.start) from None
        self.start += len(raw)
        return text


class _Narrowed(io.RawIOBase):
    """Text of any encoding as UTF-8, so that lines can be cut at byte 10."""

    def __init__(self, stream: io.BufferedReader, encoding: str, fault: Callable[[UnicodeDecodeError, int], UserError]):
        self.stream, self.decoder, self.rest = stream, Decoder(encoding, fault), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.rest and not self.decoder.done:
            self.rest = self.decoder(self.stream.read(1 << 16)).encode()
        size = min(len(buffer), len(self.rest))
        buffer[:size], self.rest = self.rest[:size], self.rest[size:]
        return size

    def close(self) -> None:
        self.stream.close()
        super().close()


def check_encoding(encoding: str) -> str:
    """The encoding's own name.

    Raises:
        UserError: Python knows no such encoding of text.
    """
    try:
        codecs.getincrementaldecoder(encoding)
        "a".encode(encoding).decode(encoding)
        b"\xff".decode(encoding, "backslashreplace")  # idna and its like are for names, not for files
        name = codecs.lookup(encoding).name
    except (LookupError, UnicodeError, ValueError):
        message = f"no encoding named {shown(encoding)}"
        raise UserError(message, hint="e.g. utf-8, utf-16, cp1252, latin-1", where="data.encoding") from None
    return "utf-8" if name == "utf-8-sig" else name
