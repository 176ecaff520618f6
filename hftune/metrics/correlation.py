"""What Pearson's and Spearman's correlations share."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import base


class Correlation(base.Scorer):
    """A correlation of two columns of numbers, statistics [N, 2]."""

    def statistics(self, predictions: Sequence[Any], references: Sequence[Any]) -> base.Array:
        """See Scorer: the numbers themselves."""
        return np.column_stack([predictions, references]).astype(np.float64)


def weighted_correlation(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Pearson's r [R] of x and y, each [N] or [R, N], when row i occurs `counts[r, i]` times.

    NaN where one side is constant.
    """
    rows = counts.sum(-1)
    (x, mean_x, spread_x), (y, mean_y, spread_y) = (_moments(side, counts, rows) for side in (x, y))
    together = (counts * x * y).sum(-1) / rows - mean_x * mean_y
    correlation: np.ndarray = np.clip(together / np.sqrt(spread_x * spread_y), -1, 1)
    return correlation


def _moments(values: np.ndarray, counts: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The values about their plain mean, which saves the squares their digits; then weighted mean and variance."""
    values = values - values.mean(-1, keepdims=True)
    mean = (counts * values).sum(-1) / rows
    square = (counts * values**2).sum(-1) / rows
    spread = square - mean**2
    # what rounding alone leaves of a constant is no variance
    return values, mean, np.where(spread <= 1e-13 * square, np.nan, spread)
