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
        x, y = (weighted_ranks(column, counts) for column in statistics.T)
        return {"spearman": correlation.weighted_correlation(x, y, counts)}


def weighted_ranks(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean ranks [R, N] of `values` [N] in samples that hold value i `counts[r, i]` times."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    sizes = np.add.reduceat(counts[:, order], starts, axis=1)
    return (sizes.cumsum(1) - sizes / 2)[:, group]
