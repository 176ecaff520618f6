"""Calibration of class probabilities."""

import numpy as np

from hftune.errors import UserError
from hftune.metrics import base, labels


class CalibrationError(base.Sums, base.Module):
    """Distance between how sure a classifier is and how often it is right."""

    summary = "mean distance of confidence and accuracy in bins of confidence, and Brier's score"
    source = "Naeini et al. 2015; Guo et al. 2017 (bins of equal width); Brier 1950"
    inputs = ("scores",)
    reports = {
        "calibration_error": {
            "direction": "lower",
            "range": (0, 1),
            "no_interval": "resampling adds noise that this figure counts as error, so its interval is too high",
        },
        "brier": {"direction": "lower", "range": (0, 2)},
    }
    options = {
        "bins": (15, "number of bins"),
        "labels": labels.IN_ORDER,
    }
    least = {"bins": 1}
    rowwise = False

    def statistics(self, predictions: base.Rows, references: base.Rows) -> base.Array:
        """Brier's score, then rows, confidence and hits by bin: [N, 1 + 3 * bins]."""
        chances, truth, _ = labels.scored(predictions, references, self.settings["labels"])
        if (truth.sum(1) != 1).any() or (chances < 0).any() or (abs(chances.sum(1) - 1) > 1e-3).any():
            raise UserError("calibration_error needs one label a row, and probabilities that add up to 1")
        bins, rows = self.settings["bins"], np.arange(len(chances))
        chosen, confidence = chances.argmax(1), chances.max(1)
        table = np.zeros((len(rows), 3, bins))
        column = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
        table[rows, :, column] = np.column_stack([np.ones(len(rows)), confidence, truth[rows, chosen]])
        brier = ((chances - truth) ** 2).sum(1) / (2 if truth.shape[1] == 2 else 1)
        return np.column_stack([brier, table.reshape(len(rows), -1)])

    def figures(self, sums: np.ndarray) -> base.Figures:
        """See Sums; bins are (low, high]. Of two classes Brier's score is that of one probability."""
        count, confidence, hits = np.split(sums[..., 1:], 3, axis=-1)
        rows = count.sum(-1)
        return {"calibration_error": abs(confidence - hits).sum(-1) / rows, "brier": sums[..., 0] / rows}
