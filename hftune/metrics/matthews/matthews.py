"""Matthews' correlation."""

import numpy as np
from scipy import sparse

from hftune.metrics import base, labels


class Matthews(base.Sums, base.Module):
    """Correlation of predicted and true classes, for two classes or more."""

    summary = "correlation of predicted and true classes, fair to rare ones"
    source = "Matthews 1975; Gorodkin 2004; scikit-learn matthews_corrcoef"
    inputs = ("label",)
    reports = {"matthews": {"direction": "higher", "range": (-1, 1)}}
    rowwise = False

    def statistics(self, predictions: base.Rows, references: base.Rows) -> base.Array:
        """Whether right, predicted class, true class: sparse [N, 1 + 2C]."""
        left, right = labels.as_sets(predictions), labels.as_sets(references)
        names = labels.classes(None, left, right)
        predicted, true = labels.indicator(left, names), labels.indicator(right, names)
        return sparse.hstack([(predicted * true).sum(1).reshape(-1, 1), predicted, true], format="csr")

    def figures(self, sums: np.ndarray) -> base.Figures:
        """R_K of Gorodkin 2004, eq. 8; zero where either side has one class only, as in scikit-learn."""
        right, (predicted, true) = sums[..., 0], np.split(sums[..., 1:], 2, axis=-1)
        rows = true.sum(-1)
        covariance = right * rows - (predicted * true).sum(-1)
        spread = (rows**2 - (predicted**2).sum(-1)) * (rows**2 - (true**2).sum(-1))
        return {"matthews": base.ratio(covariance, np.sqrt(spread), 0.0)}
