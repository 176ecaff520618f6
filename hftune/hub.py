"""Model folders and Hub ids: where files come from, and one line where they cannot be had."""

import errno
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from . import weights as files
from .errors import UserError

CONNECT_SECONDS = 5.0
ADAPTER = "adapter_config.json"
SMALL = ["*.json", "*.txt", "*.model", "*.spm", "*.codes", "*.tiktoken"]  # what a folder holds beside its weights
DEEP = ["*.py", "*.jinja"]  # in its folders too
CLOSED = {errno.EACCES, errno.EPERM, errno.EROFS}
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, *CLOSED}
HELD: dict[str, str] = {}  # Hub id -> commit
AWAY = {502, 503, 504}  # what a gateway says with nobody behind it


class Unreachable(UserError):
    """A Hub id that is not in the local cache while the Hub does not answer: right or wrong, nobody can say."""


@cache
def answers() -> bool:
    """Whether the Hub can be reached, asked once; without this its client tries for most of a minute at each file."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        return get_session().head(constants.ENDPOINT, timeout=CONNECT_SECONDS).status_code not in AWAY
    except Exception:
        return False


def named(path: str, where: str) -> Path | None:
    """The folder that a path means; None for a Hub id.

    Args:
        path: folder or Hub id.
        where: the recipe's key that named it.

    Raises:
        UserError: the path is no Hub id, and there is no such folder.
    """
    folder = Path(os.path.expanduser(path))
    try:
        if folder.is_dir():
            return folder
        there = folder.exists()
    except OSError as error:
        hint = "give a folder or a Hub id (owner/name)"
        raise UserError(f"{path} cannot be read: {error.strerror}", hint=hint, where=where) from None
    if there:
        raise UserError(f"{path} is a file", hint="give the folder that holds it", where=where)
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise UserError(f"no folder {path}", hint="give a folder or a Hub id (owner/name)", where=where)
    return None


def locate(path: str, revision: str | None, where: str, weights: str | None = None) -> Path:
    """The folder that a path means: itself, or this machine's copy of a Hub id, brought up to date where the Hub answers.

    What is asked for later is of the commit that was found first, so that configuration, tokenizer and weights belong together.

    Args:
        path: folder or Hub id.
        revision: branch, tag or commit on the Hub.
        where: the recipe's key that named it.
        weights: a file of weights that is wanted too, or the parts into which its index divides it.

    Raises:
        UserError: there is no such folder, or the Hub does not give the files.
    """
    if (folder := named(path, where)) is not None:
        return folder
    listed: list[str] | None = None
    try:
        place = _snapshot(path, revision or HELD.get(path))
        if weights and answers():
            _fetch(path, place.name, [weights])
            index = place / f"{weights}.index.json"
            if not (place / weights).is_file() and index.is_file():
                _fetch(path, place.name, _parts(index))
            elif not (place / weights).is_file():
                listed = _names(path, place.name)
    except Exception as error:  # the Hub's client lets through whatever its transport raises
        refused = refusal(path, error, where, revision=revision)
        message = f"cannot fetch {path}: {first_line(error)}"
        raise refused or UserError(message, hint="try again", where=where) from error
    if weights and listed is not None:
        raise files.nothing(path, weights, listed, where)
    return place


@contextmanager
def held(commits: Mapping[str, str]) -> Iterator[None]:
    """Within, Hub ids without a revision are of these commits, as a run began with them."""
    HELD.update(commits)
    try:
        yield
    finally:
        for path in commits:
            HELD.pop(path, None)


def commit(path: str | None, revision: str | None) -> str | None:
    """The commit that a Hub id was taken at; None for a folder.

    Raises:
        UserError: the Hub does not give it.
    """
    if not path or named(path, "model.path") is not None:
        return None
    return locate(path, revision, "model.path").name


@cache
def _snapshot(path: str, revision: str | None) -> Path:
    """The copy of a Hub id, with what is small; as it is where the cache may only be read, as that of a whole cluster."""
    try:
        return _fetch(path, revision, [*SMALL, *DEEP], but=[f"*/{name}" for name in SMALL])
    except OSError as error:
        if error.errno not in CLOSED:
            raise
        return _copy(path, revision)


def _copy(path: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(path, revision=revision, allow_patterns=[], local_files_only=True))


def _fetch(path: str, revision: str | None, names: list[str], but: list[str] | None = None) -> Path:
    """Bring files into the copy of a Hub id; where the Hub does not answer it stays as it is."""
    from huggingface_hub import snapshot_download

    if not answers():
        return _copy(path, revision)
    with quiet("huggingface_hub"):
        return Path(snapshot_download(path, revision=revision, allow_patterns=names, ignore_patterns=but))


def _names(path: str, revision: str) -> list[str]:
    """The files of a Hub id."""
    from huggingface_hub import HfApi

    return HfApi().list_repo_files(path, revision=revision)


@contextmanager
def quiet(*libraries: str) -> Iterator[None]:
    """The Hub's client says each of its attempts on a line, and datasets what it took from its cache."""
    levels = {logging.getLogger(name): logging.getLogger(name).level for name in libraries}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def _parts(index: Path) -> list[str]:
    """The files that an index of weights names; none where it is missing or broken, which is told when they are read."""
    try:
        return sorted({str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def adapter(path: str | None, revision: str | None = None) -> dict[str, Any] | None:
    """What the adapter in a folder or a Hub id says of itself, `base_model_name_or_path` among it; None where there is none.

    Raises:
        UserError: its file is broken, or a Hub id cannot be had.
    """
    file = locate(path, revision, "model.path") / ADAPTER if path else None
    if file is None or not file.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found["base_model_name_or_path"], str):
            raise TypeError("no name of a base")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} names no base model", hint="give another folder, or correct it", where="model.path"
        ) from error
    return found


def refusal(
    name: str, error: Exception, where: str, kind: str = "model", revision: str | None = None
) -> UserError | None:
    """Why the Hub did not give something, in one line; None where it is not known.

    Args:
        name: what was asked for.
        error: what its client raised.
        where: the recipe's key, or word, that named it.
        kind: what it is.
        revision: which was asked for.
    """
    from huggingface_hub import constants, errors

    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) and cause not in chain:
        chain.append(cause)
    for found in chain:
        if isinstance(found, errors.GatedRepoError):
            page = f"{constants.ENDPOINT}/{'datasets/' * (kind == 'data set')}{name}"
            hint = f"ask for access at {page}; then log in (hf auth login) or set HF_TOKEN"
            return UserError(
                f"{name} is gated: the Hub gives it only to whom its owners let in", hint=hint, where=where
            )
        if isinstance(found, errors.RevisionNotFoundError):
            return UserError(
                f"{name} has no revision {revision}", hint="give one of its branches, tags or commits", where=where
            )
        if isinstance(found, errors.RepositoryNotFoundError):
            hint = f"correct the name; for a private {kind} log in (hf auth login) or set HF_TOKEN"
            return UserError(f"no {kind} {name} on the Hub, and no folder of that name here", hint=hint, where=where)
        if isinstance(found, errors.HfHubHTTPError) and found.response is not None:
            status = found.response.status_code
            hint = "log in anew (hf auth login), or correct HF_TOKEN" if status in (401, 403) else "try again later"
            return UserError(f"the Hub does not give {name}: it answers {status}", hint=hint, where=where)
        if isinstance(found, OSError) and found.errno in UNWRITABLE:
            place = found.filename or constants.HF_HUB_CACHE
            message = f"{name} cannot be kept here: {os.strerror(found.errno)} ({place})"
            return UserError(message, hint="make room, or set HF_HOME to another folder", where=where)
    if isinstance(error, errors.LocalEntryNotFoundError) and not answers():
        return Unreachable(
            f"{name} is no folder here and not in the local cache{f' at revision {revision}' if revision else ''}, and the Hub "
            "cannot be reached",
            hint="give a local folder (a run must be made first), or download it where there is a network and set HF_HUB_OFFLINE=1 here",
            where=where,
        )
    if isinstance(error, errors.HFValidationError):
        return UserError(f"{name} is no folder here and no name on the Hub", hint="correct it: owner/name", where=where)
    return None


def failure(what: str, path: str, error: Exception, where: str) -> UserError:
    """Why something in a folder could not be loaded, in one line."""
    if "trust_remote_code" in str(error):
        return UserError(
            f"{path} comes with code of its own", hint="read it, then allow it with --trust-remote-code", where=where
        )
    return UserError(
        f"cannot load {what} {path}: {first_line(error)}",
        hint="check its files, name and revision",
        where=where,
    )


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
