"""Which local files a path means (a file, a glob, a folder), what format each has, and how it is unpacked."""

import bz2
import difflib
import glob
import gzip
import io
import lzma
import os
import re
import zlib
from dataclasses import dataclass
from itertools import islice
from typing import Any

from .errors import UserError

FORMATS = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".txt": "text",
    ".md": "text",
}
PACKINGS = (".gz", ".bz2", ".xz", ".zst")
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "dev", "val"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
MOST_FILES = 100_000  # that one path may mean
DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError)


def shown(text: str, limit: int = 60) -> str:
    """Text from data as it may stand in a message: cut short, control and bidirectional characters escaped."""
    return repr(text[:limit]) + ("…" if len(text) > limit else "")


def safe(text: str) -> str:
    """A name or a library's words as they may stand in a message."""
    return text if text.isprintable() else repr(text)


@dataclass(frozen=True)
class File:
    """A local file: its path, its format (a value of FORMATS) and its compression (one of PACKINGS, or empty)."""

    path: str
    format: str
    packing: str = ""

    @property
    def unit(self) -> str:
        """What of a file of text is a row where nobody says: a line, or of Markdown the document."""
        return "document" if self.path.lower().removesuffix(self.packing).endswith(".md") else "line"

    @property
    def name(self) -> str:
        """The path as it may stand in a message."""
        return safe(self.path)

    def open(self) -> io.BufferedReader:
        """The unpacked bytes; opening and reading raise any of DAMAGE, which `damage` puts into words."""
        if self.packing == ".zst":
            import pyarrow as pa

            raw = pa.input_stream(self.path, compression="zstd")
        else:
            kinds: dict[str, Any] = {".gz": gzip.GzipFile, ".bz2": bz2.BZ2File, ".xz": lzma.LZMAFile}
            raw = kinds.get(self.packing, io.FileIO)(self.path)
        return io.BufferedReader(raw, 1 << 20)

    def damage(self, error: Exception) -> UserError:
        """What reading the file ran into, as a fault."""
        if isinstance(error, OSError) and error.errno and error.strerror:
            return UserError(f"cannot be read: {error.strerror}", where=self.name)
        if isinstance(error, EOFError) or "Truncated" in str(error):
            hint = "fetch it again; it did not arrive whole"
            return UserError("the compressed file is cut short", hint=hint, where=self.name)
        hint = "fetch it again, or correct its suffix if it is not compressed so"
        return UserError(f"not a whole {self.packing} file: {safe(str(error))}", hint=hint, where=self.name)


def is_local(path: str) -> bool:
    """Whether a path means this machine, not the Hub: it or its folder exists, or it does not look like an id."""
    if path.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path):
        return True
    suffix = os.path.splitext(path)[1]
    return os.path.exists(path) or os.path.isdir(os.path.dirname(path)) or suffix in PACKINGS or suffix[1:].isalpha()


def find(path: str, format: str | None = None, split: str = "train", where: str | None = None) -> list[File]:
    """The files that a file name, glob or folder means, in order of their names.

    Of a folder whose files are named for splits (train.jsonl, test-00000.parquet, dev/a.txt), those of `split`.

    Raises:
        UserError: nothing is there, no format is known, formats are mixed, or a link leaves the folder.
    """
    path, root = os.path.expanduser(path), ""
    try:
        if os.path.isdir(path):
            root, found = path, _folder(path, format, split)
        elif os.path.exists(path):
            found = [path]
        elif glob.has_magic(path):
            root = re.split(r"[^/]*[*?[]", path, maxsplit=1)[0] or "."
            every = list(islice(glob.iglob(path, recursive=True), MOST_FILES + 1))
            if len(every) > MOST_FILES:
                raise _too_many(path)
            found = sorted(p for p in every if not os.path.isdir(p))
        else:
            found = []
        if not found:
            raise UserError(f"no file or folder {shown(path, 200)}", hint=_nearby(path))
        files = [File(p, format or _kind(p)[0], _kind(p)[1]) for p in found]
        for file in files:
            _check(file, root)
        if len(formats := sorted({file.format for file in files})) > 1:
            raise UserError(
                f"{shown(path, 200)} mixes {' and '.join(formats)}",
                hint=f"name one kind by a glob: {path}/*.{formats[0]}",
            )
    except UserError as fault:
        fault.where = where
        raise
    return files


def _too_many(path: str) -> UserError:
    hint = "name the data by a narrower folder or glob"
    return UserError(f"{shown(path, 200)} means more than {MOST_FILES:,} files and folders", hint=hint)


def _check(file: File, root: str) -> None:
    """A plain file of a known format that does not leave its folder; `root` is empty for a file named outright."""
    if root and _leaves(file.path, root):
        raise UserError(f"{shown(file.path, 200)} is a link that leaves the folder", hint="name the file itself")
    if not os.path.isfile(file.path):
        raise UserError(
            f"{shown(file.path, 200)} is not a plain file", hint="rows are read more than once; save them to a file"
        )
    if not file.format or (file.packing and file.format == "parquet"):
        hint = f"known: {' '.join(FORMATS)}, all but parquet also with {' '.join(PACKINGS)}; or set format"
        raise UserError(f"the name {shown(file.path, 200)} does not tell a known format", hint=hint)


def _leaves(path: str, root: str) -> bool:
    real, inside = os.path.realpath(path), os.path.realpath(root)
    return os.path.commonpath([real, inside]) != inside


def endings(path: str) -> tuple[str, str]:
    """The suffixes of what a file holds and of its compression, such as `.csv` and `.gz`."""
    stem, suffix = os.path.splitext(path.lower())
    return (os.path.splitext(stem)[1], suffix) if suffix in PACKINGS else (suffix, "")


def _kind(path: str) -> tuple[str, str]:
    """(format, compression) by the suffixes."""
    suffix, packing = endings(path)
    return FORMATS.get(suffix, ""), packing


def _folder(folder: str, format: str | None, split: str) -> list[str]:
    """The data files below a folder, hidden ones left out, sorted."""
    found: list[str] = []
    for number, (here, folders, names) in enumerate(os.walk(folder, onerror=_closed)):
        if len(found) + number > MOST_FILES:
            raise _too_many(folder)
        folders[:] = [f for f in folders if not f.startswith(".")]
        for linked in (p for f in folders if os.path.islink(p := os.path.join(here, f))):
            if _leaves(linked, folder):
                raise UserError(
                    f"{shown(linked, 200)} is a link that leaves the folder", hint="name that folder itself"
                )
        found += [os.path.join(here, name) for name in names if not name.startswith(".")]
    if any(p.endswith(".arrow") for p in found):
        hint = "write it out with its to_parquet or to_json, and name that file"
        raise UserError(f"{shown(folder, 200)} is a data set that datasets saved for itself", hint=hint)
    data = sorted(p for p in found if format or _kind(p)[0])
    if any(_kind(p)[0] != "text" for p in data):  # the README beside the data is not data
        data = [p for p in data if not os.path.basename(p).lower().startswith("readme.")]
    if not data:
        raise UserError(
            f"the folder {shown(folder, 200)} holds no data", hint=f"known suffixes: {' '.join(FORMATS)}; or set format"
        )
    return _of_split(folder, data, split)


def _closed(error: OSError) -> None:
    """A folder within that may not be read: os.walk would pass over it, and with it over the rows there.

    Raises:
        UserError: always.
    """
    hint = "have its rights changed, or name what is to be read by a glob"
    raise UserError(f"{shown(str(error.filename), 200)} cannot be read: {error.strerror}", hint=hint)


def _of_split(folder: str, found: list[str], split: str) -> list[str]:
    """Those of the split, where the files' names tell splits; else all."""
    tags = {}
    for path in found:
        words = re.split(r"[^a-z]+", os.path.relpath(path, folder).lower())
        tags[path] = next((SPLITS[word] for word in words if word in SPLITS), None)
    if not any(tags.values()):
        return found
    if None in tags.values():
        named, other = (next(p for p in found if bool(tags[p]) == kind) for kind in (True, False))
        message = f"{shown(named, 200)} is named for a split, {shown(other, 200)} is not: which of them are meant?"
        raise UserError(message, hint=f"name the files by a glob: {folder}/**/*{os.path.splitext(named)[1]}")
    chosen = [path for path in found if tags[path] == SPLITS.get(split, split)]
    if not chosen:
        exist = ", ".join(sorted({tag for tag in tags.values() if tag}))
        raise UserError(
            f"the folder {shown(folder, 200)} holds no {split} files",
            hint=f"it holds: {exist}; name a file, or set split",
        )
    return chosen


def _nearby(path: str) -> str:
    """What to do: lay out data that comes with hftune; or what is there instead, the nearest names in the first folder above."""
    from .shipped import ROOT

    if path.startswith("data/") and os.path.exists(ROOT / path):
        return "it comes with hftune: hftune recipes copy NAME lays out a recipe here, with its data"
    folder = os.path.dirname(path)
    while folder and not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    if not os.access(folder or ".", os.R_OK | os.X_OK):
        return f"the folder {safe(folder) or '.'} may not be read"
    names = sorted(n for n in os.listdir(folder or ".") if not n.startswith("."))
    below = os.path.relpath(path, folder or ".").split(os.sep)[0]
    near = difflib.get_close_matches(below, names, 3, 0.6) or names[:5]
    listed = ", ".join(safe(os.path.join(folder, n)) for n in near)
    return f"there is: {listed}" if near else f"the folder {folder or '.'} is empty"
