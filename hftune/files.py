"""Files that are whole or not there, and standard input."""

import errno
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import UserError


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON so that a reader sees the old file or the new one, never a part."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
        sync(aside)
        os.replace(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one where there is none to be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def disk_is_full(error: BaseException) -> bool:
    """Whether an error says that a disk or a quota is full; libraries in Rust say it in words only."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)


def fault(error: OSError) -> UserError | None:
    """A full disk, a place that may not be used, or a name that none can have, in one line; None where an error says something else."""
    where = str(error.filename)[:200] if error.filename else None
    if disk_is_full(error):
        return UserError("no space left on the disk", hint="make room, then give the command again", where=where)
    if where and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG):
        return UserError(str(error.strerror), hint="give another path", where=where)
    return None


def mebibytes(size: float) -> str:
    """Bytes as a person reads them."""
    return f"{size / 2**20:,.1f} MiB" if size < 100 * 2**20 else f"{size / 2**20:,.0f} MiB"


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file of JSON lines, such as one of predictions."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def typed_lines() -> Iterator[str]:
    """Lines of standard input as files are read: UTF-8 whatever the locale says, without its mark, each ending in a newline.

    Raises:
        UserError: bytes that are no UTF-8.
    """
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="strict", newline=None)
    try:
        yield from sys.stdin
    except UnicodeDecodeError as error:
        found = f"byte 0x{error.object[error.start]:02x}"
        hint = "convert it first, e.g. iconv -f cp1252 -t utf-8"
        raise UserError(f"not UTF-8: {found}", hint=hint, where="standard input") from None
