"""The Epanechnikov VAE's penalty, for `PenalizedELBO`."""

import math

import torch
from pyro.poutine import Trace
from torch import Tensor, nn

from ppvae.distributions import BoxedEpanechnikov, Epanechnikov, SmoothedEpanechnikov

__all__ = ["RadiusPenalty"]


class RadiusPenalty(nn.Module):
    """The Epanechnikov VAE's penalty on narrow kernels, for `PenalizedELBO(beta=0, ...)`.

        3 B / (5 M) mean_n sum_d 1 / r_nd

    Not a KL, and no bound on one: with the paper's guide the KL to its prior U(-B/2, B/2) is
    infinite. It is the variance of a random kernel estimate with M points, where the guide is such
    an estimate's mean; it falls with r, while a KL rises, and it leaves the centers free.

    Args:
        width: B, of the prior, in units of z.
        minibatch: M, the number of data in a batch when training; a constant, so that the last,
            smaller batch is not penalized more.
        scale: b, the guide's: its kernels have radius b r. 100^(-2/9) for the variant "paper", 1
            for those without.
        site: The latent.

    Raises:
        ValueError: If an argument is not positive.
        TypeError: On the first loss, if the guide's site has no Epanechnikov kernels.

    References:
        Qin, Huang (2025), On Kernel-based Variational Autoencoder, arXiv:2405.12783.

    Example:
        >>> from ppvae.objectives import PenalizedELBO
        >>> loss = PenalizedELBO(beta=0, radius=RadiusPenalty(0.1, 100, scale=0.3594))
        >>> round(loss.penalty_functions[0].weight, 6)
        0.0006
    """

    def __init__(self, width: float, minibatch: int, *, scale: float, site: str = "z") -> None:
        super().__init__()
        for name, value in {"width": width, "minibatch": minibatch, "scale": scale}.items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, but is {value}")
        self.weight = 3 * width / (5 * minibatch)
        self.scale, self.site = scale, site

    def forward(self, model_trace: Trace, guide_trace: Trace) -> Tensor:
        """Return the penalty, 0-d in nats per datum."""
        q = guide_trace.nodes[self.site]["fn"]
        while isinstance(q, torch.distributions.Independent):
            q = q.base_dist
        if not isinstance(q, (Epanechnikov, SmoothedEpanechnikov, BoxedEpanechnikov)):
            raise TypeError(
                f"the penalty is on the radius of Epanechnikov kernels, but the guide's site "
                f"{self.site!r} is a {type(q).__name__}: take guides.Epanechnikov"
            )
        return self.weight * (self.scale / q.radius).sum(-1).mean()
