"""The base of the guides that sample spike counts: how counts are drawn, and their gradients."""

from abc import abstractmethod
from typing import Literal, Protocol

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppvae.distributions import RelaxedPoisson, event_window
from ppvae.distributions.relaxed_poisson import Kernel
from ppvae.protocols import DATA_PLATE, Batch, batch_size

__all__ = ["Counts", "Rates"]

SURROGATE = (
    "relaxed counts, of T > 0, have no density that is known: their loss is a surrogate, and no "
    "bound. After guide.eval() they are counts, and have weights; to train by weights, take "
    'Poisson(..., gradient="score")'
)


class Rates(Protocol):
    """A model with Poisson latents, whose rates a guide multiplies."""

    latent_dim: int

    def prior(self) -> dist.TorchDistribution:
        """Return p(z), Poisson of event shape (K,)."""

    def rate(self, log_gain: Tensor, /) -> Tensor:
        """Return posterior rates (..., K) from log gains over the prior's."""


class Counts(nn.Module):
    """A factorized Poisson posterior, whose rates are the model's times a gain.

        q(z|x) = prod_k Poisson(z_k; lam_k),  lam = model.rate(log_gain(x))
        KL = sum_k r_k f(lam_k / r_k),  f(y) = 1 - y + y ln y

    Abstract: a guide is a leaf that says where the gain comes from. A silent unit still costs r.
    The model's rates receive gradients through the guide, too.

    In training draws are relaxed (`distributions.RelaxedPoisson`): the ELBO of such draws is a
    surrogate, **no bound**, and their importance weights are refused. `guide.eval()` draws counts,
    and so does every evaluation: `svi.evaluate`, `log_weights`, validation in `fit`.

    Temperature and the number of events are schedules of training: `callbacks.anneal` sets the
    first, `callbacks.bound_events` the second.

    Args:
        model: The model, such as `models.PoissonVAE`; its parameters stay its own.
        kernel: As in `RelaxedPoisson`.
        temperature: T > 0 of the relaxed draws at the start; a buffer.
        gradient: "relaxed"; "straight-through": counts with relaxed gradients, which are biased;
            "score": counts, and the score function's gradient, unbiased but noisy.
        max_events: As in `RelaxedPoisson`: None asks the device.

    Sites:
        z: (N, K) the counts: relaxed in training, with pathwise gradients, unless `gradient` is
            "score"; KL to a Poisson prior in closed form.

    Raises:
        TypeError: If the model has no Poisson prior.
        ValueError: If the kernel or the gradient is unknown, the temperature not positive,
            `max_events` out of range, or the prior refuses to score relaxed counts.
    """

    def __init__(
        self,
        model: Rates,
        *,
        kernel: Kernel = "cubic",
        temperature: float = 1.0,
        gradient: Literal["relaxed", "straight-through", "score"] = "relaxed",
        max_events: int | None = None,
    ) -> None:
        super().__init__()
        _require_rates(model)
        if gradient not in ("relaxed", "straight-through", "score"):
            raise ValueError(
                f"gradient must be 'relaxed', 'straight-through' or 'score', but is {gradient!r}"
            )
        if not temperature > 0:
            raise ValueError(
                f"temperature must be positive, but is {temperature}: counts, of temperature 0, "
                "are those of guide.eval(), and have no pathwise gradient"
            )
        RelaxedPoisson(torch.ones(()), temperature, kernel, max_events)  # refuses what is wrong
        self._model = (model,)  # a tuple keeps the model's parameters out of ours
        self.kernel, self.gradient = kernel, gradient
        self.infer: dict[str, object] = {}  # what the site says of itself: see ppvae.protocols
        self.register_buffer("temperature", torch.tensor(float(temperature)))
        self.register_buffer("most_events", torch.zeros((), dtype=torch.float64))
        self.register_buffer("event_bound", torch.zeros((), dtype=torch.int64))
        self.max_events = max_events
        self.register_load_state_dict_post_hook(_read_bound)

    @abstractmethod
    def log_gain(self, batch: Tensor) -> Tensor:
        """Return the log gains over the model's rates, (N, K)."""

    def forward(self, batch: Batch) -> None:
        """Sample z ~ q(z|x) at the batch `(N, ...)`."""
        relaxed = self.training and self.gradient == "relaxed"
        infer = {**self.infer, "weightless": SURROGATE} if relaxed else dict(self.infer)
        q = self.posterior(self.log_gain(batch))
        with pyro.plate(DATA_PLATE, batch_size(batch), dim=-1):
            z = pyro.sample("z", q, infer=infer)
        if self.training and q.has_rsample:
            rate = q.base_dist.rate
            self._watch(rate.detach(), copies=z.numel() // rate.numel())  # particles

    def posterior(self, log_gain: Tensor) -> dist.Independent:
        """Return q(z|x), of batch shape (N,), from log gains (N, K)."""
        rate = self._model[0].rate(log_gain)
        if not self.training:
            return dist.Poisson(rate).to_event(1)
        if self.gradient == "score":
            return RelaxedPoisson(rate, 0.0).to_event(1)
        self._watch(rate.detach())
        return RelaxedPoisson(
            rate,
            self.temperature,
            self.kernel,
            self.max_events,
            straight_through=self.gradient == "straight-through",
        ).to_event(1)

    def _watch(self, rate: Tensor, copies: int = 1) -> None:
        """Note the most events that a draw is expected to have, on the device."""
        events = rate.sum(dtype=torch.float64) * copies
        expected = events * event_window(self.kernel, self.temperature)
        self.most_events.copy_(torch.maximum(self.most_events, expected))

    @property
    def max_events(self) -> int | None:
        """The bound on the events of a draw, which `state_dict` holds."""
        return self._max_events

    @max_events.setter
    def max_events(self, most: int | None) -> None:
        self._max_events = most  # read at every draw: a number of the host's
        self.event_bound.fill_(most or 0)


def _read_bound(guide: Counts, _: object) -> None:
    guide.max_events = int(guide.event_bound) or None


def _require_rates(model: Rates) -> None:
    prior = model.prior() if callable(getattr(model, "prior", None)) else None
    while isinstance(prior, torch.distributions.Independent):
        prior = prior.base_dist
    poisson = isinstance(prior, torch.distributions.Poisson)
    if not poisson or not callable(getattr(model, "rate", None)):
        raise TypeError(
            f"Poisson multiplies a model's prior rates, but {type(model).__name__} has no Poisson "
            "prior with a method rate(log_gain): take models.PoissonVAE, or another guide such "
            "as Normal"
        )
    if prior._validate_args:
        raise ValueError(
            f"the Poisson prior of {type(model).__name__} refuses relaxed counts: make it with "
            "validate_args=False, so that it scores them as well"
        )
