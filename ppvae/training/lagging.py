"""Lagging inference: while it pays, the guide catches up with the model before each step."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ppvae.diagnostics import mutual_information
from ppvae.protocols import (
    Batch,
    Guide,
    Model,
    batch_size,
    forked_streams,
    leaves,
    map_batch,
)
from ppvae.training.batches import Batches
from ppvae.training.svi import SVI, Loss

if TYPE_CHECKING:
    from ppvae.training.history import History

__all__ = ["LaggingSVI", "observed_scalars"]


def observed_scalars(batch: Batch) -> Tensor:
    """Return how many scalars a batch holds, 0-d: without NaN, and without the 0 that pads tokens.

    Example:
        >>> observed_scalars({"a": torch.tensor([1.0, torch.nan]), "b": torch.tensor([[3, 1, 0]])})
        tensor(3)
    """
    counts = [(~x.isnan() if x.is_floating_point() else x != 0) for x in leaves(batch).values()]
    return sum(count.sum() for count in counts)


class LaggingSVI(SVI):
    """SVI whose guide is trained to the end before the model moves, as long as that pays.

        while I_q(x; z) on held-out data rises from epoch to epoch:
            phi <- phi - grad loss, over and over, on batches of its own, until
                   the loss of `window` batches per observed scalar is not below that of the
                   window before
            theta <- theta - grad loss, on the step's batch
        afterwards: (theta, phi) together, as `SVI`

    An encoder that lags behind tells a decoder nothing, which learns to do without it: posterior
    collapse. The inner loop reads a number off the device once per window. Loss and schedules are
    those of the model's step: inner steps do not advance them.

    Args:
        model: Samples p(x, z).
        guide: Samples q(z | x), with a density known at given points.
        optim: As in `SVI`; one optimizer for both, each side moved by its own gradients.
        loss: As in `SVI`.
        inner: The batches that the guide is trained on, in an order of their own: not the object
            that `fit` gets. Their place is part of the state, so that a resumed run goes on
            exactly.
        held_out: What the mutual information is of, (N, ...); at most ln N can be seen, and N^2
            densities are computed, each epoch.
        window: How many inner steps are averaged.
        size: How much a batch holds, a number or a 0-d tensor: what losses are compared per. By
            default the scalars it observes, so that batches of long and of short sentences, or of
            many and of few modalities, compare.
        most: The most inner steps before one of the model's.
        **kwargs: As in `SVI`.

    Raises:
        ValueError: If `window` or `most` is not positive, or `most` is below `window`; on the
            first step, if the guide has nothing to train; after the first epoch, if it has no
            density at given points.

    References:
        He et al. (2019), Lagging Inference Networks and Posterior Collapse in VAEs,
        arXiv:1901.05534, algorithm 1.

    Example:
        >>> from functools import partial
        >>> from ppvae.guides import Normal
        >>> from ppvae.models import VAE
        >>> from ppvae.networks import MLP
        >>> from ppvae.objectives import BetaELBO
        >>> model, guide = VAE(MLP(2, 8), latent_dim=2), Normal(MLP(8, 16), latent_dim=2)
        >>> x, optim = torch.ones(50, 8), partial(torch.optim.Adam, lr=1e-3)
        >>> inner = Batches(x, batch_size=10, seed=1)
        >>> svi = LaggingSVI(model, guide, optim, BetaELBO(), inner=inner, held_out=x)
        >>> _ = svi.step(x); svi.inner_steps >= 20
        True
    """

    def __init__(
        self,
        model: Model,
        guide: Guide,
        optim: Callable[..., torch.optim.Optimizer],
        loss: Loss,
        *,
        inner: Batches,
        held_out: Batch,
        window: int = 10,
        most: int = 100,
        size: Callable[[Batch], Tensor | float] = observed_scalars,
        callbacks: Sequence[Callable] = (),
        **kwargs,
    ) -> None:
        super().__init__(model, guide, optim, loss, callbacks=(_reconsider, *callbacks), **kwargs)
        if not 1 <= window <= most:
            raise ValueError(
                f"window must be at least 1 and at most `most`, but window={window}, most={most}"
            )
        self.inner = _Inner(inner)
        self.held_out, self.window, self.most, self.size = held_out, window, most, size

    @property
    def aggressive(self) -> bool:
        """Whether the guide is still trained first."""
        return self.inner.aggressive

    @property
    def inner_steps(self) -> int:
        """How many steps of the guide alone there have been."""
        return self.inner.steps

    def step(self, *args: Batch, **kwargs) -> Tensor:
        """Move the guide until it has caught up, then the model; return the loss of the latter."""
        if not self.aggressive:
            return super().step(*args, **kwargs)
        self.prepare(*args, **kwargs)
        self._catch_up()
        with self._held("guide."):
            return super().step(*args, **kwargs)

    def reconsider(self) -> float:
        """Go on as plain SVI if the mutual information has fallen; return it, in nats.

        `fit` does so after each epoch, and records it as `mutual_information`.
        """
        with forked_streams():
            torch.manual_seed(0)  # common random numbers: epochs differ by their weights alone
            found = mutual_information(self.model, self.guide, self._moved(self.held_out))
        self.inner.aggressive &= found >= self.inner.information
        self.inner.information = found
        return found

    def _catch_up(self) -> None:
        """Train the guide until a window of batches is no better than the one before."""
        before = torch.inf
        with self._held("model."):
            for _ in range(self.most // self.window):
                batches = [self._moved(next(self.inner)) for _ in range(self.window)]
                total = sum(batch_size(batch) * self._descend(batch) for batch in batches)
                mean = float(total / sum(self.size(batch) for batch in batches))
                if not mean < before:
                    return
                before = mean

    @contextmanager
    def _held(self, prefix: str) -> Iterator[None]:
        """Compute no gradients of one side, so that the optimizer leaves it alone."""
        held = [p for name, p in self.parameters.items() if name.startswith(prefix)]
        try:
            for parameter in held:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in held:
                parameter.requires_grad_(True)

    def _moved(self, batch: Batch) -> Batch:
        return map_batch(lambda leaf: leaf.to(self.device), batch)

    def _parts(self) -> dict[str, object]:
        return super()._parts() | {"inner": self.inner}


class _Inner:
    """The stream of batches that the guide is trained on, its place in it, and whether it is."""

    def __init__(self, batches: Batches) -> None:
        self.batches, self.order, self.place = batches, batches.state_dict(), 0
        self.rest: Iterator[Batch] = iter(())
        self.aggressive, self.information, self.steps = True, -math.inf, 0

    def __next__(self) -> Batch:
        """Return the next batch, of the next epoch if need be."""
        batch = next(self.rest, None)
        if batch is None:
            self.order, self.place = self.batches.state_dict(), 0
            self.rest = iter(self.batches)
            batch = next(self.rest)
        self.place, self.steps = self.place + 1, self.steps + 1
        return batch

    def state_dict(self) -> dict[str, object]:
        names = ("order", "place", "aggressive", "information", "steps")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
        self.batches.load_state_dict(self.order)
        self.rest = islice(iter(self.batches), self.place, None) if self.place else iter(())


def _reconsider(svi: LaggingSVI, history: "History") -> None:
    if svi.aggressive:
        history.records[-1]["mutual_information"] = svi.reconsider()
