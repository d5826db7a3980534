"""Data that lives on the device and is shuffled there."""

import math
from collections.abc import Iterator

import torch

from ppvae import protocols
from ppvae.protocols import Batch, leaves, map_batch

__all__ = ["Batches", "resolve_device"]


class Batches:
    """Minibatches of tensors that fit on the device, in a new order every epoch.

    Shuffling draws from a generator of its own, so that an epoch's order depends on the seed and the
    epoch alone, and not on what else drew random numbers. The last batch may be smaller.

    Args:
        data: The whole data set, `(N, ...)`: a tensor or a mapping of tensors.
        batch_size: The number of data in a batch.
        shuffle: Whether to reorder the data every epoch.
        seed: Of the order; that of `torch.manual_seed` by default.
        device: Where to keep the data; where they are by default.

    Raises:
        ValueError: If there are no data, or `batch_size` is not positive.

    Example:
        >>> [len(batch) for batch in Batches(torch.zeros(10, 3), batch_size=4)]
        [4, 4, 2]
    """

    def __init__(
        self,
        data: Batch,
        batch_size: int = 128,
        *,
        shuffle: bool = True,
        seed: int | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, but is {batch_size}")
        self.data = data if device is None else map_batch(lambda leaf: leaf.to(device), data)
        self.size = protocols.batch_size(self.data)
        self.seed = torch.initial_seed() if seed is None else seed
        self.batch_size, self.shuffle, self.epoch = batch_size, shuffle, 0

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return math.ceil(self.size / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of one epoch."""
        order = self._order().split(self.batch_size)
        self.epoch += 1
        for rows in order:
            yield map_batch(lambda leaf, rows=rows: leaf[rows], self.data)

    def _order(self) -> torch.Tensor:
        device = next(iter(leaves(self.data).values())).device
        if not self.shuffle:
            return torch.arange(self.size, device=device)
        seed = (self.seed + self.epoch * 0x9E3779B97F4A7C15) % 2**63  # neighbors share no order
        generator = torch.Generator(device).manual_seed(seed)
        return torch.randperm(self.size, generator=generator, device=device)


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """Return the device to compute on: CUDA where there is one for "auto", else what is asked for.

    Raises:
        ValueError: If CUDA is asked for and absent, or the name is unknown.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}: choose 'auto', 'cpu' or 'cuda'") from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device={str(device)!r} was asked for, but this machine or this build of torch has no "
            "CUDA device: choose 'cpu', or 'auto' to take what there is"
        )
    return resolved
