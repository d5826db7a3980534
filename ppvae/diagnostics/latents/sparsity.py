"""How few units carry a datum, and how few data a unit carries: the sparsity of a code."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ppvae.diagnostics.latents.latent import kl_per_dimension, map_site
from ppvae.protocols import Batch, Guide, Model

__all__ = [
    "Sparsity",
    "active_by_kl",
    "lifetime_sparsity",
    "population_sparsity",
    "proportion_zeros",
    "sparsity",
]


@dataclass(frozen=True)
class Sparsity:
    """The sparsity of a code, by units and by data.

    Attributes:
        lifetime: (D,), as in `lifetime_sparsity`; published numbers are its mean.
        population: (N,), as in `population_sparsity`.
        zeros: The proportion of coefficients that are exactly 0.
    """

    lifetime: Tensor
    population: Tensor
    zeros: float


def sparsity(guide: Guide, batch: Batch, *, site: str = "z") -> Sparsity:
    """Return the sparsity of one draw of the latent per datum, the guide in evaluation mode.

    Args:
        guide: Samples q(z | x).
        batch: x, (N, ...), N at least 2.
        site: The latent.

    Raises:
        KeyError: If there is no such latent.
        ValueError: If all data share the latent, or there is one datum or one unit only.

    Example:
        >>> from ppvae.guides import Categorical
        >>> from ppvae.networks import MLP
        >>> found = sparsity(Categorical(MLP(8, 16), latent_dim=4), torch.rand(50, 8))
        >>> found.population.unique(), found.zeros  # one of four
        (tensor([1.]), 0.75)
    """
    z = torch.cat(map_site(lambda found: found["value"][0], guide, batch, site=site))  # (N, D)
    return Sparsity(lifetime_sparsity(z), population_sparsity(z), proportion_zeros(z))


def lifetime_sparsity(z: Tensor) -> Tensor:
    """Return how sparse each unit's activity is over the data.

        S_d = (1 - (sum_n z_nd)^2 / (N sum_n z_nd^2)) / (1 - 1/N)

    0 for a constant activity, 1 for a unit that one datum alone excites, and, by rule, for a
    silent one. Counts that say nothing of the data, Poisson of rate lam, have 1 / (1 + lam): low
    rates look sparse, so that `proportion_zeros` belongs beside it. Of signed coefficients the
    magnitudes are taken.

    Args:
        z: Activities, (N, D), N at least 2.

    Returns:
        (D,), between 0 and 1.

    Raises:
        ValueError: If z is no matrix of 2 data at least.

    References:
        Vinje, Gallant (2000), Sparse Coding and Decorrelation in Primary Visual Cortex During
        Natural Vision, Science 287.

    Example:
        >>> lifetime_sparsity(torch.tensor([[1.0, 1, 0], [1, 0, 0], [1, 0, 0]]))
        tensor([0., 1., 1.])
    """
    return _sparsity(z, 0)


def population_sparsity(z: Tensor) -> Tensor:
    """Return how sparse each datum's code is over the units: `lifetime_sparsity`, transposed.

        S_n = (1 - (sum_d z_nd)^2 / (D sum_d z_nd^2)) / (1 - 1/D)

    Args:
        z: Activities, (N, D), D at least 2.

    Returns:
        (N,), between 0 and 1; 1, by rule, for a datum that excites no unit.

    Raises:
        ValueError: If z is no matrix of 2 units at least.

    Example:
        >>> population_sparsity(torch.tensor([[1.0, 1, 1], [1, 0, 0], [0, 0, 0]]))
        tensor([0., 1., 1.])
    """
    return _sparsity(z, 1)


def proportion_zeros(z: Tensor) -> float:
    """Return the proportion of coefficients that are exactly 0, as counts and thresholds give.

    Example:
        >>> proportion_zeros(torch.tensor([[1.0, 0], [0, 0]]))
        0.75
    """
    return float((z == 0).double().mean())


def active_by_kl(
    model: Model, guide: Guide, batch: Batch, *, threshold: float = 0.01, site: str = "z"
) -> Tensor:
    """Return which units the guide spends nats on, whatever the family of the latent.

        A_d = mean_n KL(q(z_d|x_n) || p(z_d)) > threshold

    Not `active_units`, whose threshold is in units of z squared, and counts are on another scale
    than Normals.

    Args:
        model: Samples p(x, z).
        guide: Samples q(z | x).
        batch: x, (N, ...).
        threshold: In nats per datum.
        site: The latent.

    Returns:
        Booleans, (D,); `.double().mean()` is the proportion of active units.

    Raises:
        KeyError: As in `kl_per_dimension`.
        ValueError: Likewise.

    Example:
        >>> from ppvae.guides import Exact
        >>> from ppvae.models import LinearGaussian
        >>> model = LinearGaussian(torch.tensor([[3.0, 0.0]]))
        >>> active_by_kl(model, Exact(model), torch.linspace(-3, 3, 20)[:, None])
        tensor([ True, False])
    """
    return kl_per_dimension(model, guide, batch, site=site) > threshold


def _sparsity(z: Tensor, over: int) -> Tensor:
    if z.ndim != 2 or z.shape[over] < 2:
        raise ValueError(
            f"activities must be (N, D), with 2 {('data', 'units')[over]} at least to compare, "
            f"but are {tuple(z.shape)}: pass one draw per datum"
        )
    z, count = z.abs().double(), z.shape[over]
    power = z.square().sum(over)
    ratio = z.sum(over).square() / (count * power.clamp(min=torch.finfo(z.dtype).tiny))
    found = ((1 - ratio) / (1 - 1 / count)).clamp(0, 1)  # rounding aside, it lies within
    return torch.where(power > 0, found, 1.0).to(torch.get_default_dtype())
