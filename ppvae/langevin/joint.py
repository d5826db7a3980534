"""A model's log joint as a function of its latents, brought onto all of space."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from math import prod

import pyro
import torch
from pyro.distributions.util import scale_and_mask
from pyro.infer.util import is_validation_enabled
from torch import Tensor, nn

from ppvae.langevin.chain import ChainError, Point, first_true, located
from ppvae.langevin.run import Run, Site, SitesError
from ppvae.protocols import Batch, Model, modules_of

__all__ = ["LogJoint", "hides", "still"]


class LogJoint:
    """The log density of a model's latents and its data, for a chain.

        log p(x, z = T(u)) + ln |det dT/du|,   u (..., N, D), flat, in the order of the sites

    T takes unconstrained values onto each latent's support. The model runs once per evaluation, in
    a trace of its own that no handler outside sees, on the subsample of the first run. Scales,
    such as a subsampled plate's N/B, are left out, since they would temper the posterior. Masks of
    data are kept; a latent that is masked has its prior all the same, so that its chain stays at
    something. Latents have supports that depend on no other latent. Put `still(model)` around, so
    that dropout does not move the target.

    `draw` or `start` comes first: only a run tells which latents there are.

    Args:
        model: Samples p(x, z), all latents in plate "data".
        batch: x, (N, ...).

    Attributes:
        sites: Latents by name, known after the first run.
        log_prior: log p(z_0) + ln |det dT/du| where the chain starts, (..., N).

    Raises:
        NotImplementedError: On the first run, if a latent is discrete, or lies outside of plate
            "data".
        ValueError: On the first run, if a site's log probability has axes besides those of data
            and particles.
        ChainError: Under validation, if a site's log probability is not finite, naming it.

    Example:
        >>> from ppvae.models import LinearGaussian
        >>> joint = LogJoint(LinearGaussian(torch.ones(3, 2)), torch.zeros(5, 3))
        >>> at = joint.draw()  # from the prior
        >>> at.z.shape, bool(torch.allclose(joint(at.z), at.log_p))
        (torch.Size([5, 2]), True)
    """

    def __init__(self, model: Model, batch: Batch) -> None:
        self.model, self.batch = model, batch
        self.sites: dict[str, Site] = {}
        self.subsamples: dict[str, Tensor] = {}
        self.log_prior: Tensor | None = None

    def draw(self) -> Point:
        """Return z_0 ~ p(z) with its log joint and slope, by one run of the model.

        Handlers outside see each z_0 as an auxiliary site, `z_0` for a latent z, that counts for
        nothing: under a plate of particles each has its own.
        """
        return self._first(Run(subsamples=self.subsamples))

    def start(self, values: Mapping[str, Tensor]) -> Point:
        """Return z_0 at given latents, (..., N, *event) by site, with log joint and slope.

        Raises:
            SitesError: If they are not the model's latents.
        """
        start = self._first(Run(values=values, subsamples=self.subsamples))
        if other := sorted(values.keys() - self.sites.keys()):
            raise SitesError(
                f"it samples {other}, but the model's latents are {sorted(self.sites)}: take a "
                "guide for this model"
            )
        return start

    def __call__(self, u: Tensor) -> Tensor:
        """Return the log joint at u, (..., N, D), as (..., N)."""
        log_prior, log_likelihood = self.parts(u)
        return log_prior + log_likelihood

    def parts(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(z), with the log Jacobian, and log p(x|z), with factors: (..., N) each."""
        run = self._at(u)
        return run.log_prior.expand(u.shape[:-1]), run.log_likelihood.expand(u.shape[:-1])

    def masked(self, u: Tensor) -> Tensor:
        """Return the part of log p(z), of the latents themselves, that masks hide, (..., N)."""
        parts = zip(self.sites.values(), self._split(u), strict=True)
        hidden = [(site, part) for site, part in parts if hides(site.mask)]
        terms = self._at(u).terms if hidden else {}
        return u.new_zeros(u.shape[:-1]) + sum(
            scale_and_mask(terms[site.name] - site.log_volume(part), 1.0, _inverse(site.mask))
            for site, part in hidden
        )

    def _at(self, u: Tensor) -> Run:
        return self._run(Run(points=self.split(u), subsamples=self.subsamples))

    def constrain(self, u: Tensor) -> dict[str, Tensor]:
        """Return the latents by site, (..., N, *event), at u, (..., N, D)."""
        parts = zip(self.sites.values(), self._split(u), strict=True)
        return {site.name: site.constrain(part) for site, part in parts}

    def log_volume(self, u: Tensor) -> Tensor | float:
        """Return ln |det dz/du|, (..., N); 0 where all supports are all of space."""
        parts = zip(self.sites.values(), self._split(u), strict=True)
        return sum(site.log_volume(part) for site, part in parts)

    def split(self, u: Tensor) -> dict[str, Tensor]:
        """Return flat values (..., N, D) by site, (..., N, *unconstrained event) each."""
        parts = zip(self.sites.values(), self._split(u), strict=True)
        return {s.name: part.reshape(*part.shape[:-1], *s.shape) for s, part in parts}

    def _split(self, u: Tensor) -> tuple[Tensor, ...]:
        return u.split([prod(site.shape) for site in self.sites.values()], dim=-1)

    def _first(self, handler: Run) -> Point:
        with torch.enable_grad(), located(0, 0):
            run = self._run(handler)
            _require_data_axes(run)
            self.sites, self.subsamples = run.sites, run.subsamples
            self.log_prior = run.log_prior.detach().expand(run.shape)
            u = list(run.points.values())
            log_p = (run.log_prior + run.log_likelihood).expand(run.shape)
            slopes = torch.autograd.grad(log_p.sum(), u)
            if is_validation_enabled():
                _require_finite_slopes(run.points, slopes, len(run.shape))
        z, slope = (torch.cat([t.reshape(*run.shape, -1) for t in ts], -1) for ts in (u, slopes))
        return Point(z.detach(), log_p.detach(), slope)

    def _run(self, handler: Run) -> Run:
        checked = is_validation_enabled()
        with pyro.validation_enabled(False), handler:  # our own words for what is not finite
            self.model(self.batch)
        if checked:
            handler.require_finite()
        handler.require_latents()
        return handler


def hides(mask: Tensor | bool | None) -> bool:
    """Return whether a mask may hide something.

    Example:
        >>> hides(None), hides(True), hides(torch.tensor([True]))
        (False, False, True)
    """
    return mask is not None and mask is not True


def _inverse(mask: Tensor | bool) -> Tensor | bool:
    return ~mask if isinstance(mask, Tensor) else not mask


def _require_data_axes(run: Run) -> None:
    for name, term in run.terms.items():
        if term.ndim > len(run.shape):
            raise ValueError(
                f"site {name!r} has a log probability of shape {tuple(term.shape)}, but a chain "
                f"needs one number per datum, {tuple(run.shape)}: declare its other axes with "
                ".to_event(...) instead of a plate"
            )


def _require_finite_slopes(
    points: Mapping[str, Tensor], slopes: tuple[Tensor, ...], lead: int
) -> None:
    for name, slope in zip(points, slopes, strict=True):
        finite = slope.flatten(lead).isfinite().all(-1) if slope.ndim > lead else slope.isfinite()
        if not finite.all():
            place = first_true(~finite)
            raise ChainError(f"the gradient in site {name!r} of datum {place[-1]} is not finite")


@contextmanager
def still(model: Model) -> Iterator[None]:
    """Run a model without dropout or moving statistics, and leave its modes as they were.

    cuDNN takes no gradient through recurrent networks in evaluation mode. Those without dropout
    therefore count as training, which changes nothing; for others it is switched off.

    Example:
        >>> model = nn.Sequential(nn.Dropout(), nn.LSTM(2, 3))
        >>> with still(model.eval()):
        ...     [part.training for part in model]
        [False, True]
        >>> model[1].training
        False
    """
    modes = [(part, part.training) for part in modules_of(model)]
    recurrent = [part for part, _ in modes if isinstance(part, nn.RNNBase)]
    without = torch.backends.cudnn.flags(enabled=False)
    try:
        for part, _ in modes:
            part.training = isinstance(part, nn.RNNBase) and not part.dropout
        with without if any(part.dropout for part in recurrent) else nullcontext():
            yield
    finally:
        for part, mode in modes:
            part.training = mode
