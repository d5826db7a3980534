"""Epochs of training, with progress, validation and a record of each."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau
from tqdm.auto import tqdm

from ppvae.batches import Batches
from ppvae.objectives import Objective
from ppvae.pairing import check_pair
from ppvae.protocols import Batch, map_batch
from ppvae.protocols import batch_size as number_of_data
from ppvae.svi import SVI
from ppvae.weights import WeightlessError, log_weights

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["History", "fit"]

Callback = Callable[[SVI, "History"], None]


class History:
    """What training recorded: one row per epoch, in nats per datum.

    Columns: `epoch`, `loss`, the terms that the objective names, `validation_elbo` where asked for
    (`validation_loss` for a guide without a density), and `seconds`.

    Example:
        >>> history = History([{"epoch": 1, "loss": 3.0, "seconds": 0.1}])
        >>> history["loss"]
        [3.0]
    """

    def __init__(self, records: list[dict[str, float]]) -> None:
        self.records = records

    def __len__(self) -> int:
        """The number of epochs."""
        return len(self.records)

    def __iter__(self) -> Iterator[dict[str, float]]:
        """Yield the records."""
        return iter(self.records)

    def __getitem__(self, column: str) -> list[float]:
        """Return a column by name."""
        return [record[column] for record in self.records]

    @property
    def frame(self) -> "pd.DataFrame":
        """The records as a DataFrame, indexed by epoch."""
        import pandas as pd

        return pd.DataFrame(self.records).set_index("epoch")

    def _repr_html_(self) -> str:
        return self.frame._repr_html_() if self.records else "History of no epochs"

    def __repr__(self) -> str:
        return f"History of {len(self)} epochs" + (f", last {self.records[-1]}" if self else "")


def fit(
    svi: SVI,
    data: Batch | Iterable[Batch],
    *,
    epochs: int,
    validation: Batch | None = None,
    batch_size: int = 128,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
) -> History:
    """Train a pair for some epochs, and return the record of every epoch it has had.

    A second call goes on where the first ended. An interruption loses nothing: `svi.records` keeps what
    was recorded. The pair is checked on the first batch, and Pyro's validation sees every datum of the
    first epoch once.

    Args:
        svi: The step to repeat.
        data: x: the whole set `(N, ...)`, which is moved to the device and shuffled there, or any
            iterable of batches that can be iterated anew each epoch, such as `Batches`.
        epochs: How many times to go through the data.
        validation: A held-out set; its ELBO is recorded, computed in evaluation mode on the same
            random numbers every epoch, without touching those of training.
        batch_size: Of the minibatches, where `data` is a whole set.
        callbacks: Functions of (svi, history), called after each epoch.
        progress: Whether to show a bar, in a terminal or a notebook; a log file gets none.

    Returns:
        The history, a view of `svi.records`.

    Raises:
        PairError: If model, guide and first batch do not fit together, in words.
        ValueError: If the data are empty, or `epochs` is negative.
        FloatingPointError: If the loss of an epoch is not finite, naming the terms.

    Example:
        >>> from functools import partial
        >>> from pyro.infer import Trace_ELBO
        >>> from ppvae.guides import Normal
        >>> from ppvae.models import VAE
        >>> from ppvae.networks import MLP
        >>> model, guide = VAE(MLP(2, 8), latent_dim=2), Normal(MLP(8, 16), latent_dim=2)
        >>> svi = SVI(model, guide, partial(torch.optim.Adam, lr=1e-2), Trace_ELBO())
        >>> history = fit(svi, torch.ones(64, 8), epochs=3, progress=False)
        >>> history["loss"][0] > history["loss"][-1]
        True
    """
    if epochs < 0:
        raise ValueError(f"epochs must not be negative, but is {epochs}")
    history = History(svi.records)
    batches = _batches(data, batch_size, svi.device, epoch=len(history))
    held_out = None if validation is None else _moved(validation, svi.device)
    with tqdm(total=epochs, desc="epochs", disable=None if progress else True) as bar:
        for index in range(epochs):
            start = time.perf_counter()
            record = {"epoch": len(history) + 1, **_epoch(svi, batches, first=index == 0)}
            if held_out is not None:
                record |= _validate(svi, held_out)
            record["seconds"] = time.perf_counter() - start
            history.records.append(record)
            _advance_scheduler(svi, record)
            for callback in callbacks:
                callback(svi, history)
            shown = ("loss", "validation_elbo", "validation_loss")
            bar.set_postfix({name: f"{record[name]:.5g}" for name in shown if name in record})
            bar.update()
    return history


def _batches(
    data: Batch | Iterable[Batch], size: int, device: torch.device, epoch: int
) -> Iterable[Batch]:
    if not isinstance(data, (Tensor, Mapping)):
        return data
    batches = Batches(data, size, device=device)
    batches.epoch = epoch
    return batches


def _moved(batch: Batch, device: torch.device) -> Batch:
    return map_batch(lambda leaf: leaf.to(device, non_blocking=True), batch)


def _epoch(svi: SVI, batches: Iterable[Batch], *, first: bool) -> dict[str, float]:
    """Train for one epoch, and return the means of the loss and its terms over the data."""
    count, sums = 0, {}
    for index, batch in enumerate(batches):
        batch = _moved(batch, svi.device)
        if first:
            if index == 0:
                check_pair(svi.model, svi.guide, batch)
            svi.validate = True
        size = number_of_data(batch)
        terms = {"loss": svi.step(batch)}
        if isinstance(svi.loss, Objective):
            terms |= svi.loss.record
        for name, term in terms.items():  # tensors: no number is read before the epoch ends
            sums[name] = sums.get(name, 0.0) + size * term
        count += size
    if count == 0:
        raise ValueError(
            "there are no data to train on: the iterable of batches is empty, or a generator that was "
            "used up; pass something that can be iterated anew each epoch"
        )
    means = {name: float(total) / count for name, total in sums.items()}
    if not math.isfinite(means["loss"]):
        raise FloatingPointError(
            f"the loss of epoch {len(svi.records) + 1} is not finite: {means}. Lower the learning rate, "
            "clip gradients with SVI(..., clip_norm=...), or bound the scales from below"
        )
    return means


def _validate(svi: SVI, held_out: Batch) -> dict[str, float]:
    devices = [svi.device] if svi.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)  # common random numbers: epochs differ by their weights alone
        try:
            return {
                "validation_elbo": float(log_weights(svi.model, svi.guide, held_out, 1).mean())
            }
        except WeightlessError:
            return {"validation_loss": float(svi.evaluate(held_out))}


def _advance_scheduler(svi: SVI, record: dict[str, float]) -> None:
    if isinstance(svi.scheduler, ReduceLROnPlateau):
        svi.scheduler.step(-record.get("validation_elbo", -record["loss"]))
    elif svi.scheduler is not None:
        svi.scheduler.step()
