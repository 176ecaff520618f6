"""Language models measured: by document, whatever rows the documents were cut into."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from . import loop, metrics
from .schema import Eval
from .shortcuts import Shortcuts
from .steps import Rows
from .task import OF_TEXT

SHOWN = 48  # tokens by which a person knows a document again
Sums = dict[str, Any]  # numbers by name; None where one is not known


def first_rows(rows: Rows, limit: int | None) -> int | None:
    """How many encoded rows the first `limit` rows of text came to; None: all."""
    return None if limit is None else int(np.searchsorted(rows.data.documents, limit))


def measured(
    model: Any,
    rows: Rows,
    accelerator: Any,
    settings: Eval,
    shortcuts: Shortcuts,
    also: loop.Also | None = None,
    moved: loop.Moved = lambda done, total: None,
) -> dict[str, tuple[Any, Any]]:
    """As loop.evaluate_rows, of the rows of the first `settings.limit` texts; arguments as of evaluation.evaluate.

    Returns:
        By term, (sums float64 [rows], counts int64 [rows]).
    """
    limit, budget = first_rows(rows, settings.limit), settings.batch_tokens
    return loop.evaluate_rows(
        model, rows, accelerator, budget=budget, shortcuts=shortcuts, limit=limit, also=also, moved=moved
    )


def sliding(rows: Rows, settings: Eval) -> Rows:
    """The rows as the windows that the block `eval` asks for; as they are where it asks for none."""
    if settings.stride is None or rows.task.slide is None:
        return rows
    return replace(rows, data=rows.task.slide(rows.data, rows.options, settings.stride))


def documents(by_row: tuple[Any, Any], rows: Rows, of: Rows | None = None) -> list[Sums]:
    """Sums over all rows of each document (each row, where none say where documents begin).

    Args:
        by_row: losses and targets of the first of `rows`, see loop.evaluate_rows.
        rows: the rows.
        of: the rows that the documents were cut into, where `rows` are a view of them.

    Returns:
        `nll` in nats and `tokens` (targets), and where the loss is of the whole text its `bytes` and `words`: None for a
        document of which the tokenizer lost some text, since the loss is not of these bytes then.
    """
    number = rows.data.documents[: len(by_row[0])]
    nll, tokens = _sums(number, by_row, 0)
    found: dict[str, Any] = {"nll": nll, "tokens": tokens}
    if rows.task.whole_text:
        known = of or rows
        for name, column in sizes(known, len(nll)).items():
            lost = _first(known, "lost", len(nll))
            found[name] = [None if gone else size for size, gone in zip(column, lost, strict=True)]
    return [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]


def _sums(number: Any, by_row: tuple[Any, Any], count: int) -> tuple[list[float | None], list[int]]:
    """Losses (None: not finite) and targets of rows, added by document; of at least `count` documents."""
    nll, tokens = (np.bincount(number, values, minlength=count) for values in by_row)
    return [value if math.isfinite(value) else None for value in nll.tolist()], tokens.astype(np.int64).tolist()


def sizes(rows: Rows, count: int) -> dict[str, list[int]]:
    """Bytes and words of the first documents, where their rows say so; see text.document_sizes."""
    return {name: _first(rows, name, count) for name in ("bytes", "words") if rows.data.has(name)}


def _first(rows: Rows, name: str, count: int) -> list[int]:
    """What a column says of the first documents, at the first row of each."""
    first = np.flatnonzero(np.diff(rows.data.documents, prepend=-1))[:count]
    found: list[int] = rows.data.column(name)[first].tolist()
    return found


def alone(
    model: Any,
    rows: Rows,
    accelerator: Any,
    settings: Eval,
    shortcuts: Shortcuts,
    count: int,
    moved: loop.Moved = lambda done, total: None,
) -> list[Sums]:
    """Pseudo-log-likelihood of the first documents, each token being masked alone (Salazar et al. 2020, section 2).

    Returns:
        Its negative in nats as `nll`, and the `tokens` that were masked.
    """
    assert rows.task.alone is not None
    each = replace(rows, data=rows.task.alone(rows.data, rows.tokenizer))
    by_row = measured(model, each, accelerator, settings, shortcuts, moved=moved)[rows.task.terms[0].name]
    number = each.data.documents[: len(by_row[0])]
    nll, tokens = _sums(number, by_row, count)
    return [{"nll": n, "tokens": t} for n, t in zip(nll, tokens, strict=True)]


def figures(tables: dict[str, list[Sums]], rows: Rows, settings: Eval, intervals: bool) -> dict[str, Any]:
    """Figures of a metric's sums by document, for each of the metrics; `count` documents with `tokens` targets.

    A figure without a value says why. Those of bytes and words exist only where the loss is of the whole text.
    """
    shown = {"max_length": getattr(rows.options, "max_length", None), "stride": settings.stride}
    prefix = "".join(f"{name}:{value}|" for name, value in shown.items() if value is not None)
    found: dict[str, Any] = {}
    for metric, table in tables.items():
        resamples = settings.resamples if intervals else 0
        scored = metrics.score([metric], table, confidence=settings.confidence, resamples=resamples)
        tokens = int(sum(document["tokens"] for document in table))
        for name, figure in scored.items():
            if rows.task.whole_text or name not in OF_TEXT:
                found[name] = {**figure, "signature": prefix + figure["signature"], "tokens": tokens}
    return found


def write(path: Path, tables: dict[str, list[Sums]], rows: Rows) -> None:
    """One JSON object a document: how it begins, its sums (`nll`, `tokens`, `bytes`, `words`), its own figures as `score`."""
    scores: dict[str, list[Any]] = {}
    for metric, table in tables.items():
        scores |= metrics.row_scores([metric], table)
    (table, *more), numbers = tables.values(), rows.data.documents
    known = sizes(rows, len(table))
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.written")
    with aside.open("w", encoding="utf-8") as out:
        for i, sums in enumerate(table):
            ids = rows.data[int(np.searchsorted(numbers, i))]["input_ids"][:SHOWN]
            line = {"start": rows.tokenizer.decode(ids, skip_special_tokens=True).strip(), **sums}
            line |= {name: values[i] for name, values in known.items()}
            for other in more:
                line |= {f"pseudo_{name}": value for name, value in other[i].items()}
            line["score"] = {name: values[i] for name, values in scores.items()}
            out.write(json.dumps(line, ensure_ascii=False) + "\n")
    os.replace(aside, path)
