"""Confusion matrix."""

from typing import Any

import numpy as np
from scipy import sparse

from hftune.metrics import base, labels


class ConfusionMatrix(base.Sums, base.Module):
    """Rows by true (down) and predicted (across) class."""

    summary = "number of rows by true class (down) and predicted class (across)"
    source = "definition; scikit-learn confusion_matrix"
    inputs = ("label",)
    reports = {
        "confusion_matrix": {
            "direction": None,
            "range": (0, None),
            "no_interval": "a table of counts, not an estimate",
        }
    }
    options = {"labels": labels.NAMES}
    rowwise = False

    def statistics(self, predictions: base.Rows, references: base.Rows) -> base.Array:
        """A one in the cell of the row: sparse [N, C * C]."""
        left, right = labels.as_sets(predictions), labels.as_sets(references)
        self.classes = labels.classes(self.settings["labels"], left, right)
        predicted, true = (labels.indicator(side, self.classes).indices for side in (left, right))
        cells = true.astype(np.int64) * len(self.classes) + predicted
        shape = (len(left), len(self.classes) ** 2)
        return sparse.csr_array((np.ones(len(left)), cells, np.arange(len(left) + 1)), shape=shape)

    def figures(self, sums: np.ndarray) -> base.Figures:
        """The matrix [..., C, C]."""
        return {"confusion_matrix": sums.reshape(*sums.shape[:-1], len(self.classes), len(self.classes))}

    def extra(self, figure: str) -> dict[str, Any]:
        """The classes of its rows and columns, and which are which."""
        return {"labels": self.classes, "note": "true class down, predicted across"}
