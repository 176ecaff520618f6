"""Area under the ROC curve."""

import numpy as np

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
        "labels": labels.IN_ORDER,
        "per_class": (True, "with more than two classes, also the area of each as roc_auc[LABEL]"),
    }

    def statistics(self, predictions: base.Rows, references: base.Rows) -> base.Array:
        """Scores, then truth, of each class: [N, 2C]; of two exclusive classes the second alone, [N, 2]."""
        scores, truth, self.classes = labels.scored(predictions, references, self.settings["labels"])
        several = any(isinstance(row, list | tuple) for row in references)
        if scores.shape[1] == 2 and not several:
            scores, truth, self.classes = scores[:, 1:], truth[:, 1:], self.classes[1:]
        return np.hstack([scores, truth])

    def weighted(self, statistics: base.Array, counts: np.ndarray) -> base.Figures:
        """See Scorer."""
        found = self.once(statistics, by_score)
        areas = [area(order, starts, truth, counts) for order, starts, truth in found]
        figures = {"roc_auc": np.mean(areas, axis=0)}
        if self.settings["per_class"] and len(areas) > 1:
            figures |= {f"roc_auc[{label}]": value for label, value in zip(self.classes, areas, strict=True)}
        return figures


def by_score(statistics: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of each class: its rows in the order of their scores, where in it another score begins, and which are of the class."""
    found = []
    for scores, truth in zip(*(side.T for side in np.hsplit(statistics, 2)), strict=True):
        order = np.argsort(scores, kind="stable").astype(np.int32)
        found.append((order, np.flatnonzero(np.diff(scores[order], prepend=-np.inf)), truth[order] > 0))
    return found


def area(order: np.ndarray, starts: np.ndarray, truth: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Area [R] of a class, see `by_score`, when row i occurs `counts[r, i]` times; ties half."""
    counts = counts[:, order]
    inside = np.add.reduceat(counts * truth, starts, axis=1)
    outside = np.add.reduceat(counts * ~truth, starts, axis=1)
    won = (inside * (outside.cumsum(1) - outside / 2)).sum(1)
    return base.ratio(won, inside.sum(1) * outside.sum(1))
