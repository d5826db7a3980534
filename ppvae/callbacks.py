"""Functions that `fit` calls after each epoch: plain functions of (svi, history)."""

from collections.abc import Callable
from pathlib import Path

from ppvae.svi import SVI
from ppvae.training import History

__all__ = ["tensorboard"]


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
