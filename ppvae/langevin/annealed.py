"""Densities of where a chain ends: by its Jacobian, or by a bridge of forward and backward steps.

Both are densities given random numbers drawn on the way, so that E[p(x, z_K) / density] = p(x).
"""

from collections.abc import Callable, Sequence

import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor

from ppvae.langevin.chain import LogDensity, Point, located, point, require_finite, widened

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

    A density only where z_0 -> z_K is one to one, (s^2/2) max(-d^2 log p/dz^2) < 1, which nobody
    checks: beyond, a "bound" may lie above ln p(x). Its log weights punish a chain that forgets
    z_0, so that their best step is too small. D backward passes through the K steps.

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
        ChainError: As in `langevin`.

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
        z_0 = z = start.detach().requires_grad_()
        total = len(step_sizes)
        for k, step_size in enumerate(step_sizes):
            at = point(log_density, z, create_graph=True, step=k, total=total)
            s = widened(step_size, at)
            z = z + s * s / 2 * at.slope + noise * s * torch.randn_like(z)
        rows = [
            torch.autograd.grad(
                z[..., d].sum(), z_0, retain_graph=True, create_graph=create_graph
            )[0]
            for d in range(z.shape[-1])
        ]
        log_q = log_start - torch.linalg.slogdet(torch.stack(rows, -2)).logabsdet
    return (z, log_q) if create_graph else (z.detach(), log_q.detach())


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
        ChainError: Under validation, if a number is not finite: which datum, which step.

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
    slopes = _slopes(parts, z, tempered, 0, total)
    for k, step_size in enumerate(step_sizes, start=1):
        s = widened(step_size, Point(z, log_start, z))
        scale = noise * s
        beta = k / total
        z_before, slope = z, slopes[0] + beta * slopes[1]
        forward = torch.randn_like(z)
        z = z + s * s / 2 * slope + scale * forward
        slopes = _slopes(parts, z, tempered, k, total)
        back = (z_before - z - s * s / 2 * (slopes[0] + beta * slopes[1])) / scale
        gain = gain + (back.square() - forward.square()).sum(-1) / 2  # constants cancel
    return z, (log_start + gain).detach()


def _slopes(
    parts: Parts, z: Tensor, tempered: bool, step: int, total: int
) -> tuple[Tensor, Tensor | float]:
    """Return the gradients of log p(z) and of log p(x|z), or of their sum and 0."""
    if not tempered:
        return point(lambda u: sum(parts(u)), z, step=step, total=total).slope, 0.0
    with torch.enable_grad(), located(step, total):
        z = z.detach().requires_grad_()
        log_prior, log_likelihood = parts(z)
        joint = log_prior + log_likelihood
        (whole,) = torch.autograd.grad(joint.sum(), z, retain_graph=True)
        (prior,) = torch.autograd.grad(log_prior.sum(), z)
        if is_validation_enabled():
            require_finite(Point(z, joint, whole))
    return prior, whole - prior
