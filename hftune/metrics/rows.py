"""Rows before they are scored: one of each a row, of the kind that the metric reads."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import UserError
from .base import Scorer


def _is_label(value: Any) -> bool:
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def _is_labels(value: Any) -> bool:
    return isinstance(value, list | tuple | set | frozenset) and all(map(_is_label, value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_texts(value: Any) -> bool:
    return _is_text(value) or (isinstance(value, list | tuple) and len(value) > 0 and all(map(_is_text, value)))


def _is_tags(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(_is_text(tag) and tag for tag in value)


def _is_answers(value: Any) -> bool:
    return _is_text(value) or (isinstance(value, list | tuple) and all(map(_is_text, value)))


def _is_scores(value: Any) -> bool:
    value = list(value.values()) if isinstance(value, dict) else value
    return _is_number(value) or (isinstance(value, list | tuple) and len(value) > 0 and all(map(_is_number, value)))


def _is_sums(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and "nll" in value
        and all(
            _is_number(value.get(key)) or (key != "tokens" and value.get(key) is None)
            for key in ("nll", "tokens", "bytes", "words")
        )
    )


def _either(value: Any) -> bool:
    return _is_label(value) or _is_labels(value)


# by input: what a prediction is, what a reference is, and how an error message calls them
KINDS: dict[str, tuple[Callable[[Any], bool], Callable[[Any], bool], str, str]] = {
    "text": (_is_text, _is_texts, "a text", "a text or a list of texts"),
    "spans": (_is_text, _is_answers, "a text", "a text or a list of texts"),
    "label": (_is_label, _is_label, "a label", "a label"),
    "labels": (_is_labels, _is_labels, "a list of labels", "a list of labels"),
    "scores": (_is_scores, _either, "a finite score, or one for each label", "a label or a list of labels"),
    "number": (_is_number, _is_number, "a finite number", "a finite number"),
    "tags": (_is_tags, _is_tags, "a list of tags, none empty", "a list of tags, none empty"),
    "nll": (_is_sums, lambda value: True, "an object with finite nll, tokens, bytes and words", ""),
}


def checked(
    metric: Scorer, predictions: Sequence[Any] | None, references: Sequence[Any] | None, scores: Any = None
) -> tuple[list[Any], list[Any]]:
    """The two columns that a metric reads, as lists of equal length.

    Args:
        metric: whose `inputs` say what a row is; a metric of class scores reads `scores` as predictions
            where they are given.
        predictions: one a row; a list, numpy array or column of a dataset.
        references: one a row; may be None for a metric of the predictions alone.
        scores: class scores, one row each.

    Raises:
        UserError: no rows, not as many of the one as of the other, or a row of another kind.
    """
    chosen = scores if "scores" in metric.inputs and scores is not None else predictions
    if chosen is None:
        raise UserError(f"{metric.name} needs predictions, and there are none")
    left = as_list(chosen)
    if not left:
        raise UserError(f"{metric.name}: there are no rows to score")
    if references is None and metric.needs_references:
        raise UserError(f"{metric.name} needs references, and there are none")
    right = [None] * len(left) if references is None or not metric.needs_references else as_list(references)
    if len(left) != len(right):
        raise UserError(f"{metric.name}: {len(left)} predictions but {len(right)} references")
    kinds = [KINDS[kind] for kind in metric.inputs]
    _check(metric, "prediction", left, [kind[0] for kind in kinds], " or ".join(kind[2] for kind in kinds))
    if metric.needs_references:
        _check(metric, "reference", right, [kind[1] for kind in kinds], " or ".join(kind[3] for kind in kinds))
    return left, right


def _check(metric: Scorer, side: str, values: list[Any], kinds: list[Callable[[Any], bool]], wanted: str) -> None:
    for kind in kinds:
        if all(map(kind, values)):
            return
    for row, value in enumerate(values, start=1):
        if not any(kind(value) for kind in kinds):
            raise UserError(f"{metric.name}: {side} {row} is {_short(value)}, not {wanted}", where=f"row {row}")
    raise UserError(f"{metric.name}: some {side}s are {wanted.replace(' or ', ', some are ')}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def as_list(values: Any) -> list[Any]:
    """A list of plain Python values out of a list, numpy array, tensor or dataset column, or a list of such.

    Raises:
        UserError: a single text or a mapping, which would fall apart into characters or keys.
    """
    if isinstance(values, str | bytes | dict):
        raise UserError(f"{_short(values)} is one row, not a list of rows", hint="write [row]")
    return [value.tolist() if hasattr(value, "tolist") else value for value in values]


def several(references: Sequence[str | Sequence[str]]) -> list[list[str]]:
    """References as a list of texts a row."""
    return [[reference] if isinstance(reference, str) else list(reference) for reference in references]
