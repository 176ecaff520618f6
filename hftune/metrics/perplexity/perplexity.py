"""Figures of a language model."""

import numpy as np

from hftune.metrics import base


class Perplexity(base.Sums, base.Module):
    """Loss and perplexity from sums of negative log-likelihood, the same at any batch size."""

    summary = "loss and perplexity per token, and what compares across tokenizers: bits per byte, per word"
    source = "Jelinek et al. 1977; bits per byte: Gao et al. 2020 (The Pile), section 3.1"
    inputs = ("nll",)
    reports = {
        "loss": {"direction": "lower", "range": (0, None), "undefined": "no target tokens, or a loss is not finite"},
        "perplexity": {"direction": "lower", "range": (1, None), "undefined": "no target tokens, or over 1e308"},
        "bits_per_byte": {
            "direction": "lower",
            "range": (0, None),
            "undefined": "the rows do not say how many bytes they have, have none, or hold unknown tokens",
        },
        "word_perplexity": {
            "direction": "lower",
            "range": (1, None),
            "undefined": "the rows do not say how many words they have, have none, or hold unknown tokens; or it is over 1e308",
        },
    }
    needs_references = False

    def statistics(self, predictions: base.Rows, references: base.Rows) -> base.Array:
        """Sum of negative log-likelihood in nats, tokens, bytes, words: [N, 4]; NaN where not counted."""
        keys = ("nll", "tokens", "bytes", "words")
        return np.array([[row.get(key) for key in keys] for row in predictions], dtype=np.float64)

    def figures(self, sums: np.ndarray) -> base.Figures:
        """Sums first, one division at the end."""
        nll, tokens, count, words = np.moveaxis(sums, -1, 0)
        loss = base.ratio(nll, tokens)
        with np.errstate(over="ignore"):
            return {
                "loss": loss,
                "perplexity": np.exp(loss),
                "bits_per_byte": base.ratio(nll, count) / np.log(2),
                "word_perplexity": np.exp(base.ratio(nll, words)),
            }
