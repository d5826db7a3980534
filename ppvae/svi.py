"""One step of training: a drop-in for `pyro.infer.SVI` over plain modules and torch optimizers."""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial

import pyro
import torch
from pyro.infer import ELBO, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.overrides import TorchFunctionMode

from ppvae.objectives import IWELBO, Objective
from ppvae.protocols import Batch, Guide, Model, batch_size
from ppvae.weights import evaluating

__all__ = ["SVI"]

Loss = ELBO | Callable[..., Tensor]


class SVI:
    """Stochastic variational inference: moves a model and a guide down a loss, batch by batch.

        (theta, phi) <- optimizer((theta, phi), grad loss(model_theta, guide_phi, batch) / N)

    Works where `pyro.infer.SVI` does, and on what it leaves alone: plain modules, a second guide in
    one process, a model or guide without parameters. The parameter store stays empty. Nothing in
    `step` waits for the device, provided that the modules do not: Pyro's validation does, and is
    therefore on for the first step only, or while `validate` is set.

    Args:
        model: Samples p(x, z).
        guide: Samples q(z | x).
        optim: Makes the torch optimizer, e.g. `partial(torch.optim.Adam, lr=1e-3)`, fused where that
            exists; a `pyro.optim` one is built once, over all parameters.
        loss: An objective, a Pyro ELBO, or a function of (model, guide, batch) summed over the batch.
        groups: Optimizer options by name prefix, e.g. `{"guide.encoder": {"lr": 1e-4}}`; names are
            those of `named_parameters()` with "model." or "guide." before, the longest prefix wins.
        scheduler: Makes the learning-rate scheduler from the optimizer; `fit` steps it every epoch.
        clip_norm: The largest norm of the whole gradient, in nats per datum and parameter unit.
        clip_value: The largest absolute entry of the gradient.

    Raises:
        TypeError: If `optim` is an optimizer instead of a way to make one, or the loss has no
            differentiable form.
        ValueError: If there is nothing to train, or a group matches no parameter.

    Example:
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
        groups: Mapping[str, Mapping[str, object]] | None = None,
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ) -> None:
        self.model, self.guide, self.loss = model, guide, _own(loss)
        self.parameters = dict(_named_parameters(model, guide))
        if not self.parameters:
            raise ValueError("there is nothing to train: neither model nor guide has parameters")
        if isinstance(optim, PyroOptim):
            optim, clips = _unwrap(optim)
            clip_norm = clips.get("clip_norm", clip_norm)
            clip_value = clips.get("clip_value", clip_value)
        self.optimizer = _optimizer(optim, _grouped(self.parameters, groups or {}))
        self.scheduler = scheduler(self.optimizer) if scheduler else None
        self.clip_norm, self.clip_value = clip_norm, clip_value
        self.validate = True  # for the next step
        self.records: list[dict[str, float]] = []  # what `fit` has recorded, an epoch each

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(iter(self.parameters.values())).device

    def step(self, *args: Batch, **kwargs) -> Tensor:
        """Move the parameters once, and return the loss in nats per datum: 0-d, detached, on the device."""
        self.optimizer.zero_grad(set_to_none=True)
        with nullcontext() if self.validate else pyro.validation_enabled(False):
            loss = self._loss_per_datum(*args, **kwargs)
            loss.backward()
        if self.clip_value is not None:
            clip_grad_value_(self.parameters.values(), self.clip_value)
        if self.clip_norm is not None:
            clip_grad_norm_(self.parameters.values(), self.clip_norm)
        self.optimizer.step()
        if isinstance(self.loss, Objective):
            self.loss.advance()
        self.validate = False
        return loss.detach()

    def evaluate(self, *args: Batch, **kwargs) -> Tensor:
        """Return the loss in nats per datum, in evaluation mode, and change nothing."""
        with evaluating(self.model, self.guide):
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
            ValueError: If the state lacks a part of this SVI, or has another.
        """
        parts = self._parts()
        if parts.keys() != state.keys():
            raise ValueError(
                f"the state holds {sorted(state)}, but this SVI has {sorted(parts)}: build it from "
                "the same kind of model, guide, loss and scheduler"
            )
        for name, part in parts.items():
            part.load_state_dict(state[name])

    def _parts(self) -> dict[str, object]:
        modules = {"model": self.model, "guide": self.guide, "loss": self.loss}
        stateful = {name: m for name, m in modules.items() if isinstance(m, nn.Module)}
        steppers = {"optimizer": self.optimizer, "scheduler": self.scheduler}
        return stateful | {name: part for name, part in steppers.items() if part is not None}

    def _loss_per_datum(self, *args: Batch, **kwargs) -> Tensor:
        total = _differentiable_loss(self.loss, self.model, self.guide, *args, **kwargs)
        return total / (batch_size(args[0]) if args else 1)


def _own(loss: Loss) -> Loss:
    """Return a loss that is safe to keep: a Pyro ELBO remembers the plates of the pair it met."""
    if isinstance(loss, Objective):
        return loss
    if isinstance(loss, RenyiELBO):  # has no differentiable loss, and trains no plain module
        return IWELBO(loss.num_particles, alpha=loss.alpha)
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
        total = total + (value + surrogate - surrogate.detach()) / loss.num_particles
    return total


class _NoItem(TorchFunctionMode):
    """Make `.item()` return a detached 0-d tensor: Pyro's ELBOs call it at every site."""

    def __torch_function__(
        self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        if func is torch.Tensor.item:
            return args[0].detach()
        return func(*args, **(kwargs or {}))


def _named_parameters(model: Model, guide: Guide) -> Iterator[tuple[str, nn.Parameter]]:
    seen = set()
    for prefix, side in (("model", model), ("guide", guide)):
        for name, parameter in side.named_parameters() if isinstance(side, nn.Module) else ():
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                yield f"{prefix}.{name}", parameter


def _grouped(
    parameters: Mapping[str, nn.Parameter], groups: Mapping[str, Mapping[str, object]]
) -> list[dict[str, object]]:
    """Return torch's parameter groups, one per prefix that has parameters, the rest first."""
    members: dict[str, list] = {"": [], **{prefix: [] for prefix in groups}}
    for name, parameter in parameters.items():
        matching = [prefix for prefix in groups if f"{name}.".startswith(f"{prefix.rstrip('.')}.")]
        members[max(matching, key=len, default="")].append((name, parameter))
    if empty := [prefix for prefix in groups if not members[prefix]]:
        raise ValueError(
            f"the parameter groups {empty} match no parameter of their own; there are: "
            f"{', '.join(parameters)}"
        )
    return [
        {"params": named, **groups.get(prefix, {})} for prefix, named in members.items() if named
    ]


def _optimizer(optim: Callable[..., Optimizer], groups: list[dict[str, object]]) -> Optimizer:
    if isinstance(optim, Optimizer) or not callable(optim):
        raise TypeError(
            f"optim must make the optimizer, such as partial(torch.optim.Adam, lr=1e-3), but is "
            f"{type(optim).__name__}"
        )
    options = inspect.signature(optim).parameters
    undecided = all(
        name in options and options[name].default is None for name in ("fused", "foreach")
    )
    return optim(groups, fused=True) if undecided else optim(groups)


def _unwrap(optim: PyroOptim) -> tuple[Callable[..., Optimizer], Mapping[str, float]]:
    arguments, clips = optim.pt_optim_args, optim.pt_clip_args
    if callable(arguments) or callable(clips) or "optimizer" in arguments:
        raise TypeError(
            f"this {type(optim).__name__} decides per parameter or schedules its learning rate: pass "
            "partial(torch.optim.Adam, lr=1e-3) instead, with groups= and scheduler="
        )
    return partial(optim.pt_optim_constructor, **arguments), clips
