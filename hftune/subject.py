"""What `hftune eval` measures: a run, or a plain model by a recipe or by a task; on which rows; where the figures go."""

import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from . import hub, recipe, shipped
from . import task as tasks
from .errors import UserError
from .folder import METRICS, RECIPE, STATE, is_run, newest
from .paths import endings
from .paths import find as find_files
from .recipe import Recipe
from .schema import Data, Model, Source, Tokenizer

TYPED = "-"  # standard input
SOURCE = "source"  # the word of `hftune predict` that names its rows
READING = {
    "format",
    "field",
    "columns",
    "quotes",
    "delimiter",
    "sample_by",
}  # settings of a source that say how to read it


@dataclass(frozen=True)
class Rows:
    """One set of rows.

    Attributes:
        name: of its predictions file; figures say it as their `split`.
        split: the part of `data` that holds them.
        data: the recipe's block, without what these rows do not need.
        prefix: put before the names of its figures, where there are several sets.
        word: of the command line that gave them; None: the recipe's own.
    """

    name: str
    split: str
    data: Data
    prefix: str = ""
    word: str | None = None


@dataclass(frozen=True)
class Subject:
    """A model to be measured.

    Attributes:
        path: folder or Hub id.
        recipe: that of the run, or what stands for one; what it says of the model is not asked.
        plain: no run: what the recipe leaves open, the model's own configuration says (see Task.known).
        output: folder asked for the results.
        named: sets of rows given instead of the recipe's, by name; an empty name stands for the recipe's test rows.
        asked: the split asked for.
        ran: the run's recipe as it ran.
    """

    path: str
    recipe: Recipe
    plain: bool = False
    output: Path | None = None
    named: tuple[tuple[str, Source], ...] = ()
    asked: str | None = None
    ran: Recipe | None = None

    @property
    def place(self) -> Path | None:
        """Folder of the results; None: they are only printed.

        What lies in a run's own folder is shared (see push.py): its figures by its recipe, of a whole set of its rows, and
        none of rows that it has learned from.
        """
        if self.output is not None or self.plain:
            return self.output
        other = self.named or self.asked == "train" or self._otherwise()
        return None if other else Path(self.path)

    def _otherwise(self) -> bool:
        """Whether it is measured by other settings than the run's, or less is; the rows and what is free may be others."""
        ran, options = self.ran or self.recipe, self.recipe.task.options
        task = tasks.load(self.recipe.task.name).under(options)
        own, asked = (
            made.eval.metrics if made.eval.metrics is not None else task.metrics(options) for made in (ran, self.recipe)
        )
        changed = {key for key, _, _ in recipe.differences(ran, self.recipe) if not key.startswith("data.")}
        changed -= {"eval.metrics", "eval.limit"}
        return (
            not set(own) <= set(asked)
            or self.recipe.eval.limit not in (None, ran.eval.limit)
            or any(key.startswith("task.") or recipe.mark(key, type(options)) != "free" for key in changed)
        )

    @property
    def own(self) -> Recipe:
        """The recipe with the model that is measured as its model and tokenizer.

        Raises:
            UserError: a run without a model yet.
        """
        said = self.recipe.model
        revision = said.revision if self.plain else None
        adapted = bool(hub.adapter(self.path, revision))
        if not self.plain and not adapted and not (Path(self.path) / "config.json").exists():
            raise UserError(
                f"{self.path} is not finished: it has no model yet",
                hint="start its command again: it resumes where it stopped",
            )
        config = said.config if adapted and not self.plain else {}  # the base model's, which the run had changed
        model = Model(path=self.path, revision=revision, attention=said.attention, config=config)
        spoken = Tokenizer(chat_template=self.recipe.tokenizer.chat_template if self.plain else None)
        return self.recipe.model_copy(update={"model": model, "tokenizer": spoken})

    def rows(self) -> list[Rows]:
        """The sets of rows to measure on.

        Raises:
            UserError: there are none.
        """
        data, split = self.recipe.data, self.asked or "test"
        if self.named:
            given = [(name, data.model_copy(update={"test": [like_training(data, one)]})) for name, one in self.named]
            return [
                Rows(name or "test", "test", _only(own, "test"), f"{name}/" if name else "", f"--data {name}".rstrip())
                for name, own in given
            ]
        if self.asked is None and not data.test:
            split = "validation"
        if not getattr(data, split) and not (split == "validation" and data.validation_fraction):
            raise UserError(
                f"the recipe has no {split} rows",
                hint=f"give them: --data FILE, or data.{split}=FILE",
                where=f"data.{split}",
            )
        return [Rows(split, split, _only(data, split))]


def like_training(data: Data, given: Source) -> Source:
    """Rows given on the command line, which are read as the training files with that ending are (delimiter, columns, ...), if
    these agree, but for what is said of them there. What is typed has no ending of its own. A prefix that all inputs of
    training have, these have too.
    """
    every, suffixes = data.train or [], _suffixes(given)
    same = [source for source in every if given.path == TYPED or _suffixes(source) == suffixes]
    ways = [source.model_dump(include=READING, exclude_defaults=True) for source in same]
    agreed = ways[0] if ways and all(way == ways[0] for way in ways) else {}
    if len(prefixes := {source.prefix for source in every}) == 1:
        agreed |= {"prefix": prefixes.pop()}
    return given.model_copy(update={name: way for name, way in agreed.items() if name not in given.model_fields_set})


def _suffixes(source: Source) -> set[str]:
    """The endings of a source's files, or that of its name where they are gone."""
    with suppress(UserError):
        return {endings(file.path)[0] for file in find_files(source.path, source.format)}
    return {endings(source.path)[0]}


def _only(data: Data, split: str) -> Data:
    """The block without training rows that the split does not come from: they may be gone since the run."""
    if split == "train" or (split == "validation" and not data.validation):
        return data
    return data.model_copy(update={"train": None, "validation_fraction": 0.0})


def find(
    name: str | None,
    overrides: Sequence[str],
    *,
    by: str | None = None,
    task: str | None = None,
    data: Sequence[str] = (),
    split: str | None = None,
    output: str | None = None,
) -> Subject:
    """What the words of the command line come to.

    Args:
        name: run folder, recipe (its run), or with `by` or `task` a model's folder or Hub id; None: the newest run.
        overrides: KEY=VALUE settings of the recipe.
        by: recipe that says how to measure a plain model.
        task: instead of a recipe, the task.
        data: rows instead of the recipe's test rows: one path (or source, see recipe.source), or several NAME=PATH.
        split: split of the recipe; default: test where there is one, else validation.
        output: folder of the results; default: see Subject.place.

    Raises:
        UserError: words that do not go together, or no such run, model or recipe.
    """
    check_settings(overrides, MEASURING, plain=by is not None or task is not None)
    named = _named(data)
    if named and split:
        raise UserError(
            "--split and --data were both given", hint="--data gives the rows; --split chooses the recipe's"
        )
    if split not in (None, "train", "validation", "test"):
        raise UserError(f"no split {split!r}", hint="splits: train, validation, test", where="--split")
    if by is None and task is None:
        path = _run(name)
        made = recipe.load(path / RECIPE, overrides)
        ran = recipe.load(path / RECIPE)
        return Subject(str(path), made, output=_place(output, path), named=named, asked=split, ran=ran)
    if name is None:
        raise UserError(
            "which model is to be measured?",
            hint="hftune eval FOLDER_OR_ID --task TASK --data FILE, or --recipe RECIPE",
        )
    if by is not None and task is not None:
        raise UserError("--recipe and --task were both given", hint="a recipe names its task")
    hub.named(name, "model.path")
    model = f"model.path={json.dumps(name)}"
    if by is not None:
        made = recipe.load(shipped.locate(by), [*overrides, model])
    else:
        if not named and not any(text.startswith("data.test") for text in overrides):
            raise UserError("--task needs rows to measure on", hint="--data FILE", where="--task")
        made = recipe.from_dict(
            {"task": {"name": task}, "model": {"path": name}, "data": {}, "output": {"dir": output or "."}}, overrides
        )
    return Subject(name, made, plain=True, output=_place(output, Path(name)), named=named, asked=split)


ORIGIN = ("model.init", "model.path", "model.encoder", "model.decoder")
OWN = (*ORIGIN, "model.config", "model.revision", "tokenizer", "peft", "output")
OPEN = ("tokenizer.chat_template", "model.revision")  # of a plain model: how rows are put to it, and which one is meant
MEASURING = ("eval", "train.precision", "train.matmul")  # of the blocks `eval` and `train`, what measuring goes by
ANSWERING = ("eval.batch_tokens", "train.precision", "train.matmul")  # what predicting and writing go by
DROPPING = (
    "data.on_error", "data.max_errors", "data.clean.min_chars", "data.clean.deduplicate", "data.validation_fraction",
)  # fmt: skip


def check_settings(overrides: Sequence[str], used: Sequence[str], plain: bool = False, whole: bool = False) -> None:
    """That the settings are of rows and of what is done with them, and not of the model or of its training.

    Args:
        overrides: KEY=VALUE settings.
        used: those of the blocks `eval` and `train` that have an effect.
        plain: whether the model is no run.
        whole: whether each row is answered, so that none may be dropped.

    Raises:
        UserError: one is, which would change nothing.
    """
    for text in overrides:
        key = text.partition("=")[0]
        if plain and key in OPEN:
            continue
        if whole and key in DROPPING:
            hint = "correct such rows in the file, or take them out of it"
            raise UserError(
                f"{key} drops rows, and each row that is to be predicted is answered", hint=hint, where=text
            )
        if _within(key, OWN):
            hint = "name another run; hftune eval FOLDER_OR_ID measures any model, --output DIR keeps results elsewhere"
            raise UserError(f"{key} is the model's own, which is used as it is", hint=hint, where=text)
        if _within(key, ("eval", "train")) and not _within(key, used):
            hint = f"leave it out; of these blocks {', '.join(used)} have an effect"
            raise UserError(f"{key} has no effect on what this command does", hint=hint, where=text)


def check_writing(overrides: Sequence[str], made: Recipe) -> None:
    """That text is written where a setting says how.

    Raises:
        UserError: the task predicts nothing in an evaluation.
    """
    options = made.task.options
    if tasks.load(made.task.name).under(options).predict is not None:
        return
    for key in (text.partition("=")[0] for text in overrides):
        if key.startswith("task.") and recipe.mark(key, type(options)) == "free":  # see decode.Decoding
            message = f"{key} has no effect here: in an evaluation the task {made.task.name} writes no text"
            raise UserError(message, hint="leave it out; hftune predict and hftune generate go by it", where=key)


def _within(key: str, names: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _named(data: Sequence[str]) -> tuple[tuple[str, Source], ...]:
    """(name, source) of each set of rows; a single one needs no name."""
    found = []
    for text in data:
        name, equals, path = text.partition("=")
        if not equals or text.startswith("{") or os.path.exists(text):
            name, path = "", text
        elif not re.fullmatch(r"[A-Za-z0-9][\w-]*", name) or not path:
            raise UserError(f"{text!r} is not of the form NAME=PATH", hint="e.g. news=news.jsonl", where="--data")
        elif name in ("train", "validation", "test"):
            hint = "choose another name, or measure the recipe's with --split"
            raise UserError(f"{name} is the name of the recipe's own rows", hint=hint, where="--data")
        found.append((name, recipe.source(path, f"--data {name}".rstrip())))
    names = [name for name, _ in found]
    if len(found) > 1 and "" in names:
        raise UserError("of several sets of rows each needs a name", hint="--data NAME=PATH", where="--data")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"two sets of rows are named {twice}", hint="give each its own name", where="--data")
    return tuple(found)


def _run(name: str | None) -> Path:
    """The folder of a run, given by itself or by its recipe."""
    path = Path(name) if name else newest()
    plain = f"for a plain model: hftune eval {name} --task TASK --data FILE, or --recipe RECIPE"
    if name and not path.is_dir():
        try:
            where = shipped.locate(name)
        except UserError as error:
            raise UserError(f"no run, recipe or folder {name!r}", hint=plain) from error
        path, plain = Path(recipe.load(where).output.dir), f"train first: hftune pretrain {name}"
    if not is_run(path):
        raise UserError(f"{path} holds no run", hint=plain)
    return path


def _place(output: str | None, model: Path) -> Path | None:
    """The folder asked for results, if one was: new, empty, or that of results before.

    Raises:
        UserError: it holds something else.
    """
    if output is None:
        return None
    path = Path(output)
    if path.exists() and (
        not path.is_dir() or os.path.realpath(path) == os.path.realpath(os.path.expanduser(model)) or not _free(path)
    ):
        raise UserError(
            f"{output} is there already, and holds no results of hftune eval",
            hint="choose a new folder",
            where="--output",
        )
    return path


def _free(path: Path) -> bool:
    """Whether nothing of another kind lies in a folder."""
    return not any(path.iterdir()) or ((path / METRICS).is_file() and not (path / STATE).exists())
