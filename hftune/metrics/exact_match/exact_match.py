"""Exact match of texts."""

import numpy as np
import regex

from hftune.metrics import base
from hftune.metrics.rows import several


class ExactMatch(base.Means, base.Module):
    """Share of predictions that equal one of their references."""

    summary = "share of predictions that equal a reference, character by character"
    source = "definition"
    inputs = ("text",)
    reports = {"exact_match": {"direction": "higher", "range": (0, 1)}}
    options = {
        "ignore_case": (False, "compare without regard to case"),
        "ignore_punctuation": (False, "compare without punctuation"),
    }

    def scores(self, predictions: base.Rows, references: base.Rows) -> np.ndarray:
        """See Means."""
        rows = zip(predictions, several(references), strict=True)
        return np.array([[self.bare(text) in {self.bare(one) for one in texts}] for text, texts in rows])

    def bare(self, text: str) -> str:
        """The text without what is ignored."""
        text = text.casefold() if self.settings["ignore_case"] else text
        return regex.sub(r"\p{P}", "", text) if self.settings["ignore_punctuation"] else text
