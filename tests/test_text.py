"""Text from files: parts, vocabulary, batches, and what is said of lines that do not fit."""

import gzip
from functools import partial

import pytest
import torch
from real import real
from torch.optim import Adam

from ppvae import SVI, fit
from ppvae.data import SentenceBatches, Vocabulary, load_text, mask
from ppvae.guides import Normal
from ppvae.models import Sentence
from ppvae.networks import RecurrentDecoder, RecurrentEncoder
from ppvae.objectives import BetaELBO


def write(folder, **parts):
    """Write files of lines; a name that ends in gz is packed."""
    for name, lines in parts.items():
        name = name.replace("_", ".")
        opened = partial(gzip.open, mode="wt") if name.endswith("gz") else partial(open, mode="w")
        with opened(folder / name, encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
    return folder


def sentences(count=40, longest=9):
    """Tokens of sentences of many lengths, each row unlike the others."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 50, (count, longest), generator=generator)
    lengths = torch.randint(2, longest + 1, (count,), generator=generator)
    place = torch.arange(longest)
    tokens[place == lengths[:, None] - 1] = 1
    return tokens * (place < lengths[:, None])


# Files


def test_penn_treebank_has_its_published_counts():
    """Sheet, section 3: sentences, tokens with <eos>, and a vocabulary of 10,000."""
    text = load_text(real("ptb"))
    parts = (text.train, text.validation, text.test)
    assert [len(p) for p in parts] == [42_068, 3_370, 3_761]
    assert [int(mask(p).sum()) for p in parts] == [929_589, 73_760, 82_430]
    assert len(text.vocabulary) == 10_000
    assert text.train_labels is None
    assert text.vocabulary.words[:3] == ("the", "N", "of")
    assert text.vocabulary.decode(text.test[:1]) == ["no it was n't black monday"]


def test_short_yelp_has_labels():
    """Sheet, section 3: three parts of 10,000 sentences, positive or not."""
    text = load_text(real("short_yelp"))
    labels = (text.train_labels, text.validation_labels, text.test_labels)
    assert [(len(y), *y.unique().tolist()) for y in labels] == [(10_000, 0, 1)] * 3
    assert [len(p) for p in (text.train, text.validation, text.test)] == [10_000] * 3
    told = "if you are a beer person , they have a great beer !"
    assert text.vocabulary.decode(text.validation[:1])[0].count("<unk>") <= 1
    assert text.validation_labels[0] == 1 and told.startswith("if you")


@pytest.mark.parametrize("train", ["a_train_txt", "train_txt_gz", "short_train_10_txt"])
@pytest.mark.parametrize("valid", ["a_valid_txt", "dev_txt", "val_txt_gz"])
def test_parts_go_by_the_names_of_files(tmp_path, train, valid):
    """Packed or not; the vocabulary is the train part's."""
    write(tmp_path, **{train: ["the cat", "the dog sat"], valid: ["the cow"], "a_test_txt": ["a"]})
    text = load_text(tmp_path)
    assert text.vocabulary.words == ("the", "cat", "dog", "sat")
    assert text.train.tolist() == [[3, 4, 1, 0], [3, 5, 6, 1]]
    assert text.validation.tolist() == [[3, 2, 1]]
    assert text.test.tolist() == [[2, 1]]


def test_any_folder_of_lines_is_a_train_part(tmp_path):
    """Its files one after the other, by name."""
    text = load_text(write(tmp_path, b_txt=["second"], a_txt=["first", "one"]))
    assert text.vocabulary.decode(text.train) == ["first", "one", "second"]
    assert text.validation is None and text.test is None


def test_lengths_select_and_most_counts_what_is_left(tmp_path):
    """Dropped by their words, <eos> not counted; then the first so many."""
    lines = ["a", "", "a b", "a b c d", "a b c", "b b"]
    text = load_text(
        write(tmp_path, train_txt=lines), lengths=(2, 3), outside="drop", most=2, words=2
    )
    assert text.vocabulary.decode(text.train) == ["a b", "a b <unk>"]


@pytest.mark.parametrize(
    ("lines", "kwargs", "message"),
    [
        (["a", "", "b"], {}, "line 2 of train.txt is empty, where 1 to any number"),
        (["a", "b c d e"], {"lengths": (1, 3)}, "line 2 of train.txt has 4 words, where 1 to 3"),
        (["a <eos> b"], {}, "line 1 of train.txt holds the reserved word <eos>"),
        (["1\ta b", "a b"], {}, "line 2 of train.txt has no integer label and tab"),
        (["1\ta b", "good\ta b"], {}, "line 2 of train.txt has no integer label and tab"),
        (["a"], {"lengths": (0, 3)}, "1 <= least"),
        (["a"], {"lengths": (3, 2)}, "1 <= least"),
        (["a"], {"outside": "keep"}, "'refuse' or 'drop'"),
        (["a"], {"words": 0}, "at least 1 word"),
        (["a"], {"lengths": (2, 3), "outside": "drop"}, "train part has no sentence"),
    ],
)
def test_lines_that_do_not_fit_are_named(tmp_path, lines, kwargs, message):
    """By file and line, with what mends it."""
    write(tmp_path, train_txt=lines)
    with pytest.raises(ValueError, match=message):
        load_text(tmp_path, **kwargs)


def test_a_file_that_is_not_utf8_is_named(tmp_path):
    """By its line."""
    (tmp_path / "train.txt").write_bytes(b"fine\nna\xefve\n")
    with pytest.raises(ValueError, match=r"line 2 of train.txt is not UTF-8"):
        load_text(tmp_path)


def test_a_folder_without_text_says_what_belongs_there(tmp_path):
    """Also one that does not exist."""
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match=r"no text in .*ptb.train.txt"):
            load_text(folder)


def test_two_files_of_one_part_are_refused(tmp_path):
    """Rather than one of them taken."""
    write(tmp_path, a_train_txt=["a"], b_train_txt=["b"])
    with pytest.raises(ValueError, match=r"claim to be the train part, a.train.txt, b.train.txt"):
        load_text(tmp_path)


# Words


def test_words_go_by_frequency_then_by_the_alphabet():
    """So that ids do not depend on the order of lines; reserved words are none."""
    lines = [["b", "c", "<unk>"], ["c", "a"]]
    assert Vocabulary.of(lines).words == ("c", "a", "b") == Vocabulary.of(lines[::-1]).words
    assert Vocabulary.of(lines, most=1).words == ("c",)


def test_encoding_makes_a_round_trip():
    """Up to what is not known."""
    vocabulary = Vocabulary(["a", "b"])
    assert vocabulary.encode([["b", "a"], "x", "<unk> <eos>"]).tolist() == [
        [4, 3, 1],
        [2, 1, 0],
        [2, 2, 1],
    ]
    assert vocabulary.decode(vocabulary.encode(["a b a", "b"])) == ["a b a", "b"]
    assert vocabulary.decode(torch.tensor([3, 4])) == ["a b"]  # broken off
    assert len(vocabulary) == 4 and vocabulary.tokens[3:] == ("a", "b")


def test_words_outside_of_the_vocabulary_can_be_refused():
    """By sentence and word; and ids always are."""
    vocabulary = Vocabulary(["a", "b"])
    with pytest.raises(ValueError, match="sentence 1 holds 'c', outside of the vocabulary of 4"):
        vocabulary.encode(["a", "b c"], strict=True)
    with pytest.raises(ValueError, match="token 5 is outside of the vocabulary of 4"):
        vocabulary.decode(torch.tensor([[3, 5]]))
    with pytest.raises(ValueError, match="sentence 1 is empty"):
        vocabulary.encode(["a", " "])
    with pytest.raises(ValueError, match="no sentence to encode"):
        vocabulary.encode([])
    with pytest.raises(TypeError, match="this is one: put it into a list"):
        vocabulary.encode("a b")


@pytest.mark.parametrize(
    ("words", "message"),
    [(["a", "a"], "one is repeated"), (["<eos>"], "'<eos>' is none"), (["a b"], "'a b' is none")],
)
def test_a_vocabulary_of_odd_words_is_refused(words, message):
    """Repeated, reserved, or two in one."""
    with pytest.raises(ValueError, match=message):
        Vocabulary(words)


def test_the_digest_tells_vocabularies_apart():
    """Their order too, for ids depend on it."""
    digests = {Vocabulary(words).digest for words in (["a", "b"], ["b", "a"], ["a"], ["ab"])}
    assert len(digests) == 4
    assert Vocabulary(["a", "b"]).digest in digests


# Batches


@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("drop_last", [False, True])
def test_an_epoch_has_every_sentence_once(equal, drop_last):
    """But for what is dropped; trimmed to the longest, of equal lengths if asked for."""
    tokens = sentences()
    batches = SentenceBatches(tokens, 4, equal=equal, drop_last=drop_last, seed=0)
    epoch = list(batches)
    assert len(epoch) == len(batches)
    for batch in epoch:
        lengths = mask(batch).sum(1)
        assert batch.shape[1] == lengths.max()
        assert not equal or (lengths == lengths[0]).all()
        assert not drop_last or len(batch) == 4
    rows = [tuple(row[row > 0].tolist()) for batch in epoch for row in batch]
    everything = [tuple(row[row > 0].tolist()) for row in tokens]
    assert len(set(rows)) == len(rows)
    assert set(rows) <= set(everything)
    assert drop_last or sorted(rows) == sorted(everything)


def test_buckets_waste_less_padding_than_chance():
    """Sorted by length among fifty batches, shuffled as batches."""
    tokens = sentences(400)
    waste = [
        sum(float((batch == 0).sum()) for batch in batches)
        for batches in (SentenceBatches(tokens, 8, seed=0), tokens.split(8))
    ]
    assert waste[0] < 0.1 * waste[1]
    longest = [batch.shape[1] for batch in SentenceBatches(tokens, 8, seed=0)]
    assert longest != sorted(longest)


@pytest.mark.parametrize("equal", [False, True])
def test_the_order_is_that_of_seed_and_epoch_alone(equal):
    """Whatever else draws random numbers, and again after the state was saved and loaded."""

    def epochs(batches, count):
        return [[batch.tolist() for batch in batches] for _ in range(count)]

    tokens = sentences()
    one = epochs(SentenceBatches(tokens, 4, equal=equal, seed=3), 3)
    torch.rand(7)
    other = SentenceBatches(tokens, 4, equal=equal, seed=3)
    assert epochs(other, 2) == one[:2]
    resumed = SentenceBatches(tokens, 4, equal=equal, seed=5)
    resumed.load_state_dict(other.state_dict())
    assert epochs(resumed, 1) == one[2:]
    assert one[0] != one[1] != epochs(SentenceBatches(tokens, 4, equal=equal, seed=4), 1)[0]


def test_an_order_of_its_own_is_kept():
    """Without shuffling: sorted by length, the same every epoch."""
    batches = SentenceBatches(sentences(), 4, shuffle=False)
    first, second = ([b.tolist() for b in batches] for _ in range(2))
    assert first == second
    assert [len(b[0]) for b in first] == sorted(len(b[0]) for b in first)


def test_a_transform_gets_the_batch_and_numbers_of_its_epoch():
    """The same ones again in that epoch."""

    def noisy(batch, generator):
        return batch + torch.randint(0, 9, batch.shape, generator=generator)

    batches = SentenceBatches(sentences(), 4, seed=0, transform=noisy)
    first = [b.tolist() for b in batches]
    batches.epoch = 0
    assert [b.tolist() for b in batches] == first


def test_on_a_device_a_transform_has_numbers_of_its_epoch(monkeypatch):
    """There they come from a generator of the device, of the same seed and epoch."""
    made = []

    def seeded(seed, index, device="cpu"):
        made.append((seed, index, str(device)))
        return torch.Generator()

    monkeypatch.setattr("ppvae.data.sentences.seeded", seeded)
    batches = SentenceBatches(
        sentences(), 4, seed=7, device="meta", transform=lambda batch, generator: batch
    )
    batches.epoch = 3
    monkeypatch.setattr(batches, "data", sentences())
    next(iter(batches))
    assert made == [(7, 3, "cpu"), (7, 3, "meta")]


def test_batches_of_what_is_no_sentence_are_refused():
    """Empty ones by their row."""
    with pytest.raises(TypeError, match="token ids"):
        SentenceBatches(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="sentence 1 is empty"):
        SentenceBatches(torch.tensor([[3, 1], [0, 0]]))
    with pytest.raises(ValueError, match=r"tokens \(N, T\)"):
        SentenceBatches(torch.ones(3, dtype=torch.long))
    with pytest.raises(ValueError, match="equal=True, but these have equal=False"):
        state = SentenceBatches(sentences(), 4, equal=True).state_dict()
        SentenceBatches(sentences(), 4).load_state_dict(state)
    with pytest.raises(ValueError, match="batch_size=4, but these have batch_size=5"):
        SentenceBatches(sentences(), 5).load_state_dict(
            SentenceBatches(sentences(), 4).state_dict()
        )


def test_a_run_on_sentences_resumes_exactly(tmp_path):
    """Bitwise, in the middle of its epochs: order, weights and losses."""

    def run(folder, *epochs):
        for resume, until in enumerate(epochs):
            torch.manual_seed(0)
            pair = (
                Sentence(RecurrentDecoder(50, 2, 4, 8), 2),
                Normal(RecurrentEncoder(50, 4, 8), 2),
            )
            svi = SVI(*pair, partial(Adam, lr=0.01), BetaELBO())
            batches = SentenceBatches(sentences(), 8, equal=True, seed=1)
            options = {"checkpoint": folder, "resume": bool(resume), "progress": False}
            history = fit(svi, batches, epochs=until, validation=sentences(5), **options)
        return history["loss"], history["validation_elbo"]

    assert run(tmp_path / "a", 3) == run(tmp_path / "b", 1, 3)
