"""The ELBO with its information and its aggregate posterior weighted apart."""

import math
from collections.abc import Callable
from functools import partial

import torch
from pyro.poutine import Trace
from torch import Tensor, nn

from ppvae.divergences import Critic, mmd
from ppvae.objectives.base import Terms
from ppvae.objectives.beta import PenalizedELBO
from ppvae.objectives.mixture import require_alone
from ppvae.pairing import Record
from ppvae.weights import latent_sites

__all__ = ["InfoELBO"]

Divergence = Callable[..., Tensor]


class InfoELBO(PenalizedELBO):
    """InfoVAE's objective: the KL of each datum and that of all data together, weighted apart.

        mean_n [ln p(x_n|z_n) - (1 - alpha) KL(q(z|x_n) || p(z))] - (alpha + lam - 1) D(q(z), p(z))

    with q(z) = E_x q(z|x). alpha weighs the mutual information of x and z, lam the distance of
    q(z) from the prior. (0, 1) is the ELBO, (1 - beta, beta) the beta-ELBO, (1, lam) with `mmd`
    MMD-VAE, (1, 1) with a `Critic` the adversarial autoencoder. A term of weight zero is left out,
    and draws no random number.

    **A bound only where alpha <= 0** and D >= 0, and then of a batch's mean evidence, not of each
    datum's. Judge a pair by `log_weights`, where the objective plays no part.

    Args:
        alpha: The weight of the information that z keeps of x, at most 1; 0 as in the ELBO. With
            alpha = 1 there is no KL per datum, and the guide need not have a density.
        lam: The weight of q(z)'s distance, in nats beside a reconstruction summed over pixels;
            code that takes the mean over 784 pixels uses lam / 784.
        divergence: D. A function or module of two samples `(..., N, d)`, the guide's and as many
            draws of the model's own prior, such as `mmd` or a `Critic`, which trains with the
            objective and is left out in evaluation; with an attribute `moments = True`, of the two
            distributions, such as `mmd_gaussian`; with `score = True`, of the guide's draws and
            the prior's distribution, such as `stein`.
        site: The latent.
        **kwargs: As in `PenalizedELBO`: further penalties and options, beta aside.

    Raises:
        ValueError: If alpha + lam < 1, which would *maximize* D; if alpha > 1; on the first loss,
            if the pair has no such site, or draws without pathwise gradients; if D refuses the
            pair or a batch of one.
        TypeError: If the divergence is not callable.

    References:
        Zhao, Song, Ermon (2019), InfoVAE, arXiv:1706.02262, equation 6. Makhzani et al. (2015),
        arXiv:1511.05644. Tolstikhin et al. (2018), arXiv:1711.01558. Hoffman, Johnson (2016).

    Example:
        >>> loss = InfoELBO(alpha=1.0, lam=10.0)
        >>> float(loss.beta), loss.penalty_names
        (0.0, ('aggregate',))
        >>> InfoELBO(alpha=0.0, lam=1.0).penalty_names  # the ELBO
        ()
    """

    def __init__(
        self,
        alpha: float = 0.0,
        lam: float = 1.0,
        divergence: Divergence = mmd,
        *,
        site: str = "z",
        **kwargs,
    ) -> None:
        weight = _weight(alpha, lam)
        if not callable(divergence):
            raise TypeError(
                f"divergence must be a function or module of two samples, but is {divergence!r}: "
                "such as ppvae.divergences.mmd, or Critic(network)"
            )
        terms = {"aggregate": _Aggregate(divergence, weight, site)} if weight else {}
        super().__init__(beta=1.0 - alpha, **terms, **kwargs)
        self.site = site

    def objective(self, terms: Terms) -> Tensor:
        """Return the beta-ELBO; without a KL, factors are constants, and stay."""
        value = super().objective(terms)
        return value + terms.log_factor.mean(0) if self.without_kl else value

    def _require_sites(self, record: Record) -> None:
        if self.without_kl:
            require_alone(self, self.site, record)


class _Aggregate(nn.Module):
    """The penalty weight D(q(z), p(z)), of a pair of traces."""

    def __init__(self, divergence: Divergence, weight: float, site: str) -> None:
        super().__init__()
        self.divergence, self.weight, self.site = divergence, weight, site
        self.record: dict[str, Tensor] = {}

    def forward(self, model_trace: Trace, guide_trace: Trace) -> Tensor:
        """Return the penalty, 0-d in nats per datum."""
        self._check(guide_trace)
        if isinstance(self.divergence, Critic) and not torch.is_grad_enabled():
            self.record = {}  # what a critic says is no number to compare epochs by
            return guide_trace.nodes[self.site]["value"].new_zeros(())
        q, p, z = (
            guide_trace.nodes[self.site]["fn"],
            model_trace.nodes[self.site]["fn"],
            guide_trace.nodes[self.site]["value"],
        )
        if _takes("moments", self.divergence):
            value = self.divergence(q, p)
        elif _takes("score", self.divergence):
            value = self.divergence(z, p)
        else:
            value = self.divergence(z, p.rsample() if p.has_rsample else p.sample())
        self.record = {"divergence": value.detach(), **getattr(self.divergence, "record", {})}
        return self.weight * value

    def _check(self, guide_trace: Trace) -> None:
        sites = latent_sites(guide_trace)
        if self.site not in sites:
            raise ValueError(
                f"the guide has no latent {self.site!r}, but {sorted(sites)}: name one by "
                "InfoELBO(site=...)"
            )
        jumping = [name for name, site in sites.items() if not site["fn"].has_rsample]
        if jumping and torch.is_grad_enabled():
            raise ValueError(
                f"the draws of {jumping} have no pathwise gradients, without which a divergence "
                "of the whole batch does not reach the guide: use a reparameterized guide, such "
                "as Normal"
            )


def _weight(alpha: float, lam: float) -> float:
    """Return alpha + lam - 1, exactly 0 where it is but for rounding."""
    if not (math.isfinite(alpha) and math.isfinite(lam)):
        raise ValueError(f"alpha and lam must be finite, but are {alpha} and {lam}")
    if alpha > 1:
        raise ValueError(
            f"alpha must be at most 1, but is {alpha}: beyond, the KL of each datum would be "
            "maximized"
        )
    weight = alpha + lam - 1
    if abs(weight) <= 1e-12 * max(1.0, abs(alpha), abs(lam)):
        return 0.0
    if weight < 0:
        raise ValueError(
            f"alpha + lam must be at least 1, but is {alpha} + {lam} = {alpha + lam:g}: the "
            f"divergence from the prior would be maximized. Raise lam to {1 - alpha:g} to leave "
            "the divergence out, and further to weigh it"
        )
    return weight


def _takes(kind: str, divergence: Divergence) -> bool:
    """Return whether a divergence, options filled in or not, takes what `kind` says."""
    while isinstance(divergence, partial):
        divergence = divergence.func
    return getattr(divergence, kind, False)
