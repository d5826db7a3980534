"""Importance weights of a pair, `(K, N)`: the primitive of all evaluation."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from torch import Tensor, nn

from ppvae.protocols import Batch, Guide, Model, batch_size, rows_of

__all__ = [
    "CHUNK",
    "WeightlessError",
    "evaluating",
    "latent_sites",
    "log_weights",
    "pairwise_log_density",
    "per_datum",
    "refuse_weightless",
    "trace_pair",
]

Pair = tuple[Trace, Trace]
CHUNK = 2**14  # (particle, datum) pairs at once: 50 MB per layer of 784 floats


class WeightlessError(ValueError):
    """The guide has no density to weigh its draws with."""


def log_weights(
    model: Model, guide: Guide, batch: Batch, num_particles: int, *, chunk_size: int = CHUNK
) -> Tensor:
    """Return the log importance weights of draws from the guide, in nats.

        log w_kn = log p(x_n, z_kn) - log q(z_kn | x_n),  z_kn ~ q(z | x_n)

    Their mean over k is the ELBO, their log-mean-exp a bound on ln p(x) that tightens with K, their
    tail says whether either can be trusted. Modules run in evaluation mode and without gradients,
    and are left as they were; random numbers are drawn from torch's global generators.

    Args:
        model: Samples p(x, z).
        guide: Samples q(z | x).
        batch: x, `(N, ...)`.
        num_particles: The number K of draws per datum.
        chunk_size: How many (particle, datum) pairs are evaluated at once. The memory needed is this
            many times the activations of the largest layer: lower it for large images.

    Returns:
        The log weights, `(K, N)`, also for K = 1.

    Raises:
        WeightlessError: If the guide has no density, in words.
        ValueError: If the batch is empty, `num_particles` or `chunk_size` is not positive, or a site
            breaks the shape contract of `ppvae.protocols`.

    Example:
        >>> from ppvae.guides import Exact
        >>> from ppvae.models import LinearGaussian
        >>> model = LinearGaussian(torch.ones(3, 2))
        >>> log_weights(model, Exact(model), torch.zeros(5, 3), num_particles=4).shape
        torch.Size([4, 5])
    """
    size = batch_size(batch)
    _require_positive(num_particles=num_particles, chunk_size=chunk_size)
    rows = max(1, min(size, chunk_size // num_particles))  # all particles of few data: encode once
    particles = min(num_particles, chunk_size)
    with evaluating(model, guide):
        columns = [
            torch.cat(
                [
                    _log_weights(model, guide, rows_of(batch, start, rows), count)
                    for count in _counts(num_particles, particles)
                ]
            )
            for start in range(0, size, rows)
        ]
    return torch.cat(columns, dim=1)


def pairwise_log_density(
    guide: Guide, batch: Batch, draws: Mapping[str, Tensor], *, chunk_size: int = CHUNK
) -> Tensor:
    """Return the guide's log density of every draw under every datum, in nats.

        out_jn = log q(z_j | x_n)

    Args:
        guide: Samples q(z | x).
        batch: x, `(N, ...)`.
        draws: Latents by site, `(J, ...)` each.
        chunk_size: As in `log_weights`.

    Returns:
        The log densities, `(J, N)`.

    Raises:
        WeightlessError: If the guide has no density, or one that involves auxiliary sites.
        ValueError: If the batch or the draws are empty.

    Example:
        >>> from ppvae.guides import Exact
        >>> from ppvae.models import LinearGaussian
        >>> guide = Exact(LinearGaussian(torch.ones(3, 2)))
        >>> pairwise_log_density(guide, torch.zeros(5, 3), {"z": torch.zeros(4, 2)}).shape
        torch.Size([4, 5])
    """
    size, count = batch_size(batch), batch_size(draws)
    rows = min(size, chunk_size)
    step = max(1, chunk_size // rows)
    with evaluating(guide):
        columns = [
            torch.cat(
                [
                    _density_at(guide, rows_of(batch, start, rows), rows_of(draws, first, step))
                    for first in range(0, count, step)
                ]
            )
            for start in range(0, size, rows)
        ]
    return torch.cat(columns, dim=1)


def trace_pair(model: Model, guide: Guide, batch: Batch, num_particles: int = 1) -> Pair:
    """Return the traces of the guide, and of the model replayed against it, under a particle plate.

    Returns:
        The model's trace and the guide's, log probabilities computed, values `(K, N, ...)`.
    """
    guide_trace = poutine.trace(_particles(guide, num_particles)).get_trace(batch)
    replayed = poutine.replay(_particles(model, num_particles), trace=guide_trace)
    model_trace = poutine.trace(replayed).get_trace(batch)
    traces = prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace)
    for trace in traces:
        trace.compute_log_prob()
    return traces


def per_datum(name: str, value: Tensor | float, shape: torch.Size) -> Tensor:
    """Return a site's log probability as `(K, N)`.

    Raises:
        ValueError: If it has other axes than particles and data, naming the site.
    """
    value = torch.as_tensor(value)
    if value.ndim > 2 or value.shape[-1:] not in ((), shape[1:]):
        raise ValueError(
            f"site {name!r} has a log probability of shape {tuple(value.shape)} where (K, N) = "
            f"{tuple(shape)} is due: put it into pyro.plate('data', N, dim=-1), and declare its "
            "other axes with .to_event(...)"
        )
    return value.expand(shape)


def latent_sites(trace: Trace) -> dict[str, dict]:
    """Return the sampled, not observed sites of a trace by name, plates left out."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)
    }


@contextmanager
def evaluating(*modules: Callable) -> Iterator[None]:
    """Run modules in evaluation mode and without gradients, and leave each as it was.

    Example:
        >>> network = nn.Dropout()
        >>> with evaluating(network):
        ...     network.training
        False
        >>> network.training
        True
    """
    parts = [part for m in modules if isinstance(m, nn.Module) for part in m.modules()]
    modes = [(part, part.training) for part in parts]
    try:
        for part in parts:
            part.training = False
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def _particles(fn: Callable, num_particles: int) -> Callable:
    return pyro.plate("particles", num_particles, dim=-2)(fn)


def _counts(total: int, most: int) -> list[int]:
    return [min(most, total - start) for start in range(0, total, most)]


def _require_positive(**arguments: int) -> None:
    for name, value in arguments.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, but is {value}")


def _log_weights(model: Model, guide: Guide, batch: Batch, num_particles: int) -> Tensor:
    model_trace, guide_trace = trace_pair(model, guide, batch, num_particles)
    refuse_weightless(guide_trace)
    shape = torch.Size((num_particles, batch_size(batch)))
    return _log_prob(model_trace, shape) - _log_prob(guide_trace, shape)


def _log_prob(trace: Trace, shape: torch.Size) -> Tensor:
    """Return the sum of a trace's log probabilities per particle and datum."""
    return sum(
        per_datum(name, site["log_prob"], shape)
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
    )


def _density_at(guide: Guide, batch: Batch, draws: Mapping[str, Tensor]) -> Tensor:
    shape = torch.Size((batch_size(draws), batch_size(batch)))
    values = {  # (J, N, ...)
        name: draw.unsqueeze(1).expand(*shape, *draw.shape[1:]) for name, draw in draws.items()
    }
    conditioned = poutine.condition(_particles(guide, shape[0]), data=values)
    trace = prune_subsample_sites(poutine.trace(conditioned).get_trace(batch))
    for name in latent_sites(trace):
        raise WeightlessError(
            f"the guide samples {name!r} on the way to {sorted(draws)}, so that its density of them "
            "is an integral: estimate it with log_weights instead"
        )
    refuse_weightless(trace)
    trace.compute_log_prob()
    return _log_prob(trace, shape)


def refuse_weightless(guide_trace: Trace) -> None:
    """Raise if a latent of the guide's trace has no density to weigh its draws with.

    Raises:
        WeightlessError: For a `Delta` that no auxiliary site stands behind, and for a site marked
            `infer={"weightless": reason}`.
    """
    sites = {n: s for n, s in guide_trace.nodes.items() if s["type"] == "sample"}
    transported = any(site["infer"].get("is_auxiliary") for site in sites.values())
    for name, site in sites.items():
        reason = site["infer"].get("weightless")
        point = isinstance(_base(site["fn"]), dist.Delta) and not transported
        if reason or point:
            raise WeightlessError(
                f"the guide's site {name!r} has no importance weights: "
                f"{reason or 'it is a point (Delta), not a density'}. Judge the model by another "
                "guide, such as Normal, fitted to it afterwards"
            )


def _base(fn: dist.TorchDistribution) -> dist.TorchDistribution:
    while isinstance(fn, torch.distributions.Independent):
        fn = fn.base_dist
    return fn
