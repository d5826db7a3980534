"""A single choice among K: the guide of a one-hot latent."""

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppvae.distributions import RelaxedOneHot
from ppvae.guides.amortized import Amortized
from ppvae.protocols import DATA_PLATE, Batch, Encoder, batch_size

__all__ = ["Categorical"]

SURROGATE = (
    "a relaxed choice, of T > 0, is scored as if it were exact: its loss is a surrogate, and no "
    "bound. After guide.eval() draws are one-hot, and have weights"
)


class Categorical(Amortized):
    """One of K classes per datum, as a one-hot vector: relaxed in training, exact in evaluation.

        q(z = e_k|x) = softmax(h(x))_k

    For a model whose prior is one-hot too, relaxed draws permitted:

        dist.OneHotCategorical(logits=torch.zeros(K), validate_args=False)

    whose KL is in closed form, and at most ln K. In training z is a Gumbel-softmax of temperature
    T: the loss is then a surrogate, **no bound**, and importance weights are refused; after
    `guide.eval()`, and in every evaluation, it is one. The prior must be made with
    `validate_args=False`, so that it scores draws on the simplex. Not the guide
    `GaussianMixture`, whose components are classes of real vectors.

    Args:
        encoder: Maps the batch x, `(N, ...)`, to features `(N, encoder.out_features)`.
        latent_dim: K, the number of classes and the size of z.
        temperature: T > 0 at the start, a buffer, which `callbacks.anneal` lowers.
        **kwargs: As in `Amortized`.

    Sites:
        z: (N, K) the latent: one-hot, on the simplex in training with pathwise gradients, KL to a
            one-hot categorical prior in closed form.

    Raises:
        TypeError: If `encoder` has no `out_features`.
        ValueError: If the temperature is not positive, or K < 2.

    References:
        Jang, Gu, Poole (2017), Categorical Reparameterization with Gumbel-Softmax,
        arXiv:1611.01144.
        Vafaii, Galor, Yates (2024), Poisson Variational Autoencoder, arXiv:2405.14473 (a baseline,
        T from 1 to 0.1).

    Example:
        >>> from pyro import poutine
        >>> from ppvae.networks import MLP
        >>> guide = Categorical(MLP(8, 16), latent_dim=3).eval()
        >>> poutine.trace(guide).get_trace(torch.rand(5, 8)).nodes["z"]["value"].sum(-1)
        tensor([1., 1., 1., 1., 1.])
    """

    def __init__(
        self, encoder: Encoder, latent_dim: int, *, temperature: float = 1.0, **kwargs
    ) -> None:
        if latent_dim < 2:
            raise ValueError(f"a choice needs 2 classes at least, but latent_dim is {latent_dim}")
        if not 0 < temperature < math.inf:
            raise ValueError(
                f"temperature must be positive and finite, but is {temperature}: exact draws, of "
                "temperature 0, are those of guide.eval(), and have no gradient"
            )
        infer = {"relaxed": True}  # the prior is to score draws on the simplex: see check_pair
        super().__init__(encoder, self._posterior, latent_dim, infer=infer, **kwargs)
        self.register_buffer("temperature", torch.tensor(float(temperature)))

    def forward(self, batch: Batch) -> None:
        """Sample z ~ q(z|x) at the batch `(N, ...)`."""
        h = self.head(self.activation(self.encoder(batch)))
        infer = {**self.infer, "weightless": SURROGATE} if self.training else dict(self.infer)
        with pyro.plate(DATA_PLATE, batch_size(batch), dim=-1):
            pyro.sample("z", self.posterior(h), infer=infer)

    def _posterior(self, h: Tensor) -> dist.OneHotCategorical:
        """Return q(z|x), of batch shape (N,), from the head's outputs (N, K)."""
        if self.training:
            return RelaxedOneHot(self.temperature, logits=h)
        return dist.OneHotCategorical(logits=h)
