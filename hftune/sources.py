"""Where rows come from: local files, or the Hub through `datasets`, which keeps a copy and needs no network then."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from . import hub, readers
from .errors import UserError
from .lines import Rejects
from .paths import File, find, is_local, safe, shown
from .schema import Source

FORMATS = ("json", "jsonl", "csv", "tsv", "parquet", "text")
OPTION_OF = {  # options of a source that are for some kinds of it only
    "field": ("json",),
    "quotes": ("csv", "tsv"),
    "delimiter": ("csv", "tsv"),
    "sample_by": ("text",),
    "format": FORMATS,
    "name": ("hub",),
    "revision": ("hub",),
}


class Origin(Protocol):
    """Where the rows of one source come from: `LocalRows` or `HubRows`."""

    def __call__(self, rejects: Rejects) -> Iterator[tuple[str, dict[str, Any]]]:
        """(where, row), always in the same order."""

    def digest(self, state: Any) -> None:
        """Feed the content to a hash."""


class LocalRows:
    """The rows of local files."""

    def __init__(self, source: Source, files: list[File], encoding: str):
        self.source, self.files, self.encoding = source, files, encoding

    def __call__(self, rejects: Rejects) -> Iterator[tuple[str, dict[str, Any]]]:
        """(where, row), file by file."""
        for file in self.files:
            name = f"{file.name}:"
            for place, row in readers.read(file, self.source, self.encoding, rejects):
                yield f"{name}{place}", row

    def digest(self, state: Any) -> None:
        """Feed the files' bytes to a hash."""
        for file in self.files:
            try:
                state.update(f"{file.format}{file.packing} {file.unit} {os.path.getsize(file.path)}\n".encode())
                with open(file.path, "rb", buffering=0) as stream:
                    while piece := stream.read(1 << 20):
                        state.update(piece)
            except OSError as error:
                raise file.damage(error) from None


class HubRows:
    """The rows of one split. Nothing is fetched before the first row or hash is asked for."""

    def __init__(self, source: Source, split: str, where: str):
        self.source, self.split, self.where = source, split, where
        self.loaded: Any = None

    def __call__(self, rejects: Rejects) -> Iterator[tuple[str, dict[str, Any]]]:
        """(where, row); class labels by their names, None where the row has none."""
        rows = self._load()
        named = {column: name for column, feature in rows.features.items() if (name := _namer(feature))}
        for number, row in enumerate(rows, 1):
            for column, name in named.items():
                row[column] = name(row[column])
            yield f"{self.source.path}: row {number}", row

    def digest(self, state: Any) -> None:
        """Feed the rows to a hash. (datasets' own fingerprint follows the times of its files.)"""
        rows = self._load()
        state.update(json.dumps(rows.features.to_dict(), sort_keys=True, default=str).encode())
        for table in rows.with_format("arrow").iter(1000):
            for batch in table.combine_chunks().to_batches():
                state.update(memoryview(batch.serialize()))

    def _load(self) -> Any:
        if self.loaded is None:
            self.loaded = _undecoded(_load(self.source, self.split, self.where))
        return self.loaded


def origin(source: Source, split: str, encoding: str) -> Origin:
    """The rows that a source means in the block `split` of the recipe.

    Raises:
        UserError: a file is missing or of no known format, or an option does not fit the source.
    """
    where, files, kind = f"data.{split}", [], "hub"
    if is_local(source.path):
        files = find(source.path, source.format, source.split or split, where)
        kind = files[0].format
        if source.split and not os.path.isdir(os.path.expanduser(source.path)):
            hint = "remove it; for the first rows of a file there is limit"
            raise UserError("split is for folders and Hub data sets", hint=hint, where=where)
    for option, kinds in OPTION_OF.items():
        if kind not in kinds and getattr(source, option) != Source.model_fields[option].default:
            message = f"{option} is for {' and '.join(kinds)}, and {shown(source.path, 200)} is {kind}"
            raise UserError(message, hint="remove it, or set format", where=where)
    return LocalRows(source, files, encoding) if files else HubRows(source, source.split or split, where)


def _load(source: Source, split: str, where: str) -> Any:
    import datasets

    name, online = shown(source.path, 200), hub.answers()
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = not online  # else it tries for most of a minute before it looks into its cache
    try:
        with hub.quiet("huggingface_hub", "datasets"):
            rows = datasets.load_dataset(source.path, source.name, split=split, revision=source.revision)
    except datasets.exceptions.DatasetNotFoundError as error:
        told = hub.first_line(error)
        if source.revision and told.startswith("Revision"):
            message, hint = (
                f"{name} has no revision {safe(source.revision)}",
                "give one of its branches, tags or commits",
            )
        elif "gated" in told:
            message = f"{name} is gated: the Hub gives it only to whom its owners let in"
            hint = "ask for access on its page; then log in (hf auth login) or set HF_TOKEN"
        else:
            message = f"no data set {name} on the Hub, and no file or folder of that name here"
            hint = "correct the name; a private data set needs HF_TOKEN"
        raise UserError(message, hint=hint, where=where) from None
    except ConnectionError:
        message = f"the Hub cannot be reached, and {name} is neither in its local cache nor a file or folder here"
        raise UserError(message, hint="connect to the network, or give a local path", where=where) from None
    except Exception as error:  # its faults have no common class
        if refused := hub.refusal(source.path, error, where, kind="data set", revision=source.revision):
            raise refused from None
        said = " ".join(str(error).split()) or type(error).__name__
        message = f"{name} cannot be loaded: {safe(said)}"[:300]
        raise UserError(message, hint="set name, split or revision of the source", where=where) from None
    finally:
        datasets.config.HF_HUB_OFFLINE = before
    if source.revision and not online:
        _check_commit(rows, source.path, source.revision, where)
    return rows


def _check_commit(rows: Any, path: str, revision: str, where: str) -> None:
    """That rows from the local cache are of the revision: datasets takes what was kept last, of whichever.

    Raises:
        UserError: they are of another, or nothing here says of which commit the revision is.
    """
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    reference = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=path, repo_type="dataset"), "refs", revision)
    wanted = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
    kept = {Path(file["filename"]).parent.name for file in rows.cache_files}
    if kept and kept != {wanted}:
        message = f"the Hub cannot be reached, and what the local cache gives of {shown(path, 200)} is not revision {safe(revision)}"
        hint = "connect to the network, or remove revision to take what was loaded last"
        raise UserError(message, hint=hint, where=where)


def _undecoded(rows: Any) -> Any:
    """Sounds and pictures beside the text stay as they are kept: to decode them costs time, and packages that may not be there."""
    import datasets

    features = datasets.Features({column: _as_kept(feature) for column, feature in rows.features.items()})
    if features == rows.features:
        return rows
    info = rows.info.copy()
    info.features = features
    return datasets.Dataset(rows.data, info=info, split=rows.split)


def _as_kept(feature: Any) -> Any:
    if isinstance(feature, dict):
        return {name: _as_kept(part) for name, part in feature.items()}
    if hasattr(feature, "feature"):
        return replace(feature, feature=_as_kept(feature.feature))
    media = getattr(feature, "decode", False) and type(feature).__name__ != "Json"  # which is text, kept as JSON
    return replace(feature, decode=False) if media else feature


def _namer(feature: Any) -> Callable[[Any], Any] | None:
    """How to put class labels in words: `value -> the value with their names`; None for a column without any."""
    names = getattr(feature, "names", None)
    if names:
        return lambda value: None if value is None or value < 0 else names[value]
    if isinstance(feature, dict):
        parts = {key: name for key, part in feature.items() if (name := _namer(part))}
        return (lambda value: value and value | {k: name(value[k]) for k, name in parts.items()}) if parts else None
    inner = _namer(feature.feature) if hasattr(feature, "feature") else None
    return inner and (lambda values: values and [inner(value) for value in values])
