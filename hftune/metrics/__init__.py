"""Figures that a reviewer accepts: each with its interval, its signature and its number of rows.

A metric is one folder `NAME/NAME.py` with one class; `evaluate.load(".../hftune/metrics/NAME")` runs that
same file. What a metric is stands in base.py, intervals and paired tests in intervals.py. Importing this
module loads the standard library only.
"""

import difflib
import importlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError

if TYPE_CHECKING:
    from .base import Scorer

HERE = Path(__file__).parent
Names = str | Sequence[str] | Mapping[str, Mapping[str, Any]]


@cache
def names() -> list[str]:
    """Names of all metrics, from the folders."""
    return sorted(path.stem for path in HERE.glob("*/*.py") if path.stem == path.parent.name)


@cache
def _class(name: str) -> Any:
    module = importlib.import_module(f"{__name__}.{name}.{name}")
    return next(
        one
        for one in vars(module).values()
        if getattr(one, "__module__", "") == module.__name__ and hasattr(one, "reports")
    )


def split(name: str) -> tuple[str, dict[str, Any]]:
    """Name and options of what may be written in one word: `bleu`, `bleu:lang=zh,lowercase=true`, or `f1:labels=["a","b"]`.

    Raises:
        UserError: an option without a value.
    """
    base, colon, written = name.partition(":")
    if not colon or "[" in base:
        return name, {}
    options = {}
    for part in re.split(r",(?![^\[\]]*\])", written):  # a list's own commas stay
        key, equals, value = part.partition("=")
        if not equals:
            raise UserError(f"{name!r}: {part!r} is not of the form OPTION=VALUE", hint="e.g. bleu:lang=zh")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return base, options


def find(name: str) -> str:
    """The metric of that name, or the one that reports a figure of that name; see `split`.

    Raises:
        UserError: there is none; the hint names the nearest, or all.
    """
    name, _ = split(name)
    if name in names():
        return name
    figures = {figure: metric for metric in names() for figure in _class(metric).reports}
    if name.partition("[")[0] in figures:
        return figures[name.partition("[")[0]]
    near = difflib.get_close_matches(name, [*names(), *figures], n=1)
    raise UserError(
        f"no metric named {name!r}",
        hint=f"did you mean {near[0]!r}?" if near else f"metrics: {', '.join(names())}",
    )


def describe(name: str) -> dict[str, Any]:
    """What a metric says of itself.

    Returns:
        `name`, `summary`, `source`, `inputs` (see base.Scorer), `needs_references`, `options` (name to
        `default`, `meaning`, `choices`), and `figures`: name to `direction` ("higher", "lower" or None),
        `range` (None: unbounded) and, where there can be one, the reason for a missing value (`undefined`)
        or interval (`no_interval`).

    Raises:
        UserError: see `find`.
    """
    metric = _class(find(name))
    keys = ("default", "meaning", "choices")
    return {
        "name": find(name),
        "summary": metric.summary,
        "source": metric.source,
        "inputs": metric.inputs,
        "needs_references": metric.needs_references,
        "options": {key: dict(zip(keys, spec, strict=False)) for key, spec in metric.options.items()},
        "figures": metric.reports,
    }


def load(name: str, **options: Any) -> "Scorer":
    """A metric ready to score; an `evaluate.Metric` too, if evaluate was imported before its first use.

    Raises:
        UserError: no such metric, no such option, or a value that an option does not take.
    """
    metric: Scorer = _class(find(name))(**{**split(name)[1], **options})
    return metric


def score(
    metrics: Names,
    predictions: Sequence[Any] | None,
    references: Sequence[Any] | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    scores: Sequence[Any] | None = None,
) -> dict[str, dict[str, Any]]:
    """Figures of predictions against references, each with its bootstrap interval.

    Args:
        metrics: names of metrics or of single figures, where there are options as in `bleu:lang=zh`; or a mapping of names
            to options.
        predictions: one a row, see `describe(name)["inputs"]`.
        references: one a row; of texts one or a list of several, not the same number in each row.
        confidence: of the intervals.
        resamples: of the bootstrap; 0 for no intervals.
        seed: of the bootstrap. The same seed and number of rows give the same resamples.
        scores: class scores, for the metrics that read them instead of predictions: a number a row or one
            for each class.

    Returns:
        Strict JSON, by figure: `value`, `low`, `high`, `count` (rows), `signature`, `direction`, where
        one of the three numbers is None the reason as `why`, and what the figure needs to be read. Of a metric that is
        named more than once the figures are told apart by their options: `f1`, `f1:average=micro`.

    Raises:
        UserError: no rows, columns of different length, a row of the wrong kind, an unknown name or option.
    """
    from . import scoring

    return scoring.score(_chosen(metrics), predictions, references, confidence, resamples, seed, scores)


def row_scores(
    metrics: Names,
    predictions: Sequence[Any] | None,
    references: Sequence[Any] | None = None,
    *,
    scores: Sequence[Any] | None = None,
) -> dict[str, list[float | None]]:
    """Figures of each row alone, by figure; only those that one row can have.

    BLEU is sentence BLEU with effective order. None where a row has no such figure.

    Raises:
        UserError: see `score`.
    """
    from . import scoring

    return scoring.row_scores(_chosen(metrics), predictions, references, scores)


def compare(
    metrics: Names,
    systems: Mapping[str, Sequence[Any]],
    references: Sequence[Any] | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    trials: int = 10_000,
    seed: int = 0,
    scores: Mapping[str, Sequence[Any]] | None = None,
) -> dict[str, dict[str, Any]]:
    """Two or more systems on the same rows, each against the first.

    Args:
        metrics: see `score`.
        systems: name to predictions; the first is the baseline.
        references: see `score`.
        confidence: of the intervals; a difference is called one if its corrected p is below 1 - confidence.
        resamples: of the paired bootstrap.
        trials: of approximate randomization.
        seed: of both.
        scores: name to class scores, see `score`.

    Returns:
        Strict JSON, by figure: `direction`, `count`, `signature`, `baseline` (its name) and `systems`: name
        to `value`, `low`, `high` and, but for the baseline, `difference` (system less baseline),
        `difference_low`, `difference_high`, `p_bootstrap`, `p_randomization`, both again with Holm's
        correction over the systems as `..._holm`, and `better`: True or False if the corrected
        `p_randomization` shows a difference, None if it does not; `why` where a number is missing.

    Raises:
        UserError: fewer than two systems, or any reason of `score`.
    """
    from . import scoring

    return scoring.compare(_chosen(metrics), systems, references, confidence, resamples, trials, seed, scores or {})


def figures(metrics: Names, ordered: bool = False) -> list[str]:
    """Names of the figures that `score` gives, without those of single classes, which stand in brackets behind.

    Args:
        metrics: see `score`.
        ordered: only those of which one value is better than another.

    Raises:
        UserError: an unknown metric.
    """
    found = []
    for name, _, mark in _asked(metrics):
        facts = describe(name)["figures"]
        own = facts if name in names() else [name.partition("[")[0]]
        found += [figure + mark for figure in own if facts[figure]["direction"] or not ordered]
    return found


def _asked(metrics: Names) -> list[tuple[str, dict[str, Any], str]]:
    """Name and options of each metric, and what stands behind the names of its figures.

    That is nothing, or its options where the same metric is named more than once.
    """
    listed = [metrics] if isinstance(metrics, str) else metrics
    given = listed if isinstance(listed, Mapping) else {name: {} for name in listed}
    every = [find(name) for name in given]
    found = []
    for name, more in given.items():
        base, options = split(name)
        options |= more
        written = ",".join(f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in options.items())
        found.append((base, options, f":{written}" if options and every.count(find(name)) > 1 else ""))
    return found


def _chosen(metrics: Names) -> "list[tuple[Scorer, str | None, str]]":
    """Each metric, the one figure that was asked of it, if it was one, and what stands behind the names of its figures."""
    return [(load(name, **options), None if name in names() else name, mark) for name, options, mark in _asked(metrics)]
