"""Figures of a masked language model that predicts each token from all others."""

import numpy as np

from hftune.metrics import base


class PseudoPerplexity(base.Sums, base.Module):
    """Pseudo-perplexity from sums of negative pseudo-log-likelihood."""

    summary = "loss and perplexity per token of a masked model, each token being masked alone; no probability of a text"
    source = "Salazar et al. 2020, section 2"
    inputs = ("nll",)
    reports = {
        "pseudo_loss": {
            "direction": "lower",
            "range": (0, None),
            "undefined": "no tokens to mask, or a loss is not finite",
        },
        "pseudo_perplexity": {
            "direction": "lower",
            "range": (1, None),
            "undefined": "there are no tokens to mask, or it is over 1e308",
        },
    }
    needs_references = False

    def statistics(self, predictions: base.Rows, references: base.Rows) -> base.Array:
        """Negative pseudo-log-likelihood in nats, and masked tokens: [N, 2]."""
        return np.array([[row["nll"], row["tokens"]] for row in predictions], dtype=np.float64)

    def figures(self, sums: np.ndarray) -> base.Figures:
        """Sums first, one division at the end."""
        loss = base.ratio(sums[..., 0], sums[..., 1])
        with np.errstate(over="ignore"):
            return {"pseudo_loss": loss, "pseudo_perplexity": np.exp(loss)}
