"""Precision, recall and F1."""

import json
from typing import Any

import numpy as np
from scipy import sparse

from hftune.errors import UserError
from hftune.metrics import base, labels

_WHY = {"undefined": "no row has this label, in the predictions or in the references"}


class F1(base.Sums, base.Module):
    """Precision, recall and F1 of one or several labels a row, averaged and class by class."""

    summary = "precision, recall and their harmonic mean, averaged over classes and for each class"
    source = "van Rijsbergen 1979; scikit-learn precision_recall_fscore_support"
    inputs = ("label", "labels")
    reports = {
        "f1": {"direction": "higher", "range": (0, 1), **_WHY},
        "precision": {"direction": "higher", "range": (0, 1), **_WHY},
        "recall": {"direction": "higher", "range": (0, 1), **_WHY},
    }
    options = {
        "average": ("macro", "over the classes that occur", ("macro", "micro", "weighted", "binary")),
        "positive": (None, "the class that a binary average speaks of; 1 if not given, which names do not have"),
        "per_class": (True, "also the figures of each class, as f1[LABEL]"),
        "labels": labels.NAMES,
    }
    rowwise = False

    def statistics(self, predictions: base.Rows, references: base.Rows) -> base.Array:
        """Hits, predicted and true rows of each class, sparse [N, 3C]."""
        left, right = labels.as_sets(predictions), labels.as_sets(references)
        if self.settings["average"] == "binary":
            self.positive = self._positive(frozenset().union(*left, *right))
            also = [frozenset([self.positive])]
        else:
            also = []
        self.classes = labels.classes(self.settings["labels"], left, right, also)
        predicted, true = labels.indicator(left, self.classes), labels.indicator(right, self.classes)
        return sparse.hstack([predicted * true, predicted, true], format="csr")

    def _positive(self, found: frozenset[Any]) -> Any:
        """The class that a binary average speaks of, as text where the labels are texts.

        Raises:
            UserError: none was given, and the labels are names.
        """
        given, texts = self.settings["positive"], sorted(label for label in found if isinstance(label, str))
        if given is None and "1" not in texts and not all(label.isdecimal() for label in texts):
            raise UserError(
                "f1: average=binary needs the class that it speaks of",
                hint=f"give positive=LABEL, one of {', '.join(texts)}",
            )
        given = 1 if given is None else given
        written = (str(given), json.dumps(given))  # True, as JSON's booleans are called, or true
        return next((name for name in written if name in texts), written[0]) if texts else given

    def figures(self, sums: np.ndarray) -> base.Figures:
        """See Sums; the averages leave out classes that neither side names, as scikit-learn does."""
        hits, predicted, true = np.split(sums, 3, axis=-1)
        each, average = labels.precision_recall_f1(hits, predicted, true), self.settings["average"]
        if average == "micro":
            figures = labels.precision_recall_f1(hits.sum(-1), predicted.sum(-1), true.sum(-1))
        elif average == "binary":
            figures = {name: value[..., self.classes.index(self.positive)] for name, value in each.items()}
        else:
            weight = true if average == "weighted" else (predicted + true > 0).astype(float)
            total = weight.sum(-1)
            figures = {name: base.ratio((np.nan_to_num(value) * weight).sum(-1), total) for name, value in each.items()}
        if self.settings["per_class"]:
            for i, label in enumerate(self.classes):
                figures |= {f"{name}[{label}]": value[..., i] for name, value in each.items()}
        return figures
