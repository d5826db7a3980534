"""The guide without a gap: the model's own posterior, where it is known."""

from typing import Protocol

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from ppvae.protocols import DATA_PLATE, Batch, batch_size

__all__ = ["Exact", "Tractable"]


class Tractable(Protocol):
    """A model that knows its posterior."""

    def posterior(self, batch: Batch, /) -> dist.TorchDistribution:
        """Return p(z|x), of batch shape (N,)."""


class Exact(nn.Module):
    """The exact posterior of a model that has one in closed form.

        q(z|x) = p(z|x)

    Every log weight then equals ln p(x), whatever the draw. No parameters: the posterior is
    computed from the model's, without gradient, so that training moves the model by E_p(z|x)[grad
    ln p(x, z)], the gradient of the evidence.

    Args:
        model: A model with a method `posterior(batch)`, such as `models.LinearGaussian`, or
            `models.Multimodal` with linear decoders, whatever is missing.

    Sites:
        z: (N, D) the latent; no gradient reaches the model through it.

    Raises:
        TypeError: If the model has no method `posterior`.

    Example:
        >>> from pyro import poutine
        >>> from ppvae.models import LinearGaussian
        >>> guide = Exact(LinearGaussian(torch.ones(3, 2)))
        >>> poutine.trace(guide).get_trace(torch.rand(5, 3)).nodes["z"]["value"].shape
        torch.Size([5, 2])
    """

    def __init__(self, model: Tractable) -> None:
        super().__init__()
        if not callable(getattr(model, "posterior", None)):
            raise TypeError(
                "Exact needs a model with a method posterior(batch), which "
                f"{type(model).__name__} has not: use an amortized guide such as Normal"
            )
        self._model = (model,)  # a tuple keeps the model's parameters out of ours

    def forward(self, batch: Batch) -> None:
        """Sample z ~ p(z|x) at the batch `(N, ...)`."""
        with torch.no_grad():
            posterior = self._model[0].posterior(batch)
        with pyro.plate(DATA_PLATE, batch_size(batch), dim=-1):
            pyro.sample("z", posterior)
