"""Inference without an encoder: a few Langevin steps on the model's own log joint."""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer.util import is_validation_enabled
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from ppvae.langevin import LogJoint, Point, bridge, langevin, still, transport
from ppvae.langevin.joint import hides
from ppvae.langevin.run import Site, SitesError
from ppvae.pairing import PairError
from ppvae.protocols import Batch, Guide, Model

__all__ = ["Langevin"]

DENSITIES = (None, "step", "transport", "bridge")
NO_DENSITY = (
    "it is a Delta, where a Langevin chain has ended, and nobody knows the density of that. For "
    'weights, IWELBO, evidence and Pareto k give it one: Langevin(model, ..., density="step"), or '
    '"bridge" to judge a model'
)
ON_THE_WAY = "it is given the random numbers that its Langevin chain has drawn on the way"


class Langevin(nn.Module):
    """Short-run Langevin dynamics: K unadjusted steps from the prior, anew for every batch.

        z_0 ~ p(z);   z_(k+1) = z_k + (s_k^2 / 2) grad log p(x, z_k) + T s_k eps_k,  k = 0 .. K-1

    Never persistent, never converged, the same in test. No encoder and, but for `learned_dim`, no
    parameters: no gradient passes through the chain, and the model learns from log p(x, z_K) with
    z_K held. What the last site says of its density is the argument `density`:

        None         Delta(z_K)
        "step"       N(kappa mu + c, tau^2), mu = the mean of the last step, tau = T s by default
        "transport"  Delta(z_K, log p(z_0) - ln |det dz_K/dz_0|), the noises given
        "bridge"     Delta(z_K, log p(z_0) + sum_k log F_k - log B_k), the path given

    **None**, the paper's, is for training, and has no density: `log_weights`, `IWELBO`, evidence
    and Pareto k refuse it in words. Its loss under `Trace_ELBO` is -Q = -E log p(x, z_K), which
    lacks the entropy and bounds nothing: at the posterior's mode Q lies *above* ln p(x) wherever
    the posterior is sharp. Histories call it Q. The other three have bounds. "step" is for weights
    and IWELBO, where s^2 times the curvature is about 1.5 in each direction, .9 to 3.4 at most, or
    kappa, c and tau are learned. "transport" is one only if z_0 -> z_K is one to one, with its
    short steps, and is refused under validation where it is seen not to be; "bridge" always is,
    for diagnosis. Both with `log_weights` rather than in
    training.

    The model's modules run in evaluation mode within the chain, without dropout and moving
    statistics. K + 1 forward and backward passes of the decoder in a training step; under
    "transport" one more forward, and D more backward per step of the chain, under "bridge" two
    more of both. Latents have supports that depend on no other latent; the chain moves in
    unconstrained space, with the log Jacobian.

    Args:
        model: Samples p(x, z), with continuous latents, all in plate "data".
        steps: K, the number of steps.
        step_size: s, in units of z, or K of them. The drift is s^2/2: see `ppvae.langevin`. Kept
            in the buffer `step_sizes`; `diagnostics.search_step_size` finds one.
        init: A guide to start from instead of the prior, such as a trained `Normal`. Freeze what
            has parameters, by `init.requires_grad_(False)`, to train: no gradient reaches it.
        noise: T, kept in the buffer `noise`; 1 samples the posterior, less is a cold one.
        density: None, "step", "transport" or "bridge".
        learned_dim: D, the number of unconstrained latent coordinates, to learn kappa, c and tau
            of "step", (D,) each.
        tempered: Whether "bridge" goes from prior to posterior by p(x|z)^(k/K), as it does by
            default from the prior, or stays at the posterior.
        checked: Whether Pyro's validation refuses chains that diverge. False lets them pass, for
            step sizes known to lose a few data, as the published ones of text do.

    Sites:
        z: (N, D) each latent of the model, by its name, masked where the model's is; no gradient
            reaches the model through it.
        z_0: (N, D) where its chain starts, auxiliary.

    Raises:
        ValueError: If an argument is out of range, or does not go with `density`.
        PairError: On the first batch, if `init` has other sites than the model.
        NotImplementedError: On the first batch, if a latent is discrete, or shared by all data.
        ChainError: Under validation, as in the first step of training, if the log joint is not
            finite at the start, or the chain diverges: which datum, which step. `fit` says so of
            any step.

    References:
        Pang, Nijkamp, Han, Wu (2021), Generative Text Modeling through Short Run Inference,
        arXiv:2106.02513. Nijkamp et al. (2020), Short-run MCMC, arXiv:1912.01909.

    Example:
        >>> from pyro import poutine
        >>> from ppvae.models import VAE
        >>> from ppvae.networks import MLP
        >>> model = VAE(MLP(2, 16, 8), latent_dim=2)
        >>> guide = Langevin(model, steps=5, step_size=0.3)
        >>> poutine.trace(guide).get_trace(torch.ones(5, 8)).nodes["z"]["value"].shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        model: Model,
        steps: int = 20,
        step_size: float | Sequence[float] = 0.2,
        *,
        init: Guide | None = None,
        noise: float = 1.0,
        density: str | None = None,
        learned_dim: int | None = None,
        tempered: bool | None = None,
        checked: bool = True,
    ) -> None:
        super().__init__()
        step_sizes = _step_sizes(steps, step_size)
        _check_density(density, noise, learned_dim, init, tempered)
        self._model = (model,)  # a tuple keeps the model's parameters out of ours
        self.steps, self.init, self.density = steps, init, density
        self.tempered = init is None if tempered is None else tempered
        self.checked = checked
        self.register_buffer("step_sizes", torch.tensor(step_sizes))
        self.register_buffer("noise", torch.tensor(float(noise)))
        self.learned = learned_dim is not None
        if self.learned:
            self.kappa = nn.Parameter(torch.ones(learned_dim))
            self.shift = nn.Parameter(torch.zeros(learned_dim))
            tau = (noise or 1.0) * step_sizes[-1]  # a chain without noise has none to start from
            self.log_tau = nn.Parameter(torch.full((learned_dim,), tau).log())

    def forward(self, batch: Batch) -> None:
        """Sample z by the chain at the batch `(N, ...)`."""
        joint = LogJoint(self._model[0], batch)
        with still(self._model[0]):
            start, log_start = self._start(joint, batch)
            checks = self.checked and is_validation_enabled()
            with poutine.block(), pyro.validation_enabled(checks):
                walked = self._walk(joint, start, log_start)
        with _plates(joint):
            for name, q, infer in self._sites(joint, *walked):
                with _masked(joint.sites[name].mask):
                    pyro.sample(name, q, infer=infer)

    def _start(self, joint: LogJoint, batch: Batch) -> tuple[Point, Tensor]:
        """Return where the chain starts, and the log density of that in unconstrained space."""
        if self.init is None:
            return joint.draw(), joint.log_prior
        with torch.no_grad(), _Renamed() as run:
            self.init(batch)
        joint.subsamples = run.subsamples
        with poutine.block():
            try:
                start = joint.start(run.values)
            except SitesError as error:
                raise PairError(f"the guide that Langevin is to start from: {error}") from error
        if self.density not in ("transport", "bridge"):
            return start, joint.log_prior
        return start, run.log_density(start.log_p) + joint.log_volume(start.z)

    def _walk(
        self, joint: LogJoint, start: Point, log_start: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return z_K, or the last step's mean, in unconstrained space, and its log density."""
        steps, noise = self.step_sizes.unbind(), self.noise
        if self.density in ("transport", "bridge"):
            if self.density == "transport":
                z, log_q = transport(joint, start.z, log_start, steps, noise=noise)
            else:
                options = {"noise": noise, "tempered": self.tempered}
                z, log_q = bridge(joint.parts, start.z, log_start, steps, **options)
            return z, log_q - joint.masked(z).detach()  # hidden latents have weight 1 as the prior
        walk = langevin(joint, start, steps, noise=noise)
        return (walk.mean if self.density == "step" else walk.z), None

    def _sites(
        self, joint: LogJoint, u: Tensor, log_q: Tensor | None
    ) -> Iterator[tuple[str, dist.TorchDistribution, dict[str, object]]]:
        """Yield the model's latents with their laws."""
        if self.density == "step":
            if self.learned and len(self.kappa) != u.shape[-1]:
                raise ValueError(
                    f"learned_dim is {len(self.kappa)}, but the latents have {u.shape[-1]} "
                    "unconstrained coordinates: give that number"
                )
            parts = joint.split(self.kappa * u + self.shift if self.learned else u)
            scales = joint.split(self._scale(u))
            for site in joint.sites.values():
                q = _last_step(site, parts[site.name], scales[site.name])
                yield site.name, q, {"conditional": ON_THE_WAY}
            return
        infer = {"weightless": NO_DENSITY, "q_function": True}
        if log_q is not None:
            log_q = log_q - joint.log_volume(u)
            infer = {"conditional": ON_THE_WAY}
        for name, z in joint.constrain(u).items():
            q, mask = dist.Delta(z, event_dim=joint.sites[name].event_dim), joint.sites[name].mask
            if log_q is not None:  # one density of all latents: the first that counts bears it
                q = dist.Delta(z, log_q, q.event_dim)
                log_q = log_q - scale_and_mask(log_q, 1.0, mask)
            yield name, q, dict(infer)

    def _scale(self, u: Tensor) -> Tensor:
        tau = self.log_tau.exp() if self.learned else self.noise * self.step_sizes[-1]
        return tau.expand_as(u)


def _step_sizes(steps: int, step_size: float | Sequence[float]) -> list[float]:
    if steps < 1:
        raise ValueError(f"steps must be at least 1, but is {steps}")
    sizes = [step_size] * steps if isinstance(step_size, (int, float)) else list(step_size)
    if len(sizes) != steps:
        raise ValueError(f"step_size has {len(sizes)} entries, but there are {steps} steps")
    if bad := [s for s in sizes if not 0 < s < math.inf]:
        raise ValueError(f"step_size must be positive and finite, but is {bad[0]}")
    return [float(s) for s in sizes]


def _check_density(
    density: str | None,
    noise: float,
    learned_dim: int | None,
    init: Guide | None,
    tempered: bool | None,
) -> None:
    if density not in DENSITIES:
        raise ValueError(f"density must be one of {DENSITIES}, but is {density!r}")
    if not 0 <= noise < math.inf:
        raise ValueError(f"noise must be finite and not negative, but is {noise}")
    if noise == 0 and (density == "bridge" or (density == "step" and learned_dim is None)):
        raise ValueError(f'density="{density}" is that of noise, which is 0: give noise > 0')
    if learned_dim is not None and density != "step":
        raise ValueError(
            f'learned_dim is for density="step", whose law it learns, but density is {density!r}'
        )
    if tempered is not None and density != "bridge":
        raise ValueError(f'tempered is for density="bridge", but density is {density!r}')
    if tempered and init is not None:
        raise ValueError("a tempered bridge starts at the prior: leave init or tempered out")


def _last_step(site: Site, loc: Tensor, scale: Tensor) -> dist.TorchDistribution:
    q = dist.Normal(loc, scale)
    if site.transform is None:
        return q.to_event(len(site.shape))
    transform = site.transform.with_cache()  # a sigmoid's end, once rounded, has no way back
    return dist.TransformedDistribution(
        q.to_event(len(site.shape) - transform.domain.event_dim), [transform]
    )


def _masked(mask: Tensor | bool | None) -> AbstractContextManager:
    """Hide a site where the model's is hidden, so that neither weighs anything there."""
    return poutine.mask(mask=mask) if hides(mask) else nullcontext()


@contextmanager
def _plates(joint: LogJoint) -> Iterator[None]:
    """Open the model's plates on the rows it has seen."""
    frames = {frame.name: frame for site in joint.sites.values() for frame in site.plates}
    with ExitStack() as stack:
        with poutine.block():  # their indices are a site, which is there already
            plates = [
                pyro.plate(
                    frame.name, frame.full_size, subsample=joint.subsamples[name], dim=frame.dim
                )
                for name, frame in frames.items()
            ]
        for plate in plates:
            stack.enter_context(plate)
        yield


class _Renamed(Messenger):
    """Makes the sites of a guide auxiliary ones by other names, that count for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, Tensor] = {}  # of its latents, without its own auxiliary sites
        self.subsamples: dict[str, Tensor] = {}
        self._laws: dict[str, tuple] = {}  # by site: distribution, value and infer
        self._open: dict[str, tuple] = {}

    def _pyro_sample(self, msg: dict) -> None:
        if not site_is_subsample(msg):
            name, infer = msg["name"], msg["infer"]
            self._open[f"{name}_0"] = (name, infer)
            msg["infer"] = {**infer, "is_auxiliary": True}
            msg["name"], msg["mask"] = f"{name}_0", False

    def _pyro_post_sample(self, msg: dict) -> None:
        if site_is_subsample(msg):
            self.subsamples[msg["name"]] = msg["value"]
            return
        name, infer = self._open.pop(msg["name"])
        msg["name"] = name  # handlers within know it by that
        self._laws[name] = (msg["fn"], msg["value"], infer)
        if not infer.get("is_auxiliary"):
            self.values[name] = msg["value"]

    def log_density(self, like: Tensor) -> Tensor:
        """Return the log density of what was drawn, (..., N)."""
        total = torch.zeros_like(like)
        for name, (fn, value, infer) in self._laws.items():
            if reason := infer.get("weightless"):
                raise ValueError(
                    f"the density of a chain's end needs that of its start, which the init's site "
                    f"{name!r} has not: {reason}"
                )
            total = total + fn.log_prob(value)  # where it is masked too: it was drawn there
        return total
