"""Functions that `fit` calls after each epoch: plain functions of (svi, history)."""

import math
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from ppvae.objectives import BetaELBO
from ppvae.protocols import module_of
from ppvae.training.history import History
from ppvae.training.svi import SVI

__all__ = ["anneal", "bound_events", "tensorboard"]


def anneal(buffer: str, schedule: Callable[[int], float]) -> Callable[[SVI, History], None]:
    """Return a callback that sets a 0-d buffer to what a schedule says of the next epoch.

        buffer <- schedule(number of epochs done)

    The first epoch has the buffer's own value: start it at schedule(0). A resumed run goes on
    exactly, since the schedule knows nothing but the number of epochs.

    Args:
        buffer: Its dotted name, after "model.", "guide." or "loss.": "guide.temperature", or
            "loss.beta", for what is not scheduled by the step.
        schedule: From a number of epochs to a value, such as `objectives.warmup`.

    Raises:
        ValueError: After the first epoch, if there is no such buffer, or it is the beta of a loss
            that leaves its KL out, or has a schedule of its own.

    Example:
        >>> from ppvae.objectives import warmup
        >>> lower = anneal("guide.temperature", warmup(50, start=1.0, end=0.05))
    """

    def set_buffer(svi: SVI, history: History) -> None:
        buffers = _buffers(svi)
        if buffer not in buffers:
            raise ValueError(
                f"there is no buffer {buffer!r} to set: there are {', '.join(buffers) or 'none'}"
            )
        if buffer == "loss.beta" and isinstance(svi.loss, BetaELBO):
            _require_free(svi.loss)
        buffers[buffer].fill_(schedule(len(history)))

    return set_buffer


def bound_events(margin: float = 1.5) -> Callable[[SVI, History], None]:
    """Return a callback that bounds the events of `guides.Poisson` by what an epoch has seen.

        max_events <- n + 10 sqrt(n) + 10,  n = margin * the most expected of any draw

    So that a draw reads nothing back from the device: worth it on CUDA. The first epoch asks. If
    the rates of a batch stay within the margin of the last epoch's, a draw has more events with
    probability below 1e-20; a draw that has is NaN, and `fit` stops.

    Args:
        margin: How much the expected number may grow within an epoch, at least 1.

    Raises:
        ValueError: If the margin is below 1; after the first epoch, if the guide has no events.

    Example:
        >>> callbacks = [bound_events(margin=2.0)]
    """
    if not margin >= 1:
        raise ValueError(f"margin must be at least 1, but is {margin}")

    def bound(svi: SVI, history: History) -> None:
        most = _buffers(svi).get("guide.most_events")
        if most is None:
            raise ValueError(
                f"{type(svi.guide).__name__} draws no events to bound: take guides.Poisson, or "
                "leave bound_events out"
            )
        expected = margin * float(most)
        svi.guide.max_events = math.ceil(expected + 10 * math.sqrt(expected)) + 10
        most.zero_()

    return bound


def _require_free(loss: BetaELBO) -> None:
    if loss.without_kl:
        raise ValueError(
            "loss.beta cannot be annealed from 0, where the KL is left out for good: start above, "
            "such as BetaELBO(1e-4) with warmup(epochs, 1e-4, 1.0)"
        )
    if loss.schedule is not None:
        raise ValueError(
            "loss.beta follows a schedule of its own, by the step: leave it to that, or make the "
            "loss with a number"
        )


def _buffers(svi: SVI) -> dict[str, Tensor]:
    sides = {"model": svi.model, "guide": svi.guide, "loss": svi.loss}
    modules = {side: module for side, part in sides.items() if (module := module_of(part))}
    return {
        f"{side}.{name}": buffer
        for side, module in modules.items()
        for name, buffer in module.named_buffers()
    }


def tensorboard(folder: str | Path) -> Callable[[SVI, History], None]:
    """Return a callback that writes every record to TensorBoard, a scalar per column.

    Steps are epochs, so that a resumed run goes on in its own curves.

    Args:
        folder: Where TensorBoard looks, `tensorboard --logdir FOLDER`.

    Raises:
        ModuleNotFoundError: If TensorBoard is not installed, with the mend.

    Example:
        >>> tensorboard("runs/a/tensorboard")  # doctest: +SKIP
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ModuleNotFoundError(
            "TensorBoard is not installed: pip install tensorboard, or read history.jsonl, which "
            "every run with a checkpoint folder writes"
        ) from error

    def write(svi: SVI, history: History) -> None:
        record = history.records[-1]
        with SummaryWriter(str(folder)) as writer:  # a writer per epoch leaves nothing open
            for name, value in record.items():
                if name != "epoch":
                    writer.add_scalar(name, value, record["epoch"])

    return write
