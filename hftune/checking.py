"""`hftune check`: what can be known of a recipe before any weight is loaded.

First what needs no torch: settings against each other, every row. Then model, tokenizer and a sample of the rows
together (preflight.py), which loads torch. That a recipe was found sound is kept beside the encoded rows, under a key of
all that decided it, so that to check it again takes no longer than to read its data.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from . import consistency, data, keys
from . import task as tasks
from .errors import Faults, UserError, stop_at
from .files import read_json, write_json
from .findings import Findings, counted
from .folder import STATE, RunFolder, versions
from .leaks import seen_in_training, text_columns
from .look import Look, look
from .recipe import Recipe
from .report import Reporter
from .sources import HubRows

SPLITS = ("validation", "test", "train")  # training last: the others are looked for in it
COMMON = 0.1  # share of a split's texts that may occur in training before it is worth a warning


def check(
    recipe: Recipe,
    trust_remote_code: bool = False,
    fresh: bool = False,
    allow: Sequence[str] = (),
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Look at all of a recipe: its settings, places, data, model, tokenizer and method.

    Args:
        recipe: the recipe.
        trust_remote_code: whether code that comes with a model may run.
        fresh: a run that is there already is to be started over.
        allow: settings in which it may differ.
        reporter: told how far the reading is.

    Returns:
        What the recipe comes to, for a person to read; under `warnings` a list of what works and is hardly meant.

    Raises:
        Faults: everything that is wrong, together.
    """
    task, findings = tasks.load(recipe.task.name).under(recipe.task.options), Findings()
    findings.facts = {"task": recipe.task.name, "output": recipe.output.dir}
    findings.faults += consistency.check(recipe, task) + consistency.places(recipe)
    findings.warnings += consistency.warnings(recipe, task)
    with findings.collect():
        _check_folder(Path(recipe.output.dir), recipe, findings, fresh, allow)
    readers = _readers(recipe, task, findings)
    for split, reader in readers.items():
        reader.heard = _heard(reporter, split)
    kept = None if findings.faults else _kept(recipe, readers, trust_remote_code)
    known = read_json(kept) if kept is not None else {}
    if {"facts", "warnings"} <= known.keys():
        findings.facts |= known["facts"]
        findings.warnings += known["warnings"]
    else:
        told = len(findings.warnings)
        _look_closely(recipe, task, readers, findings, trust_remote_code)
        if kept is not None and findings.whole and not findings.faults:
            with suppress(OSError):
                kept.parent.mkdir(parents=True, exist_ok=True)
                write_json(kept, {"facts": findings.facts, "warnings": findings.warnings[told:]})
    stop_at(findings.faults)
    first = ("task", "model", "output", "train", "validation", "test")
    facts = {name: findings.facts[name] for name in first if name in findings.facts} | findings.facts
    return facts | ({"warnings": findings.warnings} if findings.warnings else {})


def _readers(recipe: Recipe, task: tasks.Task, findings: Findings) -> dict[str, Any]:
    """The readers of local splits whose first rows have the columns."""
    found, columns = {}, task.columns(recipe.task.options)
    for split in SPLITS:
        with findings.collect():
            texts, filled = task.text_columns(recipe.task.options), task.filled(recipe.task.options)
            reader = data.open_split(recipe.data, split, text_columns=texts, columns=columns, filled=filled)
            if reader is None:
                continue
            sources = getattr(recipe.data, split) or []
            findings.facts[split] = ", ".join(s.path for s in sources) or "a share of the training rows"
            if reader.remote:  # the Hub is not asked until it must be
                findings.warnings += [
                    f"data.{split}: not checked: the rows of {source.path}, fetched from the Hub by a run"
                    for source, rows in zip(sources, reader.origins, strict=False)
                    if isinstance(rows, HubRows)
                ]
                continue
            otherwise = task.otherwise(recipe.task.options)
            data.check_columns(reader, columns, otherwise)
            found[split] = reader
            if split == "train":
                findings.warnings += _unread(reader, columns, otherwise)
    if "train" not in found and recipe.data.train is None:
        fault = UserError("there is nothing to train on", hint="name it in data.train", where="data.train")
        findings.faults.append(fault)
    return found


def _unread(reader: Any, columns: Sequence[str], otherwise: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Columns beside those of the task that it would read with another value of an option which was left open."""
    there = reader.first()
    for change, more in otherwise.items():
        if {*columns} < {*more} <= there.keys():
            names = ", ".join(name for name in more if name not in columns)
            yield f"data.train: {names} is there too, and is not read; {change} reads it"


def _look_closely(
    recipe: Recipe, task: tasks.Task, readers: dict[str, Any], findings: Findings, trust_remote_code: bool
) -> None:
    looks: dict[str, Look] = {}
    columns = task.text_columns(recipe.task.options)
    for split, reader in readers.items():
        others = {name: seen for name, seen in looks.items() if getattr(recipe.data, name)} if split == "train" else {}
        with findings.collect():
            looks[split] = seen = look(reader, columns, split != "train", others)
            findings.facts[split] += f": {counted(seen.rows, seen.report)}"
            findings.warnings += _common(seen, others)
    from .preflight import preflight

    preflight(recipe, readers, looks, findings, trust_remote_code)


def _common(train: Look, others: dict[str, Look]) -> Iterator[str]:
    for name, other in others.items():
        number = len(train.again[name])
        if number > COMMON * len(other.texts):
            yield (
                f"data.{name}: {number:,} of {len(other.texts):,} texts occur in data.train too, so figures will be too "
                "good; hftune check --overlap says more"
            )


def _check_folder(path: Path, recipe: Recipe, findings: Findings, fresh: bool, allow: Sequence[str]) -> None:
    """What already lies where the run is to go."""
    if not os.path.isdir(path):
        return
    if state := read_json(path / STATE):
        if fresh:
            return
        try:
            RunFolder(path, state=state)._same_recipe(recipe, allow)
        except Faults as error:
            findings.warnings.append(f"output.dir: {path} holds a run whose recipe cannot be read: {error.faults[0]}")
        except UserError as error:
            findings.warnings.append(f"output.dir: {error.message}; {error.hint}")
    elif strange := sorted(entry.name for entry in path.iterdir() if entry.name != ".lock"):
        raise UserError(
            f"{path} holds files that are not a run's: {', '.join(strange[:4])}",
            hint="choose an empty or new folder",
            where="output.dir",
        )


def _kept(recipe: Recipe, readers: dict[str, Any], trust_remote_code: bool) -> Path | None:
    """Where the answer is kept; None where what decides it cannot be told from this machine's files."""
    block = recipe.tokenizer
    named = (recipe.model.path, recipe.model.encoder, recipe.model.decoder, block.path, block.chat_template)
    files = []
    for path in filter(None, named):
        if path == block.chat_template and not os.path.isfile(os.path.expanduser(path)):
            continue
        there = os.path.expanduser(path)
        if not os.path.exists(there):
            return None
        files.append(_stamps(Path(there)))
    try:
        rows = {split: reader.fingerprint() for split, reader in readers.items()}
    except UserError:
        return None
    decides = recipe.model_dump(exclude={"output"})
    key = keys.key_of("check", keys.code_fingerprint(), versions(), decides, files, rows, trust_remote_code)
    cache = keys.cache_folder(recipe.data.cache_dir)
    return cache / "checked" / f"{key}.json"


def _stamps(path: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of each file at the top of a folder, or of a file."""
    entries = sorted(os.scandir(path), key=lambda entry: entry.name) if path.is_dir() else []
    found = [(entry.name, entry.stat()) for entry in entries if entry.is_file()] or [(path.name, path.stat())]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in found]


def _heard(reporter: Reporter | None, split: str) -> Callable[[int], None]:
    return partial((reporter or Reporter(silent=True)).going, f"reading {split}")


def leaks(recipe: Recipe, reporter: Reporter | None = None) -> dict[str, str]:
    """How many rows of the other splits occur in the training rows: in words, by split.

    Raises:
        UserError: a row cannot be read.
    """
    found, columns = {}, text_columns(recipe)
    for split in ("validation", "test"):
        reader = data.open_split(recipe.data, split, text_columns=columns)
        if reader is not None and (told := seen_in_training(recipe, reader, None, _heard(reporter, "train"))):
            found[f"{split} rows that occur in training"] = told
    return found
