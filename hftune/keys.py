"""Keys by content, and where what has one is kept; without pyarrow, so that a recipe is checked quickly."""

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import xxhash

from .errors import UserError


def default_folder() -> Path:
    """Where encoded rows are kept: `$HFTUNE_CACHE`, else `$XDG_CACHE_HOME/hftune`, else `~/.cache/hftune`.

    Raises:
        UserError: there is no home folder, as of a user whom the system does not know.
    """
    named = os.environ.get("HFTUNE_CACHE") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/hftune"
    found = os.path.expanduser(named)
    if found.startswith("~"):
        hint = "set HFTUNE_CACHE, or data.cache_dir, to the folder where encoded rows are to be kept"
        raise UserError(f"there is no home folder, and so no {named}", hint=hint, where="data.cache_dir")
    return Path(found)


def cache_folder(named: str | None) -> Path:
    """Where encoded rows and trained tokenizers are kept: as the recipe names it, else the default folder."""
    return Path(named) if named else default_folder()


@cache
def code_fingerprint() -> str:
    """Hash of the code that encodes: a new version of a task never reads what an old one wrote."""
    here = Path(__file__).parent
    files = sorted([*here.glob("*.py"), *here.glob("tasks/*.py")])
    digest = xxhash.xxh3_128()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def key_of(*parts: Any) -> str:
    """Content key of JSON-able parts."""
    return xxhash.xxh3_128_hexdigest(json.dumps(parts, sort_keys=True, default=str).encode())
