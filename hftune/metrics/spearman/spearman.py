"""Spearman's rank correlation."""

import numpy as np

from hftune.metrics import base, correlation


class Spearman(correlation.Correlation, base.Module):
    """Pearson's correlation of ranks, ties sharing their mean rank."""

    summary = "correlation of the ranks of predicted and true numbers"
    source = "Spearman 1904; scipy spearmanr"
    inputs = ("number",)
    reports = {"spearman": {"direction": "higher", "range": (-1, 1), "undefined": "one side is constant"}}

    def weighted(self, statistics: base.Array, counts: np.ndarray) -> base.Figures:
        """See Scorer."""
        found = self.once(statistics, by_value)
        x, y = (weighted_ranks(group, order, starts, counts) for group, order, starts in found)
        return {"spearman": correlation.weighted_correlation(x, y, counts)}


def by_value(statistics: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of each column: the number of each row's value among all, the rows in that order, and where in it another begins."""
    found = []
    for values in statistics.T:
        _, group = np.unique(values, return_inverse=True)
        order = np.argsort(group, kind="stable")
        found.append((group, order, np.flatnonzero(np.diff(group[order], prepend=-1))))
    return found


def weighted_ranks(group: np.ndarray, order: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean ranks [R, N] of a column, see `by_value`, in samples that hold row i `counts[r, i]` times."""
    sizes = np.add.reduceat(counts[:, order], starts, axis=1)
    return (sizes.cumsum(1) - sizes / 2)[:, group]
