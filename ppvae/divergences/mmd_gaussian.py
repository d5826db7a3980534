"""The maximum mean discrepancy of Normals, from their moments: no draws, no noise of draws."""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.distributions import Distribution

from ppvae.divergences.kernels import Bandwidth, Estimator, require_pairs, squared_width
from ppvae.divergences.normals import standardized

__all__ = ["mmd_gaussian"]

BLOCK = {"cpu": 2**16, "cuda": 2**22}  # elements of (rows, N, d) at a time; a CPU has a cache


def mmd_gaussian(
    q: Distribution,
    p: Distribution,
    *,
    bandwidth: Bandwidth = None,
    estimator: Estimator = "v",
) -> Tensor:
    """Return the squared MMD of a batch's Normal posteriors and a Normal prior, 0-d.

        E_qq = mean_ij prod_k (g^2/w)^(1/2) exp(-(m_ik - m_jk)^2 / (2 w)),  w = g^2 + v_ik + v_jk

    and alike for E_qp and E_pp: the expectation of `mmd` with its "rbf" kernel over the draws, so
    that the gradient has less noise: prefer it. In units of the prior's standard deviation.

    Time is O(N^2 d). Memory is O(N d) beside a block of fixed size, since the gradient is found
    along with the value; it cannot be differentiated again.

    Args:
        q: q(z|x), `Normal(m, sqrt(v)).to_event(1)` of batch shape (..., N). Axes before N are
            particles, a discrepancy each, then the mean.
        p: p(z), `Normal(a, b).to_event(1)`, one for all data, of the same event shape.
        bandwidth: g, in units of b, by default sqrt(d); "author" for 2 g^2 = d^2.
        estimator: "v" is exactly the squared MMD of the batch's mixture, mean_i q(z|x_i), and the
            prior, never negative, and pays for narrow posteriors, by up to 1/N; "u" leaves out
            i = j, and is unbiased for the mixture over all data: for large weights.

    Raises:
        TypeError: If q or p is not a factorized Normal, naming what it is.
        ValueError: If the prior differs between data, an option is unknown or not positive, or "u"
            meets a batch of one.

    References:
        Zhao et al. (2019), InfoVAE, arXiv:1706.02262; the integrals are Gaussian.

    Example:
        >>> q = dist.Normal(torch.tensor([[-1.0], [1.0]]), 0.5**0.5).to_event(1)
        >>> mmd_gaussian(q, dist.Normal(torch.zeros(1), 1.0).to_event(1), bandwidth=1.0)
        tensor(0.0253)
    """
    m, v = standardized(q, p)
    d = m.shape[-1]
    g2 = squared_width(bandwidth, d)
    qq = torch.stack([_mean_kernel(*each, g2, estimator) for each in zip(m, v, strict=True)])
    w = g2 + 1 + v  # (P, N, d)
    qp = ((g2 / w).log() - m.square() / w).sum(-1).div(2).exp()
    return qq.mean() - 2 * qp.mean() + (g2 / (g2 + 2)) ** (d / 2)


mmd_gaussian.moments = True  # takes the two distributions instead of two samples


def _mean_kernel(m: Tensor, v: Tensor, g2: float, estimator: Estimator) -> Tensor:
    """E_qq of moments (N, d), 0-d."""
    if estimator not in ("u", "v"):
        raise ValueError(f"estimator must be 'u' or 'v', but is {estimator!r}")
    mean, count = _MeanKernel.apply(m / g2**0.5, v / g2), len(m)
    if estimator == "v":
        return mean
    require_pairs(count)
    itself = (g2 / (g2 + 2 * v)).log().sum(-1).div(2).exp()  # (N,), the pairs i = j
    return (count * mean - itself.mean()) / (count - 1)


class _MeanKernel(torch.autograd.Function):
    """The mean of the kernel over all pairs, with its gradient, a block of rows at a time."""

    @staticmethod
    def forward(ctx: FunctionCtx, m: Tensor, v: Tensor) -> Tensor:
        """Return mean_ij k_ij of moments (N, d) in units of g, and keep its derivatives."""
        (n, d), total, ones = m.shape, m.new_zeros(()), m.new_ones(m.shape[-1])
        by_m, by_v = torch.empty_like(m), torch.empty_like(v)
        size = max(1, min(n, BLOCK.get(m.device.type, BLOCK["cpu"]) // (n * d)))
        held = [m.new_empty(size, n, d) for _ in range(3)]  # made once: to make them takes longer
        for start in range(0, n, size):
            rows = slice(start, start + size)
            delta, w, slope = (block[: n - start] for block in held)  # (R, n, d)
            torch.sub(m[rows, None], m, out=delta)
            torch.add(v[rows, None], v + 1, out=w)
            torch.div(delta, w, out=slope)
            k = (delta.mul_(slope) @ ones).div_(-2).exp_() * w.prod(-1).rsqrt_()  # no log: dear
            k = k[:, None]  # (R, 1, n)
            total += k.sum()
            if any(ctx.needs_input_grad):
                by_m[rows] = (k @ slope).neg_()[:, 0]
                by_v[rows] = (k @ slope.square_().sub_(w.reciprocal_())).div_(2)[:, 0]
        ctx.save_for_backward(by_m, by_v)
        return total / n**2

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Scale what the forward pass found: each datum is first and second in its pairs."""
        by_m, by_v = ctx.saved_tensors
        scale = 2 * gradient / len(by_m) ** 2
        return scale * by_m, scale * by_v
