"""Epochs of training, with progress, validation and a record of each."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from pathlib import Path

import numpy as np
import torch
from pyro.infer import ELBO
from pyro.infer.autoguide import AutoGuide
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau
from tqdm.auto import tqdm

from ppvae.objectives import IWELBO, Objective, PenalizedELBO, log_mean_exp
from ppvae.pairing import (
    PairError,
    check_pair,
    check_seen,
    idle_error,
    is_q_function,
    look,
    require_free_rows,
)
from ppvae.protocols import Batch, forked_streams, map_batch, modules_of, rows_of
from ppvae.protocols import batch_size as number_of_data
from ppvae.training import checkpoints
from ppvae.training.batches import DEFAULT_BATCH_SIZE, Batches
from ppvae.training.failures import Snapshot, explain
from ppvae.training.history import History
from ppvae.training.svi import SVI
from ppvae.weights import (
    WeightlessError,
    elbo_per_datum,
    log_weights,
    require_evidence,
)

__all__ = ["History", "fit"]

Callback = Callable[[SVI, "History"], None]


def fit(
    svi: SVI,
    data: Batch | Iterable[Batch],
    *,
    epochs: int,
    validation: Batch | None = None,
    batch_size: int | None = None,
    patience: int | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    check: bool = True,
) -> History:
    """Train a pair for some epochs, and return the record of every epoch it has had.

    A second call goes on where the first ended. An interruption loses nothing: `svi.records` keeps
    what was recorded, and with `checkpoint` a run that was killed at any moment and resumed ends
    bitwise where it would have ended (on a CPU). The pair is checked on the first batch, and
    Pyro's validation sees every datum of the first epoch once.

    Latents that all data share are trained, too. With minibatches the model must then scale its
    likelihood by `pyro.plate("data", size, subsample_size=len(batch))`; otherwise pass
    `batch_size=N`. An autoguide with a factor per datum needs all data in one batch, or
    `create_plates`.

    Args:
        svi: The step to repeat.
        data: x: the whole set `(N, ...)`, which is moved to the device and shuffled there, or any
            iterable of batches that can be iterated anew each epoch, such as `Batches`.
        epochs: How many times to go through the data; with `resume`, how many epochs the run has
            in all.
        validation: A held-out set; its ELBO is recorded, computed in evaluation mode on the same
            random numbers every epoch, without touching those of training.
        batch_size: Of the minibatches, where `data` is a whole set; 128, or N where that is less.
        patience: Stop after this many epochs without a better validation ELBO (bound under
            `IWELBO`, loss under penalties, training loss without `validation`), and go back to the
            best epoch: weights, optimizer and schedules together. Not where the history has `q`:
            the last epoch counts as the best there.
        checkpoint: A folder for the run: its last and its best checkpoint, and `history.jsonl`.
        resume: Whether to go on from the last checkpoint, if there is one.
        callbacks: Functions of (svi, history), called after each epoch, after those of `svi`.
        progress: Whether to show a bar, in a terminal or a notebook; a log file gets none.
        check: Whether to refuse a pair that `check_pair` does. False trains what one knows better,
            such as a KL weighed by `poutine.scale`; `log_weights` refuses it all the same.

    Returns:
        The history, a view of `svi.records`.

    Raises:
        PairError: If model, guide, first batch and validation data do not fit together, in words.
        TypeError: If the data are neither tensors nor an iterable.
        ValueError: If the data are empty, `epochs` is negative, `patience` is not positive, or is
            given where the loss is no bound, or `batch_size` is given with an iterable.
        FileExistsError: If the folder holds a run already, and `resume` is not set.
        CheckpointError: If the checkpoint to resume from is damaged, or of something else.
        FloatingPointError: If a loss is not finite, naming step, term and site; the last
            checkpoint is of the epoch before.

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
    if patience is not None and patience < 1:
        raise ValueError(f"patience must be at least 1, but is {patience}")
    history = History(svi.records)
    batches = _batches(data, batch_size, svi.device, epoch=len(history))
    held_out = None if validation is None else _moved(validation, svi.device)
    _prepare(svi, batches)
    if held_out is not None and check:
        _check_validation(svi, held_out)
    if checkpoint is not None:
        _open(checkpoint, svi, batches, resume=resume)
    began = 0 if resume else len(history)  # patience counts the epochs of this run
    until = began + epochs
    best = None if patience is None else Snapshot(svi, batches)
    with tqdm(
        initial=len(history), total=until, desc="epochs", disable=None if progress else True
    ) as bar:
        first = True
        while len(history) < until and not _stale(history, patience, began):
            start = time.perf_counter()
            epoch = _epoch(svi, batches, patience, first=first, check=check)
            record = {"epoch": len(history) + 1, **epoch}
            if held_out is not None:
                record |= _validate(svi, held_out, batches, without_bound="q" in record)
            record["seconds"] = time.perf_counter() - start
            history.records.append(record)
            _advance_scheduler(svi, record)
            for callback in (*svi.callbacks, *callbacks):
                callback(svi, history)
            improved = _best_epoch(history, began) == len(history)
            if improved and patience is not None:
                best = Snapshot(svi, batches)
            if checkpoint is not None:
                checkpoints.save(checkpoint, svi, sampler=_sampler(batches), best=improved)
                checkpoints.append_history(checkpoint, record)
            shown = ("loss", "validation_elbo", "validation_loss", "validation_q")
            bar.set_postfix({name: f"{record[name]:.5g}" for name in shown if name in record})
            bar.update()
            first = False
    if patience is not None and checkpoint is not None:
        records = list(svi.records)
        checkpoints.load(checkpoint, svi, "best")
        svi.records[:] = records
    elif patience is not None:
        best.restore_parts(svi)
    return history


def _batches(
    data: Batch | Iterable[Batch], size: int | None, device: torch.device, epoch: int
) -> Iterable[Batch]:
    if not isinstance(data, (Tensor, Mapping, np.ndarray)):
        if not isinstance(data, Iterable):
            raise TypeError(
                f"data must be a tensor, a mapping of tensors or an iterable of batches, but is a "
                f"{type(data).__name__}: of a Split pass split.train, or split.batches()"
            )
        if size is not None:
            raise ValueError(
                f"batch_size={size} is for a whole data set, but {type(data).__name__} comes in "
                "batches already: give the size where they are made"
            )
        return data
    batches = Batches(data, size, device=device)
    batches.epoch = epoch
    return batches


def _prepare(svi: SVI, batches: Iterable[Batch]) -> None:
    """Let modules that wait for data see the first batch, without moving the order of the data."""
    if svi.optimizer is not None:
        return
    order = _sampler(batches)
    with forked_streams():
        first = next(iter(batches), None)
        if first is not None:
            svi.prepare(_moved(first, svi.device))
    if order:
        batches.load_state_dict(order)


def _open(folder: str | Path, svi: SVI, batches: Iterable[Batch], *, resume: bool) -> None:
    """Take up the run in a folder, or make sure that there is none to overwrite."""
    if not checkpoints.exists(folder):
        return
    if not resume:
        raise FileExistsError(
            f"{folder} holds a run of {checkpoints.read_meta(folder)['epoch']} epochs: pass "
            "resume=True to go on, or name another folder"
        )
    meta = checkpoints.load(folder, svi)
    if isinstance(batches, Batches) and meta["sampler"]:
        batches.load_state_dict(meta["sampler"])
    checkpoints.set_random_state(meta["random"])
    checkpoints.write_history(folder, svi.records)


def _sampler(batches: Iterable[Batch]) -> dict[str, int]:
    return batches.state_dict() if isinstance(batches, Batches) else {}


def _score(record: Mapping[str, float]) -> float:
    """Return what a better epoch has more of."""
    if "q" in record:  # it bounds nothing, so that no epoch is better by it
        return record["epoch"]
    if "validation_bound" in record:
        return record["validation_bound"]
    if "validation_loss" in record:  # what is trained is not what the ELBO measures
        return -record["validation_loss"]
    return record.get("validation_elbo", -record["loss"])


def _best_epoch(history: History, began: int) -> int:
    """Return the number of the best epoch since a run began; the first of equals."""
    return 1 + max(range(began, len(history)), key=lambda i: _score(history.records[i]))


def _stale(history: History, patience: int | None, began: int) -> bool:
    if patience is None or len(history) == began:
        return False
    return len(history) - _best_epoch(history, began) >= patience


def _moved(batch: Batch, device: torch.device) -> Batch:
    return map_batch(lambda leaf: leaf.to(device, non_blocking=True), batch)


def _epoch(
    svi: SVI, batches: Iterable[Batch], patience: int | None, *, first: bool, check: bool = True
) -> dict[str, float]:
    """Train for one epoch, and return the means of the loss and its terms over the data."""
    start = Snapshot(svi, batches)
    count, sums, losses = 0, {}, []
    without_bound = not first and "q" in svi.records[-1]
    idle = None
    for index, batch in enumerate(batches):
        batch = _moved(batch, svi.device)
        if first:
            if index == 0:
                idle = _Idle(svi, batch, several=_several(batches)) if check else None
                without_bound = is_q_function(svi.guide, batch)
                _refuse_patience(patience, without_bound)
            elif isinstance(batch, Mapping):
                check_seen(batch)
            svi.validate = True
        size = number_of_data(batch)
        terms = {"loss": svi.step(batch)}
        losses.append(terms["loss"])
        if idle is not None:
            idle.see(svi)
        if isinstance(svi.loss, Objective):
            terms |= svi.loss.record
        for name, term in terms.items():  # tensors: no number is read before the epoch ends
            sums[name] = sums.get(name, 0.0) + size * term
        count += size
    if count == 0:
        raise ValueError(
            "there are no data to train on: the iterable of batches is empty, or a generator that "
            "was used up; pass something that can be iterated anew each epoch"
        )
    if idle is not None:
        idle.refuse()
    _require_finite(svi, batches, start, torch.stack(losses))
    _require_finite_parameters(svi, batches, start)
    record = {name: float(total) / count for name, total in sums.items()}
    if not without_bound:
        return record
    if "kl" in record:  # of a point it is -E[log p(z)]: the entropy is not there
        record["cross_entropy"] = record.pop("kl")
    return record | {"q": -record["loss"]}


class _Idle:
    """The parameters that nothing has moved yet.

    Under an ELBO they are refused at the first batch. A loss of the user's own may need other
    batches for them, such as those with labels: it has an epoch's time.
    """

    def __init__(self, svi: SVI, batch: Batch, *, several: bool) -> None:
        own = not isinstance(svi.loss, ELBO)
        pair, self.names = look(svi.model, svi.guide, batch, svi.loss if own else None)
        if several:
            require_free_rows(svi.model, svi.guide, batch, pair)
        if not own:
            self.refuse()

    def see(self, svi: SVI) -> None:
        """Take note of a step."""
        if self.names:
            self.names -= {name for name, p in svi.parameters.items() if p.grad is not None}

    def refuse(self) -> None:
        """Raise if there are any."""
        if self.names:
            raise idle_error(self.names)


def _several(batches: Iterable[Batch]) -> bool:
    """Return whether an epoch has more than one batch, as far as they say."""
    return isinstance(batches, Sized) and len(batches) > 1


def _refuse_patience(patience: int | None, without_bound: bool) -> None:
    if patience is not None and without_bound:
        raise ValueError(
            f"patience={patience} stops by the loss, but with this guide that is -Q = -E[log p(x, "
            "z)], which bounds nothing: it falls as the guide narrows. Leave patience out, and "
            "choose the epochs by the evidence under a guide with a density"
        )


def _require_finite(svi: SVI, batches: Iterable[Batch], start: Snapshot, losses: Tensor) -> None:
    finite = losses.isfinite().tolist()
    if all(finite):
        return
    index, epoch = finite.index(False), len(svi.records) + 1
    value = float(losses[index])
    raise FloatingPointError(
        f"the loss is {value} at step {index + 1} of {len(finite)} in epoch {epoch}: "
        f"{explain(svi, batches, start, index)}. Lower the learning rate, clip gradients with "
        "SVI(..., clip_norm=...), or bound scales from below; the pair is as it was before that "
        "step"
    )


def _require_finite_parameters(svi: SVI, batches: Iterable[Batch], start: Snapshot) -> None:
    """Raise if an epoch's last gradient was not finite: no checkpoint may hold such weights."""
    finite = torch.stack([p.isfinite().all() for p in svi.parameters.values()]).tolist()
    bad = [name for name, good in zip(svi.parameters, finite, strict=True) if not good]
    if bad:
        start.restore(svi, batches)
        raise FloatingPointError(
            f"the parameters {', '.join(bad[:3])} are not finite after epoch "
            f"{len(svi.records) + 1}: the gradient of its last step was not, though its loss was. "
            "Lower the learning rate, or clip gradients with SVI(..., clip_norm=...); the pair is "
            "as it was before that epoch"
        )


def _check_validation(svi: SVI, held_out: Batch) -> None:
    """Say what is wrong with validation data before an epoch is spent."""
    size = number_of_data(held_out)
    step = size if _takes_all_data(svi) else 2**12
    try:
        for start in range(0, size, step):
            check_pair(svi.model, svi.guide, rows_of(held_out, start, step))
    except PairError as error:
        raise PairError(f"validation: {error}") from error


def _takes_all_data(svi: SVI) -> bool:
    return any(isinstance(part, AutoGuide) for part in modules_of(svi.guide))


def _validate(
    svi: SVI, held_out: Batch, batches: Iterable[Batch], *, without_bound: bool
) -> dict[str, float]:
    size = batches.batch_size if isinstance(batches, Batches) else DEFAULT_BATCH_SIZE
    penalized = isinstance(svi.loss, PenalizedELBO) and bool(svi.loss.penalty_names)
    with forked_streams():
        torch.manual_seed(0)  # common random numbers: epochs differ by their weights alone
        try:
            if isinstance(svi.loss, IWELBO):
                log_w = log_weights(svi.model, svi.guide, held_out, svi.loss.num_particles)
                require_evidence(log_w)
                bound = float(log_mean_exp(log_w).mean())
                return {"validation_elbo": float(log_w.mean()), "validation_bound": bound}
            record = {"validation_elbo": float(elbo_per_datum(svi.model, svi.guide, held_out))}
        except WeightlessError:
            loss = _held_out_loss(svi, held_out, size)
            return {"validation_q": -loss} if without_bound else {"validation_loss": loss}
        if penalized:
            record["validation_loss"] = _held_out_loss(svi, held_out, size)
        return record


def _held_out_loss(svi: SVI, held_out: Batch, size: int) -> float:
    """Return the loss over whole batches of the training's size: penalties depend on it."""
    total = number_of_data(held_out)
    size = total if _takes_all_data(svi) else min(size, total)
    starts = range(0, total - size + 1, size)
    losses = [svi.evaluate(rows_of(held_out, start, size)) for start in starts]
    return float(torch.stack(losses).mean())


def _advance_scheduler(svi: SVI, record: dict[str, float]) -> None:
    if isinstance(svi.scheduler, ReduceLROnPlateau):
        svi.scheduler.step(-_score(record))
    elif svi.scheduler is not None:
        svi.scheduler.step()
