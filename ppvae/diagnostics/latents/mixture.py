"""What a guide that is a mixture per datum does with its components."""

import math
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from ppvae.diagnostics.latents.latent import map_site
from ppvae.protocols import Batch, Guide

__all__ = ["ComponentUsage", "component_usage"]


@dataclass(frozen=True)
class ComponentUsage:
    """How the components of q(z|x) = sum_c pi_c(x) q_c(z|x) share the data, entropies in nats.

    Attributes:
        usage: mean_x pi_c(x), (C,).
        weight_entropy: mean_x H(pi(x)): 0 where each datum takes one component, ln C at most.
        responsibility_entropy: mean_x E_q H(r(z, x)), r_c = pi_c q_c(z|x) / q(z|x): 0 where
            components lie apart, the weights' entropy where they coincide. Their difference is
            what z tells of its component, the modes that a datum really has.
        normalized_mutual_information: Of the largest weight's component with the label, 0 to 1;
            NaN without labels.
        adjusted_rand: Their adjusted Rand index, about 0 by chance and 1 for equal partitions.
    """

    usage: Tensor
    weight_entropy: float
    responsibility_entropy: float
    normalized_mutual_information: float
    adjusted_rand: float


def component_usage(
    guide: Guide,
    batch: Batch,
    labels: Tensor | None = None,
    *,
    num_particles: int = 10,
    site: str = "z",
) -> ComponentUsage:
    """Return how a mixture guide uses its components on a set of data.

    Components are numbered by the guide, alike for all data: one that every datum leaves aside
    has usage 0. Agreement with labels is no aim of training, and no fault where it is missing.

    Args:
        guide: Samples z of a mixture of Normals, as `guides.GaussianMixture` does.
        batch: x, (N, ...).
        labels: (N,) integers, to compare components with.
        num_particles: The number of draws per datum, for the responsibilities.
        site: The latent.

    Raises:
        KeyError: If there is no such latent.
        ValueError: If its distribution is no mixture of Normals, or labels are not (N,).

    Example:
        >>> from ppvae.guides import GaussianMixture
        >>> from ppvae.networks import MLP
        >>> guide = GaussianMixture(MLP(8, 16), latent_dim=2, components=3)
        >>> component_usage(guide, torch.rand(5, 8)).usage.shape
        torch.Size([3])
    """
    found = map_site(_weights, guide, batch, num_particles=num_particles, site=site)
    weights, overlap = (torch.cat(parts) for parts in zip(*found, strict=True))  # (N, C), (N,)
    information, rand = math.nan, math.nan
    if labels is not None:
        information, rand = _agreement(weights.argmax(-1), labels)
    return ComponentUsage(
        usage=weights.mean(0),
        weight_entropy=float(_entropy(weights.log()).mean()),
        responsibility_entropy=float(overlap.mean()),
        normalized_mutual_information=information,
        adjusted_rand=rand,
    )


def _weights(found: dict) -> tuple[Tensor, Tensor]:
    """Return pi(x), (n, C), and the entropy of the responsibilities, (n,)."""
    q, z = found["fn"], found["value"]  # z: (K, n, D)
    if not isinstance(q, dist.MixtureOfDiagNormals):
        raise ValueError(
            f"the guide's site {found['name']!r} is a {type(q).__name__}, which has no "
            "components: component_usage is of mixture guides such as GaussianMixture"
        )
    components = dist.Normal(q.locs, q.coord_scale).to_event(1)
    log_r = q.categorical.logits + components.log_prob(z.unsqueeze(-2))  # (K, n, C)
    weights = q.categorical.probs.expand(log_r.shape)[0]
    return weights, _entropy(log_r.log_softmax(-1)).mean(0)


def _entropy(log_p: Tensor) -> Tensor:
    return torch.special.entr(log_p.exp()).sum(-1)


def _agreement(components: Tensor, labels: Tensor) -> tuple[float, float]:
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    if labels.shape != components.shape:
        raise ValueError(
            f"labels must be one per datum, ({len(components)},), but are {tuple(labels.shape)}"
        )
    pair = labels.cpu().numpy(), components.cpu().numpy()
    return float(normalized_mutual_info_score(*pair)), float(adjusted_rand_score(*pair))
