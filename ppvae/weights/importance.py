"""Log weights and log densities, in chunks of bounded memory."""

from collections.abc import Mapping

import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from ppvae.pairing import (
    Mark,
    Pair,
    WeightlessError,
    evaluating,
    is_deterministic,
    joint_weights,
    latent_sites,
    log_prob_of,
    particles,
    per_datum,
    refuse_weightless,
    sample_sites,
    trace_pair,
)
from ppvae.protocols import Batch, Guide, Model, batch_size, rows_of
from ppvae.weights.plan import Plan, plan_of, require_all_data
from ppvae.weights.precision import require_precision
from ppvae.weights.unbounded import Unbounded, require_evidence

__all__ = ["CHUNK", "elbo_per_datum", "log_weights", "pairwise_log_density", "weigh"]

CHUNK = 2**14  # (particle, datum) pairs at once: 50 MB per layer of 784 floats


def log_weights(
    model: Model, guide: Guide, batch: Batch, num_particles: int, *, chunk_size: int = CHUNK
) -> Tensor:
    """Return the log importance weights of draws from the guide, in nats.

        log w_kn = log p(x_n, z_kn) - log q(z_kn | x_n),  z_kn ~ q(z | x_n)

    Their mean over k is the ELBO, their log-mean-exp a bound on ln p(x) that tightens with K,
    their tail says whether either can be trusted. Where the prior reads the data, as that of
    `models.ModalLatents` does, they bound nothing, and `evidence` refuses them. Modules run in
    evaluation mode and without gradients, and are left as they were; random numbers are drawn from
    torch's global generators.

    Where a latent lies outside of the data plate, as those of Pyro's autoguides do for a
    regression, there is one weight for all data:

        log w_k = log p(x_1, ..., x_N, z_k) - log q(z_k | x_1, ..., x_N)

    and its log-mean-exp estimates ln p(x_1, ..., x_N), the evidence of the whole batch. Pass all
    the data then, for a plate that is subsampled scales its likelihood. They are not split into
    chunks. Sites that cannot take particles, such as `x @ w`, are drawn one by one.

    Args:
        model: Samples p(x, z).
        guide: Samples q(z | x).
        batch: x, `(N, ...)`.
        num_particles: The number K of draws per datum.
        chunk_size: How many (particle, datum) pairs are evaluated at once. The memory needed is
            this many times the activations of the largest layer: lower it for large images.

    Returns:
        The log weights, `(K, N)`, also for K = 1; `(K, 1)` where data share a latent.

    Raises:
        WeightlessError: If the guide has no density, in words.
        ValueError: If the batch is empty, `num_particles` or `chunk_size` is not positive, a site
            breaks the shape contract of `ppvae.protocols`, or an autoguide was made for other
            data.

    Example:
        >>> from ppvae.guides import Exact
        >>> from ppvae.models import LinearGaussian
        >>> model = LinearGaussian(torch.ones(3, 2))
        >>> log_weights(model, Exact(model), torch.zeros(5, 3), num_particles=4).shape
        torch.Size([4, 5])
    """
    _require_positive(num_particles=num_particles, chunk_size=chunk_size)
    batch_size(batch)  # raises in words
    with evaluating(model, guide):
        plan = plan_of(model, guide, batch)
        require_all_data(plan, batch)
        return _weighed(model, guide, batch, num_particles, plan, chunk_size)


def _weighed(
    model: Model, guide: Guide, batch: Batch, num_particles: int, plan: Plan, chunk_size: int
) -> Tensor:
    """Return the log weights of a planned pair, marked with what they do not bound."""
    size = batch_size(batch)
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
    return Unbounded.marked(torch.cat(columns, dim=1), plan.reason, plan.note)


def elbo_per_datum(model: Model, guide: Guide, batch: Batch, num_particles: int = 1) -> Tensor:
    """Return the ELBO by draws, in nats per datum, 0-d, also for weights of all data at once.

    Raises:
        WeightlessError: If the guide has no density, or the prior reads the data, in words.

    Example:
        >>> from ppvae.guides import Exact
        >>> from ppvae.models import LinearGaussian
        >>> model = LinearGaussian(torch.ones(1, 1))
        >>> elbo = elbo_per_datum(model, Exact(model), torch.zeros(5, 1))
        >>> round(elbo.item(), 4)  # ln N(0; 0, 2)
        -1.2655
    """
    _require_positive(num_particles=num_particles)
    batch_size(batch)  # raises in words
    with evaluating(model, guide):
        plan = plan_of(model, guide, batch)
        log_w = _weighed(model, guide, batch, num_particles, plan, CHUNK)
    require_evidence(log_w)
    return log_w.sum(1).mean() / plan.size


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
    require_precision(*traces)
    if plan.joint:
        return joint_weights(traces, shape[0], plan.dim, plan.size / shape[1])[:, None]
    log_p, log_q = (_log_prob(trace, torch.Size(shape)) for trace in traces)
    return log_p - log_q


def _log_weights(
    model: Model, guide: Guide, batch: Batch, num_particles: int, plan: Plan
) -> Tensor:
    traces = trace_pair(model, guide, batch, num_particles, dim=plan.dim)
    return weigh(traces, (num_particles, batch_size(batch)), plan)


def _log_prob(trace: Trace, shape: torch.Size) -> Tensor:
    """Return the sum of a trace's log probabilities per particle and datum."""
    return sum(
        per_datum(name, log_prob_of(site), shape)
        for name, site in sample_sites(trace).items()
        if not is_deterministic(site)
    )


def _density_at(guide: Guide, batch: Batch, draws: Mapping[str, Tensor]) -> Tensor:
    shape = torch.Size((batch_size(draws), batch_size(batch)))
    values = {  # (J, N, ...)
        name: draw.unsqueeze(1).expand(*shape, *draw.shape[1:]) for name, draw in draws.items()
    }
    conditioned = poutine.condition(particles(guide, shape[0]), data=values)
    trace = prune_subsample_sites(poutine.trace(conditioned).get_trace(batch))
    for name, site in sample_sites(trace).items():
        if reason := Mark.of(site).conditional:
            raise WeightlessError(
                f"the guide's density of {name!r} at given points is an integral: {reason}. "
                "Estimate it with log_weights instead"
            )
    for name in latent_sites(trace):
        raise WeightlessError(
            f"the guide samples {name!r} on the way to {sorted(draws)}, so that its density of "
            "them is an integral: estimate it with log_weights instead"
        )
    refuse_weightless(trace)
    trace.compute_log_prob()
    require_precision(trace)
    return _log_prob(trace, shape)


def _require_positive(**arguments: int) -> None:
    for name, value in arguments.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, but is {value}")
