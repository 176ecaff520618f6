"""Errors of a regression."""

import numpy as np

from hftune.metrics import base


class Mse(base.Sums, base.Module):
    """Mean squared and absolute error, and the share of variance explained."""

    summary = "mean squared error, mean absolute error, and share of variance explained"
    source = "definition; scikit-learn mean_squared_error, mean_absolute_error, r2_score"
    inputs = ("number",)
    reports = {
        "mse": {"direction": "lower", "range": (0, None)},
        "mae": {"direction": "lower", "range": (0, None)},
        "r2": {"direction": "higher", "range": (None, 1), "undefined": "the references are constant"},
    }

    def statistics(self, predictions: base.Rows, references: base.Rows) -> base.Array:
        """One, squared and absolute error, and the reference about its mean and squared: [N, 5]."""
        x, y = np.array(predictions, dtype=np.float64), np.array(references, dtype=np.float64)
        about = y - y.mean()
        return np.column_stack([np.ones(len(x)), (x - y) ** 2, abs(x - y), about, about**2])

    def figures(self, sums: np.ndarray) -> base.Figures:
        """See Sums."""
        rows, squares, absolutes, about, spread = np.moveaxis(sums, -1, 0)
        about = about**2 / rows
        spread = np.where(
            spread - about > 1e-13 * spread, spread - about, 0.0
        )  # else what rounding leaves of a constant
        return {"mse": squares / rows, "mae": absolutes / rows, "r2": 1 - base.ratio(squares, spread)}
