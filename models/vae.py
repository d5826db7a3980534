"""The variational autoencoder's generative half: a latent, a decoder, a likelihood."""

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from ppvae.likelihoods import Likelihood, likelihood_head
from ppvae.priors import Prior, prior_head
from ppvae.protocols import DATA_PLATE

__all__ = ["VAE"]


class VAE(nn.Module):
    """A latent z decoded into x.

        p(x, z) = p(z) prod_i p(x_i | h_i),  h = decoder(z)

    Not an autoencoder by itself: the encoder belongs to the guide, any of `ppvae.guides`.

    Args:
        decoder: Maps latents `(..., D)` to h, of the data's event shape.
        latent_dim: The size D of the latent.
        likelihood: "bernoulli", "normal", "laplace" or "poisson", or a callable from h to a
            distribution. "normal" and "laplace" learn their scale; `likelihoods.Normal(0.1)` fixes
            it.
        prior: p(z): a distribution (fixed), a module that returns one when called (learned), or
            None for N(0, I).

    Sites:
        z: (N, D) the latent.
        x: (N, ...) the data, observed.

    Raises:
        ValueError: If the likelihood is unknown, or the prior's event is not a vector of size D.

    References:
        Kingma, Welling (2014), Auto-Encoding Variational Bayes, arXiv:1312.6114.
        Rezende, Mohamed, Wierstra (2014), Stochastic Backpropagation, arXiv:1401.4082.

    Example:
        >>> from pyro import poutine
        >>> from ppvae.networks import MLP
        >>> model = VAE(MLP(2, 16, 8), latent_dim=2)
        >>> trace = poutine.trace(model).get_trace(torch.ones(5, 8))
        >>> trace.compute_log_prob(); trace.nodes["x"]["log_prob"].shape
        torch.Size([5])
    """

    def __init__(
        self,
        decoder: nn.Module,
        latent_dim: int,
        likelihood: str | Likelihood = "bernoulli",
        prior: dist.TorchDistribution | Prior | None = None,
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.latent_dim = latent_dim
        self.likelihood = likelihood_head(likelihood)
        self.prior = prior_head(prior, latent_dim)

    def forward(self, batch: Tensor) -> None:
        """Sample z ~ p(z), and observe x at the batch `(N, ...)`."""
        with pyro.plate(DATA_PLATE, len(batch), dim=-1):
            z = pyro.sample("z", self.prior())
            p_x = self.likelihood(self.decoder(z))
            pyro.sample("x", p_x.to_event(batch.ndim - 1 - p_x.event_dim), obs=batch)
