"""Answers to questions."""

import re
import string
from collections import Counter

import numpy as np

from hftune.metrics import base
from hftune.metrics.rows import several

_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Squad(base.Means, base.Module):
    """Exact match and word F1 of an answer, of each row with its best reference, in per cent."""

    summary = "exact match and word F1 of answers; an empty text, or no reference, means no answer"
    source = "Rajpurkar et al. 2016, 2018 (SQuAD 1.1 and 2.0)"
    inputs = ("spans",)
    reports = {
        "squad_exact_match": {"direction": "higher", "range": (0, 100)},
        "squad_f1": {"direction": "higher", "range": (0, 100)},
    }

    def scores(self, predictions: base.Rows, references: base.Rows) -> np.ndarray:
        """See Means."""
        rows = []
        for prediction, answers in zip(predictions, several(references), strict=True):
            given, true = bare(prediction), [bare(answer) for answer in answers] or [""]
            rows.append([given in true, max(overlap(given.split(), one.split()) for one in true)])
        return 100 * np.array(rows, dtype=np.float64)


def bare(text: str) -> str:
    """The text in lower case without punctuation, English articles and doubled spaces."""
    text = re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION))
    return " ".join(text.split())


def overlap(given: list[str], true: list[str]) -> float:
    """F1 of the words of two answers; where one has none, whether both have none."""
    common = sum((Counter(given) & Counter(true)).values())
    return 2 * common / (len(given) + len(true)) if given and true else float(given == true)
