"""Minibatches of sentences of like length, so that little is spent on padding."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ppvae.data.vocabulary import mask
from ppvae.protocols import seeded
from ppvae.training import Batches

__all__ = ["SentenceBatches"]

POOL = 50  # batches among which sentences are sorted


class SentenceBatches(Batches):
    """Minibatches of sentences of like length, trimmed to the longest, in a new order every epoch.

    The order is drawn; then the sentences of each fifty batches are sorted by their length and cut
    into batches, and the batches are shuffled. With `equal` all sentences of a batch have the same
    length, so that nothing is padded; the last batch of each length may be smaller. As with
    `Batches`, the epoch's order depends on the seed and the epoch alone.

    Args:
        tokens: All sentences, `(N, T)`, padded with 0.
        batch_size: The number of sentences in a batch; 128, or N where there are fewer, by
            default.
        equal: Whether the sentences of a batch have equal lengths.
        **kwargs: As in `Batches`; `drop_last` leaves out every batch that is smaller.

    Attributes:
        epoch: The number of epochs begun, which is the index of the next one.

    Raises:
        TypeError: If the tokens are no tensor of integers.
        ValueError: If they are not (N, T), a sentence is empty, or `batch_size` is not between 1
            and N.

    Example:
        >>> tokens = torch.tensor([[3, 1, 0, 0], [3, 4, 5, 1], [5, 1, 0, 0]])
        >>> sorted(tuple(batch.shape) for batch in SentenceBatches(tokens, 2, equal=True))
        [(1, 4), (2, 2)]
    """

    def __init__(
        self,
        tokens: Tensor,
        batch_size: int | None = None,
        *,
        equal: bool = False,
        **kwargs,
    ) -> None:
        if not isinstance(tokens, Tensor) or tokens.is_floating_point():
            raise TypeError("sentences are a tensor of token ids: encode text with Vocabulary")
        super().__init__(tokens, batch_size, **kwargs)
        if tokens.ndim != 2:
            raise ValueError(f"sentences must be tokens (N, T), but are {tuple(tokens.shape)}")
        self.equal, self.lengths = equal, mask(tokens).sum(-1).cpu()
        if not bool(self.lengths.all()):
            row = int((self.lengths == 0).nonzero()[0])
            raise ValueError(f"sentence {row} is empty, padding alone: leave it out")

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        counts = self.lengths.bincount().tolist() if self.equal else [self.size]
        up = 0 if self.drop_last else self.batch_size - 1
        return sum((count + up) // self.batch_size for count in counts)

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the batches of one epoch, `(n, t)` each, t the longest sentence's length."""
        generator = seeded(self.seed, self.epoch)  # of the CPU, where lengths are known
        ours = generator
        if self.device.type != "cpu":
            ours = seeded(self.seed, self.epoch, self.device)
        batches = self._cut(generator)
        self.epoch += 1
        for rows in batches:
            longest = int(self.lengths[rows].max())
            batch = self.data[rows.to(self.data.device), :longest].to(self.device)
            yield batch if self.transform is None else self.transform(batch, ours)

    def state_dict(self) -> dict[str, int]:
        """Return what fixes the epochs to come: as that of `Batches`, and `equal`."""
        return super().state_dict() | {"equal": self.equal}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where another run ended.

        Raises:
            ValueError: If the state is of other data or of other batches.
        """
        if state.get("equal") != self.equal:
            raise ValueError(
                f"the saved batches have equal={state.get('equal')}, but these have "
                f"equal={self.equal}: resume with the same data and batches"
            )
        super().load_state_dict(state)

    def _cut(self, generator: torch.Generator) -> list[Tensor]:
        """Return the rows of each batch of an epoch."""
        order = torch.arange(self.size)
        if self.shuffle:
            order = torch.randperm(self.size, generator=generator)
        batches = [batch for pool in self._pools(order) for batch in pool.split(self.batch_size)]
        if self.drop_last:
            batches = [rows for rows in batches if len(rows) == self.batch_size]
        if not self.shuffle:
            return batches
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]

    def _pools(self, order: Tensor) -> list[Tensor]:
        """Return rows to cut into batches: of one length each, or many sorted by length."""
        if self.equal:
            lengths = self.lengths[order]
            return [order[lengths == length] for length in lengths.unique()]
        pools = order.split(POOL * self.batch_size)
        return [rows[self.lengths[rows].argsort(stable=True)] for rows in pools]
