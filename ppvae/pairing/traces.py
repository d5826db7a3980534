"""Traces of a pair under particles, and what a site says in them."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from torch import Tensor

from ppvae.pairing.enumeration import collapsed, enumerated_sites
from ppvae.pairing.marks import Mark
from ppvae.protocols import (
    Batch,
    Guide,
    Model,
    forked_streams,
    local_parameters,
    modules_of,
)

__all__ = [
    "Pair",
    "PairError",
    "WeightlessError",
    "evaluating",
    "is_delta",
    "is_deterministic",
    "is_q_function",
    "knows_support",
    "latent_sites",
    "log_prob_of",
    "particles",
    "per_datum",
    "refuse_marked",
    "refuse_points",
    "refuse_weightless",
    "sample_sites",
    "subsampling",
    "trace_pair",
]

Pair = tuple[Trace, Trace]  # the model's and the guide's


class PairError(ValueError):
    """A model, a guide and a batch that do not fit together; the message names site and mend."""


class WeightlessError(ValueError):
    """The guide has no density to weigh its draws with."""


def trace_pair(
    model: Model, guide: Guide, batch: Batch, num_particles: int = 1, *, dim: int | None = -2
) -> Pair:
    """Return the traces of the guide and of the model replayed on it, under a particle plate.

    Args:
        model: Samples p(x, z).
        guide: Samples q(z | x).
        batch: x, `(N, ...)`.
        num_particles: The number K of draws.
        dim: Where the plate goes; None for a single draw without one.

    Returns:
        The model's trace and the guide's, log probabilities computed, values `(K, N, ...)`. Of
        sites that are summed out by enumeration there is the sum alone.
    """
    with local_parameters():
        guide_trace = poutine.trace(particles(guide, num_particles, dim)).get_trace(batch)
        replayed = poutine.replay(particles(model, num_particles, dim), trace=guide_trace)
        guide_trace.compute_log_prob()
        try:
            model_trace = poutine.trace(replayed).get_trace(batch)
            model_trace.compute_log_prob()
        except ValueError as error:
            model_trace = _without_leaks(replayed, batch, error)
        if enumerated_sites(model_trace, guide_trace):
            under = particles(model, num_particles, dim)
            model_trace = collapsed(under, guide_trace, batch, model_trace)
    return prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace)


def _without_leaks(replayed: Callable, batch: Batch, error: ValueError) -> Trace:
    """Return the model's trace where a guide's draws lie outside of a prior's support.

    They have probability zero, whatever the sites that depend on them make of it.

    Raises:
        ValueError: The error of before, if all draws are inside.
    """
    with pyro.validation_enabled(False):
        trace = poutine.trace(replayed).get_trace(batch)
        trace.compute_log_prob()
    leaks = {
        name: ~site["fn"].support.check(site["value"])
        for name, site in latent_sites(trace).items()
        if not Mark.of(site).is_auxiliary and knows_support(site["fn"])
    }
    if not any(bool(outside.any()) for outside in leaks.values()):
        raise error
    for name, site in sample_sites(trace).items():
        log_p = torch.as_tensor(site["log_prob"])
        log_p = torch.where(log_p.isnan(), -torch.inf, log_p)
        outside = leaks.get(name)
        site["log_prob"] = log_p if outside is None else torch.where(outside, -torch.inf, log_p)
    return trace


def knows_support(fn: dist.TorchDistribution) -> bool:
    """Return whether a distribution says its support: flows need not."""
    try:
        return fn.support is not None
    except (NotImplementedError, AttributeError):
        return False


def particles(fn: Callable, num_particles: int, dim: int | None = -2) -> Callable:
    """Return a model or guide under a plate of particles, or as it is for `dim=None`."""
    return fn if dim is None else pyro.plate("particles", num_particles, dim=dim)(fn)


@contextmanager
def evaluating(*modules: Callable) -> Iterator[None]:
    """Run modules in evaluation mode and without gradients, and leave each as it was.

    An autoguide that was never run makes its parameters then: that is not undone.

    Example:
        >>> network = nn.Dropout()
        >>> with evaluating(network):
        ...     network.training
        False
        >>> network.training
        True
    """
    parts = [part for module in modules for part in modules_of(module)]
    modes = [(part, part.training) for part in parts]
    try:
        for part in parts:
            part.training = False
        with torch.no_grad(), local_parameters():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def latent_sites(trace: Trace) -> dict[str, dict]:
    """Return the sampled, not observed sites of a trace by name, plates left out."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)
    }


def sample_sites(trace: Trace) -> dict[str, dict]:
    """Return the sites of a trace that sample or observe, by name."""
    return {name: site for name, site in trace.nodes.items() if site["type"] == "sample"}


def per_datum(name: str, value: Tensor | float, shape: torch.Size) -> Tensor:
    """Return a site's log probability as `(K, N)`.

    Raises:
        ValueError: If it has other axes than particles and data, or lacks those of data, naming
            the site.
    """
    if isinstance(value, Tensor) and value.shape[-1:] in ((), (1,)) and shape[1] > 1:
        raise ValueError(
            f"site {name!r} lies outside of pyro.plate('data', N, dim=-1), so that all data share "
            "it and none has a log probability of its own: sample it in the plate, or train such "
            "a pair with Pyro's Trace_ELBO and judge it by log_weights"
        )
    value = torch.as_tensor(value)
    if value.ndim > 2 or value.shape[-1:] not in ((), shape[1:]):
        raise ValueError(
            f"site {name!r} has a log probability of shape {tuple(value.shape)} where (K, N) = "
            f"{tuple(shape)} is due: put it into pyro.plate('data', N, dim=-1), and declare its "
            "other axes with .to_event(...)"
        )
    return value.expand(shape)


def is_deterministic(site: dict) -> bool:
    """Return whether a site is one of `pyro.deterministic`: a value with a name, and no law."""
    return bool(site["infer"].get("_deterministic"))


def subsampling(site: dict) -> float:
    """Return the factor N / B that a site's subsampled plates put to its log probability."""
    factor = 1.0
    for frame in site["cond_indep_stack"]:
        if frame.size > 0 and frame.full_size not in (None, frame.size):
            factor *= frame.full_size / frame.size
    return factor


def log_prob_of(site: dict) -> Tensor | float:
    """Return a site's log probability, less the factor that subsampled plates have."""
    factor = subsampling(site)
    return site["log_prob"] if factor == 1 else site["log_prob"] / factor


def refuse_weightless(guide_trace: Trace, points: Collection[str] = ()) -> None:
    """Raise if a latent of the guide's trace has no density to weigh its draws with.

    Args:
        guide_trace: The guide's.
        points: Latents known to be points: `plan_of` tells them apart where others are
            transported.

    Raises:
        WeightlessError: For a `Delta` that no auxiliary site stands behind, and for a site marked
            `infer={"weightless": reason}`.
    """
    refuse_marked(guide_trace)
    sites = sample_sites(guide_trace)
    transported = any(Mark.of(site).is_auxiliary for site in sites.values())
    for name, site in sites.items():
        if name in points or (is_delta(site["fn"]) and not transported):
            raise _weightless(name, "it is a point (Delta), not a density")


def refuse_points(names: Collection[str]) -> None:
    """Raise if a latent of the guide is a point: there is no density to weigh it with.

    Raises:
        WeightlessError: Naming the first.
    """
    for name in names:
        raise _weightless(name, "it is a point (Delta), not a density")


def refuse_marked(guide_trace: Trace) -> None:
    """Raise if a site of the guide's trace says that its draws have no weights.

    Raises:
        WeightlessError: For a site marked `infer={"weightless": reason}`.
    """
    for name, site in sample_sites(guide_trace).items():
        if reason := Mark.of(site).weightless:
            raise _weightless(name, reason)


def is_q_function(guide: Guide, batch: Batch) -> bool:
    """Return whether a guide says that with it the ELBO is Q = E[log p(x, z)], and no bound.

    Example:
        >>> from ppvae.guides import Langevin
        >>> from ppvae.models import LinearGaussian
        >>> model = LinearGaussian(torch.ones(3, 2))
        >>> is_q_function(Langevin(model), torch.zeros(5, 3))
        True
    """
    with evaluating(guide), forked_streams():
        trace = poutine.trace(guide).get_trace(batch)
    return any(Mark.of(site).q_function for site in sample_sites(trace).values())


def _weightless(name: str, reason: str) -> WeightlessError:
    return WeightlessError(
        f"the guide's site {name!r} has no importance weights: {reason}. Judge the model by "
        "another guide, such as Normal, fitted to it afterwards"
    )


def is_delta(fn: dist.TorchDistribution) -> bool:
    """Return whether a distribution is a `Delta`, a point or the end of a transport."""
    while isinstance(fn, torch.distributions.Independent):
        fn = fn.base_dist
    return isinstance(fn, dist.Delta)
