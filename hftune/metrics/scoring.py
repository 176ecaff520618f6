"""Scores, row scores and comparisons as strict JSON."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import UserError
from . import intervals
from .base import Figures, Scorer, plain
from .rows import checked

Chosen = Sequence[tuple[Scorer, str | None, str]]  # the figure that is wanted (None: all), what stands behind names


def score(
    metrics: Chosen,
    predictions: Any,
    references: Any,
    confidence: float,
    resamples: int,
    seed: int,
    scores: Any,
) -> dict[str, dict[str, Any]]:
    """See hftune.metrics.score."""
    report = {}
    for metric, only, mark in metrics:
        left, right = checked(metric, predictions, references, scores)
        statistics = metric.statistics(left, right)
        values = _wanted(_once(metric, statistics), only)
        samples = _resampled(metric, statistics, values, resamples, seed)
        signature = metric.signature(right)
        for name, value in values.items():
            report[_marked(name, mark)] = {
                **_interval(metric, name, value, samples, confidence),
                "count": len(left),
                "direction": metric.report(name)["direction"],
                "signature": signature,
                **metric.extra(name),
            }
    return report


def row_scores(metrics: Chosen, predictions: Any, references: Any, scores: Any) -> dict[str, list[float | None]]:
    """See hftune.metrics.row_scores."""
    report: dict[str, list[float | None]] = {}
    for metric, only, mark in metrics:
        left, right = checked(metric, predictions, references, scores)
        figures = metric.row_figures(metric.statistics(left, right))
        names = [name for name in figures if (name in metric.reports if only is None else name == only)]
        report |= {_marked(name, mark): plain(figures[name]) for name in names if not np.isnan(figures[name]).all()}
    return report


def _marked(name: str, mark: str) -> str:
    """A figure's name with the mark behind it, before the class that it may be of."""
    figure, bracket, of = name.partition("[")
    return f"{figure}{mark}{bracket}{of}"


def compare(
    metrics: Chosen,
    systems: Mapping[str, Any],
    references: Any,
    confidence: float,
    resamples: int,
    trials: int,
    seed: int,
    scores: Mapping[str, Any],
) -> dict[str, dict[str, Any]]:
    """See hftune.metrics.compare."""
    if len(systems) < 2:
        raise UserError(f"a comparison needs two systems, not {len(systems)}")
    report: dict[str, dict[str, Any]] = {}
    for metric, only, mark in metrics:
        columns: list[list[Any]] = []
        right: list[Any] = []
        for system, predictions in systems.items():
            try:
                left, right = checked(metric, predictions, references, scores.get(system))
            except UserError as fault:
                where = ", ".join(filter(None, [system, fault.where]))
                raise UserError(fault.message, hint=fault.hint, where=where) from None
            columns.append(left)
        if len({len(column) for column in columns}) > 1:
            raise UserError(f"{metric.name}: the systems were scored on different numbers of rows")
        blocks = metric.systems(columns, right)
        ordered = [name for name, report in metric.reports.items() if report["direction"]]
        values = [_wanted(_once(metric, block), only, ordered) for block in blocks]
        if not values[0]:
            raise UserError(f"{only or metric.name} has no better and worse to compare by")
        samples = [_resampled(metric, block, own, resamples, seed) for block, own in zip(blocks, values, strict=True)]
        chances = [_chances(metric, blocks, values, i, trials, seed) for i in range(1, len(blocks))]
        signature = metric.signature(right)
        for name in values[0]:
            entries = [
                _interval(metric, name, value[name], sample, confidence)
                for value, sample in zip(values, samples, strict=True)
            ]
            _differences(metric, name, entries, samples, [chance.get(name) for chance in chances], confidence)
            report[_marked(name, mark)] = {
                "direction": metric.report(name)["direction"],
                "count": len(right),
                "signature": signature,
                "baseline": next(iter(systems)),
                "systems": dict(zip(systems, entries, strict=True)),
            }
    return report


def _once(metric: Scorer, statistics: Any) -> Figures:
    """Figures of the rows themselves, without leading dimension."""
    figures = metric.weighted(statistics, np.ones((1, statistics.shape[0])))
    return {name: value[0] for name, value in figures.items()}


def _wanted(figures: Figures, only: str | None, among: Any = None) -> Figures:
    """The figure asked for, with its classes; or all, or those `among` that stand for the whole.

    That of a class which no row has is undefined.
    """
    if only is not None:
        among = [name for name in figures if name == only or (among is None and name.startswith(f"{only}["))]
    found = {name: value for name, value in figures.items() if among is None or name in among}
    return found or ({} if only is None else {only: np.array(np.nan)})


def _resampled(metric: Scorer, statistics: Any, wanted: Figures, number: int, seed: int) -> Figures:
    """Samples [R] of the figures that have a value and an interval; none for a single row."""
    names = [n for n, value in wanted.items() if "no_interval" not in metric.report(n) and plain(value) is not None]
    if not names or number == 0 or statistics.shape[0] == 1:
        return {}

    def draw(counts: np.ndarray) -> Figures:
        figures = metric.weighted(statistics, counts)
        return {name: figures[name] for name in names}

    return intervals.sampled(draw, intervals.resamples(statistics.shape[0], number, seed))


def _interval(metric: Scorer, name: str, value: Any, samples: Figures, confidence: float) -> dict[str, Any]:
    low = high = None
    why = metric.report(name).get("no_interval", "resampling needs two rows and a number of resamples")
    if name in samples:
        low, high = map(plain, intervals.percentiles(samples[name], confidence))
        why = metric.undefined(name)
    if plain(value) is None:
        why = metric.undefined(name)
    if None in (plain(value), low, high):
        low = high = None
    entry = {"value": plain(value), "low": low, "high": high}
    return entry if None not in entry.values() else {**entry, "why": why}


def _chances(
    metric: Scorer, blocks: Sequence[Any], values: Sequence[Figures], i: int, trials: int, seed: int
) -> dict[str, float]:
    """p-values by figure of system i against the first, by approximate randomization."""
    apart = {name: values[i][name] - value for name, value in values[0].items()}
    tested = {
        name: value for name, value in apart.items() if np.isfinite(value) and "no_interval" not in metric.report(name)
    }
    if not tested or trials == 0 or blocks[0].shape[0] == 1:
        return {}
    return intervals.randomization_p(metric, [blocks[0], blocks[i]], tested, trials, seed)


def _differences(
    metric: Scorer,
    name: str,
    entries: list[dict[str, Any]],
    samples: Sequence[Figures],
    chances: Sequence[float | None],
    confidence: float,
) -> None:
    """Adds to all entries but the first how they differ from the first, and how surely."""
    base, others = entries[0], entries[1:]
    for entry, sample, chance in zip(others, samples[1:], chances, strict=True):
        keys = ("difference", "difference_low", "difference_high", "p_bootstrap", "p_randomization")
        entry |= dict.fromkeys(keys)
        entry["p_randomization"] = chance
        if entry["value"] is None or base["value"] is None:
            entry["why"] = metric.undefined(name)
            continue
        entry["difference"] = entry["value"] - base["value"]
        if name in sample:
            apart = sample[name] - samples[0][name]
            entry["difference_low"], entry["difference_high"] = map(plain, intervals.percentiles(apart, confidence))
            entry["p_bootstrap"] = intervals.bootstrap_p(samples[0][name], sample[name], entry["difference"])
    for key in ("p_bootstrap", "p_randomization"):
        known = [entry for entry in others if entry[key] is not None]
        for entry, p in zip(known, intervals.holm([entry[key] for entry in known]), strict=True):
            entry[f"{key}_holm"] = p
    sign = {"higher": 1, "lower": -1}[metric.report(name)["direction"]]
    for entry in others:
        shown = entry.get("p_randomization_holm", 1.0) < 1 - confidence
        entry["better"] = sign * entry["difference"] > 0 if shown else None
