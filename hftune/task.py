"""What a task is: five required entries over rows, lists and numpy arrays, and optional ones; and how the tasks are found.

A task is one file in `hftune/tasks/` ending in `TASK = Task(...)`. Nothing else names a task, and no
task names a model. Task files import numpy and pydantic at their top and torch only inside functions, so
that a recipe can be checked without loading torch.

One convention serves every head: `labels[..., t]` is what the output at position t must be, and -100
where the loss does not look. A causal task therefore shifts in its own `collate`; no loss ever does.
"""

import ast
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from . import effect
from .errors import UserError

HERE = Path(__file__).parent / "tasks"
LONGEST = 2**20  # tokens of a row
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFraction = Annotated[float, Field(gt=0, le=1)]
IGNORE = -100  # the label of a position at which the loss does not look
OF_TEXT = ("bits_per_byte", "word_perplexity")  # figures of a loss that is of all of a text, see Task.whole_text


class Options(BaseModel):
    """Base of every task's options: unknown keys are faults, and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    _effect = model_validator(mode="after")(effect.refuse)

    @property
    def written(self) -> int:
        """Texts written at once for a row, token by token, beams included; 0: the task writes none."""
        return 0

    @property
    def continues(self) -> bool:
        """Whether a text is written behind what was read, so that the two share the model's positions."""
        return False

    @property
    def lengths(self) -> tuple[tuple[str, ...], ...]:
        """Options that bound the rows: for each kind of row the names of those whose sum is the most that it takes."""
        return (("max_length",),) if "max_length" in type(self).model_fields else ()

    @model_validator(mode="after")
    def _lengths_are_of_this_world(self) -> Self:
        for name in ("max_length", "max_target_length", "max_new_tokens"):
            if (given := getattr(self, name, 0)) > LONGEST:
                raise ValueError(f"{name} is {given:,}, and must be at most {LONGEST:,}")
        return self

    def at(self, done: float) -> Self:
        """The options when that share of the run is done: what changes on the way is a function of the step.

        Evaluation is at 1. Only `collate` sees the difference.
        """
        return self

    def settle(self, tokenizer: Any) -> None:
        """Set on a tokenizer what the rows need of it; it is saved with the model."""

    def evaluating(self) -> Self:
        """The options for rows that the model is measured on: without what only helps training."""
        return self

    def predicting(self) -> Self:
        """The options for rows to be predicted."""
        return self


@dataclass(frozen=True)
class Term:
    """One summand of the loss: `weight * sum(losses) / count`, count = number of `batch[labels] != -100`.

    The count is taken over all micro-batches and ranks of a step before any forward, so it must be a
    property of the batch, never of the model's output.
    """

    name: str = "loss"
    labels: str = "labels"
    weight: float = 1.0


@dataclass(frozen=True)
class Task:
    """The contract of a task.

    Attributes:
        head: transformers auto class that carries the head, e.g. `"AutoModelForMaskedLM"`.
        options: pydantic model (subclass of `Options`) of all a recipe may say under `task:`.
        encode: `(rows, tokenizer, options) -> columns`; rows of text to rows of ids. `rows` is a list of
            dicts (see data.Row), `columns` maps a name to a list, a numpy array or an `arrays.Ragged`, all
            of one length, which may differ from the number of rows; a whole number is no column but a count for the
            report, of rows left out or cut (`truncated`: of which some text is not seen). Deterministic; run once, in
            batches of rows, and cached by content. String columns are kept for scoring (raw references).
        collate: `(rows, tokenizer, options, rngs) -> batch`; encoded rows (dicts of numpy arrays and
            scalars) to a dict of numpy arrays of equal first dimension. Every draw for row i comes from
            `rngs[i]`, a `numpy.random.Generator`; nothing may depend on the other rows of the batch but the
            padding. Each row that can have a target has at least one.
        columns: `(options) -> names` of the columns that a row must have, after the mapping.
        metrics: names of the metrics reported when the recipe names none (besides the loss).
        inputs: what `predict` yields for the metrics: "label", "labels", "number", "text", "tags", "spans".
        predict: `(model, batch, rows, tokenizer, options) -> list of dicts`, one a row, in order, each with
            `prediction`, `reference` where the row has one, optionally `scores`, and `truncated` where only here the row
            was found too long; only for tasks with metrics beyond the loss. `model` is in eval mode, `batch` holds tensors
            on its device; each of the encoded `rows` has also `row`, its number among all.
        combine: `(answers, options) -> answer`; joins what `predict` gave for the encoded rows of one row. A task that
            makes of each row one or more consecutive encoded rows (windows or pieces of a long text) marks the first of
            them by 1, the others by 0, in the column `begins`.
        baseline: `(train, rows, options) -> predictions`, one a row: the answers of a trivial method that has seen the
            training rows, scored by the same metrics. Both are iterables of rows, not yet encoded. Its docstring's
            first line says what the method is.
        guess: `(data, options) -> prediction`; the one answer that a trivial method gives to every encoded row, having
            seen the encoded training rows: for tasks whose rows to be answered are made in encoding.
        answers: `(options) -> names` of those `columns` that rows to be predicted may lack.
        also: names of further columns that are kept where rows have them.
        texts: `(options) -> names` of those `columns` that hold text to be cleaned; default: all that are no answers.
        labels: `(rows, options, before) -> options`; reads an iterable of rows and returns the options completed
            with the label names; only for tasks with labels. `before` are the names that the model's configuration has: a
            head is trained for their order, so that it is kept where the rows have the same ones.
        known: `(options, config) -> options`; completes options that the recipe leaves open by what the configuration of
            a model says that was trained for the task (label names, ...), where there are no training rows to ask.
        config: `(options, tokenizer) -> dict` of settings for the model's configuration (num_labels, id2label, ...).
        tokens: `(options, tokenizer) -> names` of special tokens that the tokenizer is given where it lacks them.
        terms: the summands of the loss. Where the model has a vocabulary head, the first is the loss over it.
        loss: `(model, batch, options, criterion) -> {term name: heads.Losses}`, for tasks of several terms, or whose
            loss is not cross-entropy, binary cross-entropy or squared error of the head's logits; see heads.Criterion.
        network: `(built, source, options, build) -> models.Built`, for tasks that train several networks as one:
            `built` is the model of the recipe's block `source` with the task's head, `build(source, head)` builds
            another; together they are a networks.Networks.
        verify: `(model, options) -> None`; tries what the options ask of the model, and raises UserError if it cannot.
        varies: `(options) -> fields of the task` that are others with these options (head, terms, predict, ...).
        whole_text: the loss of a row is that of all of its text, so that it can be divided by its bytes and words.
        slide: `(data, options, stride) -> data`; the encoded rows as overlapping windows (see views.Sliding).
        alone: `(data, tokenizer) -> data`; the encoded rows, each once for every token, which alone is masked (see
            views.Alone).
        notes: `(rows, options) -> lines` about what is odd in some rows but stops nothing; for `hftune check`.
    """

    # required
    head: str
    options: type[Options]
    encode: Callable[..., dict[str, Any]]
    collate: Callable[..., dict[str, Any]]
    columns: Callable[[Any], list[str]]

    # predictions and their figures
    metrics: Callable[[Any], list[str]] = lambda options: []
    inputs: Callable[[Any], str | None] = lambda options: None
    predict: Callable[..., list[dict[str, Any]]] | None = None
    combine: Callable[[list[dict[str, Any]], Any], dict[str, Any]] | None = None
    baseline: Callable[..., list[Any]] | None = None
    guess: Callable[[Any, Any], Any] | None = None

    # columns
    answers: Callable[[Any], list[str]] = lambda options: []
    also: tuple[str, ...] = ()
    texts: Callable[[Any], list[str]] | None = None

    # labels, configuration, tokenizer
    labels: Callable[..., Any] | None = None
    known: Callable[[Any, Any], Any] = lambda options, config: options
    config: Callable[..., dict[str, Any]] = lambda options, tokenizer: {}
    tokens: Callable[..., list[str]] = lambda options, tokenizer: []

    # the loss
    terms: tuple[Term, ...] = (Term(),)
    loss: Callable[..., dict[str, Any]] | None = None
    network: Callable[..., Any] | None = None
    verify: Callable[..., None] | None = None

    # what depends on the options
    varies: Callable[[Any], dict[str, Any]] = lambda options: {}

    # evaluation of a language model
    whole_text: bool = False
    slide: Callable[[Any, Any, int], Any] | None = None
    alone: Callable[[Any, Any], Any] | None = None

    # for hftune check
    notes: Callable[..., list[str]] | None = None

    def under(self, options: Any) -> "Task":
        """The task as these options make it."""
        return replace(self, **self.varies(options))

    @property
    def vocabulary(self) -> bool:
        """Whether the loss of the first term is over a vocabulary, so that its targets are tokens."""
        return self.head.endswith(("LM", "PreTraining"))

    def text_columns(self, options: Any) -> list[str]:
        """Columns that hold text."""
        if self.texts is not None:
            return self.texts(options)
        return [name for name in self.columns(options) if name not in self.answers(options)]

    def filled(self, options: Any) -> list[str]:
        """Answers that empty text cannot be: a row has one label or number, while of labels, words or tags it may have none."""
        return self.answers(options) if self.inputs(options) in ("label", "number") else []

    def otherwise(self, options: Any) -> dict[str, list[str]]:
        """The columns that a row must have with another value of an option that was left open: `task.kind: chat` -> names."""
        own = self.columns(options)
        found: dict[str, list[str]] = {}
        for name, field in type(options).model_fields.items():
            values = {bool: (True, False)}.get(field.annotation, get_args(field.annotation))  # type: ignore[call-overload]
            for value in () if name in options.model_fields_set else values:
                if isinstance(value, (str, bool)):
                    columns = self.columns(options.model_copy(update={name: value}))
                    found |= {f"task.{name}: {str(value).lower()}": columns} if columns != own else {}
        return found

    def inputs_only(self, options: Any) -> list[str]:
        """Columns that a row to be predicted must have."""
        return [name for name in self.columns(options) if name not in self.answers(options)]


def labels_of(config: Any) -> tuple[str, ...]:
    """The label names in a model's configuration, in order; its `LABEL_0`, `LABEL_1`, ... stand for none."""
    found = {str(key): str(name) for key, name in (config.id2label or {}).items()}  # a recipe's keys may be texts
    return tuple(found[key] for key in sorted(found, key=lambda key: (len(key), key)))


def unnamed(number: int) -> tuple[str, ...]:
    """What transformers calls labels to which nobody gave a name."""
    return tuple(f"LABEL_{i}" for i in range(number))


def label_names(options: Any, config: Any) -> Any:
    """Task.known of tasks with labels: the names in the model's configuration; its `LABEL_1` is what rows call 1.

    A recipe may call the outputs otherwise; where it has the same names in another order, the model knows which is which.
    """
    names = labels_of(config)
    if names == unnamed(len(names)):
        names = tuple(str(i) for i in range(len(names)))
    if options.label_names is not None and sorted(options.label_names) != sorted(names):
        return options
    return options.model_copy(update={"label_names": names})


@cache
def names() -> list[str]:
    """Names of all tasks, from the folder, without importing them."""
    return sorted(m.name for m in pkgutil.iter_modules([str(HERE)]) if not m.name.startswith("_"))


def summary(name: str) -> str:
    """First docstring line of a task file, read without importing it."""
    return (ast.get_docstring(ast.parse((HERE / f"{name}.py").read_text(encoding="utf-8"))) or "").split("\n")[0]


def load(name: str) -> Task:
    """The task of that name.

    Raises:
        UserError: no such task; the message lists those that exist.
    """
    if name not in names():
        raise UserError(f"no task named {name!r}", hint=f"tasks: {', '.join(names())}", where="task.name")
    task: Task = importlib.import_module(f"hftune.tasks.{name}").TASK
    return task
