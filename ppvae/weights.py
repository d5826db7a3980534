"""Importance weights of a pair, `(K, N)`: the primitive of all evaluation.

Where all data share a latent, their weights do not factorize: there is one per particle, `(K, 1)`.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.ops.provenance import get_provenance, track_provenance
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from torch import Tensor, nn

from ppvae.protocols import (
    DATA_PLATE,
    Batch,
    Guide,
    Model,
    batch_size,
    forked_streams,
    local_parameters,
    rows_of,
)

__all__ = [
    "CHUNK",
    "Plan",
    "WeightlessError",
    "check_autoguide",
    "elbo_per_datum",
    "evaluating",
    "is_delta",
    "latent_sites",
    "log_prob_of",
    "log_weights",
    "pairwise_log_density",
    "particles",
    "per_datum",
    "plan_of",
    "refuse_weightless",
    "trace_pair",
    "weigh",
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

    Where a latent lies outside of the data plate, as those of Pyro's autoguides do for a regression,
    there is one weight for all data:

        log w_k = log p(x_1, ..., x_N, z_k) - log q(z_k | x_1, ..., x_N)

    and its log-mean-exp estimates ln p(x_1, ..., x_N), the evidence of the whole batch. Pass all the
    data then, for a plate that is subsampled scales its likelihood. They are not split into chunks.
    Sites that cannot take particles, such as `x @ w`, are drawn one by one.

    Args:
        model: Samples p(x, z).
        guide: Samples q(z | x).
        batch: x, `(N, ...)`.
        num_particles: The number K of draws per datum.
        chunk_size: How many (particle, datum) pairs are evaluated at once. The memory needed is this
            many times the activations of the largest layer: lower it for large images.

    Returns:
        The log weights, `(K, N)`, also for K = 1; `(K, 1)` where data share a latent.

    Raises:
        WeightlessError: If the guide has no density, in words.
        ValueError: If the batch is empty, `num_particles` or `chunk_size` is not positive, a site breaks
            the shape contract of `ppvae.protocols`, or an autoguide was made for other data.

    Example:
        >>> from ppvae.guides import Exact
        >>> from ppvae.models import LinearGaussian
        >>> model = LinearGaussian(torch.ones(3, 2))
        >>> log_weights(model, Exact(model), torch.zeros(5, 3), num_particles=4).shape
        torch.Size([4, 5])
    """
    size = batch_size(batch)
    _require_positive(num_particles=num_particles, chunk_size=chunk_size)
    with evaluating(model, guide):
        plan = plan_of(model, guide, batch)
        rows = plan.rows(size, chunk_size, num_particles)
        counts = plan.counts(rows, chunk_size, num_particles)
        columns = [
            torch.cat(
                [
                    _log_weights(model, guide, rows_of(batch, start, rows), count, plan)
                    for count in counts
                ]
            )
            for start in range(0, size, rows)
        ]
    return torch.cat(columns, dim=1)


def elbo_per_datum(model: Model, guide: Guide, batch: Batch, num_particles: int = 1) -> Tensor:
    """Return the ELBO by draws, in nats per datum, 0-d, also where the weights are of all data at once.

    Raises:
        WeightlessError: If the guide has no density, in words.

    Example:
        >>> from ppvae.guides import Exact
        >>> from ppvae.models import LinearGaussian
        >>> model = LinearGaussian(torch.ones(1, 1))
        >>> round(elbo_per_datum(model, Exact(model), torch.zeros(5, 1)).item(), 4)  # ln N(0; 0, 2)
        -1.2655
    """
    log_w = log_weights(model, guide, batch, num_particles)
    with evaluating(model, guide):
        size = plan_of(model, guide, batch).size
    return log_w.sum(1).mean() / size


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


class Plan(NamedTuple):
    """How a pair is to be weighed.

    Attributes:
        joint: Whether a latent lies outside of the data plate, so that weights are of all data at once.
        whole: Whether the batch must stay whole: joint, or with an autoguide, which knows no other data.
        dim: Where the particles' plate goes, left of all others; None where draws are made one by one.
        points: The latents that the guide draws from no density, `Delta` sites.
        size: How many data a particle's weights are of: N, or more where joint and subsampled.
    """

    joint: bool
    whole: bool
    dim: int | None
    points: tuple[str, ...]
    size: int

    def rows(self, size: int, chunk_size: int, num_particles: int) -> int:
        """Return how many of N data go together: few, with all particles, so as to encode them once."""
        return size if self.whole else max(1, min(size, chunk_size // num_particles))

    def counts(self, rows: int, chunk_size: int, num_particles: int) -> list[int]:
        """Return how many particles go together, one chunk after the other."""
        return _counts(num_particles, 1 if self.dim is None else max(1, chunk_size // rows))


def plan_of(model: Model, guide: Guide, batch: Batch) -> Plan:
    """Return how a pair is to be weighed, found out by running it on a fork of the random streams.

    Raises:
        ValueError: If an autoguide was made for other data.
    """
    check_autoguide(guide, batch)
    whole = any(isinstance(part, AutoGuide) for part in _modules(guide))
    with forked_streams():
        if whole:
            alone = trace_pair(model, guide, batch, dim=None)
        else:
            try:
                alone = trace_pair(model, guide, rows_of(batch, 0, 1), dim=None)
            except Exception:  # noqa: BLE001 -- some pairs know only all of their data
                alone = trace_pair(model, guide, batch, dim=None)
        points = _points(guide, batch, alone[1])
        latents = [s for trace in alone for s in latent_sites(trace).values()]
        if all(any(f.name == DATA_PLATE for f in s["cond_indep_stack"]) for s in latents):
            return Plan(False, whole, dim=-2, points=points, size=batch_size(batch))
        alone = trace_pair(model, guide, batch, dim=None)
        dim = -1 - max(1, *(len(s["fn"].batch_shape) for t in alone for s in _samples(t).values()))
        vectorized = _takes_particles(model, guide, batch, dim, alone)
    frames = [f for s in _samples(alone[0]).values() for f in s["cond_indep_stack"]]
    sizes = [frame.full_size for frame in frames if frame.name == DATA_PLATE and frame.full_size]
    size = max(sizes, default=batch_size(batch))
    return Plan(True, whole=True, dim=dim if vectorized else None, points=points, size=size)


def trace_pair(
    model: Model, guide: Guide, batch: Batch, num_particles: int = 1, *, dim: int | None = -2
) -> Pair:
    """Return the traces of the guide, and of the model replayed against it, under a particle plate.

    Args:
        model: Samples p(x, z).
        guide: Samples q(z | x).
        batch: x, `(N, ...)`.
        num_particles: The number K of draws.
        dim: Where the plate goes; None for a single draw without one.

    Returns:
        The model's trace and the guide's, log probabilities computed, values `(K, N, ...)`.
    """
    with local_parameters():
        guide_trace = poutine.trace(particles(guide, num_particles, dim)).get_trace(batch)
        replayed = poutine.replay(particles(model, num_particles, dim), trace=guide_trace)
        model_trace = poutine.trace(replayed).get_trace(batch)
    traces = prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace)
    for trace in traces:
        trace.compute_log_prob()
    return traces


def weigh(traces: Pair, shape: tuple[int, int], plan: Plan) -> Tensor:
    """Return the log weights of the traces of `trace_pair`.

    Args:
        traces: The model's and the guide's.
        shape: (K, N).
        plan: Of `plan_of`.

    Returns:
        The log weights, `(K, N)`, or `(K, 1)` where data share a latent.

    Raises:
        WeightlessError: If the guide has no density.
        ValueError: If a site breaks the shape contract.
    """
    refuse_weightless(traces[1], plan.points)
    if plan.joint:
        return _joint_weights(traces, shape[0], plan.dim)[:, None]
    log_p, log_q = (_log_prob(trace, torch.Size(shape)) for trace in traces)
    return log_p - log_q


def per_datum(name: str, value: Tensor | float, shape: torch.Size) -> Tensor:
    """Return a site's log probability as `(K, N)`.

    Raises:
        ValueError: If it has other axes than particles and data, or lacks those of data, naming the
            site.
    """
    if isinstance(value, Tensor) and value.shape[-1:] in ((), (1,)) and shape[1] > 1:
        raise ValueError(
            f"site {name!r} lies outside of pyro.plate('data', N, dim=-1), so that all data share it and "
            "none has a log probability of its own: sample it in the plate, or train such a pair with "
            "Pyro's Trace_ELBO and judge it by log_weights"
        )
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

    An autoguide that was never run makes its parameters then: that is not undone.

    Example:
        >>> network = nn.Dropout()
        >>> with evaluating(network):
        ...     network.training
        False
        >>> network.training
        True
    """
    parts = [part for module in modules for part in _modules(module)]
    modes = [(part, part.training) for part in parts]
    try:
        for part in parts:
            part.training = False
        with torch.no_grad(), local_parameters():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def check_autoguide(guide: Guide, batch: Batch) -> None:
    """Check that the autoguides in a guide were made for as many data as the batch has.

    Raises:
        ValueError: If one of them has a factor for each of other data.
    """
    for part in _modules(guide):
        if not isinstance(part, AutoGuide) or part.create_plates or part.master is not None:
            continue
        frame = part._prototype_frames.get(DATA_PLATE)
        if frame is not None and frame.size != batch_size(batch):
            raise ValueError(
                f"this {type(part).__name__} has a factor for each of the {frame.size} data that it "
                f"first saw, and the batch {batch_size(batch)} data: pass all data at once, give it "
                "create_plates=, or take an amortized guide, such as ppvae.guides.Normal"
            )


def particles(fn: Callable, num_particles: int, dim: int | None = -2) -> Callable:
    """Return a model or guide under a plate of particles, or as it is for `dim=None`."""
    return fn if dim is None else pyro.plate("particles", num_particles, dim=dim)(fn)


def _modules(side: Callable) -> list[nn.Module]:
    return list(side.modules()) if isinstance(side, nn.Module) else []


def _samples(trace: Trace) -> dict[str, dict]:
    return {name: site for name, site in trace.nodes.items() if site["type"] == "sample"}


def _joint_weights(traces: Pair, num_particles: int, dim: int | None) -> Tensor:
    """Return the log weights of all data at once, `(K,)`."""
    log_p, log_q = (
        sum(_per_particle(s["log_prob"], num_particles, dim) for s in _samples(trace).values())
        for trace in traces
    )
    return log_p - log_q


def _per_particle(log_prob: Tensor | float, num_particles: int, dim: int | None) -> Tensor:
    """Return a log probability summed over all axes but the particles', `(K,)`."""
    log_prob = torch.as_tensor(log_prob)
    particles = dim is not None and log_prob.ndim == -dim
    return (log_prob.flatten(1).sum(1) if particles else log_prob.sum()).expand(num_particles)


class _Origins(Messenger):
    """Marks what is computed from auxiliary sites."""

    def _pyro_post_sample(self, msg: dict) -> None:
        if msg["infer"].get("is_auxiliary"):
            msg["value"] = track_provenance(msg["value"], frozenset([msg["name"]]))


def _points(guide: Guide, batch: Batch, guide_trace: Trace) -> tuple[str, ...]:
    """Return the `Delta` sites that no auxiliary site stands behind."""
    sites = latent_sites(guide_trace)
    points = tuple(name for name, site in sites.items() if is_delta(site["fn"]))
    if points and any(site["infer"].get("is_auxiliary") for site in sites.values()):
        with _Origins():
            nodes = poutine.trace(guide).get_trace(batch).nodes
        points = tuple(name for name in points if not get_provenance(nodes[name]["value"]))
    return points


def _takes_particles(model: Model, guide: Guide, batch: Batch, dim: int, alone: Pair) -> bool:
    """Return whether two draws at once weigh what they weigh one by one."""
    try:
        together = trace_pair(model, guide, batch, 2, dim=dim)
        found = _joint_weights(together, 2, dim)
        shapes = {name: site["value"].shape for name, site in latent_sites(alone[1]).items()}
        for k in range(2):
            draw = Trace()
            for name, site in latent_sites(together[1]).items():
                if not is_delta(site["fn"]):  # computed anew: rounding would make it impossible
                    draw.add_node(name, **site | {"value": site["value"][k].reshape(shapes[name])})
            apart = trace_pair(model, poutine.replay(guide, trace=draw), batch, dim=None)
            if not torch.allclose(found[k], _joint_weights(apart, 1, None), 1e-4, 1e-3, True):
                return False
    except Exception:  # noqa: BLE001 -- whatever the user's model raises
        return False
    return True


def _counts(total: int, most: int) -> list[int]:
    return [min(most, total - start) for start in range(0, total, most)]


def _require_positive(**arguments: int) -> None:
    for name, value in arguments.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, but is {value}")


def _log_weights(
    model: Model, guide: Guide, batch: Batch, num_particles: int, plan: Plan
) -> Tensor:
    traces = trace_pair(model, guide, batch, num_particles, dim=plan.dim)
    return weigh(traces, (num_particles, batch_size(batch)), plan)


def _log_prob(trace: Trace, shape: torch.Size) -> Tensor:
    """Return the sum of a trace's log probabilities per particle and datum."""
    return sum(per_datum(n, log_prob_of(site), shape) for n, site in _samples(trace).items())


def log_prob_of(site: dict) -> Tensor | float:
    """Return a site's log probability, less the factor that a data plate has if it is subsampled."""
    for frame in site["cond_indep_stack"]:
        if frame.name == DATA_PLATE and frame.full_size not in (None, frame.size):
            return site["log_prob"] * (frame.size / frame.full_size)
    return site["log_prob"]


def _density_at(guide: Guide, batch: Batch, draws: Mapping[str, Tensor]) -> Tensor:
    shape = torch.Size((batch_size(draws), batch_size(batch)))
    values = {  # (J, N, ...)
        name: draw.unsqueeze(1).expand(*shape, *draw.shape[1:]) for name, draw in draws.items()
    }
    conditioned = poutine.condition(particles(guide, shape[0]), data=values)
    trace = prune_subsample_sites(poutine.trace(conditioned).get_trace(batch))
    for name in latent_sites(trace):
        raise WeightlessError(
            f"the guide samples {name!r} on the way to {sorted(draws)}, so that its density of them "
            "is an integral: estimate it with log_weights instead"
        )
    refuse_weightless(trace)
    trace.compute_log_prob()
    return _log_prob(trace, shape)


def refuse_weightless(guide_trace: Trace, points: Collection[str] = ()) -> None:
    """Raise if a latent of the guide's trace has no density to weigh its draws with.

    Args:
        guide_trace: The guide's.
        points: Latents known to be points: `plan_of` tells them apart where others are transported.

    Raises:
        WeightlessError: For a `Delta` that no auxiliary site stands behind, and for a site marked
            `infer={"weightless": reason}`.
    """
    sites = _samples(guide_trace)
    transported = any(site["infer"].get("is_auxiliary") for site in sites.values())
    for name, site in sites.items():
        reason = site["infer"].get("weightless")
        point = name in points or (is_delta(site["fn"]) and not transported)
        if reason or point:
            raise WeightlessError(
                f"the guide's site {name!r} has no importance weights: "
                f"{reason or 'it is a point (Delta), not a density'}. Judge the model by another "
                "guide, such as Normal, fitted to it afterwards"
            )


def is_delta(fn: dist.TorchDistribution) -> bool:
    """Return whether a distribution is a `Delta`, a point or the end of a transport."""
    while isinstance(fn, torch.distributions.Independent):
        fn = fn.base_dist
    return isinstance(fn, dist.Delta)
