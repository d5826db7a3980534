"""One step of training: a drop-in for `pyro.infer.SVI` over plain modules and torch optimizers."""

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import pyro
import torch
from pyro import poutine
from pyro.infer import (
    ELBO,
    EnergyDistance,
    RenyiELBO,
    Trace_ELBO,
    Trace_MMD,
    TraceEnum_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.autoguide import AutoGuide
from pyro.optim import PyroOptim
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ppvae.objectives import IWELBO, Objective
from ppvae.pairing import (
    PairError,
    Record,
    describe,
    describe_tensor,
    leaves_of,
    require_trainable,
    takes_particles,
)
from ppvae.protocols import (
    DATA_PLATE,
    Batch,
    Guide,
    Model,
    batch_size,
    forked_streams,
    local_parameters,
    module_of,
    modules_of,
)
from ppvae.training.optimizers import (
    grouped,
    make_optimizer,
    named_parameters,
    require_maker,
    under,
    unwrap,
)
from ppvae.weights import check_autoguide, evaluating, is_delta, latent_sites

__all__ = ["SVI"]

Loss = ELBO | Callable[..., Tensor]


class SVI:
    """Stochastic variational inference: moves a model and a guide down a loss, batch by batch.

        (theta, phi) <- optimizer((theta, phi), grad loss(model_theta, guide_phi, batch) / N)

    Works where `pyro.infer.SVI` does, and on what it leaves alone: plain modules, a second guide
    in one process, a model or guide without parameters. The parameter store stays empty. Nothing
    in `step` waits for the device, provided that the modules do not: Pyro's validation does, and
    is therefore on for the first step only, or while `validate` is set.

    Pyro's autoguides and other modules that make their parameters when they first see data do so
    on the first batch, and the optimizer is built after that: see `prepare`. Latents that all data
    share may lie outside of plate "data". Minibatches then need
    `pyro.plate("data", size, subsample_size=...)` in the model, which scales their likelihood; the
    loss is per datum of that size. `pyro.param` outside of a PyroModule is refused: nothing would
    train it.

    Args:
        model: Samples p(x, z).
        guide: Samples q(z | x).
        optim: Makes the torch optimizer, e.g. `partial(torch.optim.Adam, lr=1e-3)`, fused where
            that exists; a `pyro.optim` one is built once, over all parameters.
        loss: An objective, a Pyro ELBO, or a function of (model, guide, batch) summed over the
            batch.
        critic_optim: Makes the optimizer of the loss's own parameters, as critics have them; as
            `optim` by default. Both step after one backward pass, at the same parameters.
        groups: Optimizer options by name prefix, e.g. `{"guide.encoder": {"lr": 1e-4}}`; names are
            those of `named_parameters()` with "model.", "guide." or "loss." before, the longest
            prefix wins.
        scheduler: Makes the learning-rate scheduler from the optimizer; `fit` steps it every
            epoch. The critics' optimizer keeps its rate.
        clip_norm: The largest norm of the whole gradient, in nats per datum and parameter unit;
            critics have a norm of their own.
        clip_value: The largest absolute entry of the gradient.
        callbacks: Functions of (svi, history) that belong to this training, such as a schedule of
            `ppvae.training.callbacks`: `fit` calls them after each epoch, before its own.

    Raises:
        TypeError: If `optim` is an optimizer instead of a way to make one, or the loss has no
            differentiable form.
        ValueError: If there is nothing to train, or a group matches no parameter; from the first
            batch on where parameters are made then.

    Example:
        >>> from functools import partial
        >>> from ppvae.guides import Normal
        >>> from ppvae.models import VAE
        >>> from ppvae.networks import MLP
        >>> model, guide = VAE(MLP(2, 8), latent_dim=2), Normal(MLP(8, 16), latent_dim=2)
        >>> svi = SVI(model, guide, partial(torch.optim.Adam, lr=1e-3), Trace_ELBO())
        >>> svi.step(torch.ones(5, 8)).shape
        torch.Size([])
    """

    def __init__(
        self,
        model: Model,
        guide: Guide,
        optim: Callable[..., Optimizer] | PyroOptim,
        loss: Loss,
        *,
        critic_optim: Callable[..., Optimizer] | None = None,
        groups: Mapping[str, Mapping[str, object]] | None = None,
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        callbacks: Sequence[Callable] = (),
    ) -> None:
        self.callbacks = tuple(callbacks)
        self.model, self.guide, self.loss = model, guide, _own(loss)
        if isinstance(optim, PyroOptim):
            optim, clips = unwrap(optim)
            clip_norm = clips.get("clip_norm", clip_norm)
            clip_value = clips.get("clip_value", clip_value)
        require_maker("optim", optim)
        if critic_optim is not None:
            require_maker("critic_optim", critic_optim)
        self._makers = optim, critic_optim or optim, groups or {}, scheduler
        self.parameters: dict[str, nn.Parameter] = {}
        self.optimizer: Optimizer | None = None  # until there are parameters
        self.critic_optimizer: Optimizer | None = None  # of the loss's own parameters
        self.scheduler: LRScheduler | None = None
        self.clip_norm, self.clip_value = clip_norm, clip_value
        self.validate = True  # for the next step
        self.records: list[dict[str, float]] = []  # what `fit` has recorded, an epoch each
        self._looked = False  # at what the pair is
        self._stands_for: int | None = None  # how many data, where the model's plate is subsampled
        if not _awaits_data(model, guide):
            self._build()

    @property
    def device(self) -> torch.device:
        """Where the parameters are; before `prepare`, where module tensors are, or new ones."""
        tensors = iter(self.parameters.values())
        if not self.parameters:
            sides = [module_of(side) for side in (self.model, self.guide)]
            tensors = (t for m in sides if m for t in (*m.parameters(), *m.buffers()))
        return next((tensor.device for tensor in tensors), torch.get_default_device())

    def prepare(self, *args: Batch, **kwargs) -> None:
        """Let modules make the parameters that they make from data, and build the optimizer.

        `step` and `evaluate` do so first. Needed before `load_state_dict`, for a fresh autoguide.
        Runs the pair once in evaluation mode and on a fork of the random streams, or does nothing
        if there is nothing to wait for.
        """
        if self.optimizer is not None:
            return
        with evaluating(self.model, self.guide), forked_streams():
            guide_trace = poutine.trace(self.guide).get_trace(*args, **kwargs)
            poutine.replay(self.model, trace=guide_trace)(*args, **kwargs)
        self._build()

    def step(self, *args: Batch, **kwargs) -> Tensor:
        """Move the parameters; return the loss in nats per datum: 0-d, detached, on device."""
        self.prepare(*args, **kwargs)
        loss = self._descend(*args, **kwargs)
        if isinstance(self.loss, Objective):
            self.loss.advance()
        return loss

    def evaluate(self, *args: Batch, **kwargs) -> Tensor:
        """Return the loss in nats per datum, in evaluation mode; nothing is trained."""
        self.prepare(*args, **kwargs)
        mean_field = isinstance(self.loss, TraceMeanField_ELBO)  # its check is about gradients
        checks = pyro.validation_enabled(False) if mean_field else nullcontext()
        with evaluating(self.model, self.guide, self.loss), checks:
            return self._loss_per_datum(*args, **kwargs)

    def evaluate_loss(self, *args: Batch, **kwargs) -> float:
        """Return `evaluate` as a number, under the name that `pyro.infer.SVI` has for it."""
        return float(self.evaluate(*args, **kwargs))

    def state_dict(self) -> dict[str, object]:
        """Return all that training changes: weights, optimizer, scheduler and schedules."""
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Take up what `state_dict` returned.

        Raises:
            ValueError: If the state lacks a part of this SVI, or has another, or parameters are
                still to be made by `prepare`.
        """
        if self.optimizer is None:
            raise ValueError(
                "there are no parameters to load into yet, since the modules make theirs when "
                "they first see data: call svi.prepare(batch) first"
            )
        parts = self._parts()
        if parts.keys() != state.keys():
            raise ValueError(
                f"the state holds {sorted(state)}, but this SVI has {sorted(parts)}: build it "
                "from the same kind of model, guide, loss and scheduler"
            )
        for name, part in parts.items():
            part.load_state_dict(state[name])

    def _parts(self) -> dict[str, object]:
        sides = {"model": self.model, "guide": self.guide, "loss": self.loss}
        stateful = {name: m for name, side in sides.items() if (m := module_of(side)) is not None}
        steppers = ("optimizer", "critic_optimizer", "scheduler")
        return stateful | {n: part for n in steppers if (part := getattr(self, n)) is not None}

    def _build(self) -> None:
        optim, critic_optim, groups, scheduler = self._makers
        pair = dict(named_parameters(model=self.model, guide=self.guide))
        critics = dict(named_parameters(loss=self.loss))
        if not pair:
            raise ValueError(
                "there is nothing to train: neither model nor guide has parameters, as modules "
                "have them; what pyro.param makes is not seen here"
            )
        self.parameters = pair | critics
        of_critics = {prefix: o for prefix, o in groups.items() if under("loss", prefix)}
        of_pair = {prefix: o for prefix, o in groups.items() if prefix not in of_critics}
        self.optimizer = make_optimizer(optim, grouped(pair, of_pair))
        if critics or of_critics:
            self.critic_optimizer = make_optimizer(critic_optim, grouped(critics, of_critics))
        self.scheduler = scheduler(self.optimizer) if scheduler else None

    def _clip(self, parameters: list[nn.Parameter]) -> None:
        if self.clip_value is not None:
            clip_grad_value_(parameters, self.clip_value)
        if self.clip_norm is not None:
            clip_grad_norm_(parameters, self.clip_norm)

    def _descend(self, *args: Batch, **kwargs) -> Tensor:
        """Take a step down the loss, whatever the schedules."""
        optimizers = [o for o in (self.optimizer, self.critic_optimizer) if o is not None]
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        with nullcontext() if self.validate else pyro.validation_enabled(False):
            loss = self._loss_per_datum(*args, **kwargs)
            loss.backward()
        for optimizer in optimizers:
            self._clip([p for group in optimizer.param_groups for p in group["params"]])
            optimizer.step()
        self.validate = False
        return loss.detach()

    def _loss_per_datum(self, *args: Batch, **kwargs) -> Tensor:
        size = batch_size(args[0]) if args else 1
        if args:
            check_autoguide(self.guide, args[0])
            self._look(*args, **kwargs)
        known = set(pyro.get_param_store().keys())
        with local_parameters(), _WholeData() as data:
            guide = self._standing_guide()
            with _in_words():
                total = _differentiable_loss(self.loss, self.model, guide, *args, **kwargs)
            if self.validate:
                self._refuse_foreign(known, total, *args)
        return total / (data.size or size)

    def _look(self, *args: Batch, **kwargs) -> None:
        """Find out once what the pair is, and refuse what would be no ELBO of it."""
        ours = isinstance(self.loss, ELBO) and not isinstance(self.loss, Objective)
        if self._looked or not (ours and self.validate):
            return  # an `Objective` looks by itself; what a function makes of a pair is its own
        with evaluating(self.model, self.guide), forked_streams():
            try:
                pair = describe(self.model, self.guide, *args, **kwargs)
            except PairError:  # the loss says so, in its own words
                return
            require_trainable(pair, enumerating=isinstance(self.loss, TraceEnum_ELBO))
            _require_order(self.loss, pair)
            if self.loss.num_particles > 1 and self.loss.vectorize_particles:
                axes = [len(s.node["fn"].batch_shape) for s in pair.model.values()]
                dim = -1 - max(1, *axes)
                if not takes_particles(self.model, self.guide, args[0], dim):
                    self.loss.vectorize_particles = False  # of our own copy: one by one
        self._looked = True
        self._stands_for = pair.full_size if pair.full_size != pair.size else None

    def _standing_guide(self) -> Guide:
        """Return the guide, standing for as many data as a subsampled model does."""
        if self._stands_for is None:
            return self.guide
        return _Standing(self._stands_for)(self.guide)

    def _refuse_foreign(self, known: set[str], loss: Tensor, *args: Batch) -> None:
        """Raise if a tensor receives a gradient that no part of this SVI has: it would stay."""
        ours = {id(parameter) for parameter in self.parameters.values()}
        for name, parameter in pyro.get_param_store().named_parameters():
            if name not in known and id(parameter) not in ours:
                raise ValueError(
                    f"pyro.param({name!r}, ...) makes a parameter that belongs to no module, so "
                    "that nothing would train it: make it an nn.Parameter, or a PyroParam of a "
                    "PyroModule"
                )
        ours |= {id(t) for t in tree_leaves(args)}
        if foreign := [leaf for leaf in leaves_of(loss) if id(leaf) not in ours]:
            sides = {"model": self.model, "guide": self.guide, "loss": self.loss}
            names = ", ".join(describe_tensor(leaf, **sides) for leaf in foreign[:3])
            raise ValueError(
                f"the loss depends on {names}, which belongs to no module of model, guide or loss "
                "as they are given, so that nothing would train it: make it a parameter or a "
                "submodule of one of them (a list of modules is an nn.ModuleList), pass the "
                "module itself instead of a function around it, or freeze it with "
                "requires_grad_(False)"
            )


def _own(loss: Loss) -> Loss:
    """Return a loss that is safe to keep: a Pyro ELBO remembers the plates of the pair it met."""
    if isinstance(loss, type):
        raise TypeError(f"loss must be an ELBO, not its class: write {loss.__name__}()")
    if isinstance(loss, Objective):
        return loss
    if isinstance(loss, RenyiELBO):  # has no differentiable loss, and trains no plain module
        return IWELBO(loss.num_particles, alpha=loss.alpha)
    if isinstance(loss, (EnergyDistance, Trace_MMD)) or "Jit" in type(loss).__name__:
        raise TypeError(
            f"{type(loss).__name__} is not served: it is no ELBO of one pair's traces, or freezes "
            "them. Use Trace_ELBO, or an objective of ppvae.objectives"
        )
    if isinstance(loss, ELBO):
        if not hasattr(loss, "differentiable_loss"):
            raise TypeError(
                f"{type(loss).__name__} has no differentiable loss: use Trace_ELBO, which treats "
                "sites without pathwise gradients as well"
            )
        return copy.copy(loss)
    if not callable(loss):
        raise TypeError(
            f"loss must be an ELBO or a function of (model, guide, batch), not {loss!r}"
        )
    return loss


def _differentiable_loss(loss: Loss, *args, **kwargs) -> Tensor:
    """Return the loss summed over the batch, without waiting for the device where we can."""
    if not isinstance(loss, ELBO):
        return loss(*args, **kwargs)
    if type(loss) not in (Trace_ELBO, TraceMeanField_ELBO):
        return loss.differentiable_loss(*args, **kwargs)
    model, guide, *rest = args
    total = 0.0
    for traces in loss._get_traces(model, guide, rest, kwargs):
        with _NoItem():
            value, surrogate = loss._differentiable_loss_particle(*traces)
        value = value + surrogate - surrogate.detach()
        if isinstance(loss, TraceMeanField_ELBO):
            value = value + _log_volume(traces[1])
        total = total + value / loss.num_particles
    return total


def _log_volume(guide_trace: Trace) -> Tensor | float:
    """Return the log densities of `Delta` sites, which Pyro's KL to them leaves out (1.9.2).

    Autoguides put the Jacobian there by which a latent is brought onto its support.
    """
    latents = latent_sites(guide_trace).values()
    return sum(site["log_prob"].sum() for site in latents if is_delta(site["fn"]))


@contextmanager
def _in_words() -> Iterator[None]:
    """Say of a draw outside of a prior's support what it is, where Pyro shows all shapes."""
    try:
        yield
    except ValueError as error:
        found = re.match(r"Error while computing \w+ at site '(.+)':\n(.*)", str(error))
        if found and "to be within the support" in found[2]:
            raise PairError(
                f"site {found[1]!r}: a value lies outside of its law's support, where its log "
                "probability is -inf: let the guide draw inside the prior's support, and data be "
                "inside the likelihood's"
            ) from error
        raise


def _require_order(loss: ELBO, pair: Record) -> None:
    """Raise if closed-form KLs would be those of another order of the latents."""
    if isinstance(loss, TraceMeanField_ELBO) and not all(pair.follows().values()):
        late = [n for n, good in pair.follows().items() if not good]
        raise PairError(
            f"TraceMeanField_ELBO takes the KL of each latent in closed form, but the guide draws "
            f"{', '.join(map(repr, late))} before latents that the model draws it after, where "
            "the sum is another number: draw them in the model's order, or use Trace_ELBO"
        )


class _Standing(Messenger):
    """Lets a guide's data plate stand for as many data as the model's, and weigh as much.

    A guide that is handed minibatches need not know of how many data they are.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def _pyro_sample(self, msg: dict) -> None:
        stack = msg["cond_indep_stack"]
        for frame in stack:
            if frame.name == DATA_PLATE and frame.full_size in (None, frame.size):
                msg["scale"] = msg["scale"] * self.size / frame.size
        msg["cond_indep_stack"] = tuple(
            f._replace(full_size=self.size) if f.name == DATA_PLATE else f for f in stack
        )


class _WholeData(Messenger):
    """Notes how many data the data plate stands for: more than the batch if subsampled."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def _pyro_post_sample(self, msg: dict) -> None:
        for frame in msg["cond_indep_stack"]:
            if frame.name == DATA_PLATE:
                self.size = max(self.size, frame.full_size or 0)  # -1 where nobody says


class _NoItem(TorchFunctionMode):
    """Make `.item()` return a detached 0-d tensor: Pyro's ELBOs call it at every site."""

    def __torch_function__(
        self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        if func is torch.Tensor.item:
            return args[0].detach()
        return func(*args, **(kwargs or {}))


def _awaits_data(model: Model, guide: Guide) -> bool:
    """Return whether a side makes its parameters when it first sees data."""
    parts = [*modules_of(model), *modules_of(guide)]
    return any(
        (isinstance(part, AutoGuide) and part.prototype_trace is None)
        or any(is_lazy(parameter) for parameter in part.parameters(recurse=False))
        for part in parts
    )
