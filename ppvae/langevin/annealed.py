"""Densities of where a chain ends: by its Jacobian, or by a bridge of forward and backward steps.

Both are densities given random numbers drawn on the way, so that E[p(x, z_K) / density] = p(x).
"""

from collections.abc import Callable, Sequence

import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor

from ppvae.langevin.chain import (
    ChainError,
    LogDensity,
    Point,
    Watch,
    first_true,
    located,
    point,
    require_finite,
    widened,
)

__all__ = ["bridge", "transport"]

Parts = Callable[[Tensor], tuple[Tensor, Tensor]]


def transport(
    log_density: LogDensity,
    start: Tensor,
    log_start: Tensor,
    step_sizes: Sequence[float | Tensor] | Tensor,
    *,
    noise: float | Tensor = 1.0,
    create_graph: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the end of a Langevin chain, and its log density given all its noises.

        log q(z_K) = log p(z_0) - ln |det dz_K / dz_0|

    A density only where z_0 -> z_K is one to one, (s^2/2) max(-d^2 log p/dz^2) < 1: beyond, a
    "bound" may lie above ln p(x). Under validation that is checked wherever a chain comes by. Its
    log weights punish a chain that forgets z_0, so that their best step is too small. D backward
    passes per step.

    Args:
        log_density: As in `langevin`, twice differentiable. cuDNN's recurrent networks are not:
            they run without cuDNN here.
        start: z_0, (..., N, D).
        log_start: Its log density, (..., N).
        step_sizes: As in `langevin`; gradients reach them under `create_graph`.
        noise: T.
        create_graph: Whether what is returned is to be differentiable.

    Returns:
        z_K, (..., N, D), and its log density, (..., N).

    Raises:
        ChainError: As in `langevin`; under validation, if a step is not one to one.

    References:
        Pang, Nijkamp, Han, Wu (2021), Short Run Inference, arXiv:2106.02513, section 3.4.

    Example:
        >>> def log_p(z):
        ...     return dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
        >>> z_0 = torch.zeros(4, 2)
        >>> transport(log_p, z_0, log_p(z_0), [0.1] * 3)[1].shape  # det = (1 - 0.1^2 / 2)^6
        torch.Size([4])
    """
    with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
        z, total, log_det = start.detach().requires_grad_(), len(step_sizes), 0.0
        watch, watched = None, is_validation_enabled()
        for k, step_size in enumerate(step_sizes):
            at = point(log_density, z, create_graph=True, step=k, total=total)
            if watched:  # by the step that led here
                watch = _watched(watch, at, k, widened(step_sizes[max(k - 1, 0)], at))
            s = widened(step_size, at)
            jacobian = _jacobian(at, s, create_graph)
            if watched:
                _require_one_to_one(jacobian, k + 1, total)
            log_det = log_det + torch.linalg.slogdet(jacobian).logabsdet
            z = z + s * s / 2 * at.slope + noise * s * torch.randn_like(z)
            z = z if create_graph else z.detach().requires_grad_()
        if watch is not None:
            watch.close(z.detach(), total)
    log_q = log_start - log_det
    return (z, log_q) if create_graph else (z.detach(), log_q.detach())


def _jacobian(at: Point, s: float | Tensor, create_graph: bool) -> Tensor:
    """Return I + (s^2/2) d^2 log p/dz^2, (..., N, D, D), of one step, the noise given."""
    size = at.z.shape[-1]
    graph = {"retain_graph": True, "create_graph": create_graph, "materialize_grads": True}
    rows = [torch.autograd.grad(at.slope[..., d].sum(), at.z, **graph)[0] for d in range(size)]
    width = s * s / 2 if not isinstance(s, Tensor) else (s * s / 2).unsqueeze(-1)
    return torch.eye(size, device=at.z.device, dtype=at.z.dtype) + width * torch.stack(rows, -2)


def _require_one_to_one(jacobian: Tensor, step: int, total: int) -> None:
    """Raise if a step folds space where a chain has come by."""
    jacobian = jacobian.detach()
    least = torch.linalg.eigvalsh((jacobian + jacobian.mT) / 2).amin(-1)  # (..., N)
    if (least <= 0).any():
        place = first_true(least <= 0)
        raise ChainError(
            f"step {step} of {total} of the transport folds at datum {place[-1]}: half its "
            f"squared step size times the curvature of the log joint is "
            f"{1 - float(least[place]):.3g} there, where less than 1 is due for a map that is one "
            'to one, without which there is no density. Lower step_size, or take density="bridge"'
        )


def _watched(watch: Watch | None, at: Point, step: int, s: float | Tensor) -> Watch:
    """Show a state to the one that tells chains that diverge."""
    at = Point(*(part.detach() for part in at))
    if watch is None:
        return Watch(at)
    watch.see(at, step, s)
    return watch


def bridge(
    parts: Parts,
    start: Tensor,
    log_start: Tensor,
    step_sizes: Sequence[float | Tensor] | Tensor,
    *,
    noise: float | Tensor = 1.0,
    tempered: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return the end of a chain along a bridge of densities, and its log density given its path.

        pi_k proportional to p(z) p(x|z)^(k/K),  k = 1 .. K
        F_k = N(z_k; z_(k-1) + (s_k^2/2) grad log pi_k(z_(k-1)), T^2 s_k^2 I)
        B_k = N(z_(k-1); z_k + (s_k^2/2) grad log pi_k(z_k), T^2 s_k^2 I)
        log q(z_K) = log p(z_0) + sum_k log F_k - log B_k

    Annealed importance sampling without accept steps: weights are right for any step, and no
    second derivative is needed.

    Args:
        parts: Maps z, (..., N, D), to log p(z) and log p(x|z), (..., N) each, such as
            `LogJoint.parts`.
        start: z_0, (..., N, D).
        log_start: Its log density, (..., N).
        step_sizes: As in `langevin`.
        noise: T, above 0.
        tempered: Whether there is a bridge; otherwise every pi_k is p(z|x).

    Returns:
        z_K, (..., N, D), and its log density, (..., N).

    Raises:
        ChainError: Under validation, if a number is not finite or the chain diverges: which datum,
            which step.

    References:
        Thin et al. (2021), Monte Carlo Variational Auto-Encoders, arXiv:2106.15921.
        Zhang et al. (2021), Differentiable Annealed Importance Sampling, arXiv:2107.10211.

    Example:
        >>> from ppvae.langevin import LogJoint
        >>> from ppvae.models import LinearGaussian
        >>> model, x = LinearGaussian(torch.ones(1, 1)), torch.zeros(1000, 1)
        >>> joint = LogJoint(model, x)
        >>> z_0 = joint.draw().z
        >>> z, log_q = bridge(joint.parts, z_0, joint.parts(z_0)[0], [0.5] * 20)
        >>> weights = (joint(z) - log_q - model.log_evidence(x)).exp()
        >>> bool((weights.mean() - 1).abs() < 0.05)
        True
    """
    z, total, gain = start.detach(), len(step_sizes), torch.zeros_like(log_start)
    log_p, *slopes = _slopes(parts, z, tempered, 0, total)
    watch = Watch(Point(z, log_p, slopes[0])) if is_validation_enabled() else None
    for k, step_size in enumerate(step_sizes, start=1):
        s = widened(step_size, Point(z, log_start, z))
        scale = noise * s
        beta = k / total
        before = Point(z, log_p, slopes[0] + beta * slopes[1])
        forward = torch.randn_like(z)
        z = z + s * s / 2 * before.slope + scale * forward
        log_p, *slopes = _slopes(parts, z, tempered, k, total)
        at = Point(z, log_p, slopes[0] + beta * slopes[1])
        if watch is not None:
            watch.see(at, k, s, before)
        back = (before.z - z - s * s / 2 * at.slope) / scale
        gain = gain + (back.square() - forward.square()).sum(-1) / 2  # constants cancel
    if watch is not None:
        watch.close(z, total)
    return z, (log_start + gain).detach()


def _slopes(
    parts: Parts, z: Tensor, tempered: bool, step: int, total: int
) -> tuple[Tensor, Tensor, Tensor | float]:
    """Return log p(z, x), and the gradients of log p(z) and of log p(x|z), or their sum and 0."""
    if not tempered:
        at = point(lambda u: sum(parts(u)), z, step=step, total=total)
        return at.log_p, at.slope, 0.0
    with torch.enable_grad(), located(step, total):
        z = z.detach().requires_grad_()
        log_prior, log_likelihood = parts(z)
        joint = log_prior + log_likelihood
        (whole,) = torch.autograd.grad(joint.sum(), z, retain_graph=True)
        (prior,) = torch.autograd.grad(log_prior.sum(), z)
        if is_validation_enabled():
            require_finite(Point(z, joint, whole))
    return joint.detach(), prior, whole - prior
