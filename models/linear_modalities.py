"""Posterior and evidence of several modalities in closed form, whatever is missing.

Lambda_S = I + sum_S W_m' W_m / s_m^2,  eta_S = sum_S W_m' (x_m - b_m) / s_m^2
p(z|x_S) = N(z; Lambda_S^-1 eta_S, Lambda_S^-1)
"""

import math
from typing import NamedTuple, Protocol

import pyro.distributions as dist
import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor, nn

from ppvae.likelihoods import Normal
from ppvae.networks import follows, linear_layer
from ppvae.priors import StandardNormal
from ppvae.protocols import seen

__all__ = ["LinearModalities", "log_evidence", "posterior"]


class LinearModalities(Protocol):
    """What must be known of a model: `models.Multimodal` has it."""

    names: tuple[str, ...]
    decoders: nn.ModuleDict
    likelihoods: dict
    prior: object
    private_dim: int


class _Sums(NamedTuple):
    """Sums over what is seen of each datum."""

    precision: Tensor  # (N, D, D)
    eta: Tensor  # (N, D)
    log_noise: Tensor  # (N,) ln N(x_m; b_m, s_m^2), summed


def posterior(model: LinearModalities, batch: dict[str, Tensor]) -> dist.MultivariateNormal:
    """Return p(z|x_S), of batch shape (N,) and event shape (D,).

    Raises:
        TypeError: If the model is not linear-Gaussian.

    Example:
        >>> from ppvae.models import Multimodal
        >>> model = Multimodal({"a": nn.Linear(1, 2), "b": nn.Linear(1, 3)}, latent_dim=1)
        >>> batch = {"a": torch.zeros(4, 2), "b": torch.full((4, 3), torch.nan)}
        >>> posterior(model, batch).mean.shape
        torch.Size([4, 1])
    """
    sums, kind = _sums(model, batch)
    mean = torch.linalg.solve(sums.precision, sums.eta.unsqueeze(-1)).squeeze(-1)
    exact = dist.MultivariateNormal(mean, precision_matrix=sums.precision)
    return dist.MultivariateNormal(exact.loc.to(kind), scale_tril=exact.scale_tril.to(kind))


def log_evidence(model: LinearModalities, batch: dict[str, Tensor]) -> Tensor:
    """Return ln p(x_S), `(N,)` in nats.

    Raises:
        TypeError: If the model is not linear-Gaussian.

    Example:
        >>> from ppvae.models import Multimodal
        >>> model = Multimodal({"a": nn.Linear(1, 2), "b": nn.Linear(1, 3)}, latent_dim=1)
        >>> nothing = {"a": torch.full((1, 2), torch.nan), "b": torch.full((1, 3), torch.nan)}
        >>> log_evidence(model, nothing).item()
        0.0
    """
    sums, kind = _sums(model, batch)
    root = torch.linalg.cholesky(sums.precision)
    half = torch.linalg.solve_triangular(root, sums.eta.unsqueeze(-1), upper=False).squeeze(-1)
    log_det = 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return ((half.square().sum(-1) - log_det) / 2 + sums.log_noise).to(kind)


def _sums(model: LinearModalities, batch: dict[str, Tensor]) -> tuple[_Sums, torch.dtype]:
    """Return the sums in double precision, where sharp scales cancel, and the model's own type."""
    if not isinstance(model.prior, StandardNormal) or model.private_dim:
        raise _unknown("another prior than N(0, I), or private latents")
    precision, eta, log_noise = 0.0, 0.0, 0.0
    for (name, leaf), obs in zip(batch.items(), seen(batch).unbind(1), strict=True):
        head = model.likelihoods[name]
        scale = _scale(name, head).double()
        layer = _layer(name, model.decoders[name], head)
        kind = layer.weight.dtype
        x = torch.where(obs.unsqueeze(-1), leaf.reshape(len(leaf), -1).double(), 0.0)  # (N, F)
        rest = x if layer.bias is None else x - layer.bias.double()
        rest = torch.where(obs.unsqueeze(-1), rest, 0.0) / scale
        weight = layer.weight.double() / scale  # (F, D)
        precision = precision + obs[:, None, None] * (weight.mT @ weight)
        eta = eta + rest @ weight
        log_noise = log_noise - rest.square().sum(-1) / 2
        log_noise = log_noise - obs * len(weight) * (scale.log() + math.log(2 * math.pi) / 2)
    identity = torch.eye(eta.shape[-1], device=eta.device, dtype=eta.dtype)
    return _Sums(precision + identity, eta, log_noise), kind


def _layer(name: str, decoder: nn.Module, head: object) -> nn.Linear:
    layer = linear_layer(decoder)
    if isinstance(layer, str):
        raise _unknown(f"a decoder of {name!r} that is not one nn.Linear, but {layer}")
    if is_validation_enabled() and not follows(lambda z: _mean(head, decoder(z)), layer):
        raise _unknown(
            f"a mean or a scale of {name!r} at random z that is not its nn.Linear's and its "
            "likelihood's, where something in a forward bends it"
        )
    return layer


def _mean(head: Normal, h: Tensor) -> Tensor:
    """Return the mean of p(x|h), or nothing where it has not the head's scale."""
    law = head(h)
    normal = isinstance(law, dist.Normal) and (law.scale == head.scale).all()
    return law.loc if normal else h.new_empty(0)


def _scale(name: str, head: object) -> Tensor:
    if not isinstance(head, Normal):
        found = getattr(head, "__name__", type(head).__name__)
        raise _unknown(f"a likelihood of {name!r} that is not likelihoods.Normal, but {found}")
    return head.scale


def _unknown(why: str) -> TypeError:
    return TypeError(
        "the posterior and the evidence of several modalities are known for linear decoders, "
        f"Normal likelihoods and the prior N(0, I), but this model has {why}: use "
        "guides.Multimodal, and diagnostics.conditional_evidence"
    )
