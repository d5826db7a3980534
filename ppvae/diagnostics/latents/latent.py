"""What the latent holds: information about the data, dimension by dimension and in all."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoGuide
from pyro.poutine import Trace
from torch import Tensor

from ppvae.divergences import kl_per_coordinate
from ppvae.objectives import Terms, log_mean_exp
from ppvae.protocols import DATA_PLATE, Batch, Guide, Model, batch_size, modules_of, rows_of
from ppvae.weights import (
    CHUNK,
    evaluating,
    is_delta,
    latent_sites,
    pairwise_log_density,
    refuse_weightless,
    trace_pair,
)

__all__ = [
    "AggregatePosterior",
    "active_units",
    "aggregate_posterior",
    "kl_per_dimension",
    "map_site",
    "mutual_information",
    "posterior_moments",
]


@dataclass(frozen=True)
class AggregatePosterior:
    """How the mean KL splits, in nats per datum, and the draws that show it.

        E_x KL(q(z|x) || p(z)) = I_q(x; z) + KL(q(z) || p(z)),  q(z) = 1/N sum_n q(z|x_n)

    Attributes:
        kl: The left side.
        mutual_information: I_q(x; z), at most ln N.
        marginal_kl: KL(q(z) || p(z)).
        standard_error: Of the three, by their names, with both the data and the draws drawn anew:
            the spread of the data's own terms over sqrt N. NaN for one datum.
        draws: Draws of q(z) by site, (K N, ...), the data in order within each of K passes.
        monte_carlo_error: Of the three, the data given: what more draws would take away. NaN for
            one draw per datum, which cannot tell it.
    """

    kl: float
    mutual_information: float
    marginal_kl: float
    standard_error: dict[str, float]
    draws: dict[str, Tensor]
    monte_carlo_error: dict[str, float] = field(default_factory=dict)


def aggregate_posterior(
    model: Model, guide: Guide, batch: Batch, *, num_particles: int = 1
) -> AggregatePosterior:
    """Split the mean KL into mutual information and the aggregate posterior's KL to the prior.

        I_q(x; z) ~ mean_n ln q(z_n|x_n) - ln 1/N sum_m q(z_n|x_m),   z_n ~ q(z|x_n)

    Costs N^2 densities per particle. The mixture runs over the batch given: compare guides on the
    same data only. Of data drawn anew the mixture changes too; what that does to the error is of
    second order, since the mean of q(z|x) / q(z) over draws of q(z) is one: where the aggregate is
    the prior, that of its KL comes out a fourth too large.

    Args:
        model: Samples p(x, z).
        guide: Samples q(z | x), with a density.
        batch: x, (N, ...).
        num_particles: The number K of draws per datum.

    Raises:
        WeightlessError: If the guide has no density that can be evaluated at given latents.
        ValueError: If all data share a latent: none has a KL of its own.

    References:
        Hoffman, Johnson (2016), ELBO surgery, equation 9.

    Example:
        >>> from ppvae.guides import Exact
        >>> from ppvae.models import LinearGaussian
        >>> model = LinearGaussian(torch.zeros(3, 2))  # x tells nothing about z
        >>> split = aggregate_posterior(model, Exact(model), torch.randn(5, 3))
        >>> abs(split.mutual_information) < 1e-6, abs(split.marginal_kl) < 1e-6
        (True, True)
    """
    shape = torch.Size((num_particles, batch_size(batch)))
    one = torch.Size((1, shape[1]))
    with evaluating(model, guide):  # one by one: a network need not take particles
        runs = [trace_pair(model, guide, batch, dim=None) for _ in range(num_particles)]
    refuse_weightless(runs[0][1])
    passes = [Terms(*traces, one) for traces in runs]
    own = torch.cat([terms.log_guide for terms in passes]).flatten()
    prior = torch.cat([terms.log_prior for terms in passes]).flatten()
    draws = {
        name: torch.cat([guide_trace.nodes[name]["value"] for _, guide_trace in runs])
        for name in latent_sites(runs[0][0])
    }
    aggregate = log_mean_exp(pairwise_log_density(guide, batch, draws).T)  # (K N,)
    splits = {
        "kl": own - prior,
        "mutual_information": own - aggregate,
        "marginal_kl": aggregate - prior,
    }
    terms = {name: difference.unflatten(0, shape) for name, difference in splits.items()}
    return AggregatePosterior(
        **{name: float(term.mean()) for name, term in terms.items()},
        standard_error={name: _error_of_mean(term.mean(0)) for name, term in terms.items()},
        draws=draws,
        monte_carlo_error={name: _within(term) for name, term in terms.items()},
    )


def _error_of_mean(terms: Tensor) -> float:
    """Return the error of the mean of independent terms, (N,)."""
    return float(terms.std() / math.sqrt(len(terms))) if len(terms) > 1 else math.nan


def _within(terms: Tensor) -> float:
    """Return the error of the mean of terms, (K, N), that scatter about a mean for each datum.

    The mixture over the data given, which the terms hold, is no estimate: it is what they are of.
    """
    draws, size = terms.shape
    return float((terms.var(0).sum() / draws).sqrt() / size) if draws > 1 else math.nan


def mutual_information(
    model: Model, guide: Guide, batch: Batch, *, num_particles: int = 1
) -> float:
    """Return I_q(x; z) in nats, as in `aggregate_posterior`; at most ln N.

    Example:
        >>> from ppvae.guides import Exact
        >>> from ppvae.models import LinearGaussian
        >>> model = LinearGaussian(torch.zeros(3, 2))
        >>> mutual_information(model, Exact(model), torch.randn(5, 3))
        0.0
    """
    split = aggregate_posterior(model, guide, batch, num_particles=num_particles)
    return split.mutual_information


def kl_per_dimension(
    model: Model, guide: Guide, batch: Batch, *, num_particles: int = 1000, site: str = "z"
) -> Tensor:
    """Return the KL of each latent dimension, averaged over the data, in nats.

        KL_d = mean_n KL(q(z_d|x_n) || p(z_d))              where guide and prior factorize
        KL_d = mean_n q_nd ln(q_nd / p_d) - q_nd + p_d      where z is one-hot, of D classes
        KL_d = mean_n KL(N(m_nd, v_nd) || p(z_d))           otherwise, m and v of draws

    Those of the first two forms sum to the KL. The third is a lower bound on the KL of the
    marginal, exact for Normal ones. At moments of S draws it would be too large by about 1/S,
    which is taken off: what is no information may come out below zero.

    Args:
        model: Samples p(x, z).
        guide: Samples q(z | x).
        batch: x, (N, ...).
        num_particles: The number S of draws per datum, where draws are needed, at least 2.
        site: The latent.

    Returns:
        The divergences, (D,).

    Raises:
        KeyError: If there is no such latent.
        ValueError: If the guide does not factorize and the prior is no factorized Normal, or all
            data share the latent.

    Example:
        >>> from ppvae.guides import Exact
        >>> from ppvae.models import LinearGaussian
        >>> model = LinearGaussian(torch.zeros(3, 2))
        >>> kl_per_dimension(model, Exact(model), torch.randn(5, 3)).shape
        torch.Size([2])
    """
    with evaluating(model, guide):
        model_trace, guide_trace = trace_pair(model, guide, batch, dim=None)
        q, p = _latent(guide_trace, site)["fn"], _latent(model_trace, site)["fn"]
        try:
            if all(isinstance(d, torch.distributions.OneHotCategorical) for d in (q, p)):
                share = q.probs * (q.logits - p.logits) - q.probs + p.probs
                return share.flatten(0, -2).mean(0)
            if q.event_shape == () and not is_delta(q):  # one number for each datum
                return torch.distributions.kl_divergence(q, p).mean().reshape(1)
            if is_delta(q):  # its density is that of an auxiliary site
                raise TypeError
            return kl_per_coordinate(q, p).flatten(0, -2).mean(0)
        except (TypeError, NotImplementedError):
            base = p.base_dist if isinstance(p, torch.distributions.Independent) else p
            if not isinstance(base, torch.distributions.Normal):
                raise ValueError(
                    f"the KL per dimension of site {site!r} has no form for a {type(q).__name__} "
                    f"guide under a {type(base).__name__} prior: only its sum is known"
                ) from None
        parts = map_site(
            lambda found: _moments(_with_axis(found["value"])),
            guide,
            batch,
            num_particles=num_particles,
            site=site,
        )
        mean, variance, log_shift = torch.cat(parts, dim=1)  # (N, D) each
        plain = torch.distributions.kl_divergence(dist.Normal(mean, variance.sqrt()), base)
        square_shift = variance / (2 * num_particles * base.variance)
        return (plain - square_shift + log_shift / 2).flatten(0, -2).mean(0)


def _moments(z: Tensor) -> Tensor:
    """Return mean and variance of draws (S, n, D), and E ln of that variance less ln of the true.

    The last, about -1/S, is exact for Normal draws, and to first order for others, by kurtosis.
    """
    count = len(z)
    variance, mean = torch.var_mean(z, dim=0)
    half = torch.tensor((count - 1) / 2, dtype=torch.float64)
    shift = float(torch.digamma(half) - half.log()) - _excess_kurtosis(z) / (2 * count)
    return torch.stack([mean, variance, shift])


def _excess_kurtosis(z: Tensor) -> Tensor:
    """Return that of draws (S, ...), unbiased where they are Normal; 0 of fewer than four."""
    count = len(z)
    if count < 4:
        return torch.zeros_like(z[0])
    second, fourth = (((z - z.mean(0)) ** power).mean(0) for power in (2, 4))
    excess = torch.where(second > 0, fourth / second.square() - 3, 0.0)
    return ((count + 1) * excess + 6) * (count - 1) / ((count - 2) * (count - 3))


def active_units(
    guide: Guide,
    batch: Batch,
    *,
    threshold: float = 0.01,
    num_particles: int = 100,
    site: str = "z",
    chunk_size: int = CHUNK,
) -> Tensor:
    """Return which latent dimensions carry information about x.

        A_d = Cov_x(E_q[z_d|x]) > threshold

    The means are taken over draws, and what their noise adds to the covariance is subtracted.

    Args:
        guide: Samples q(z | x).
        batch: x, (N, ...), N at least 2.
        threshold: In units of z squared.
        num_particles: The number of draws per datum, at least 2.
        site: The latent.
        chunk_size: How many (particle, datum) pairs are drawn at once: lower it for a guide whose
            draws take much memory, as those of a chain on long sentences do.

    Returns:
        Booleans, (D,); `.sum()` counts the active units.

    Raises:
        KeyError: If there is no such latent.
        ValueError: If all data share the latent, or there is one datum only.

    References:
        Burda, Grosse, Salakhutdinov (2016), Importance Weighted Autoencoders, section 5.1.2.

    Example:
        >>> from ppvae.guides import Exact
        >>> from ppvae.models import LinearGaussian
        >>> model = LinearGaussian(torch.tensor([[3.0, 0.0]]))
        >>> active_units(Exact(model), torch.linspace(-3, 3, 20)[:, None])
        tensor([ True, False])
    """
    if batch_size(batch) < 2:
        raise ValueError("active units are about how data differ: give at least 2 data")
    mean, variance = posterior_moments(
        guide, batch, num_particles=num_particles, site=site, chunk_size=chunk_size
    )
    noise = variance.mean(0) / num_particles
    return mean.var(0) - noise > threshold


def posterior_moments(
    guide: Guide,
    batch: Batch,
    *,
    num_particles: int = 100,
    site: str = "z",
    chunk_size: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """Return mean and variance of a latent under the guide, by draws, a few data at a time.

    Args:
        guide: Samples q(z | x).
        batch: x, (N, ...).
        num_particles: The number of draws per datum, at least 2.
        site: The latent.
        chunk_size: How many (particle, datum) pairs are drawn at once: lower it for a guide whose
            draws take much memory, as those of a chain on long sentences do.

    Returns:
        Means and variances, (N, D) each.

    Raises:
        KeyError: If there is no such latent.
        ValueError: If all data share the latent.

    Example:
        >>> from ppvae.guides import Exact
        >>> from ppvae.models import LinearGaussian
        >>> guide = Exact(LinearGaussian(torch.ones(3, 2)))
        >>> mean, variance = posterior_moments(guide, torch.zeros(5, 3))
        >>> mean.shape, variance.shape
        (torch.Size([5, 2]), torch.Size([5, 2]))
    """
    moments = map_site(
        lambda found: torch.var_mean(_with_axis(found["value"]), dim=0),
        guide,
        batch,
        num_particles=num_particles,
        site=site,
        chunk_size=chunk_size,
    )
    variance, mean = (torch.cat(parts) for parts in zip(*moments, strict=True))
    return mean, variance


def _with_axis(value: Tensor) -> Tensor:
    """Return draws (K, N, D): one number for each datum has D = 1."""
    return value.unsqueeze(-1) if value.ndim == 2 else value


def map_site[Result](
    fn: Callable[[dict], Result],
    guide: Guide,
    batch: Batch,
    *,
    num_particles: int = 1,
    site: str = "z",
    chunk_size: int = CHUNK,
) -> list[Result]:
    """Apply a function to a latent's site, draws (K, n, D), a few data n at a time.

    Args:
        fn: Takes the site of the guide's trace: `found["fn"]`, `found["value"]`.
        guide: Samples q(z | x).
        batch: x, (N, ...).
        num_particles: The number K of draws per datum.
        site: The latent.
        chunk_size: How many (particle, datum) pairs are drawn at once: lower it for a guide whose
            draws take much memory, as those of a chain on long sentences do.

    Raises:
        KeyError: If there is no such latent.
        ValueError: If all data share the latent.

    Example:
        >>> from ppvae.guides import Exact
        >>> from ppvae.models import LinearGaussian
        >>> guide = Exact(LinearGaussian(torch.ones(3, 2)))
        >>> map_site(lambda found: found["value"].shape, guide, torch.zeros(5, 3))
        [torch.Size([1, 5, 2])]
    """
    size = batch_size(batch)
    whole = any(isinstance(part, AutoGuide) for part in modules_of(guide))
    rows = size if whole else max(1, chunk_size // num_particles)
    results = []
    with evaluating(guide):
        for start in range(0, size, rows):
            some = rows_of(batch, start, rows)
            _, guide_trace = trace_pair(lambda _: None, guide, some, num_particles)
            results.append(fn(_latent(guide_trace, site)))
    return results


def _latent(trace: Trace, site: str) -> dict:
    sites = latent_sites(trace)
    if site not in sites:
        raise KeyError(f"there is no latent {site!r}; there are {sorted(sites)}")
    if all(frame.name != DATA_PLATE for frame in sites[site]["cond_indep_stack"]):
        raise ValueError(
            f"the latent {site!r} is shared by all data, being outside of plate '{DATA_PLATE}': "
            "it tells nothing of one datum rather than another. Judge such a pair by log_weights, "
            "or look at its posterior in ArviZ, with from_pyro_svi"
        )
    return sites[site]
