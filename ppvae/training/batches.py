"""Data that live on the device or in a memory-mapped file, shuffled anew every epoch."""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ppvae import protocols
from ppvae.protocols import Batch, seeded

__all__ = ["Batches", "Transform", "resolve_device"]

DEFAULT_BATCH_SIZE = 128

Leaf = Tensor | np.ndarray
Data = Leaf | Mapping[str, Leaf]
Transform = Callable[[Batch, torch.Generator], Batch]


class Batches:
    """Minibatches of a whole data set, in a new order every epoch.

    Tensors live on the device and are shuffled there. Of memory-mapped arrays (`np.load(path,
    mmap_mode="r")`, `np.memmap`) only the rows of a batch are read and moved, so that the data may
    exceed the memory; both kinds give the same batches, bit for bit.

    An epoch's order, and what `transform` draws, depend on the seed and the epoch alone, and not
    on what else drew random numbers: that is what exact resume rests on. The last batch may be
    smaller. An epoch that is broken off counts as begun, so the next iteration has another order.

    Args:
        data: The whole data set, `(N, ...)`: a tensor or an array, or a mapping of them.
        batch_size: The number of data in a batch; 128, or N where there are fewer, by default.
        shuffle: Whether to reorder the data every epoch. Never where one batch takes them all:
            what has a factor per datum would meet another.
        drop_last: Whether to leave out a last batch that is smaller; in another order, other data
            are left out. For objectives with statistics of the batch, such as `MixtureELBO`.
        seed: Of the order; that of `torch.manual_seed` by default.
        device: Where to keep the tensors, and to put the rows of arrays; where they are by
            default.
        transform: Applied to every batch on its device, `(batch, generator) -> batch`, with the
            epoch's own generator: `ppvae.data.bernoulli` binarizes anew every epoch.

    Attributes:
        epoch: The number of epochs begun, which is the index of the next one.

    Raises:
        TypeError: If the data are no tensors or arrays, or an array's dtype is none of a tensor.
        ValueError: If there are no data, or `batch_size` is not between 1 and N.

    Example:
        >>> [len(batch) for batch in Batches(torch.zeros(10, 3), batch_size=4)]
        [4, 4, 2]
        >>> len(Batches(torch.zeros(10, 3), batch_size=4, drop_last=True))
        2
        >>> def noisy(batch, generator):
        ...     return batch + torch.randn(batch.shape, generator=generator)
        >>> batches = Batches(torch.zeros(10, 3), seed=0, transform=noisy)
        >>> first, second = next(iter(batches)), next(iter(batches))
        >>> batches.epoch = 0
        >>> torch.equal(next(iter(batches)), first), torch.equal(first, second)
        (True, False)
    """

    def __init__(
        self,
        data: Data,
        batch_size: int | None = None,
        *,
        shuffle: bool = True,
        drop_last: bool = False,
        seed: int | None = None,
        device: str | torch.device | None = None,
        transform: Transform | None = None,
    ) -> None:
        self.size = protocols.batch_size(_shapes(data))
        self.batch_size = _checked(batch_size, self.size)
        self.seed = torch.initial_seed() if seed is None else seed
        self.device = _device_of(data) if device is None else torch.device(device)
        self.data = data if device is None else _each(self._placed, data)
        self.shuffle, self.drop_last = shuffle, drop_last
        self.transform, self.epoch = transform, 0

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return (math.floor if self.drop_last else math.ceil)(self.size / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of one epoch."""
        generator = seeded(self.seed, self.epoch, self.device)
        order = self._order(generator)
        self.epoch += 1
        for rows in order.split(self.batch_size)[: len(self)]:
            batch = _each(partial(self._take, rows=rows), self.data)
            yield batch if self.transform is None else self.transform(batch, generator)

    def state_dict(self) -> dict[str, int]:
        """Return what fixes the epochs to come: seed and epoch, and the sizes to check them by."""
        names = ("seed", "epoch", "size", "batch_size", "drop_last")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where another run ended.

        Raises:
            ValueError: If the state is of other data or of other batches: the epochs to come would
                not be those of that run.
        """
        for name in ("size", "batch_size", "drop_last"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"the saved batches have {name}={state[name]}, but these have "
                    f"{name}={getattr(self, name)}: resume with the same data and batches"
                )
        self.seed, self.epoch = state["seed"], state["epoch"]

    def _order(self, generator: torch.Generator) -> Tensor:
        if not self.shuffle or self.batch_size == self.size:  # all at once has but one order
            return torch.arange(self.size, device=self.device)
        return torch.randperm(self.size, generator=generator, device=self.device)

    def _placed(self, leaf: Leaf) -> Leaf:
        return leaf.to(self.device) if isinstance(leaf, Tensor) else leaf

    def _take(self, leaf: Leaf, rows: Tensor) -> Tensor:
        if isinstance(leaf, Tensor):
            return leaf[rows]
        ascending, back = rows.cpu().sort()  # a file is read fastest from front to end
        picked = np.asarray(leaf[ascending.numpy()])
        batch = np.empty_like(picked)
        batch[back.numpy()] = picked
        return torch.from_numpy(batch).to(self.device)


def _checked(size: int | None, count: int) -> int:
    if size is None:
        return min(DEFAULT_BATCH_SIZE, count)
    if size < 1:
        raise ValueError(f"batch_size must be at least 1, but is {size}")
    if size > count:
        raise ValueError(
            f"batch_size is {size}, but there are only {count} data: give batch_size <= {count}"
        )
    return size


def _each(function: Callable[[Leaf], Leaf], data: Data) -> Data:
    if isinstance(data, Mapping):
        return {name: function(leaf) for name, leaf in data.items()}
    return function(data)


def _shapes(data: Data) -> Batch:
    """Return the data with tensors of no memory in place of arrays, to check as a batch."""
    if isinstance(data, Mapping):
        return {name: _shape(name, leaf) for name, leaf in data.items()}
    return _shape("x", data)


def _shape(name: str, leaf: Leaf) -> Tensor:
    if not isinstance(leaf, np.ndarray):
        return leaf
    try:
        torch.from_numpy(np.empty(0, leaf.dtype))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"the array {name!r} has dtype {leaf.dtype}, which no tensor has: save it as numbers "
            "in the machine's byte order, such as float32 or uint8"
        ) from error
    return torch.empty(leaf.shape, device="meta")


def _device_of(data: Data) -> torch.device:
    found = data.values() if isinstance(data, Mapping) else (data,)
    return next((leaf.device for leaf in found if isinstance(leaf, Tensor)), torch.device("cpu"))


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
            f"device={str(device)!r} was asked for, but this machine or this build of torch has "
            "no CUDA device: choose 'cpu', or 'auto' to take what there is"
        )
    return resolved
