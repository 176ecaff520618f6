"""Model folders and Hub ids: where files come from, and one line where they cannot be had."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from .errors import UserError

CONNECT_SECONDS = 5.0
ADAPTER = "adapter_config.json"


class Unreachable(UserError):
    """A Hub id that is not in the local cache while the Hub does not answer: right or wrong, nobody can say."""


@cache
def answers() -> bool:
    """Whether the Hub can be reached, asked once; without this transformers tries for most of a minute at each file."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=CONNECT_SECONDS)
    except Exception:
        return False
    return True


def locate(path: str, where: str) -> tuple[str, bool]:
    """What `from_pretrained` is to be given: the path, and whether only this machine's files may be used.

    Args:
        path: folder or Hub id.
        where: the recipe's key that named it.

    Raises:
        UserError: the path is no Hub id, and there is no such folder.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return str(folder), True
    if folder.exists():
        raise UserError(f"{path} is a file", hint="give the folder that holds it", where=where)
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise UserError(f"no folder {path}", hint="give a model folder or a Hub id (owner/name)", where=where)
    return path, not answers()


def adapter(folder: str | None) -> dict[str, Any] | None:
    """What the adapter in a folder says of itself, `base_model_name_or_path` among it; None where there is none.

    Raises:
        UserError: its file is broken.
    """
    path = Path(folder).expanduser() / ADAPTER if folder else None
    if path is None or not path.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is broken", hint="give another folder", where="model.path") from error
    return found


def failure(what: str, path: str, error: Exception, where: str) -> UserError:
    """Why something could not be loaded from a folder or the Hub, in one line."""
    if "trust_remote_code" in str(error):
        return UserError(
            f"{path} comes with code of its own", hint="read it, then allow it with --trust-remote-code", where=where
        )
    if not Path(path).expanduser().exists() and not answers() and isinstance(error, OSError):
        return Unreachable(
            f"{path} is no folder here and not in the local cache, and the Hub cannot be reached",
            hint="give a local folder (a run must be made first), or download it where there is a network and set HF_HUB_OFFLINE=1 here",
            where=where,
        )
    return UserError(
        f"cannot load {what} {path}: {first_line(error)}",
        hint="check its files, name and revision",
        where=where,
    )


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
