"""The posterior of a whole batch as one mixture, pulled to the prior by its moments."""

import math
from functools import partial
from typing import Literal

import torch
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import Distribution, Normal, kl_divergence
from torch.utils.checkpoint import checkpoint

from ppvae.distributions import MixtureOfDiagNormals
from ppvae.divergences.normals import prior_moments
from ppvae.objectives.base import Terms
from ppvae.objectives.beta import PenalizedELBO, Penalty
from ppvae.pairing import PairError, Record
from ppvae.weights import is_delta, refuse_weightless

__all__ = ["MixtureELBO", "individual_penalty", "population_penalty"]

Moments = Literal["total", "means", "mixture"]
FLOOR = 1e-6  # under the logarithm of the means' variance, which may be 0
BLOCK = (
    2**22
)  # elements of densities (N, N, D) held at a time; more are computed again for backward


class MixtureELBO(PenalizedELBO):
    """GAMIX-VAE's objective: the batch's mixture regularized as a whole, each variance a little.

        mean_n ln p(x_n|z_n) - population L_pop - individual L_ind
        L_pop = sum_d KL(N(m_d, S_d) || p_d),  L_ind = mean_n sum_d KL(N(0, v_nd) || N(0, 1))
        m = mean_n mu_n,  V = mean_n (mu_n - m)^2,  S = V + mean_n v_n

    **No evidence bound**, in no mode: with individual=0 it is optimistic, since L_pop is at most
    the mean KL; otherwise it lies on either side. What it costs in rate shows in the ELBO of
    `log_weights`. Not the guide `GaussianMixture`, a mixture per datum: with that guide, mean and
    variance are those of each datum's mixture, and L_ind acts on its components.

    Args:
        individual: The weight of L_ind. 0.2 is the factor 0.1 of the official code.
        population: The weight of L_pop.
        moments: "total": S as above, so that draws of the prior look like the aggregate. "means":
            V in place of S, as in the official code: no coordinate can die, and the aggregate is
            wider than the prior. "mixture": KL(1/N sum_n q(z|x_n) || p(z)) by draws, no moments;
            O(N^2 D) in time, in blocks of bounded memory.
        site: The latent.
        **kwargs: As in `PenalizedELBO`: further penalties, such as `ReconstructionCritic`, and
            `num_particles`.

    Raises:
        ValueError: If a weight is negative, or `moments` unknown; on the first loss, if the prior
            varies by datum, the guide has no density or no moments, or "means" meets a batch of
            one.
        TypeError: On the first loss, if the prior is no factorized Normal; "mixture" with
            individual=0 takes any.

    References:
        Rivera (2023), How to train your VAE, arXiv:2309.13160, and its official code.
        Hoffman, Johnson (2016), ELBO surgery.

    Example:
        >>> from ppvae.guides import Exact
        >>> from ppvae.models import LinearGaussian
        >>> model, loss = LinearGaussian(torch.ones(1, 1)), MixtureELBO(individual=0.0)
        >>> elbo = PenalizedELBO(beta=1.0).loss(model, Exact(model), torch.ones(4, 1))
        >>> abs(loss.loss(model, Exact(model), torch.ones(4, 1)) - elbo) < 1  # equal posteriors
        True
    """

    def __init__(
        self,
        individual: float = 0.2,
        population: float = 1.0,
        moments: Moments = "total",
        site: str = "z",
        **kwargs,
    ) -> None:
        terms = {}
        if population != 0:  # left out, not multiplied by zero
            terms["population"] = population_penalty(population, moments=moments, site=site)
        if individual != 0:
            terms["individual"] = individual_penalty(individual, site=site)
        super().__init__(beta=0.0, **terms, **kwargs)
        self.site = site

    def objective(self, terms: Terms) -> Tensor:
        """Return ln p(x|z), and factors, which are constants here, averaged over particles."""
        return super().objective(terms) + terms.log_factor.mean(0)

    def _require_sites(self, record: Record) -> None:
        require_alone(self, self.site, record)


def require_alone(loss: PenalizedELBO, site: str, record: Record) -> None:
    """Raise if a loss without a KL per datum meets latents or factors that it leaves out.

    Raises:
        PairError: If so, naming them.
    """
    others = [name for name in record.latents if name != site]
    factors = list(record.of("model", "factor")) if not record.constant_factors else []
    if site in record.latents and (others or factors):
        raise PairError(
            f"{type(loss).__name__} regularizes site {site!r} alone, without a KL per datum, and "
            f"would leave {', '.join(map(repr, others + factors))} out of the loss: add the "
            "penalties to PenalizedELBO(beta=1.0, ...), whose KL has all sites"
        )


def population_penalty(
    weight: float = 1.0, *, moments: Moments = "total", site: str = "z"
) -> Penalty:
    """Return the penalty weight L_pop of `MixtureELBO`, for any `PenalizedELBO`.

    Raises:
        ValueError: As in `MixtureELBO`.
        TypeError: Likewise.

    Example:
        >>> PenalizedELBO(beta=1.0, population=population_penalty(0.1)).penalty_names
        ('population',)
    """
    _require_weight("population", weight)
    if moments not in ("total", "means", "mixture"):
        raise ValueError(f"moments must be 'total', 'means' or 'mixture', but is {moments!r}")

    def penalty(model_trace: Trace, guide_trace: Trace) -> Tensor:
        q, p = _sites(model_trace, guide_trace, site)
        if moments == "mixture":
            return weight * _mixture_kl(q, p, guide_trace.nodes[site]["value"])
        mean, variance = _moments(q, site)  # (..., N, D) each
        m = mean.mean(-2)
        spread = (mean - m.unsqueeze(-2)).square().mean(-2)
        if moments == "total":
            spread = spread + variance.mean(-2)
        else:
            _require_two(mean, site)
            spread = spread + FLOOR
        batch, prior = (
            Normal(loc, scale, validate_args=False)
            for loc, scale in ((m, spread.sqrt()), prior_moments(p))
        )
        return weight * kl_divergence(batch, prior).sum(-1).mean()

    return penalty


def individual_penalty(weight: float = 0.2, *, site: str = "z") -> Penalty:
    """Return the penalty weight L_ind of `MixtureELBO`: it keeps each variance from collapsing.

        L_ind = mean_n sum_d 1/2 (r_nd - 1 - ln r_nd),  r = v / Var p

    Raises:
        ValueError: As in `MixtureELBO`.
        TypeError: Likewise.

    Example:
        >>> PenalizedELBO(beta=1.0, individual=individual_penalty(0.1)).penalty_names
        ('individual',)
    """
    _require_weight("individual", weight)

    def penalty(model_trace: Trace, guide_trace: Trace) -> Tensor:
        q, p = _sites(model_trace, guide_trace, site)
        scale = prior_moments(p)[1]  # (D,)
        if isinstance(q, MixtureOfDiagNormals):  # its total variance hides components' collapse
            ratio = (q.coord_scale / scale).square()  # (..., N, K, D)
            terms = (q.categorical.probs.unsqueeze(-1) * _barrier(ratio)).sum(-2)
        else:
            terms = _barrier(_moments(q, site)[1] / scale.square())
        return weight * terms.sum(-1).mean()

    return penalty


def _barrier(ratio: Tensor) -> Tensor:
    """Return KL(N(0, r) || N(0, 1)) of a variance r."""
    return (ratio - 1 - ratio.log()) / 2


def _mixture_kl(q: Distribution, p: Distribution, z: Tensor) -> Tensor:
    """Return KL(1/N sum_j q_j || p) by the batch's own draws, z (..., N, D)."""
    points = z.movedim(-2, 0).unsqueeze(-2)  # (N, ..., 1, D), each against all q_j

    def log_mixture(some: Tensor) -> Tensor:
        some = some.expand(*some.shape[:-2], *z.shape[-2:])  # flows do not broadcast
        return q.log_prob(some).logsumexp(-1)  # (n, ...)

    blocks = points.split(max(1, BLOCK // z.numel()))
    again = partial(checkpoint, log_mixture, use_reentrant=False, preserve_rng_state=False)
    summed = [(again if len(blocks) > 1 else log_mixture)(some) for some in blocks]
    aggregate = torch.cat(summed) - math.log(z.shape[-2])  # (N, ...)
    return (aggregate.movedim(0, -1) - p.log_prob(z)).mean()


def _sites(model_trace: Trace, guide_trace: Trace, site: str) -> tuple[Distribution, Distribution]:
    """Return q and p of a latent, both with densities."""
    refuse_weightless(guide_trace)
    if site not in guide_trace.nodes:
        raise ValueError(f"the guide has no site {site!r}: name the latent with site=")
    if is_delta(guide_trace.nodes[site]["fn"]):  # the end of a transport: 0 is not its variance
        raise ValueError(
            f"the guide's Delta at site {site!r} has no mean and variance of its own: use Normal, "
            "GaussianMixture or Epanechnikov"
        )
    return guide_trace.nodes[site]["fn"], model_trace.nodes[site]["fn"]


def _moments(q: Distribution, site: str) -> tuple[Tensor, Tensor]:
    try:
        return q.mean, q.variance
    except (NotImplementedError, AttributeError) as error:
        raise ValueError(
            f"the guide's {type(q).__name__} at site {site!r} has no mean and variance in closed "
            "form: use Normal, GaussianMixture or Epanechnikov, or "
            "MixtureELBO(individual=0, moments='mixture')"
        ) from error


def _require_two(mean: Tensor, site: str) -> None:
    if mean.shape[-2] < 2:
        raise ValueError(
            f"a batch of one has no variance of its means at site {site!r}, which "
            "moments='means' takes the logarithm of: use batches of 64 or more, without a rest "
            "of one, as Batches(..., drop_last=True) has them, or moments='total'"
        )


def _require_weight(name: str, weight: float) -> None:
    if not (weight >= 0 and math.isfinite(weight)):
        raise ValueError(f"{name} must be finite and not negative, but is {weight}")
