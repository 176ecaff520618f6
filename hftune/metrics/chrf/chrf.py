"""chrF and chrF++."""

from typing import Any

import numpy as np

from hftune.metrics import base, sacre


class Chrf(sacre.Sacre, base.Module):
    """Corpus chrF by sacrebleu."""

    summary = "F-score of character n-grams; chrF++ with word_order=2"
    source = "Popović 2015, 2017; sacrebleu (Post 2018)"
    inputs = ("text",)
    reports = {"chrf": {"direction": "higher", "range": (0, 100)}}
    options = {
        "char_order": (6, "longest character n-gram"),
        "word_order": (0, "longest word n-gram; 2 is chrF++"),
        "beta": (2, "weight of recall against precision"),
        "lowercase": (False, "ignore case"),
        "whitespace": (False, "count white space as characters"),
        "eps_smoothing": (False, "smooth as chrF++.py, Moses and NLTK do, instead of by effective order"),
    }
    least = {"char_order": 1, "word_order": 0, "beta": 0}

    def engine(self) -> Any:
        """See Sacre."""
        from sacrebleu.metrics import CHRF

        return CHRF(**self.settings)

    def figures(self, sums: np.ndarray) -> base.Figures:
        """chrF of sums [..., 3 * orders]: n-grams of hypothesis, of reference, and matches, order by order."""
        counts = sums.reshape(*sums.shape[:-1], -1, 3)
        hypothesis, reference, matches = np.moveaxis(counts, -1, 0)
        factor = self.settings["beta"] ** 2
        if self.settings["eps_smoothing"]:
            tiny = 1e-16
            precision, recall = base.ratio(matches, hypothesis, tiny), base.ratio(matches, reference, tiny)
            by_order = base.ratio((1 + factor) * precision * recall, factor * precision + recall, tiny)
            return {"chrf": 100 * by_order.mean(-1)}
        both = (hypothesis > 0) & (reference > 0)
        orders = both.sum(-1)
        precision = base.ratio((base.ratio(matches, hypothesis, 0.0) * both).sum(-1), orders, 0.0)
        recall = base.ratio((base.ratio(matches, reference, 0.0) * both).sum(-1), orders, 0.0)
        return {"chrf": 100 * base.ratio((1 + factor) * precision * recall, factor * precision + recall, 0.0)}
