"""The step of a Langevin chain, chosen by the bound that it gives."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ppvae.langevin import ChainError
from ppvae.protocols import Batch, Model, forked_streams
from ppvae.weights import elbo_per_datum

__all__ = ["StepSearch", "search_step_size"]


class Stepping(Protocol):
    """A guide that takes steps."""

    step_sizes: Tensor

    def __call__(self, batch: Batch, /) -> None:
        """Sample `q(z | x)` at the batch x."""


@dataclass(frozen=True)
class StepSearch:
    """What a search has found.

    Attributes:
        best: The step size with the largest bound, in units of z.
        bounds: The ELBO of each, in nats per datum; -inf where the chain diverges.
    """

    best: float
    bounds: dict[float, float]


def search_step_size(
    model: Model,
    guide: Stepping,
    batch: Batch,
    step_sizes: Sequence[float],
    *,
    num_particles: int = 8,
) -> StepSearch:
    """Find the step size of a `guides.Langevin` with the largest ELBO, on common random numbers.

        s = argmin KL(q_s(z|path) || p(z|x)) = argmax E[ln p(x, z_K) - ln q_s(z_K|path)]

    The guide's `density` says which bound: "transport" is the paper's, whose best step is about
    half of the one that brings z_K closest to the posterior; "step" comes closer to that, and is
    cheaper. The guide is left as it was: take the step by `guide.step_sizes.fill_(found.best)`,
    also in a guide without a density, for training, every few epochs as the paper does.

    Args:
        model: Samples p(x, z).
        guide: A Langevin guide with a density; all its steps get the same size here.
        batch: x, (N, ...), a few hundred data.
        step_sizes: The grid, in units of z.
        num_particles: The number of draws per datum.

    Raises:
        WeightlessError: If the guide has no density, in words.
        ValueError: If the grid is empty, or every step of it diverges.

    References:
        Pang, Nijkamp, Han, Wu (2021), arXiv:2106.02513, section 3.4.

    Example:
        >>> from ppvae.guides import Langevin
        >>> from ppvae.models import LinearGaussian
        >>> model = LinearGaussian(torch.ones(1, 1), scale=0.5)  # precision 5
        >>> guide = Langevin(model, density="step")
        >>> search_step_size(model, guide, torch.zeros(100, 1), (0.1, 0.5, 1.0)).best
        0.5
    """
    kept, bounds = guide.step_sizes.clone(), {}
    try:
        for step_size in step_sizes:
            guide.step_sizes.fill_(step_size)
            bounds[step_size] = _bound(model, guide, batch, num_particles)
    finally:
        guide.step_sizes.copy_(kept)
    if not any(math.isfinite(bound) for bound in bounds.values()):
        raise ValueError(
            f"of the step sizes {list(step_sizes)} none gives a finite bound: add smaller ones"
        )
    return StepSearch(max(bounds, key=bounds.get), bounds)


def _bound(model: Model, guide: Stepping, batch: Batch, num_particles: int) -> float:
    with forked_streams():
        torch.manual_seed(0)
        try:
            bound = float(elbo_per_datum(model, guide, batch, num_particles))
        except ChainError:
            return -math.inf
    return bound if math.isfinite(bound) else -math.inf
