"""What settings of one recipe say against each other, known without its data and without its model."""

import difflib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import metrics
from .errors import UserError
from .recipe import Recipe
from .schema import Data
from .task import OF_TEXT, Task

# a prediction and its reference as Task.inputs names them
EXAMPLES: dict[str, tuple[Any, Any]] = {
    "label": ("a", "a"),
    "labels": (["a", "b"], ["a", "b"]),
    "number": (0.5, 0.5),
    "text": ("a", "a"),
    "tags": (["O"], ["O"]),
    "spans": ("a", ["a"]),
}


def check(recipe: Recipe, task: Task) -> list[UserError]:
    """All that is wrong.

    Args:
        recipe: the recipe.
        task: its task under its options.
    """
    options = recipe.task.options
    return [
        *_metrics(recipe, task), *best(recipe, task), *views(recipe, task, options), *smoothing(recipe, task, options),
        *_revisions(recipe), *_attention(recipe),
    ]  # fmt: skip


def _attention(recipe: Recipe) -> Iterator[UserError]:
    """That there is such an attention in the precision that is asked for."""
    kind = recipe.model.attention
    if kind.startswith("flash") and recipe.train.precision == "fp32":
        message = f"{kind} computes in half precision alone, and train.precision is fp32"
        hint = "set train.precision: bf16, or model.attention: sdpa"
        yield UserError(message, hint=hint, where="model.attention")


def _revisions(recipe: Recipe) -> Iterator[UserError]:
    """That what a revision is of comes from the Hub; a folder has one content, whatever was asked for."""
    model, block = recipe.model, recipe.tokenizer
    weights = (model.path, model.encoder, model.decoder)
    read = None if block.train else block.path or model.path or model.encoder
    for where, revision, paths in (("model", model.revision, weights), ("tokenizer", block.revision, (read,))):
        if revision and not any(path and not _is_here(path) for path in paths):
            named = ", ".join(filter(None, paths)) or "what is made here"
            message = f"revision is for what comes from the Hub, and {named} does not"
            yield UserError(message, hint="remove it, or name a Hub id", where=f"{where}.revision")
    distant = {path for path in (model.encoder, model.decoder) if path and not _is_here(path)}
    if model.revision and len(distant) > 1:
        message = f"a revision is of one repository, and {model.encoder} and {model.decoder} are two"
        hint = "remove it, or download that revision of the one and give its folder"
        yield UserError(message, hint=hint, where="model.revision")


def _is_here(path: str) -> bool:
    return os.path.exists(os.path.expanduser(path))


def warnings(recipe: Recipe, task: Task) -> Iterator[str]:
    """What works, and is hardly meant."""
    train = recipe.train
    yield from _columns(recipe.data, task, recipe.task.options)
    if train.max_steps and train.warmup_steps and train.warmup_steps >= train.max_steps:
        yield (
            f"train.warmup_steps is {train.warmup_steps} and train.max_steps {train.max_steps}: the learning rate never "
            "reaches its peak; lower warmup_steps"
        )
    falls = train.lr_scheduler_kwargs.get("num_decay_steps")
    if train.max_steps and isinstance(falls, int) and (train.warmup_steps or 0) + falls > train.max_steps:
        yield (
            f"train.lr_scheduler_kwargs.num_decay_steps is {falls} and train.max_steps {train.max_steps}: the learning rate jumps "
            "from its warmup into its decay; lower num_decay_steps"
        )
    if train.eval_steps and not recipe.data.validation and not recipe.data.validation_fraction:
        yield (
            f"train.eval_steps is {train.eval_steps} and there are no validation rows: nothing is measured; name them in "
            "data.validation, or hold some out: data.validation_fraction: 0.1"
        )
    elif train.max_steps and train.eval_steps and train.eval_steps > train.max_steps:
        yield (
            f"train.eval_steps is {train.eval_steps} and train.max_steps {train.max_steps}: nothing is measured before "
            "the end; lower eval_steps"
        )


def _columns(data: Data, task: Task, options: Any) -> Iterator[str]:
    """Columns that are given names by which the task reads none: it may read others in their place, and nobody would know."""
    read, sources = task.columns(options), [*(data.train or ()), *(data.validation or ()), *(data.test or ())]
    given = {
        name: column
        for mapping in (data.columns, *(one.columns for one in sources))
        for name, column in mapping.items()
    }
    for name, column in given.items():
        if name not in (*read, *task.also):
            near = difflib.get_close_matches(name, read, n=1)
            hint = f"; is {near[0]} meant?" if near else ""
            yield (
                f"data.columns.{name}: the task reads no column of this name, so that {column} is not read; with these options "
                f"it reads {', '.join(read)}{hint}"
            )


def _metrics(recipe: Recipe, task: Task) -> Iterator[UserError]:
    """That each metric exists, its packages too, and can score what the task predicts."""
    kind = task.inputs(recipe.task.options)
    for name in recipe.eval.metrics or []:
        try:
            metric = metrics.load(name)
            metric.ready()
        except UserError as error:
            yield UserError(error.message, hint=error.hint, where="eval.metrics")
            continue
        if metric.inputs == ("nll",):
            yield from _of_losses(recipe, task, name)
            continue
        if kind is None or not _scores(metric, kind):
            yield UserError(
                f"{name} cannot score what the task {recipe.task.name} predicts",
                hint=f"this task's own: {', '.join(task.metrics(recipe.task.options)) or 'the loss alone'}",
                where="eval.metrics",
            )


def _of_losses(recipe: Recipe, task: Task, name: str) -> Iterator[UserError]:
    """That a figure of the losses is one of this task's, and computed."""
    if not task.vocabulary:
        message = f"the loss of the task {recipe.task.name} is not over a vocabulary: there is no metric {name} of it"
        yield UserError(message, hint="leave it out; the loss itself is always given", where="eval.metrics")
    elif metrics.find(name) == "pseudo_perplexity" and not recipe.eval.pseudo_perplexity:
        message = f"{name} is computed only where the recipe says so"
        yield UserError(message, hint="set eval.pseudo_perplexity: true", where="eval.metrics")
    elif metrics.split(name)[0] in OF_TEXT and not task.whole_text:
        message = f"the loss of the task {recipe.task.name} is not that of all of a text, so that it gives no {name}"
        yield UserError(message, hint="leave it out", where="eval.metrics")


def _scores(metric: Any, kind: str) -> bool:
    from .metrics.rows import checked

    if "text" in metric.inputs and kind not in ("text", "spans"):
        return False  # a label is a string too, and none that could be right in part
    if kind == "number" and "number" not in metric.inputs:
        return False  # a number can be a label too, and a predicted one is hardly ever equal to it
    prediction, reference = EXAMPLES[kind]
    scores = {"label": [{"a": 0.9, "b": 0.1}], "labels": [{"a": 0.9, "b": 0.8}]}.get(kind)
    try:
        rows = checked(metric, [prediction], [reference], scores)
        if "scores" in metric.inputs:  # some are of one label a row
            metric.statistics(*rows)
    except UserError:
        return False
    return "scores" not in metric.inputs or scores is not None


def figures(recipe: Recipe, task: Task, ordered: bool = False) -> set[str]:
    """Names of the figures that an evaluation of the recipe gives; those of single classes stand in brackets behind.

    `ordered`: only those of which one value is better than another.
    """
    found = {"loss", *(f"{term.name}_loss" for term in task.terms if len(task.terms) > 1)}
    wanted = [*_wanted(recipe, task), *(["perplexity"] if task.vocabulary else [])]
    never = {*metrics.figures("pseudo_perplexity"), *(() if task.whole_text else OF_TEXT)}  # but once, at the end
    return (found | set(metrics.figures(wanted, ordered))) - never


def _wanted(recipe: Recipe, task: Task) -> list[str]:
    """The metrics that the recipe names, or else the task's own."""
    return recipe.eval.metrics if recipe.eval.metrics is not None else task.metrics(recipe.task.options)


def views(recipe: Recipe, task: Task, options: Any) -> Iterator[UserError]:
    """That the task's rows can be seen as the block `eval` asks: in windows, with single tokens masked."""
    stride, window = recipe.eval.stride, getattr(options, "max_length", 0)
    if stride is not None and task.slide is None:
        yield UserError(
            f"the rows of the task {recipe.task.name} are no windows that could slide",
            hint="leave out eval.stride; it is for causal language models on text",
            where="eval.stride",
        )
    elif stride is not None and stride > window:
        yield UserError(
            f"windows of {window} tokens that move on by {stride} would pass over tokens",
            hint=f"set eval.stride to at most {window}, or raise task.max_length",
            where="eval.stride",
        )
    if recipe.eval.pseudo_perplexity and task.alone is None:
        yield UserError(
            f"the task {recipe.task.name} masks no single tokens of a text",
            hint="leave out eval.pseudo_perplexity; it is for masked language models",
            where="eval.pseudo_perplexity",
        )


def smoothing(recipe: Recipe, task: Task, options: Any) -> Iterator[UserError]:
    """That labels are smoothed only where one of several classes is right: no other loss would change."""
    predicted = {"number": "a number", "labels": "several labels"}.get(task.inputs(options) or "")
    if recipe.train.label_smoothing_factor and predicted:
        yield UserError(
            f"label smoothing has no effect on a task that predicts {predicted} for a row",
            hint="leave out train.label_smoothing_factor; it is for classes of which one is right",
            where="train.label_smoothing_factor",
        )


def best(recipe: Recipe, task: Task) -> Iterator[UserError]:
    """That there is an evaluation, and that it gives a figure of better and worse, where one decides anything."""
    train = recipe.train
    asked = [
        name
        for name, given in (
            ("load_best_model_at_end", train.load_best_model_at_end),
            ("early_stopping_patience", train.early_stopping_patience),
            ("metric_for_best_model", train.metric_for_best_model != "loss"),
        )
        if given
    ]
    if asked and not recipe.data.validation and not recipe.data.validation_fraction:
        yield UserError(
            f"{asked[0]} needs an evaluation, and there are no validation rows",
            hint="name them in data.validation, or hold some out: data.validation_fraction: 0.1",
            where=f"train.{asked[0]}",
        )
    if train.metric_for_best_model == "loss":
        return
    name = train.metric_for_best_model.partition("[")[0]
    try:
        known, ordered = figures(recipe, task), figures(recipe, task, ordered=True)
    except UserError:  # an unknown metric is told above
        return
    if name not in ordered:
        yield UserError(
            f"{name} says of no checkpoint that it is better" if name in known else f"the evaluation gives no {name}",
            hint=f"it gives {', '.join(sorted(ordered))}; further metrics are named in eval.metrics",
            where="train.metric_for_best_model",
        )


def best_class(recipe: Recipe, task: Task, options: Any) -> Iterator[UserError]:
    """That there is the class by whose figure the best checkpoint is chosen; known when the labels are."""
    name = recipe.train.metric_for_best_model
    figure, bracket, _ = name.partition("[")
    try:
        found = _of_labels(recipe, task, options)
    except UserError:  # see labels
        return
    if bracket and found and name not in found:
        those = [other for other in found if other.startswith(f"{figure}[")]
        yield UserError(
            f"the evaluation gives no {name}",
            hint=f"it gives {', '.join(those) or 'no figures of single classes'}",
            where="train.metric_for_best_model",
        )


def labels(recipe: Recipe, task: Task, options: Any) -> Iterator[UserError]:
    """That the metrics take the labels as they are named."""
    try:
        _of_labels(recipe, task, options)
    except UserError as error:
        yield UserError(error.message, hint=error.hint, where="eval.metrics")


def _of_labels(recipe: Recipe, task: Task, options: Any) -> dict[str, Any]:
    """The figures of answers that name each label once; none where the task has no labels, or they are not known yet."""
    kind, names = task.inputs(options) or "", getattr(options, "label_names", None) or ()
    rows = {"label": list(names), "labels": [[name] for name in names], "tags": [[name] for name in names]}.get(kind)
    wanted = [name for name in _wanted(recipe, task) if kind in metrics.describe(name)["inputs"]]
    return metrics.score(wanted, rows, rows, resamples=0) if rows and wanted else {}


def places(recipe: Recipe) -> list[UserError]:
    """That what the recipe wants to write can be written: the run folder and the cache."""
    from .keys import cache_folder

    found = [_unwritable(Path(recipe.output.dir), "output.dir")]
    try:
        found.append(_unwritable(cache_folder(recipe.data.cache_dir), "data.cache_dir"))
    except UserError as homeless:
        found.append(homeless)
    return [fault for fault in found if fault]


def _unwritable(path: Path, where: str) -> UserError | None:
    """Nothing is made here: the nearest folder above that exists must be one that may be written to."""
    there = path.absolute()
    try:
        while not there.exists() and there != there.parent:
            there = there.parent
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        return UserError(f"cannot write to {path}: {why}", hint=f"choose another folder with {where}=DIR", where=where)
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return None
    why = f"{there} may not be written to" if there.is_dir() else f"{there} is a file"
    return UserError(f"cannot write to {path}: {why}", hint=f"choose another folder with {where}=DIR", where=where)


def measuring(recipe: Recipe, task: Task) -> list[UserError]:
    """All that is wrong with what is asked for, for whoever only measures."""
    return [*_metrics(recipe, task), *_revisions(recipe)]
