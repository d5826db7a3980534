"""One run of a model at latents: what each site is, and what the log joint is made of."""

from collections.abc import Mapping
from typing import NamedTuple

import pyro.distributions as dist
import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.distributions.transforms import Transform

from ppvae.langevin.chain import ChainError, first_true
from ppvae.protocols import DATA_PLATE

__all__ = ["Run", "Site", "SitesError"]


class SitesError(ValueError):
    """Values for a chain to start from that are not those of the model's latents."""


class Site(NamedTuple):
    """A latent of the model.

    Attributes:
        name: Its.
        shape: Of an event in unconstrained space.
        event_dim: How many axes an event has in the model.
        transform: From unconstrained space onto the support; None where that is all of space.
        plates: The model's, innermost first.
        mask: Where it counts in the model, if not everywhere: booleans, or one for all data.
    """

    name: str
    shape: tuple[int, ...]
    event_dim: int
    transform: Transform | None
    plates: tuple
    mask: Tensor | bool | None = None

    def constrain(self, u: Tensor) -> Tensor:
        """Return the latent, (..., N, *event), at a flat unconstrained value, (..., N, d)."""
        u = u.reshape(*u.shape[:-1], *self.shape)
        return u if self.transform is None else self.transform(u)

    def log_volume(self, u: Tensor) -> Tensor | float:
        """Return ln |det dz/du|, (..., N)."""
        if self.transform is None:
            return 0.0
        u = u.reshape(*u.shape[:-1], *self.shape)
        return log_volume(self.transform, u, self.transform(u), u.ndim - len(self.shape))


class Run(Messenger):
    """Runs a model at latents, and sums its log probabilities; nothing else leaves it.

    Args:
        values: Where latents are to be, by site.
        points: The same, unconstrained. Without either they are drawn, at auxiliary sites.
        subsamples: Indices by plate.
    """

    def __init__(
        self,
        *,
        values: Mapping[str, Tensor] | None = None,
        points: Mapping[str, Tensor] | None = None,
        subsamples: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.values, self.given = values, points
        self.subsamples = dict(subsamples or {})
        self.sites: dict[str, Site] = {}
        self.points: dict[str, Tensor] = {}
        self.shape: torch.Size = torch.Size()
        self.log_prior: Tensor | float = 0.0
        self.log_likelihood: Tensor | float = 0.0
        self.terms: dict[str, Tensor] = {}
        self._open: dict[str, tuple] = {}  # latents on their way: name, mask and plates

    def _pyro_param(self, msg: dict) -> None:
        msg["stop"] = True

    def _pyro_sample(self, msg: dict) -> None:
        name = msg["name"]
        if site_is_subsample(msg):
            if name in self.subsamples:
                msg["value"], msg["done"], msg["stop"] = self.subsamples[name], True, True
        elif msg["is_observed"]:
            msg["stop"] = True
        else:
            self._latent(name, msg)

    def _latent(self, name: str, msg: dict) -> None:
        _require_continuous(name, msg)
        plates = msg["cond_indep_stack"]
        transform = _transform(msg["fn"].support)
        if self.given is None and self.values is None:
            msg["name"] = f"{name}_0"
            msg["infer"] = {**msg["infer"], "is_auxiliary": True}
        else:
            point = self.given[name] if self.given is not None else None
            if point is None:
                msg["value"] = self._value(name, msg["fn"])
            else:
                msg["value"] = point if transform is None else transform(point)
            msg["done"] = msg["stop"] = True
        self._open[msg["name"]] = (name, msg["mask"], plates, transform)
        msg["mask"] = False

    def _value(self, name: str, fn: dist.TorchDistribution) -> Tensor:
        if name not in self.values:
            raise SitesError(
                f"the model samples the site {name!r}, but it {sorted(self.values)}: take a guide "
                "for this model"
            )
        value = self.values[name]
        if value.shape[value.ndim - fn.event_dim :] != fn.event_shape:
            raise SitesError(
                f"at site {name!r} the model's events have shape {tuple(fn.event_shape)}, but its "
                f"values {tuple(value.shape)}: give both the same latent_dim"
            )
        return value

    def _pyro_post_sample(self, msg: dict) -> None:
        name = msg["name"]
        if site_is_subsample(msg):
            self.subsamples[name] = msg["value"]
        elif name in self._open:
            self._close(msg, *self._open.pop(name))
        else:
            log_p = _log_prob(msg, msg["mask"])
            self.terms[name] = log_p
            self.log_likelihood = self.log_likelihood + log_p

    def _close(
        self, msg: dict, name: str, mask: Tensor | None, plates: tuple, transform: Transform | None
    ) -> None:
        fn, msg["name"] = msg["fn"], name  # handlers within know it by that
        if self.given is not None:
            u = self.given[name]
        else:
            value = msg["value"].detach()
            u = (value if transform is None else transform.inv(value)).requires_grad_()
            msg["value"] = u if transform is None else transform(u)
        lead = msg["value"].ndim - fn.event_dim
        self.points[name], self.shape = u, msg["value"].shape[:lead]
        shape = tuple(u.shape[lead:])
        self.sites[name] = Site(name, shape, fn.event_dim, transform, plates, mask)
        log_p = _log_prob(msg, None)  # masked, it would be flat, and its chain go anywhere
        if transform is not None:
            log_p = log_p + log_volume(transform, u, msg["value"], lead)
        self.terms[name] = log_p
        self.log_prior = self.log_prior + log_p

    def require_latents(self) -> None:
        """Raise if the model has no latents to move."""
        if not self.sites:
            raise NotImplementedError(
                "the model has no latent site for a Langevin chain to move: each of its sites is "
                "observed"
            )

    def require_finite(self) -> None:
        """Raise if a site's log probability is not finite."""
        for name, log_p in self.terms.items():
            log_p = log_p.detach()
            finite = log_p.isfinite()
            if not finite.all():
                place = first_true(~finite)
                where = f" of datum {place[-1]}" if place else ""
                raise ChainError(
                    f"the log probability of site {name!r}{where} is {float(log_p[place]):g}"
                )


def _log_prob(msg: dict, mask: Tensor | bool | None) -> Tensor:
    """Return a site's log probability, masked, without scales."""
    return scale_and_mask(msg["fn"].log_prob(msg["value"]), 1.0, mask)


def log_volume(transform: Transform, u: Tensor, z: Tensor, lead: int) -> Tensor:
    """Return ln |det dz/du|, summed over event axes, with `lead` axes left."""
    log_det = transform.log_abs_det_jacobian(u, z)
    return log_det.flatten(lead).sum(-1) if log_det.ndim > lead else log_det


def _transform(support: constraints.Constraint) -> Transform | None:
    """Return the map from all of space onto a support; None for the identity."""
    base = support
    while isinstance(base, constraints.independent):
        base = base.base_constraint
    return None if base is constraints.real else biject_to(support)


def _require_continuous(name: str, msg: dict) -> None:
    fn: dist.TorchDistribution = msg["fn"]
    if fn.support.is_discrete:
        raise NotImplementedError(
            f"site {name!r} is discrete, and a Langevin chain needs a gradient in it: sum it out "
            "in the model, by torch.logsumexp over its values, or take a guide for discrete "
            "latents, such as ppvae.guides.Categorical or Poisson"
        )
    if not any(frame.name == DATA_PLATE and frame.dim == -1 for frame in msg["cond_indep_stack"]):
        raise NotImplementedError(
            f'site {name!r} lies outside of pyro.plate("{DATA_PLATE}", N, dim=-1), so that all '
            "data share it, and no datum has a chain of its own: sample it in the plate, or take "
            "Pyro's MCMC or an autoguide"
        )
