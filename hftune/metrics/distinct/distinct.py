"""Variety of generated text."""

from collections.abc import Sequence

import numpy as np

from hftune.metrics import base
from hftune.metrics.words import words

_WHY = {
    "undefined": "no row is long enough",
    "no_interval": "a resample repeats rows, and what is repeated is not distinct",
}


class Distinct(base.Sums, base.Module):
    """Distinct n-grams of all texts together, and repeated 4-grams within each."""

    summary = "share of n-grams that are new, over all texts; and share of 4-grams repeated within a text"
    source = "Li et al. 2016 (distinct); Welleck et al. 2020 (seq-rep-4)"
    inputs = ("text",)
    reports = {
        "distinct1": {"direction": "higher", "range": (0, 1), **_WHY},
        "distinct2": {"direction": "higher", "range": (0, 1), **_WHY},
        "distinct3": {"direction": "higher", "range": (0, 1), **_WHY},
        "repetition": {"direction": "lower", "range": (0, 1), "undefined": "no row has four words"},
    }
    needs_references = False

    def statistics(self, predictions: base.Rows, references: base.Rows) -> base.Array:
        """N-grams not seen in an earlier row, and n-grams, for n = 1, 2, 3; repetition, and 1: [N, 8]."""
        seen: set[tuple[str, ...]] = set()
        table = []
        for text in predictions:
            tokens, row = words(text), []
            for n in (1, 2, 3):
                grams = ngrams(tokens, n)
                row += [len(set(grams) - seen), len(grams)]
                seen.update(grams)
            fours = ngrams(tokens, 4)
            table.append([*row, *((1 - len(set(fours)) / len(fours), 1) if fours else (0, 0))])
        return np.array(table, dtype=np.float64)

    def systems(self, predictions: Sequence[base.Rows], references: base.Rows) -> list[base.Array]:
        """See Scorer; each system by itself, since what is new depends on the rows before."""
        return [self.statistics(texts, references) for texts in predictions]

    def figures(self, sums: np.ndarray) -> base.Figures:
        """See Sums."""
        return {name: base.ratio(sums[..., 2 * i], sums[..., 2 * i + 1]) for i, name in enumerate(self.reports)}

    def row_figures(self, statistics: base.Array) -> base.Figures:
        """Repetition alone."""
        return {"repetition": self.figures(statistics)["repetition"]}


def ngrams(tokens: list[str], n: int) -> list[tuple[str, ...]]:
    """All runs of n tokens, in order."""
    return list(zip(*(tokens[i:] for i in range(n)), strict=False))
