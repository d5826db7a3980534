"""Recurrent networks of tokens: sentences into features, and latents into sentences."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["END", "PADDING", "UNKNOWN", "Cell", "RecurrentDecoder", "RecurrentEncoder"]

PADDING, END, UNKNOWN = 0, 1, 2  # token ids: after a sentence, at its end, for a rare word
LOGITS = 2**23  # at once, where no gradient needs them: 32 MB of floats

Cell = Literal["lstm", "gru"]


class RecurrentEncoder(nn.Module):
    """A recurrent network over the words of a sentence: its state at the end is the features.

        h_t = cell(h_{t-1}, E x_t),  features = h_T,  T the last token before the padding

    No dropout: the guide of the published baselines has none.

    Args:
        vocabulary_size: The number V of tokens: ids are 1 to V, and 0 is padding.
        embedding_dim: The size of E x_t.
        hidden: The size of h, which is `out_features`.
        cell: "lstm" or "gru".

    Raises:
        ValueError: If the cell is unknown.

    References:
        Bowman et al. (2016), Generating Sentences from a Continuous Space, arXiv:1511.06349.

    Example:
        >>> encoder = RecurrentEncoder(10, embedding_dim=4, hidden=8)
        >>> encoder(torch.tensor([[3, 4, 1], [5, 1, 0]])).shape
        torch.Size([2, 8])
    """

    activation = nn.Identity  # the state of a cell is bounded already

    def __init__(
        self,
        vocabulary_size: int,
        embedding_dim: int = 256,
        hidden: int = 256,
        *,
        cell: Cell = "lstm",
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size + 1, embedding_dim)
        self.cell = _cell(cell, embedding_dim, hidden)
        self.out_features = hidden

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens `(..., T)` to features `(..., out_features)`."""
        flat = tokens.reshape(-1, tokens.shape[-1])
        with _within(tokens, self.embedding.num_embeddings - 1):
            states, _ = _run(self.cell, self.embedding(flat))  # (B, T, H)
        last = (flat != PADDING).sum(-1).clamp(min=1) - 1
        features = states[torch.arange(len(flat), device=flat.device), last]
        return features.reshape(*tokens.shape[:-1], self.out_features)


class RecurrentDecoder(nn.Module):
    """A recurrent network that scores, or writes, a sentence given a latent.

        h_0 = A z + a  (c_0 = 0),  h_t = cell(h_{t-1}, (E x_{t-1}, z))
        p(x_t = v | x_<t, z) = softmax_v(U h_t + u),  v = 1 ... V

    Padding is no outcome: V logits, not V + 1. Before the first word stands the embedding of
    padding, which marks the start. Dropout is drawn for each call in training mode: for a chain of
    steps on one density, put the model into evaluation mode. The cell itself has none, and runs as
    in training always, since cuDNN has no backward pass otherwise; second derivatives on CUDA need
    `torch.backends.cudnn.flags(enabled=False)`.

    Args:
        vocabulary_size: The number V of tokens: ids are 1 to V, and 0 is padding.
        latent_dim: The size D of the latent.
        embedding_dim: The size of E x_t.
        hidden: The size of h.
        cell: "lstm" or "gru".
        dropout: The share of embeddings' and states' entries set to 0 while training.
        word_dropout: The share of words that the decoder does not get to read while training: it
            sees <unk> in their place.
        tied: Whether U is E, less the padding; `embedding_dim` must be `hidden` then.

    Raises:
        ValueError: If the cell is unknown, a share is not in [0, 1], or tied sizes differ.

    References:
        Bowman et al. (2016), Generating Sentences from a Continuous Space, arXiv:1511.06349 (word
        dropout).
        Pang et al. (2021), Generative Text Modeling through Short Run Inference, arXiv:2106.02513.

    Example:
        >>> decoder = RecurrentDecoder(10, latent_dim=2, embedding_dim=4, hidden=8)
        >>> decoder(torch.zeros(3, 2), torch.tensor([[3, 4, 1]]).expand(3, 3)).shape
        torch.Size([3, 3, 10])
    """

    def __init__(
        self,
        vocabulary_size: int,
        latent_dim: int,
        embedding_dim: int = 256,
        hidden: int = 256,
        *,
        cell: Cell = "lstm",
        dropout: float = 0.0,
        word_dropout: float = 0.0,
        tied: bool = False,
    ) -> None:
        super().__init__()
        for name, share in (("dropout", dropout), ("word_dropout", word_dropout)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must lie in [0, 1], but is {share}")
        if tied and embedding_dim != hidden:
            raise ValueError(
                f"tied=True shares weights between words read, of embedding_dim={embedding_dim}, "
                f"and words written, of hidden={hidden}: make the two equal"
            )
        self.in_features, self.out_features = latent_dim, vocabulary_size
        self.dropout, self.word_dropout = dropout, word_dropout
        self.embedding = nn.Embedding(vocabulary_size + 1, embedding_dim)
        self.start = nn.Linear(latent_dim, hidden)
        self.cell = _cell(cell, embedding_dim + latent_dim, hidden)
        self.bias = nn.Parameter(torch.zeros(vocabulary_size))
        self.own = None if tied else nn.Parameter(torch.empty(vocabulary_size, hidden))
        if self.own is not None:
            nn.init.uniform_(self.own, -(hidden**-0.5), hidden**-0.5)  # as nn.Linear

    @property
    def weight(self) -> Tensor:
        """U, `(V, hidden)`."""
        return self.embedding.weight[1:] if self.own is None else self.own

    def forward(self, z: Tensor, tokens: Tensor) -> Tensor:
        """Map latents `(..., D)` and tokens `(..., T)` to the logits of each, `(..., T, V)`."""
        return functional.linear(self.states(z, tokens), self.weight, self.bias)

    def states(self, z: Tensor, tokens: Tensor) -> Tensor:
        """Return h, `(..., T, hidden)`: what is known of each token from z and those before it.

        Args:
            z: Latents, `(..., D)`.
            tokens: `(..., T)`, of leading axes that broadcast with those of z.
        """
        lead = torch.broadcast_shapes(z.shape[:-1], tokens.shape[:-1])
        length, flat = tokens.shape[-1], z.expand(*lead, -1).reshape(-1, z.shape[-1])
        read = functional.pad(tokens, (1, -1), value=PADDING)  # the token before
        words = self.embedding(self._dropped(read)).expand(*lead, length, -1)
        words = words.reshape(len(flat), length, -1)  # particles fold into the batch
        words = functional.dropout(words, self.dropout, self.training)
        inputs = torch.cat([words, flat.unsqueeze(1).expand(-1, length, -1)], dim=-1)
        states, _ = _run(self.cell, inputs, self._first(flat))
        states = functional.dropout(states, self.dropout, self.training)
        return states.reshape(*lead, length, -1)

    def log_prob(self, z: Tensor, tokens: Tensor) -> Tensor:
        """Return ln p(x_t | x_<t, z), `(..., T)`, 0 at padding.

        Without gradients, the logits of a few tokens at a time are in memory.

        Args:
            z: Latents, `(..., D)`.
            tokens: `(..., T)`, of leading axes that broadcast with those of z.

        Example:
            >>> decoder = RecurrentDecoder(10, latent_dim=2, embedding_dim=4, hidden=8)
            >>> decoder.log_prob(torch.zeros(3, 2), torch.tensor([[3, 4, 1]])).shape
            torch.Size([3, 3])
        """
        with _within(tokens, self.out_features):
            states = self.states(z, tokens)
            targets = tokens.expand(states.shape[:-1])
            h, t = states.flatten(0, -2), targets.flatten()
            rows = len(t) if torch.is_grad_enabled() else max(1, LOGITS // self.out_features)
            parts = [self._score(*part) for part in zip(h.split(rows), t.split(rows), strict=True)]
        return torch.cat(parts).reshape(targets.shape)

    def _score(self, h: Tensor, targets: Tensor) -> Tensor:
        logits = functional.linear(h, self.weight, self.bias)
        return -functional.cross_entropy(  # padding, id 0, becomes the index to ignore
            logits, targets.long() - 1, ignore_index=PADDING - 1, reduction="none"
        )

    @torch.no_grad()
    def generate(self, z: Tensor, max_length: int, *, temperature: float = 1.0) -> Tensor:
        """Write a sentence for each latent, word by word, each read before the next is written.

        Args:
            z: Latents, `(..., D)`.
            max_length: Of the sentences, their <eos> counted; longer ones are broken off.
            temperature: What logits are divided by; 0 takes the likeliest word each time, which is
                not the likeliest sentence.

        Returns:
            Tokens, `(..., max_length)`, padding after <eos>.

        Raises:
            ValueError: If `max_length` is not positive or the temperature negative.

        Example:
            >>> decoder = RecurrentDecoder(10, latent_dim=2, embedding_dim=4, hidden=8)
            >>> decoder.generate(torch.zeros(3, 2), 5).shape
            torch.Size([3, 5])
        """
        if max_length < 1 or not temperature >= 0:
            raise ValueError(
                f"max_length must be at least 1 and temperature not negative, but they are "
                f"{max_length} and {temperature}"
            )
        flat = z.reshape(-1, z.shape[-1])
        rows = max(1, LOGITS // self.out_features)
        parts = [self._write(some, max_length, temperature) for some in flat.split(rows)]
        return torch.cat(parts).reshape(*z.shape[:-1], max_length)

    def _write(self, z: Tensor, max_length: int, temperature: float) -> Tensor:
        """Return a sentence for each row of z, `(B, max_length)`."""
        state, written = self._first(z), []
        token = torch.full((len(z),), PADDING, device=z.device)
        over = torch.zeros(len(z), dtype=torch.bool, device=z.device)
        for _ in range(max_length):
            inputs = torch.cat([self.embedding(token), z], dim=-1)
            h, state = _run(self.cell, inputs.unsqueeze(1), state)
            logits = functional.linear(h[:, 0], self.weight, self.bias)
            if temperature == 0:
                token = 1 + logits.argmax(-1)
            else:
                token = 1 + (logits / temperature).softmax(-1).multinomial(1)[:, 0]
            token = token.masked_fill(over, PADDING)
            over = over | (token == END)
            written.append(token)
        return torch.stack(written, dim=-1)

    def _dropped(self, read: Tensor) -> Tensor:
        """Return tokens with some words hidden; padding marks the start, and is no word."""
        if not self.training or self.word_dropout == 0:
            return read
        hidden = torch.rand(read.shape, device=read.device) < self.word_dropout
        return read.masked_fill(hidden & (read != PADDING), UNKNOWN)

    def _first(self, z: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        h = self.start(z).unsqueeze(0)  # (1, B, hidden)
        return (h, torch.zeros_like(h)) if isinstance(self.cell, nn.LSTM) else h


@contextmanager
def _within(tokens: Tensor, size: int) -> Iterator[None]:
    """Say in words which token is outside of the vocabulary; a CPU looks each of them up."""
    try:
        yield
    except IndexError as error:
        bad = tokens[(tokens < 0) | (tokens > size)].flatten().tolist()
        raise ValueError(
            f"there is a token {bad[0] if bad else ''} outside of the vocabulary of {size} (ids 1 "
            f"to {size}, and 0 for padding): encode the text with the model's own vocabulary"
        ) from error


def _cell(cell: str, features: int, hidden: int) -> nn.LSTM | nn.GRU:
    cells = {"lstm": nn.LSTM, "gru": nn.GRU}
    if cell not in cells:
        raise ValueError(f"unknown cell {cell!r}: choose 'lstm' or 'gru'")
    return cells[cell](features, hidden, batch_first=True)


def _run(cell: nn.LSTM | nn.GRU, inputs: Tensor, state: object = None) -> tuple[Tensor, object]:
    """Run a cell as in training, whatever its mode: cuDNN has no backward pass otherwise."""
    mode, cell.training = cell.training, True
    try:
        return cell(inputs, state)
    finally:
        cell.training = mode
