"""A mixture of factorized Normals whose draws have the right gradient."""

import math

import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = ["MixtureOfDiagNormals"]


class MixtureOfDiagNormals(dist.MixtureOfDiagNormals):
    """Pyro's mixture of factorized Normals, with an unbiased gradient of the weights.

        q(z) = sum_c pi_c prod_d N(z_d; m_cd, s_cd^2)

    Pyro 1.9's own pathwise gradient of the logits is right for two components of scale 1 only.
    Here each draw moves with its components' m and s in proportion to their share of it, and with
    the logits as its distribution function demands, coordinate by coordinate:

        dz_d / dlogits = -(dF(z_d | z_<d) / dlogits) / q(z_d | z_<d)

    The variance of the latter grows without bound as components part: beyond some six standard
    deviations their weights hardly learn.

    Args:
        locs: m, (..., K, D).
        coord_scale: s, (..., K, D).
        component_logits: ln pi up to a constant, (..., K).

    References:
        Jankowiak, Karaletsos (2019), Pathwise Derivatives for Multivariate Distributions,
        arXiv:1806.01856.
        Figurnov, Mohamed, Mnih (2018), Implicit Reparameterization Gradients, arXiv:1805.08498.

    Example:
        >>> q = MixtureOfDiagNormals(torch.zeros(5, 3, 2), torch.ones(5, 3, 2), torch.zeros(5, 3))
        >>> q.rsample().shape
        torch.Size([5, 2])
    """

    @property
    def mean(self) -> Tensor:
        """E[z] = sum_c pi_c m_c, (..., D)."""
        return (self.categorical.probs.unsqueeze(-1) * self.locs).sum(-2)

    @property
    def variance(self) -> Tensor:
        """Var[z_d] = sum_c pi_c (s_cd^2 + m_cd^2) - E[z_d]^2, (..., D)."""
        spread = (self.locs - self.mean.unsqueeze(-2)).square() + self.coord_scale.square()
        return (self.categorical.probs.unsqueeze(-1) * spread).sum(-2)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw z, `(*sample_shape, ..., D)`, with gradients."""
        locs, scales = self.locs.detach(), self.coord_scale.detach()  # (..., K, D)
        which = self.categorical.sample(sample_shape)[..., None, None]
        which = which.expand(*which.shape[:-1], self.dim)  # (*sample_shape, ..., 1, D)
        loc, scale = (
            t.expand(*which.shape[:-2], *t.shape[-2:]).gather(-2, which).squeeze(-2)
            for t in (locs, scales)
        )
        z = loc + scale * torch.randn_like(loc)
        if not torch.is_grad_enabled():
            return z
        noise = (z.unsqueeze(-2) - locs) / scales  # (*sample_shape, ..., K, D)
        log_share = self.categorical.logits.detach() - (noise.square() / 2 + scales.log()).sum(-1)
        by_components = (
            log_share.softmax(-1).unsqueeze(-1) * (self.locs + self.coord_scale * noise)
        ).sum(-2)
        z = z + (by_components - by_components.detach())
        if not self.component_logits.requires_grad:  # as with equal weights
            return z
        by_weights = _implicit(z.detach(), locs, scales, self.component_logits)
        return z + (by_weights - by_weights.detach())


def _implicit(z: Tensor, locs: Tensor, scales: Tensor, logits: Tensor) -> Tensor:
    """Return z with the gradient to the logits that keeps every F(z_d | z_<d) where it is."""
    log_w, moved = logits, []
    for x, loc, scale in zip(z.split(1, -1), locs.unbind(-1), scales.unbind(-1), strict=True):
        noise = (x - loc) / scale  # (..., K)
        weights = log_w.softmax(-1)
        cdf = (weights * torch.special.ndtr(noise)).sum(-1, keepdim=True)
        density = (weights * (-noise.square() / 2).exp() / scale).sum(-1, keepdim=True).detach()
        density = density.clamp(min=torch.finfo(z.dtype).tiny) / math.sqrt(2 * math.pi)
        x = x - (cdf - cdf.detach()) / density
        log_w = log_w - ((x - loc) / scale).square() / 2 - scale.log()
        moved.append(x)
    return torch.cat(moved, -1)
