"""Whether scores tell the anomalous from the normal: the area under the curve, with its error."""

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

__all__ = ["Auroc", "anomaly_auroc"]


@dataclass(frozen=True)
class Auroc:
    """An area under the receiver operating characteristic.

    Attributes:
        value: 1/2 for scores that tell nothing, 1 for perfect ones.
        standard_error: Over the choice of data, for the model at hand.
    """

    value: float
    standard_error: float

    def __str__(self) -> str:
        return f"{self.value:.4f} +- {self.standard_error:.4f}"


def anomaly_auroc(normal: Tensor, anomalous: Tensor) -> Auroc:
    """Return how probably a normal datum scores above an anomalous one.

        A = 1/(N M) sum_ij 1[s_i > t_j] + 1/2 1[s_i = t_j]

    Scores are high for what is normal: `evidence(log_w).log_evidence`, or any other; negate an
    error of reconstruction. The standard error is DeLong's, of the placements of each score among
    those of the other set. Only the order of scores counts, so they may be infinite.

    Args:
        normal: s, (N,), of held-out data like those trained on.
        anomalous: t, (M,), of others.

    Raises:
        ValueError: If a set of scores is not a vector of at least 2, or has NaN.

    References:
        DeLong, DeLong, Clarke-Pearson (1988), Comparing the Areas under Two or More Correlated
        Receiver Operating Characteristic Curves, Biometrics 44.
        Sun, Xu (2014), Fast Implementation of DeLong's Algorithm, IEEE Signal Processing Letters.

    Example:
        >>> anomaly_auroc(torch.tensor([-1.0, 0.0, 2.0]), torch.tensor([-3.0, -2.0]))
        Auroc(value=1.0, standard_error=0.0)
    """
    from scipy.stats import rankdata
    from sklearn.metrics import roc_auc_score

    for name, scores in {"normal": normal, "anomalous": anomalous}.items():
        if scores.ndim != 1 or len(scores) < 2 or bool(scores.isnan().any()):
            raise ValueError(
                f"{name} must be scores (N,), 2 at least and none NaN, but is of shape "
                f"{tuple(scores.shape)}: pass one number per datum, such as its log evidence"
            )
    s, t = (scores.detach().double().cpu().numpy() for scores in (normal, anomalous))
    ranks = rankdata(np.r_[s, t])  # (N + M,), ties at their mean
    value = roc_auc_score(np.r_[np.ones(len(s)), np.zeros(len(t))], ranks)
    below = (ranks[: len(s)] - rankdata(s)) / len(t)  # the share of t below each s
    above = 1 - (ranks[len(s) :] - rankdata(t)) / len(s)  # the share of s above each t
    variance = below.var(ddof=1) / len(s) + above.var(ddof=1) / len(t)
    return Auroc(float(value), math.sqrt(variance))
