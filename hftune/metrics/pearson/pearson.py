"""Pearson's correlation."""

import numpy as np

from hftune.metrics import base, correlation


class Pearson(correlation.Correlation, base.Module):
    """Linear correlation of predicted and true numbers."""

    summary = "linear correlation of predicted and true numbers"
    source = "Pearson 1895; scipy pearsonr"
    inputs = ("number",)
    reports = {"pearson": {"direction": "higher", "range": (-1, 1), "undefined": "one side is constant"}}

    def weighted(self, statistics: base.Array, counts: np.ndarray) -> base.Figures:
        """See Scorer."""
        return {"pearson": correlation.weighted_correlation(statistics[:, 0], statistics[:, 1], counts)}
