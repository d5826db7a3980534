"""Priors as modules, so that fixed and learned ones move, save and load with their model."""

import copy
from collections.abc import Callable

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppvae.distributions import MixtureOfDiagNormals

__all__ = ["FixedPrior", "NormalMixture", "Prior", "StandardNormal", "prior_head"]

Prior = Callable[[], dist.TorchDistribution]


class StandardNormal(nn.Module):
    """p(z) = N(z; 0, I_D).

    Args:
        latent_dim: The size D of the latent.

    Example:
        >>> StandardNormal(3)().event_shape
        torch.Size([3])
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)

    def forward(self) -> dist.Independent:
        """Return p(z)."""
        return dist.Normal(self.loc, self.scale, validate_args=False).to_event(1)


class NormalMixture(nn.Module):
    """A learned mixture of C factorized Normals.

        p(z) = sum_c pi_c prod_d N(z_d; m_cd, s_cd^2)

    With labels or other auxiliary variables among the modalities, this is the prior of
    identifiable models. Starts at N(0, 1) draws of m, s = 1 and equal weights.

    Args:
        latent_dim: The size D of the latent.
        components: C.

    Raises:
        ValueError: If D or C is not positive.

    References:
        Hirt et al. (2024), arXiv:2309.00380. Khemakhem et al. (2020), Variational Autoencoders and
        Nonlinear ICA, arXiv:1907.04809.

    Example:
        >>> NormalMixture(2, components=5)().event_shape
        torch.Size([2])
    """

    def __init__(self, latent_dim: int, components: int) -> None:
        super().__init__()
        if latent_dim < 1 or components < 1:
            raise ValueError(
                f"latent_dim and components must be at least 1, but are {latent_dim} and "
                f"{components}"
            )
        self.loc = nn.Parameter(torch.randn(components, latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(components, latent_dim))
        self.logits = nn.Parameter(torch.zeros(components))

    def forward(self) -> MixtureOfDiagNormals:
        """Return p(z)."""
        return MixtureOfDiagNormals(self.loc, self.log_scale.exp(), self.logits)


class FixedPrior(nn.Module):
    """Any distribution, held constant; its tensors move with `.to`.

    The distribution is copied, so that moving the model leaves the caller's one in place. It is
    not part of the `state_dict`: it is rebuilt by the code that made the model.

    Args:
        distribution: p(z), of event shape (D,).

    Example:
        >>> FixedPrior(dist.Laplace(torch.zeros(2), 1.0).to_event(1))().event_shape
        torch.Size([2])
    """

    def __init__(self, distribution: dist.TorchDistribution) -> None:
        super().__init__()
        self.distribution = copy.deepcopy(distribution)

    def forward(self) -> dist.TorchDistribution:
        """Return p(z)."""
        return self.distribution

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        _move(self.distribution, fn, frozenset())
        return super()._apply(fn, recurse)


def _move(node: object, fn: Callable[[Tensor], Tensor], seen: frozenset[int]) -> object:
    """Return `node` with `fn` applied to its tensors; distributions and transforms in place."""
    if isinstance(node, Tensor):
        return fn(node)
    if isinstance(node, (list, tuple)) and not isinstance(node, torch.Size):
        return type(node)(_move(child, fn, seen) for child in node)
    known = (torch.distributions.Distribution, torch.distributions.Transform)
    if isinstance(node, known) and id(node) not in seen:  # a transform and its inverse form a ring
        for name, child in vars(node).items():
            vars(node)[name] = _move(child, fn, seen | {id(node)})
    return node


def prior_head(prior: dist.TorchDistribution | Prior | None, latent_dim: int) -> Prior:
    """Return a callable that makes p(z): N(0, I) for None, a constant for a distribution.

    Raises:
        ValueError: If the prior is no distribution over vectors of size `latent_dim`.
        TypeError: If it is neither a distribution, nor a callable that returns one, nor None.

    Example:
        >>> prior_head(None, 2)().sample().shape
        torch.Size([2])
    """
    if prior is None:
        return StandardNormal(latent_dim)
    if isinstance(prior, torch.distributions.Distribution):
        prior = FixedPrior(prior)
    if not callable(prior):
        raise TypeError(f"prior must be a distribution or a callable, but is {prior!r}")
    with torch.no_grad():
        p_z = prior()
    if p_z.event_shape != (latent_dim,) or p_z.batch_shape != ():
        raise ValueError(
            f"the prior has batch shape {tuple(p_z.batch_shape)} and event shape "
            f"{tuple(p_z.event_shape)}, but latent_dim={latent_dim} needs () and ({latent_dim},): "
            "expand it, and declare its last axis with .to_event(1)"
        )
    return prior
