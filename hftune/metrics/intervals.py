"""Bootstrap intervals and paired tests on per-row statistics, in bounded memory.

N rows, R resamples or trials. Counts come in chunks of at most `CELLS` numbers, so that 100,000 rows cost
no more memory than 10,000; they follow from the seed and N alone, so that every metric and every system
sees the same resamples (paired rows).
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from .base import Figures, Scorer, stack

CELLS = 500_000


def resamples(rows: int, number: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of N rows is drawn when N are drawn with replacement: float64 [chunk of R, N]."""
    rng = np.random.default_rng(seed)
    for size in _chunks(rows, number):
        drawn = rng.integers(rows, size=(size, rows))
        drawn += np.arange(size)[:, None] * rows
        yield np.bincount(drawn.ravel(), minlength=size * rows).reshape(size, rows).astype(np.float64)


def exchanges(rows: int, number: int, seed: int) -> Iterator[np.ndarray]:
    """For each of N rows 0 or 1 with equal chance: float64 [chunk of R, N]."""
    rng = np.random.default_rng(seed)
    for size in _chunks(rows, number):
        yield rng.integers(2, size=(size, rows), dtype=np.uint8).astype(np.float64)


def _chunks(rows: int, number: int) -> Iterator[int]:
    most = max(1, CELLS // rows)
    yield from (min(most, number - start) for start in range(0, number, most))


def sampled(draw: Callable[[np.ndarray], Figures], counts: Iterator[np.ndarray]) -> Figures:
    """Figures [R] of all chunks of counts, held as one table a chunk: there may be thousands of classes, and many chunks."""
    names: list[str] = []
    tables = []
    for chunk in counts:
        figures = draw(chunk)
        names = list(figures)
        tables.append(np.stack([figures[name] for name in names]))
    return dict(zip(names, np.concatenate(tables, axis=1), strict=True))


def percentiles(samples: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval (Efron 1979) of samples [R], of those in which the figure is defined."""
    tail = (1 - confidence) / 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # no resample defines it: NaN is the answer
        low, high = np.nanquantile(samples, [tail, 1 - tail], axis=0)
    return low, high


def bootstrap_p(baseline: np.ndarray, system: np.ndarray, difference: float) -> float:
    """p-value of a difference by paired bootstrap over samples [R], as sacrebleu has it (after Koehn 2004).

    The share of resamples whose absolute difference, less its mean, reaches the one observed. A tie counts
    against the difference, where sacrebleu counts it for: a system then does not differ from itself.
    """
    apart = abs(system - baseline)
    return _share(apart - np.nanmean(apart), abs(difference))


def randomization_p(
    metric: Scorer, blocks: Sequence[Any], differences: Figures, trials: int, seed: int
) -> dict[str, float]:
    """p-value by figure of approximate randomization (Riezler & Maxwell 2005), two-sided.

    Each trial exchanges the answers of two systems, row by row, with a chance of one half; p is the share
    of trials whose absolute difference reaches the one observed, ties included.
    """
    both, rows = stack(blocks), blocks[0].shape[0]
    names = list(differences)

    def apart(keep: np.ndarray) -> Figures:
        one = metric.weighted(both, np.hstack([keep, 1 - keep]))
        other = metric.weighted(both, np.hstack([1 - keep, keep]))
        return {name: abs(one[name] - other[name]) for name in names}

    samples = sampled(apart, exchanges(rows, trials, seed))
    return {name: _share(samples[name], abs(float(differences[name]))) for name in names}


def _share(samples: np.ndarray, bound: float) -> float:
    # sums of the same numbers in another order differ in their last digits, and are equal all the same
    reached = samples[~np.isnan(samples)] >= bound - 1e-9 * max(1.0, bound)
    return float((np.count_nonzero(reached) + 1) / (len(reached) + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979); in the order given."""
    order = np.argsort(p_values, kind="stable")
    steps = np.array(p_values)[order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(1, np.maximum.accumulate(steps))
    return [float(p) for p in corrected]
