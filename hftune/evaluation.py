"""Measuring a model: losses by row, predictions streamed to disk, figures with intervals."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import byrow, heads, language, loop, metrics
from .files import read_lines
from .metrics import intervals as resampling
from .metrics.base import plain
from .schema import Eval
from .shortcuts import Shortcuts
from .steps import Rows
from .task import Task

Columns = tuple[list[Any], list[Any], list[Any] | None]  # predictions, references and class scores, one a row


@contextmanager
def writing(path: Path, model: torch.nn.Module, rows: Rows, accelerator: Any, settings: Eval) -> Iterator[loop.Also]:
    """What to call with each batch of an evaluation, so that one JSON object a row stands in `path` in the end, in their order.

    Each rank writes what it computed; the first puts the lines in order and joins those of one row (Task.combine). None is
    lost or doubled, since each encoded row belongs to exactly one batch of one rank. A model that was just run for the losses
    is not run again.

    Args:
        path: the predictions file.
        model: unwrapped model.
        rows: the split; its task has `predict`.
        accelerator: accelerate's Accelerator.
        settings: the recipe's block `eval`.
    """
    predict = rows.task.predict
    assert predict is not None
    limit = language.first_rows(rows, settings.limit)
    total = len(rows) if limit is None else min(len(rows), limit)
    path.parent.mkdir(parents=True, exist_ok=True)
    own = path.with_name(f".{path.name}.{accelerator.process_index}")
    with own.open("w", encoding="utf-8") as file:

        def write(chosen: Any, batch: dict[str, torch.Tensor]) -> None:
            raw = [{**rows.data[int(row)], "row": int(row)} for row in chosen]
            found = predict(model, batch, raw, rows.tokenizer, rows.options)
            for number, source, answer in zip(chosen, raw, found, strict=True):
                texts = {k: v for k, v in source.items() if isinstance(v, str)}
                file.write(f"{int(number)}\t{json.dumps({**texts, **answer}, ensure_ascii=False)}\n")

        with heads.once(model):
            yield write
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _in_order([path.with_name(f".{path.name}.{rank}") for rank in range(accelerator.num_processes)], path, total)
        if rows.task.combine is not None:
            _combine(path, rows, total)
    accelerator.wait_for_everyone()


def _in_order(parts: list[Path], path: Path, total: int) -> None:
    """Lines `number TAB json` of several files to one file in order of number."""
    where = np.full((total, 2), -1, np.int64)  # file, offset
    files = [part.open("rb") for part in parts]
    for which, file in enumerate(files):
        at = 0
        for line in file:
            where[int(line.split(b"\t", 1)[0])] = which, at
            at += len(line)
    assert (where[:, 0] >= 0).all(), "a row was lost between the ranks"
    aside = path.with_name(f".{path.name}.ordered")
    with aside.open("wb") as out:
        for which, at in where.tolist():
            files[which].seek(at)
            out.write(files[which].readline().split(b"\t", 1)[1])
    os.replace(aside, path)
    for file, part in zip(files, parts, strict=True):
        file.close()
        part.unlink()


def _combine(path: Path, rows: Rows, total: int) -> None:
    aside = path.with_name(f".{path.name}.combined")
    with aside.open("w", encoding="utf-8") as out:
        for answer in combined(read_lines(path), rows.data.column("begins")[:total], rows.task, rows.options):
            out.write(json.dumps(answer, ensure_ascii=False) + "\n")
    os.replace(aside, path)


def combined(
    answers: Iterable[dict[str, Any]], begins: Iterable[int], task: Task, options: Any
) -> Iterator[dict[str, Any]]:
    """The answer of each row out of those of its encoded rows, of which the first is marked; see Task.combine."""
    assert task.combine is not None
    group: list[dict[str, Any]] = []
    for answer, first in zip(answers, begins, strict=True):
        if first and group:
            yield task.combine(group, options)
            group = []
        group.append(answer)
    if group:
        yield task.combine(group, options)


def evaluate(
    model: torch.nn.Module,
    rows: Rows,
    accelerator: Any,
    settings: Eval,
    *,
    shortcuts: Shortcuts,
    predictions: Path | None = None,
    intervals: bool = True,
    moved: loop.Moved = lambda done, total: None,
) -> dict[str, Any]:
    """All figures of a model on a split: the loss, and the task's metrics with their intervals.

    Args:
        model: unwrapped model.
        rows: the split.
        accelerator: accelerate's Accelerator.
        settings: the recipe's block `eval`.
        shortcuts: what need not be computed for the losses.
        predictions: where the predictions go; None: losses only.
        intervals: bootstrap intervals beside the figures.
        moved: see loop.evaluate_rows.

    Returns:
        Figure name -> {"value", "low", "high", "count", ...}, the same on every rank.
    """
    seen = language.sliding(rows, settings)
    answers = predictions if rows.task.predict is not None and not settings.losses_only else None
    with writing(answers, model, rows, accelerator, settings) if answers else nullcontext() as also:
        by_row = language.measured(model, seen, accelerator, settings, shortcuts, also, moved)
    figures = losses(by_row, seen, settings, intervals)
    if heads.unwrap(model).get_output_embeddings() is not None:
        first = rows.task.terms[0].name
        own = f"{first}_loss" if len(by_row) > 1 else "loss"
        tables = {"perplexity": language.documents(by_row[first], seen, rows)}
        if settings.pseudo_perplexity and intervals:
            count = len(tables["perplexity"])
            tables["pseudo_perplexity"] = language.alone(model, rows, accelerator, settings, shortcuts, count, moved)
        found = language.figures(tables, rows, settings, intervals)
        figures.update({own if name == "loss" else name: figure for name, figure in found.items()})
        if predictions is not None and rows.task.predict is None and accelerator.is_main_process:
            language.write(predictions, tables, rows)
    if answers:
        names = of_answers(settings.metrics if settings.metrics is not None else rows.task.metrics(rows.options))
        columns = read_columns(answers, names)
        figures.update(score(columns, names, settings, intervals))
        if intervals and accelerator.is_main_process:
            byrow.add(answers, columns, names)
    return figures


def losses(by_row: dict[str, Any], rows: Rows, settings: Eval, intervals: bool) -> dict[str, Any]:
    """The loss, and where there are several terms that of each; `count` targets, resampled by row of text.

    Args:
        by_row: see loop.evaluate_rows.
        rows: the rows.
        settings: the recipe's block `eval`.
        intervals: whether to give any.
    """
    counts = {f"{name}_loss": int(count.sum()) for name, (_, count) in by_row.items()}
    signature = metrics.load("perplexity").signature([])
    figures: dict[str, Any] = {
        name: {
            "value": plain(value), "low": None, "high": None, "count": counts.get(name, sum(counts.values())), "direction": "lower",
            "signature": signature, "why": "resampling needs two rows and a number of resamples",
        }
        for name, value in loop.mean_loss(by_row, rows.task).items()
    }  # fmt: skip
    if any(figure["value"] is None for figure in figures.values()):
        return {name: {**figure, "why": "a loss is not finite"} for name, figure in figures.items()}
    number = rows.data.documents[: len(next(iter(by_row.values()))[0])]
    sums = {name: np.stack([np.bincount(number, part) for part in pair], 1) for name, pair in by_row.items()}
    if not intervals or settings.resamples == 0 or number[-1] == 0:
        return figures

    def draw(weights: Any) -> dict[str, Any]:
        drawn = {name: weights @ table for name, table in sums.items()}
        terms = {f"{name}_loss": total[:, 0] / total[:, 1].clip(1) for name, total in drawn.items()}
        return {"loss": sum(t.weight * terms[f"{t.name}_loss"] for t in rows.task.terms), **terms}

    samples = resampling.sampled(draw, resampling.resamples(int(number[-1]) + 1, settings.resamples, seed=0))
    for name, figure in figures.items():
        low, high = resampling.percentiles(samples[name], settings.confidence)
        figure |= {"low": float(low), "high": float(high)}
        del figure["why"]
    return figures


def of_answers(names: Iterable[str]) -> list[str]:
    """The metrics that score what a model answers; the others are of its losses."""
    return [name for name in names if "nll" not in metrics.describe(name)["inputs"]]


def read_columns(path: Path, names: Iterable[str]) -> Columns | None:
    """What these metrics read of a predictions file, and nothing else of it; None: it has nothing to score.

    Scores are as many as there are classes in each row: in memory they take some hundred bytes each.
    """
    scored = any("scores" in metrics.describe(name)["inputs"] for name in names)
    predictions, references, scores = [], [], []
    for line in read_lines(path):
        if "reference" not in line:
            return None
        predictions.append(line["prediction"])
        references.append(line["reference"])
        if scored and "scores" in line:
            scores.append(line["scores"])
    return (predictions, references, scores or None) if predictions else None


def score(columns: Columns | None, names: list[str], settings: Eval, intervals: bool) -> dict[str, Any]:
    """Metrics of the columns of a predictions file."""
    if not names or columns is None:
        return {}
    predictions, references, scores = columns
    found: dict[str, Any] = metrics.score(
        names, predictions, references,
        confidence=settings.confidence, resamples=settings.resamples if intervals else 0, scores=scores,
    )  # fmt: skip
    return found


def add_baseline(
    figures: dict[str, Any], answers: list[Any], task: Task, options: Any, settings: Eval, path: Path
) -> None:
    """Put beside the figures of a predictions file those of a trivial method, as `baseline`.

    Args:
        figures: of a split, see `evaluate`.
        answers: the method's, one a line of the file.
        task: whose metrics they are scored by, where the recipe names none.
        options: the task's options.
        settings: the recipe's block `eval`.
        path: the predictions file of the split.
    """
    names = of_answers(settings.metrics if settings.metrics is not None else task.metrics(options))
    names = [name for name in names if metrics.describe(name)["inputs"] != ("scores",)]
    if not names:
        return
    columns = read_columns(path, names)
    for name, figure in score(columns and (answers, columns[1], None), names, settings, True).items():
        if name in figures:
            figures[name]["baseline"] = {key: figure[key] for key in ("value", "low", "high")}
