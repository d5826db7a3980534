"""Whether a latent is the one that made the data, up to order and scale."""

import torch
from torch import Tensor

__all__ = ["mean_correlation"]


def mean_correlation(found: Tensor, sources: Tensor) -> float:
    """Return the mean absolute correlation of latents with the sources that they match best.

        MCC = 1/d sum_i |corr(z_pi(i), s_i)|,  pi = argmax sum_i |corr(z_pi(i), s_i)|

    The assignment pi is fitted on the even rows and scored on the odd ones: matched and scored on
    the same, noise alone would correlate. 1 where the latents are the sources, permuted, scaled,
    shifted and flipped; the expectation under independence falls as N^-1/2. Pearson's, of the
    latents as they are: not after a linear map, nor of ranks.

    Args:
        found: Latents, such as posterior means, (N, d') with d' >= d; those left over count not.
        sources: s, (N, d).

    Raises:
        ValueError: If they differ in N, there are fewer latents than sources or fewer than 6 data,
            or one is constant.

    References:
        Khemakhem et al. (2020), Variational Autoencoders and Nonlinear ICA, arXiv:1907.04809.

    Example:
        >>> s = torch.randn(100, 3)
        >>> round(mean_correlation(1 - 2 * s[:, [2, 0, 1]], s), 4)
        1.0
    """
    from scipy.optimize import linear_sum_assignment

    if (
        found.ndim != 2
        or sources.ndim != 2
        or len(found) != len(sources)
        or found.shape[1] < sources.shape[1]
        or len(found) < 6
    ):
        raise ValueError(
            "mean_correlation takes latents (N, d') and sources (N, d) with d' >= d and N >= 6, "
            f"but got shapes {tuple(found.shape)} and {tuple(sources.shape)}"
        )
    z, s = (t.detach().double().cpu() for t in (found, sources))
    fitted, scored = (_correlations(s[half::2], z[half::2]) for half in range(2))
    rows, columns = linear_sum_assignment(-fitted.numpy())
    return float(scored[torch.from_numpy(rows), torch.from_numpy(columns)].mean())


def _correlations(s: Tensor, z: Tensor) -> Tensor:
    """Return |corr(s_i, z_j)|, (d, d')."""
    s, z = (t - t.mean(0) for t in (s, z))
    lengths = s.norm(dim=0)[:, None] * z.norm(dim=0)
    if not bool((lengths > 0).all()):
        raise ValueError(
            "a latent or a source is constant, and correlates with nothing: leave it out, or see "
            "active_units for latents that have collapsed"
        )
    return (s.mT @ z / lengths).abs()
