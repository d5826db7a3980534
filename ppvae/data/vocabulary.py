"""Words and their ids."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from ppvae.networks.recurrent import END, PADDING, UNKNOWN

__all__ = ["Vocabulary", "mask"]

RESERVED = ("<pad>", "<eos>", "<unk>")  # ids 0, 1 and 2


class Vocabulary:
    """The words that a model knows, and their ids.

        0 <pad>    fills a batch, and is no token: `len` does not count it
        1 <eos>    ends each sentence
        2 <unk>    stands for any other word
        3 ...      the words

    Args:
        words: From id 3 on, each once.

    Raises:
        ValueError: If a word is repeated, reserved, or holds white space.

    Example:
        >>> vocabulary = Vocabulary(["the", "cat"])
        >>> vocabulary.encode(["the cat", "the"])
        tensor([[3, 4, 1],
                [3, 1, 0]])
        >>> len(vocabulary), vocabulary.decode(torch.tensor([[3, 2, 1, 0]]))
        (4, ['the <unk>'])
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        self._ids = {word: i for i, word in enumerate(self.tokens)}
        odd = [word for word in self.words if word in RESERVED or word.split() != [word]]
        if odd or len(self._ids) < len(self.tokens):
            told = f"{odd[0]!r} is none" if odd else "one is repeated"
            raise ValueError(
                f"words must differ, be no reserved one of {', '.join(RESERVED)} and hold no "
                f"white space, but {told}"
            )

    @classmethod
    def of(cls, sentences: Iterable[Sequence[str]], most: int | None = None) -> "Vocabulary":
        """Return the words of sentences, the most frequent first, and of equals the alphabet's.

        Args:
            sentences: Each a sequence of words.
            most: How many words to keep, the reserved ones aside; all by default.

        Raises:
            ValueError: If `most` is not positive.

        Example:
            >>> Vocabulary.of([["b", "a"], ["b", "c"]], most=2).words
            ('b', 'a')
        """
        if most is not None and most < 1:
            raise ValueError(f"a vocabulary needs at least 1 word, but most={most}")
        counts = Counter(word for sentence in sentences for word in sentence)
        ranked = sorted(counts.keys() - set(RESERVED), key=lambda word: (-counts[word], word))
        return cls(ranked[:most])

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """All words by id, the reserved ones first."""
        return (*RESERVED, *self.words)

    @cached_property
    def digest(self) -> str:
        """What tells this vocabulary from all others: of the words in their order."""
        return hashlib.sha256("\n".join(self.words).encode()).hexdigest()

    def __len__(self) -> int:
        """The number V of tokens that a sentence can hold: words, <unk> and <eos>."""
        return len(self.words) + 2

    def encode(self, sentences: Iterable[str | Sequence[str]], *, strict: bool = False) -> Tensor:
        """Return the ids of sentences, `(N, T)`, each ended by <eos> and padded by 0.

        Args:
            sentences: Each a string, split at white space, or a sequence of words.
            strict: Whether to refuse words outside of the vocabulary instead of writing <unk>.

        Raises:
            TypeError: If a string is given in place of a list of them.
            ValueError: If there is no sentence, one is empty, or a word is refused, by its number.
        """
        if isinstance(sentences, str):
            raise TypeError("sentences are a list of strings, but this is one: put it into a list")
        rows = []
        for number, sentence in enumerate(sentences):
            words = sentence.split() if isinstance(sentence, str) else sentence
            if not words:
                raise ValueError(f"sentence {number} is empty: leave it out")
            unknown = [w for w in words if w not in self._ids or self._ids[w] < UNKNOWN]
            if strict and unknown:
                raise ValueError(
                    f"sentence {number} holds {unknown[0]!r}, outside of the vocabulary of "
                    f"{len(self)}: leave strict out to read it as <unk>, or add the word"
                )
            known = (UNKNOWN if w in RESERVED else self._ids.get(w, UNKNOWN) for w in words)
            rows.append(torch.tensor([*known, END]))
        if not rows:
            raise ValueError("there is no sentence to encode: give at least one")
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PADDING)

    def decode(self, tokens: Tensor) -> list[str]:
        """Return sentences as strings, each up to its <eos>.

        Args:
            tokens: `(N, T)`, or `(T,)` for one sentence.

        Raises:
            ValueError: If an id is outside of the vocabulary.
        """
        rows = tokens.reshape(-1, tokens.shape[-1]).tolist()
        ids = {i for row in rows for i in row}
        if bad := sorted(i for i in ids if not 0 <= i <= len(self)):
            raise ValueError(
                f"the token {bad[0]} is outside of the vocabulary of {len(self)}: decode with the "
                "vocabulary that the text was encoded with"
            )
        ended = [row[: row.index(END)] if END in row else row for row in rows]
        return [" ".join(self.tokens[i] for i in row if i != PADDING) for row in ended]


def mask(tokens: Tensor) -> Tensor:
    """Return where there are tokens, and not padding: booleans of the same shape.

    Example:
        >>> mask(torch.tensor([[3, 1, 0]]))
        tensor([[ True,  True, False]])
    """
    return tokens != PADDING
