"""The beta-ELBO of a linear decoder, without draws."""

from collections.abc import Callable

import torch
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites, site_is_factor, site_is_subsample
from torch import Tensor, nn
from torch.distributions import Distribution, Independent

from ppvae.divergences import kl_per_coordinate
from ppvae.likelihoods import Normal
from ppvae.networks import follows, linear_layer
from ppvae.objectives.base import Terms
from ppvae.objectives.beta import BetaELBO
from ppvae.protocols import Batch, Guide, Model, batch_size, forked_streams, module_of, rows_of
from ppvae.weights import latent_sites, particles
from ppvae.weights.traces import sample_sites

__all__ = ["LinearELBO"]


class LinearELBO(BetaELBO):
    """The beta-ELBO where the decoder is linear and the likelihood Normal: exact, no draws.

        E_q ln p(x|z) = ln N(x; Phi m + b, s^2) - sum_i v_i |Phi_i|^2 / (2 s^2)

    m and v are the guide's mean and variance. The paper's "exact", for any factorized guide: of
    Poisson counts, whatever its temperature, it is a bound, since it is their mean and variance
    and not those of relaxed draws. It has no noise, but for what a guide such as
    `IterativePoisson` draws on the way: the gradient is that of infinitely many particles.

    Args:
        beta: As in `BetaELBO`.
        free_bits: As in `BetaELBO`.

    Raises:
        TypeError: On the first loss, if the decoder is not a matrix, the likelihood no
            `likelihoods.Normal`, or the guide's site `z` has dependent coordinates, no mean and
            variance, or no registered KL.
        ValueError: If `beta` or `free_bits` is out of range.

    References:
        Vafaii, Galor, Yates (2024), Poisson Variational Autoencoder, arXiv:2405.14473.

    Example:
        >>> from ppvae.guides import Poisson
        >>> from ppvae.models import PoissonVAE
        >>> from ppvae.networks import Flat
        >>> model = PoissonVAE(nn.Linear(4, 8, bias=False), latent_dim=4)
        >>> loss, x = LinearELBO(), torch.ones(5, 8)
        >>> loss.loss(model, guide := Poisson(Flat(8), model), x) == loss.loss(model, guide, x)
        True
    """

    def __init__(
        self, beta: float | Callable[[int], float] = 1.0, *, free_bits: float = 0.0
    ) -> None:
        super().__init__(beta, free_bits=free_bits)

    def differentiable_loss(self, model: Model, guide: Guide, batch: Batch) -> Tensor:
        """Return the loss summed over the batch, 0-d, to call backward on."""
        layer, likelihood = _layer(module_of(model)), _likelihood(module_of(model))
        if is_validation_enabled():  # it reads numbers
            _require_linear(model, batch, layer, likelihood)
        traces = self._traces(model, guide, batch)
        variance = _moment(_factorized(*traces), "variance")  # (N, D)
        excess = variance @ (layer.weight / likelihood.scale).square().sum(0) / 2  # (N,)
        terms = _Expected(*traces, excess, torch.Size((1, batch_size(batch))))
        return self._loss(terms)

    def _traces(self, model: Model, guide: Guide, batch: Batch) -> tuple[Trace, Trace]:
        """Trace the pair at the guide's mean, which is where the closed form needs it."""
        with _AtMean():
            guide_trace = poutine.trace(guide).get_trace(batch)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(batch)
        model_trace.compute_log_prob()  # the guide's is not needed: a mean is no count
        return prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace)


class _Expected(Terms):
    """Terms whose likelihood is an expectation: that at the mean, less what the variance costs."""

    score = 0.0  # there are no draws

    def __init__(
        self, model_trace: Trace, guide_trace: Trace, excess: Tensor, shape: torch.Size
    ) -> None:
        super().__init__(model_trace, guide_trace, shape)
        self.excess = excess

    @property
    def log_likelihood(self) -> Tensor:
        """E_q ln p(x|z)."""
        return super().log_likelihood - self.excess

    def kl(self, *, analytic: bool = True) -> Tensor:
        """KL(q(z|x) || p(z)), in closed form or not at all: there are no draws."""
        q, p = (trace.nodes["z"]["fn"] for trace in (self.guide_trace, self.model_trace))
        return kl_per_coordinate(q, p).sum(-1).expand(self.shape)


class _AtMean(Messenger):
    """Gives every latent its mean instead of a draw."""

    def _pyro_sample(self, msg: dict) -> None:
        if not msg["is_observed"] and not site_is_subsample(msg):
            msg["value"] = _moment(msg["fn"], "mean", msg["name"])


def _moment(q: Distribution, which: str, site: str = "z") -> Tensor:
    try:
        return getattr(q, which)
    except (NotImplementedError, AttributeError) as error:
        name = type(q.base_dist if isinstance(q, Independent) else q).__name__
        raise TypeError(
            f"LinearELBO needs the guide's mean and variance, but its {name} at site {site!r} has "
            f"no {which} in closed form: use Normal, Laplace or Poisson, or BetaELBO"
        ) from error


def _factorized(model_trace: Trace, guide_trace: Trace) -> Distribution:
    """Return q(z|x), if it is all that there is to integrate over, and its coordinates split."""
    for owner, trace in (("model", model_trace), ("guide", guide_trace)):
        if (names := sorted(latent_sites(trace))) != ["z"]:
            raise TypeError(f"LinearELBO needs the one latent 'z', but the {owner} has {names}")
    q = guide_trace.nodes["z"]["fn"]
    if not (isinstance(q, Independent) and q.base_dist.event_shape == ()):
        raise TypeError(
            f"LinearELBO needs independent coordinates, but the guide's {type(q).__name__} at "
            "site 'z' has dependent ones: use a guide such as Normal, or BetaELBO"
        )
    return q


def _layer(model: nn.Module | None) -> nn.Linear:
    """Return the decoder's one layer, (M, D)."""
    layer = linear_layer(getattr(model, "decoder", None))
    if isinstance(layer, str):
        raise TypeError(
            f"LinearELBO needs a linear decoder, one nn.Linear, but the {type(model).__name__}'s "
            f"is {layer}: use BetaELBO, which draws"
        )
    return layer


def _require_linear(model: Model, batch: Batch, layer: nn.Linear, likelihood: Normal) -> None:
    """Raise if the model's mean of x is not the layer of z, or its scale not the likelihood's."""

    def mean(z: Tensor) -> Tensor:
        law = _law(model, rows_of(batch, 0, 1), z)
        base = law.base_dist if isinstance(law, Independent) else law
        normal = isinstance(base, torch.distributions.Normal)
        return base.loc if normal and (base.scale == likelihood.scale).all() else z.new_empty(0)

    if not follows(mean, layer):
        raise TypeError(
            f"LinearELBO needs p(x|z) = N(x; W z + b, s^2) of the decoder's one nn.Linear and the "
            f"likelihood's one scale, but the {type(model).__name__} has another mean or scale at "
            "random z, where something in a forward bends it: use BetaELBO, which draws"
        )


def _law(model: Model, datum: Batch, z: Tensor) -> Distribution:
    """Return p(x|z) of a model's one observed site, at latents (P, D)."""
    drawn = poutine.condition(particles(model, len(z)), data={"z": z.unsqueeze(1)})
    with forked_streams(), poutine.block():
        trace = prune_subsample_sites(poutine.trace(drawn).get_trace(datum))
    sites = sample_sites(trace).items()
    laws = {n: site["fn"] for n, site in sites if n != "z" and not site_is_factor(site)}
    if len(laws) != 1:
        raise TypeError(
            f"LinearELBO needs one site beside 'z', but the {type(model).__name__} has "
            f"{sorted(laws)}: use BetaELBO, which draws"
        )
    return next(iter(laws.values()))


def _likelihood(model: nn.Module) -> Normal:
    head = getattr(model, "likelihood", None)
    if not isinstance(head, Normal):
        name = getattr(head, "__name__", type(head).__name__)
        raise TypeError(
            f"LinearELBO needs a Normal likelihood of one scale, likelihoods.Normal, but the "
            f"{type(model).__name__}'s is {name}: use BetaELBO, which draws"
        )
    return head
