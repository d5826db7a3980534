"""The Poisson VAE's generative half: spike counts decoded into x."""

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppvae.distributions import softclamp
from ppvae.likelihoods import Likelihood, Normal, likelihood_head
from ppvae.protocols import DATA_PLATE

__all__ = ["PoissonVAE"]

FLOOR = 1.2e-7  # of a posterior's rate, in events: the KL takes its logarithm


class PoissonVAE(nn.Module):
    """Counts z of learned rates r, decoded into x.

        p(x, z) = prod_k Poisson(z_k; r_k) prod_i N(x_i; decoder(z)_i, 1/2)

    With a linear, overcomplete decoder this is sparse coding, where the KL of a guide takes the
    place of the L1 penalty. `-ELBO` is the paper's nELBO plus (M/2) ln pi, for x of M elements.

    `rate` is what a guide multiplies: it holds the only clamp, so that draws, KL and expectations
    see the same rates. The authors' code clamps the draws' rates and not the KL's.

    Args:
        decoder: Maps counts `(..., K)` to h, of the data's event shape.
        latent_dim: The number K of latents.
        likelihood: As in `VAE`; N(h, 1/2) by default.
        log_rate: Between which log r starts, uniformly: -6 and -4 by default, the paper's with
            linear decoders; -6 and -2 with others.
        clamp: c, of log rates of guides: none is above e^c events, 200 by default.

    Sites:
        z: (N, K) the counts; relaxed ones are scored, too.
        x: (N, ...) the data, observed.

    Raises:
        ValueError: If the likelihood is unknown, or K or c not positive.

    References:
        Vafaii, Galor, Yates (2024), Poisson Variational Autoencoder, arXiv:2405.14473.

    Example:
        >>> from pyro import poutine
        >>> model = PoissonVAE(nn.Linear(4, 8, bias=False), latent_dim=4)
        >>> trace = poutine.trace(model).get_trace(torch.ones(5, 8))
        >>> trace.compute_log_prob(); trace.nodes["z"]["log_prob"].shape
        torch.Size([5])
    """

    def __init__(
        self,
        decoder: nn.Module,
        latent_dim: int,
        likelihood: str | Likelihood | None = None,
        *,
        log_rate: tuple[float, float] = (-6.0, -4.0),
        clamp: float = 5.3,
    ) -> None:
        super().__init__()
        if latent_dim < 1 or not 0 < clamp < math.inf:
            raise ValueError(
                f"latent_dim and clamp must be positive, but are {latent_dim} and {clamp}"
            )
        self.decoder, self.latent_dim, self.clamp = decoder, latent_dim, clamp
        self.likelihood = likelihood_head(Normal(0.5**0.5) if likelihood is None else likelihood)
        self.log_rate = nn.Parameter(torch.empty(latent_dim).uniform_(*log_rate))

    def forward(self, batch: Tensor) -> None:
        """Sample z ~ p(z), and observe x at the batch `(N, ...)`."""
        with pyro.plate(DATA_PLATE, len(batch), dim=-1):
            z = pyro.sample("z", self.prior())
            p_x = self.likelihood(self.decoder(z))
            pyro.sample("x", p_x.to_event(batch.ndim - 1 - p_x.event_dim), obs=batch)

    def prior(self) -> dist.Independent:
        """Return p(z), of event shape (K,); it scores relaxed counts as well."""
        return dist.Poisson(self.log_rate.exp(), validate_args=False).to_event(1)

    def rate(self, log_gain: Tensor) -> Tensor:
        """Return the rates lam of a posterior, `(..., K)` in events, from their log gains over r.

        ln(lam - 1.2e-7) = softclamp(ln r + softclamp(log gain, 10), c)
        """
        return softclamp(self.log_rate + softclamp(log_gain, 10.0), self.clamp).exp() + FLOOR
