"""Area under the ROC curve."""

import numpy as np

from hftune.errors import UserError
from hftune.metrics import base, labels


class RocAuc(base.Scorer, base.Module):
    """Chance that a row of a class scores higher than a row that is not of it."""

    summary = "chance that a row of the class gets a higher score than another row; mean over classes"
    source = "Hanley & McNeil 1982; scikit-learn roc_auc_score (one against the rest, macro)"
    inputs = ("scores",)
    reports = {
        "roc_auc": {
            "direction": "higher",
            "range": (0, 1),
            "undefined": "a class has no rows, or has all of them",
        }
    }
    options = {
        "labels": (None, "classes in the order of the scores; sorted if not given"),
        "per_class": (True, "with more than two classes, also the area of each as roc_auc[LABEL]"),
    }

    def statistics(self, predictions: base.Rows, references: base.Rows) -> base.Array:
        """Scores, then truth, of each class: [N, 2C]; of two exclusive classes the second alone, [N, 2]."""
        scores = np.array(predictions, dtype=np.float64).reshape(len(predictions), -1)
        sets = labels.as_sets(references)
        self.classes = labels.classes(self.settings["labels"], sets)
        truth = labels.indicator(sets, self.classes).toarray()
        exclusive = all(len(row) == 1 for row in sets)
        if scores.shape[1] == 1 or (exclusive and scores.shape[1] == 2):
            scores, truth, self.classes = scores[:, -1:], truth[:, -1:], self.classes[-1:]
        if scores.shape[1] != len(self.classes):
            raise UserError(
                f"roc_auc: {scores.shape[1]} scores a row, but {len(self.classes)} labels",
                hint="name all labels, in the order of the scores, by the option labels",
            )
        return np.hstack([scores, truth])

    def weighted(self, statistics: base.Array, counts: np.ndarray) -> base.Figures:
        """See Scorer."""
        scores, truth = np.hsplit(statistics, 2)
        areas = [area(scores[:, i], truth[:, i], counts) for i in range(scores.shape[1])]
        figures = {"roc_auc": np.mean(areas, axis=0)}
        if self.settings["per_class"] and len(areas) > 1:
            figures |= {f"roc_auc[{label}]": value for label, value in zip(self.classes, areas, strict=True)}
        return figures


def area(scores: np.ndarray, truth: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Area [R] of `scores` [N] for `truth` [N] (0 or 1) when row i occurs `counts[r, i]` times; ties half."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    counts, truth = counts[:, order], truth[order]
    inside = np.add.reduceat(counts * truth, starts, axis=1)
    outside = np.add.reduceat(counts * (1 - truth), starts, axis=1)
    won = (inside * (outside.cumsum(1) - outside / 2)).sum(1)
    return base.ratio(won, inside.sum(1) * outside.sum(1))
