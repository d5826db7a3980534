"""What sentences are judged by: perplexity, reconstruction, information without densities."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ppvae.objectives import Terms
from ppvae.protocols import Batch, Guide, Model, batch_size, rows_of
from ppvae.weights import CHUNK, evaluating, latent_sites, refuse_weightless, trace_pair

__all__ = [
    "NestedInformation",
    "Perplexity",
    "nested_mutual_information",
    "perplexity",
    "reconstruction",
]


@dataclass(frozen=True)
class Perplexity:
    """How well sentences are predicted, per sentence and per token.

    Attributes:
        nll: -ln p(x), the mean over sentences, in nats.
        per_token: The perplexity, exp(sum -ln p(x) / number of tokens).
        tokens: The mean number of tokens of a sentence, <eos> counted, the start not.
    """

    nll: float
    per_token: float
    tokens: float


def perplexity(log_evidence: Tensor, batch: Tensor) -> Perplexity:
    """Return the perplexity of sentences, of their log evidence.

        PPL = exp(sum_n -ln p(x_n) / sum_n T_n)

    The end of a sentence is a token like any other, its start is none: 21.917 tokens to a sentence
    of Penn Treebank's test part. From a bound on ln p(x), such as `evidence(log_weights(...))`
    returns, it is an upper bound on the perplexity: say with how many particles. For a Langevin
    guide the weights are those of its density: of the last step, or of the bridge, which is
    annealed importance sampling without an accept step.

    Args:
        log_evidence: ln p(x) in nats, (N,), such as `evidence(log_w).log_evidence`.
        batch: Tokens, (N, T), padded with 0.

    Raises:
        ValueError: If there is not one number for each sentence.

    References:
        Pang et al. (2021), Generative Text Modeling through Short Run Inference, arXiv:2106.02513.

    Example:
        >>> batch = torch.tensor([[3, 4, 1], [5, 1, 0]])
        >>> tokens = torch.tensor([3.0, 2.0])
        >>> round(perplexity(-tokens * math.log(10), batch).per_token, 4)  # of 10 equal words
        10.0
    """
    if log_evidence.shape != batch.shape[:1] or batch.ndim != 2:
        raise ValueError(
            f"one log evidence for each sentence is due, (N,) for tokens (N, T), but the shapes "
            f"are {tuple(log_evidence.shape)} and {tuple(batch.shape)}"
        )
    tokens = int((batch != 0).sum())
    total = -float(log_evidence.double().sum())
    size = len(batch)
    return Perplexity(total / size, math.exp(total / tokens), tokens / size)


def reconstruction(
    model: Model,
    guide: Guide,
    batch: Batch,
    *,
    num_particles: int = 1,
    chunk_size: int = CHUNK,
) -> float:
    """Return -E ln p(x|z), z ~ q(z|x), in nats per datum: what is left to say when z is known.

    No bound, and no density is asked of the guide: a Langevin guide has it for its last state.

    Args:
        model: Samples p(x, z).
        guide: Samples q(z | x).
        batch: x, (N, ...).
        num_particles: The number K of draws per datum.
        chunk_size: How many (particle, datum) pairs are evaluated at once.

    Example:
        >>> from ppvae.guides import Exact
        >>> from ppvae.models import LinearGaussian
        >>> model = LinearGaussian(torch.zeros(1, 2))
        >>> round(reconstruction(model, Exact(model), torch.zeros(3, 1)), 4)  # ln(2 pi) / 2
        0.9189
    """
    size, rows = batch_size(batch), max(1, chunk_size // num_particles)
    total = 0.0
    with evaluating(model, guide):
        for start in range(0, size, rows):
            some = rows_of(batch, start, rows)
            shape = torch.Size((num_particles, batch_size(some)))
            terms = Terms(*trace_pair(model, guide, some, num_particles), shape)
            total -= float(terms.log_likelihood.double().mean(0).sum())
    return total / size


@dataclass(frozen=True)
class NestedInformation:
    """I_q(x; z) in nats, between two estimates that meet as their inner draws grow.

    Attributes:
        low: An estimate that is too low on average.
        high: One that is too high.
        num_particles: The number R of inner draws.
    """

    low: float
    high: float
    num_particles: int


def nested_mutual_information(
    guide: Guide,
    batch: Batch,
    *,
    num_particles: int = 100,
    site: str = "z",
    chunk_size: int = CHUNK,
) -> NestedInformation:
    """Estimate I_q(x; z) where q(z|x) is known given random numbers a on the way only.

        q(z|x_n) = E_a k(z | a, x_n) ~ 1/R sum_r k(z | a_nr, x_n)
        I = mean_n ln q(z_n|x_n) - ln 1/N sum_m q(z_n|x_m),   z_n ~ q(z|x_n)

    as for `guides.Langevin(..., density="step")`, where a is the state before the last step. The
    logarithm of a mean over draws is too low on average; with the draw that z itself came from
    among them, it is too high. `low` takes the former for q(z|x_n) and the latter for the mixture,
    `high` the other way round. The guide runs R + 1 times, and N^2 R densities are computed. At
    most about ln N can be seen. Where q(z|x) is known, `aggregate_posterior` is exact, and both
    ends are what it returns.

    Args:
        guide: Samples q(z | x), the site with a density given what came before.
        batch: x, (N, ...).
        num_particles: The number R of inner draws per datum.
        site: The latent.
        chunk_size: How many densities, and how many data, are evaluated at once.

    Raises:
        WeightlessError: If the guide has no density at all: it draws points.
        KeyError: If there is no such latent.

    References:
        Yin, Zhou (2018), Semi-Implicit Variational Inference, arXiv:1805.11183, for the two ends.
        Hoffman, Johnson (2016), ELBO surgery, equation 9.

    Example:
        >>> from ppvae.guides import Exact
        >>> from ppvae.models import LinearGaussian
        >>> guide = Exact(LinearGaussian(torch.zeros(3, 2)))  # x tells nothing about z
        >>> found = nested_mutual_information(guide, torch.randn(5, 3), num_particles=2)
        >>> max(abs(found.low), abs(found.high)) < 1e-6
        True
    """
    posteriors, mixtures = [], []  # of draw n: ln k given a_nr, ln sum_m k given a_mr
    with evaluating(guide):
        kernels, z = _run(guide, batch, site, chunk_size)
        for r in range(num_particles + 1):
            log_k = _densities(kernels, z, chunk_size).double()  # (N, N)
            own = log_k.diagonal()
            posteriors.append(own)
            mixtures.append(log_k.logsumexp(1) if r else own)  # the draws' own a come first
            kernels, _ = _run(guide, batch, site, chunk_size)
    inner, size = num_particles, len(z)
    low = _log_mean(posteriors[1:], inner) - _log_mean(mixtures, inner * size + 1)
    high = _log_mean(posteriors, inner + 1) - _log_mean(mixtures[1:], inner * size)
    return NestedInformation(float(low.mean()), float(high.mean()), num_particles)


def _run(
    guide: Guide, batch: Batch, site: str, rows: int
) -> tuple[list[torch.distributions.Distribution], Tensor]:
    """Return q(z|a, x) of some data at a time, and a draw for each datum, (N, D)."""
    kernels, draws = [], []
    for start in range(0, batch_size(batch), rows):
        _, trace = trace_pair(lambda _: None, guide, rows_of(batch, start, rows))
        refuse_weightless(trace)
        sites = latent_sites(trace)
        if site not in sites:
            raise KeyError(f"there is no latent {site!r}; there are {sorted(sites)}")
        kernels.append(sites[site]["fn"])
        draws.append(sites[site]["value"].reshape(-1, *sites[site]["fn"].event_shape))
    return kernels, torch.cat(draws)


def _densities(
    kernels: list[torch.distributions.Distribution], z: Tensor, chunk_size: int
) -> Tensor:
    """Return ln k(z_n | a_m), (N, N)."""
    columns = []
    for kernel in kernels:
        event = kernel.event_shape
        rows = max(1, 64 * chunk_size // kernel.batch_shape.numel())
        parts = [
            kernel.log_prob(some.reshape(len(some), *(1,) * len(kernel.batch_shape), *event))
            for some in z.split(rows)
        ]
        columns.append(torch.cat(parts).reshape(len(z), -1))
    return torch.cat(columns, dim=1)


def _log_mean(log_sums: list[Tensor], count: int) -> Tensor:
    """Return ln of the mean of `count` terms, (N,), of the logarithms of some partial sums."""
    return torch.stack(log_sums).logsumexp(0) - math.log(count)
