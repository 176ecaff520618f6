"""Accuracy."""

import numpy as np

from hftune.metrics import base, labels


class Accuracy(base.Means, base.Module):
    """Share of rows whose label, or whose whole set of labels, is right."""

    summary = "share of rows that are right; of several labels a row, all of them"
    source = "definition; scikit-learn accuracy_score"
    inputs = ("label", "labels")
    reports = {"accuracy": {"direction": "higher", "range": (0, 1)}}

    def scores(self, predictions: base.Rows, references: base.Rows) -> np.ndarray:
        """See Means."""
        left, right = labels.as_sets(predictions), labels.as_sets(references)
        labels.classes(None, left, right)
        return np.array([[a == b] for a, b in zip(left, right, strict=True)])
