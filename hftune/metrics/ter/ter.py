"""Translation edit rate."""

from typing import Any

import numpy as np

from hftune.metrics import base, sacre


class Ter(sacre.Sacre, base.Module):
    """Corpus TER by sacrebleu."""

    summary = "edits, shifts of phrases among them, per word of the reference"
    source = "Snover et al. 2006; sacrebleu (Post 2018)"
    inputs = ("text",)
    reports = {"ter": {"direction": "lower", "range": (0, None)}}
    options = {
        "normalized": (False, "tokenize punctuation first"),
        "no_punct": (False, "ignore punctuation"),
        "asian_support": (False, "split Chinese and Japanese into characters; with normalized or no_punct"),
        "case_sensitive": (False, "heed case"),
    }

    def engine(self) -> Any:
        """See Sacre."""
        from sacrebleu.metrics import TER

        return TER(**self.settings)

    def figures(self, sums: np.ndarray) -> base.Figures:
        """TER of sums [..., 2]: edits and mean reference length; 100 for any edit of an empty reference."""
        edits, words = sums[..., 0], sums[..., 1]
        return {"ter": 100 * np.where(words > 0, base.ratio(edits, words, 0.0), edits > 0)}
