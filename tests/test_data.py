"""Data sets are what their papers say, split and binarized by seed; bad ones are refused in words.

Real files are looked for in the folder PPVAE_DATA, or beside the checkout; without them those
tests skip.
"""

import pickle
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from real import real
from scipy.io import savemat

from ppvae import Batches, data
from ppvae.data import NAMES, Split, bernoulli, digits, load, to_unit
from ppvae.protocols import seeded

# with files that nothing downloads, or with none
BY_HAND = {"digits", "binarized_mnist", "frey", "olshausen_whitened", "photographs"}
OPTIONS = [(True, "threshold"), (False, "none"), ("fixed", "fixed")]


@pytest.fixture(scope="session")
def mnist(root):
    return load("mnist", root=root("mnist"), download=True, keep_bytes=True)


# What each set is


@pytest.mark.parametrize(
    ("name", "mean", "per_class"),
    [("mnist", 0.1307, None), ("fashion_mnist", 0.2860, 6000)],
)
def test_real_images(root, name, mean, per_class):
    folder = root(name)
    split = load(name, root=folder, download=True, flat=False, keep_bytes=True)
    assert split.train.shape == (60000, 1, 28, 28)
    assert split.test.shape == (10000, 1, 28, 28)
    assert split.train.dtype == torch.uint8
    assert 0 <= split.test.min() <= split.test.max() == 1
    assert float(split.train.double().mean() / 255) == pytest.approx(mean, abs=5e-5)
    counts = split.train_labels.bincount()
    assert len(counts) == 10
    assert counts.sum() == 60000
    if per_class:
        assert set(counts.tolist()) == {per_class}
    again = load(name, root=folder)  # unpacked now, so nothing need be downloaded
    assert torch.equal(again.test, split.test.flatten(1))


def test_mnist_starts_with_the_digits_it_is_known_for(mnist):
    assert mnist.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert mnist.test_labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert mnist.train.shape == (60000, 784)


def test_real_binarized_mnist():
    split = load("binarized_mnist", root=real("binarized_mnist").parent)
    assert split.train.shape == (50000, 784)
    assert split.validation.shape == split.test.shape == (10000, 784)
    assert split.image == (1, 28, 28)
    assert split.train_labels is split.test_labels is split.validation_labels is None
    assert set(split.train[:1000].unique().tolist()) == {0.0, 1.0}
    # ink of the fixed draw is that of gray MNIST, up to the noise of 39 million draws
    assert float(split.train.mean()) == pytest.approx(0.1307, abs=2e-3)
    assert not torch.equal(split.test, split.validation)


def test_real_binarized_mnist_test_part_is_ordered_by_class():
    split = load("binarized_mnist", root=real("binarized_mnist").parent, flat=False)
    center = split.test[:100, 0, 12:16, 12:16].mean()
    assert float(center) < 0.1  # the first hundred are all the digit zero, hollow in the middle
    assert float(split.test[:, 0, 12:16, 12:16].mean()) > 0.3


def test_real_frey_faces_are_a_film():
    """A frame is near the next, and the test part far from the train part."""
    split = load("frey", root=real("frey").parent, keep_bytes=True, flat=False)
    assert split.train.shape == (1765, 1, 28, 20)
    assert split.test.shape == (200, 1, 28, 20)
    assert split.image == (1, 28, 20)
    assert split.train_labels is split.test_labels is None
    assert (int(split.train.min()), int(split.train.max())) == (8, 238)
    film = torch.cat([to_unit(split.train), split.test]).flatten(1)
    near, far = film[1:] - film[:-1], film[500:] - film[:-500]
    assert near.norm(dim=1).median() < far.norm(dim=1).median() / 1.5
    mixed = film[torch.randperm(len(film), generator=seeded(0, 0))]
    assert _to_nearest(mixed[-200:], mixed[:-200]) < 1.2
    assert _to_nearest(film[-200:], film[:-200]) > 1.5


def _to_nearest(test, train):
    return float(torch.cdist(test, train).min(1).values.median())


def write_cifar10(folder):
    bytes_ = np.random.default_rng(0).integers(0, 256, (6, 4, 3072), dtype=np.uint8)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    (folder / "cifar-10-batches-py").mkdir()
    for index, name in enumerate(names):
        path = folder / "cifar-10-batches-py" / name
        path.write_bytes(pickle.dumps({"data": bytes_[index], "labels": [index, 1, 2, 3]}))
    meta = folder / "cifar-10-batches-py" / "batches.meta"
    meta.write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    return bytes_[:5].reshape(20, 3, 32, 32), bytes_[5].reshape(4, 3, 32, 32)


def write_svhn(folder):
    drawn = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 5), dtype=np.uint8)
    for part in ("train", "test"):
        savemat(folder / f"{part}_32x32.mat", {"X": drawn, "y": [[10], [1], [2], [3], [4]]})
    return drawn.transpose(3, 2, 0, 1), drawn.transpose(3, 2, 0, 1)


def write_celeba(folder):
    lines, rows = [], 7
    (folder / "celeba" / "img_align_celeba").mkdir(parents=True)
    for i in range(rows):
        pixels = np.full((218, 178, 3), (36 * i, 100, 200), np.uint8)
        Image.fromarray(pixels).save(folder / "celeba" / "img_align_celeba" / f"{i}.png")
        lines.append(f"{i}.png {(0, 0, 0, 1, 1, 2, 2)[i]}")
    (folder / "celeba" / "list_eval_partition.txt").write_text("\n".join(lines))
    for name, columns, header in [
        ("identity_CelebA", 1, False),
        ("list_bbox_celeba", 4, True),
        ("list_landmarks_align_celeba", 10, True),
        ("list_attr_celeba", 40, True),
    ]:
        rows_ = [f"{i}.png" + " -1" * columns for i in range(rows)]
        top = [str(rows), " ".join(f"c{c}" for c in range(columns))] if header else []
        (folder / "celeba" / f"{name}.txt").write_text("\n".join(top + rows_))
    flat = [
        np.full((1, 64, 64), 1) * np.array((36 * i, 100, 200)).reshape(3, 1, 1) for i in range(7)
    ]
    return np.stack(flat[:3]), np.stack(flat[5:])


def write_omniglot(folder):
    for part in ("images_background", "images_evaluation"):
        character = folder / "omniglot-py" / part / "Alphabet" / "character01"
        character.mkdir(parents=True)
        (folder / "omniglot-py" / f"{part}.zip").touch()
        for i, gray in enumerate((255, 0)):
            Image.fromarray(np.full((105, 105), gray, np.uint8)).convert("1").save(
                character / f"{i}.png"
            )
    images = np.stack([np.zeros((1, 28, 28)), np.full((1, 28, 28), 255)])  # paper, then ink
    return images, images


@pytest.mark.parametrize(
    ("name", "write", "module", "labels"),
    [
        ("cifar10", write_cifar10, "cifar", (20,)),
        ("svhn", write_svhn, "svhn", (5,)),
        ("celeba", write_celeba, "celeba", (3, 40)),
        ("omniglot", write_omniglot, "omniglot", (2,)),
    ],
)
def test_small_files_in_torchvisions_layout(tmp_path, monkeypatch, name, write, module, labels):
    """Sets that are not at hand: torchvision's own classes read a few images, checksums aside."""
    monkeypatch.setattr(
        f"torchvision.datasets.{module}.check_integrity", lambda p, *_: Path(p).exists()
    )
    for kind in ("CIFAR10", "SVHN"):  # torchvision looks at md5s in more than one place
        monkeypatch.setattr(f"torchvision.datasets.{kind}._check_integrity", lambda self: True)
    train, test = write(tmp_path)
    split = load(name, root=tmp_path, flat=False)
    assert torch.equal(split.train, to_unit(torch.from_numpy(train.astype(np.uint8))))
    assert torch.equal(split.test, to_unit(torch.from_numpy(test.astype(np.uint8))))
    assert split.image == split.train.shape[1:] == train.shape[1:]
    assert split.train_labels.shape == labels
    if name == "celeba":
        assert len(split.validation) == len(split.validation_labels) == 2
    flat = load(name, root=tmp_path, keep_bytes=True)
    assert flat.train.dtype == torch.uint8
    assert torch.equal(to_unit(flat.train), split.train.flatten(1))


# How they are split


def test_digits_are_split_by_seed():
    split, same, other = digits(), digits(), digits(seed=1)
    assert torch.equal(split.train, same.train)
    assert not torch.equal(split.train, other.train)
    assert len(split.train) + len(split.test) == 1797
    assert len(split.train_labels) == len(split.train)
    assert set(split.train.unique().tolist()) == {0.0, 1.0}
    assert digits(binarize=False).train.unique().tolist() == [i / 16 for i in range(17)]
    assert split.to("cpu").test.shape == (359, 64)
    assert split.validation is None


@pytest.mark.parametrize(("given", "word"), OPTIONS)
def test_digits_by_name_are_the_digits(given, word):
    named = load("digits", binarize=word, flat=False, seed=3)
    called = digits(binarize=given, flat=False, seed=3)
    assert torch.equal(named.train, called.train)
    assert torch.equal(named.test_labels, called.test_labels)
    assert called.train[0].shape == called.image == (1, 8, 8)


def test_validation_is_taken_from_train_by_seed():
    whole = digits(binarize=False)
    split, same, other = (
        digits(binarize=False, validation_share=0.25, seed=0),
        digits(binarize=False, validation_share=0.25, seed=0),
        load("digits", validation_share=0.25, seed=1),
    )
    assert len(split.validation) == len(split.validation_labels) == 359
    assert torch.equal(split.test, whole.test)
    assert torch.equal(split.validation, same.validation)
    assert not torch.equal(split.validation, other.validation)
    # disjoint, and nothing lost: together they are the train part, image for image
    together = torch.cat([split.train, split.validation])
    labels = torch.cat([split.train_labels, split.validation_labels])
    rows = torch.cat([together, labels[:, None]], dim=1).tolist()
    expected = torch.cat([whole.train, whole.train_labels[:, None]], dim=1).tolist()
    assert sorted(rows) == sorted(expected)


def test_validation_of_mnist_keeps_the_official_test_part(root, mnist):
    split = load("mnist", root=root("mnist"), validation_share=1 / 6, keep_bytes=True)
    assert len(split.train) == 50000
    assert len(split.validation) == 10000
    assert torch.equal(split.test, mnist.test)
    total = split.train.double().sum() + 255 * split.validation.double().sum()
    assert float(total) == pytest.approx(float(mnist.train.double().sum()))


def test_split_moves_all_its_data():
    split = digits(validation_share=0.1).to("meta")
    assert {x.device.type for x in (split.train, split.validation, split.test)} == {"meta"}
    assert split.train_labels.device.type == "cpu"


# How they are binarized


def test_fixed_binarization_is_one_draw_by_seed():
    gray, one, same, other = (
        load("digits", seed=5),
        load("digits", binarize="fixed", seed=5),
        load("digits", binarize="fixed", seed=5),
        load("digits", binarize="fixed", seed=6),
    )
    assert torch.equal(one.train, same.train)
    assert not torch.equal(one.train, other.train)
    assert one.transform is None
    assert set(one.test.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(one.train[gray.train == 1], torch.ones(int((gray.train == 1).sum())))
    assert float((one.train - gray.train).mean()) == pytest.approx(0.0, abs=0.005)


def test_dynamic_binarization_is_gray_in_the_mean():
    split = load("digits", binarize="dynamic", keep_bytes=True)
    batches = Batches(split.train[:20], shuffle=False, seed=0, transform=split.transform)
    draws = torch.stack([next(iter(batches)) for _ in range(2000)])
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    gray = split.train[:20]
    error = (gray * (1 - gray) / 2000).sqrt()  # of the mean of 2000 draws
    assert bool(((draws.mean(0) - gray).abs() <= 5 * error).all())
    assert not torch.equal(draws[0], draws[1])
    assert set(split.test.unique().tolist()) == {0.0, 1.0}  # what is judged does not change


def test_dynamic_binarization_of_bytes_is_that_of_floats(root, mnist):
    kept = load("mnist", root=root("mnist"), binarize="dynamic", keep_bytes=True)
    floats = Split(to_unit(kept.train[:500]), kept.test, transform=bernoulli)
    some = Split(kept.train[:500], kept.test, transform=kept.transform)
    for a, b in zip(some.batches(100, seed=1), floats.batches(100, seed=1), strict=True):
        assert torch.equal(a, b)


def test_bernoulli_leaves_missing_rows_missing():
    batch = {"a": torch.full((2, 3), torch.nan), "b": torch.tensor([[0.0], [1.0]])}
    drawn = bernoulli(batch, seeded(0, 0))
    assert drawn["a"].isnan().all()
    assert torch.equal(drawn["b"], batch["b"])


# Epochs


def epoch(batches):
    """Return one epoch as a tensor."""
    return torch.cat(list(batches))


def test_an_epoch_depends_on_seed_and_epoch_alone():
    gray = torch.rand(50, 4)
    make = partial(Batches, gray, 16, seed=3, transform=bernoulli)
    plain = make()
    epochs = [epoch(plain) for _ in range(3)]
    assert not torch.equal(epochs[0], epochs[1])
    disturbed = make()
    for expected in epochs:
        torch.rand(7)  # others draw, too
        assert torch.equal(epoch(disturbed), expected)
    late = make()
    late.epoch = 2
    assert torch.equal(epoch(late), epochs[2])
    assert not torch.equal(epoch(make(seed=4)), epochs[0])


def test_batches_go_on_from_a_saved_state(tmp_path):
    gray = torch.rand(50, 4)
    first = Batches(gray, 16, seed=2**64 - 1, transform=bernoulli)
    epoch(first)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    resumed = Batches(gray, 16, seed=8, transform=bernoulli)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(epoch(resumed), epoch(first))
    assert resumed.epoch == first.epoch == 2
    with pytest.raises(ValueError, match="batch_size=16, but these have batch_size=8"):
        Batches(gray, 8).load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match="size=50, but these have size=49"):
        Batches(gray[1:], 16).load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match="drop_last=False, but these have drop_last=True"):
        Batches(gray, 16, drop_last=True).load_state_dict(first.state_dict())


def test_an_epoch_holds_every_datum_once():
    assert sorted(epoch(Batches(torch.arange(50), 16)).tolist()) == list(range(50))
    assert epoch(Batches(torch.arange(50), 16, shuffle=False)).tolist() == list(range(50))
    assert [len(batch) for batch in Batches(torch.arange(300))] == [128, 128, 44]
    assert Batches(torch.arange(5)).batch_size == 5


@pytest.mark.gpu
def test_batches_are_made_on_the_device(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(60, dtype=np.float32).reshape(20, 3) / 60)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    make = partial(Batches, batch_size=8, seed=0, device="cuda", transform=bernoulli)
    for a, b in zip(make(mapped), make(torch.from_numpy(mapped.copy())), strict=True):
        assert a.device.type == "cuda"
        assert torch.equal(a, b)


# Memory-mapped arrays


@pytest.fixture
def mapped(tmp_path):
    """A memory-mapped file of 40 small byte images."""
    drawn = np.random.default_rng(0).integers(0, 256, (40, 1, 4, 4), dtype=np.uint8)
    np.save(tmp_path / "x.npy", drawn)
    return np.load(tmp_path / "x.npy", mmap_mode="r")


@pytest.mark.parametrize("transform", [None, to_unit, bernoulli])
@pytest.mark.parametrize("shuffle", [True, False])
def test_memory_mapped_equals_in_memory(mapped, transform, shuffle):
    make = partial(Batches, batch_size=16, seed=1, shuffle=shuffle, transform=transform)
    on_disk, in_memory = make(mapped), make(torch.from_numpy(mapped.copy()))
    for _ in range(2):
        for a, b in zip(on_disk, in_memory, strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)


def test_mappings_may_mix_files_and_tensors(mapped):
    both = {"image": mapped, "index": torch.arange(40)}
    for batch in Batches(both, 16, device="cpu"):
        assert torch.equal(batch["image"], torch.from_numpy(mapped[batch["index"].numpy()]))


def test_a_batch_is_a_copy_of_its_rows(mapped):
    """A file opened for reading stays as it is, and no warning says that it cannot be written."""
    before = mapped.copy()
    for batch in Batches(mapped, 16):
        batch.zero_()
    assert np.array_equal(mapped, before)


def test_only_the_rows_of_a_batch_are_read(mapped):
    read = []

    class Watched(np.memmap):
        def __getitem__(self, rows):
            read.append(rows)
            return super().__getitem__(rows)

    next(iter(Batches(mapped.view(Watched), 16)))
    (rows,) = [rows for rows in read if isinstance(rows, np.ndarray)]
    assert len(rows) == 16
    assert list(rows) == sorted(rows)


# What is refused


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Batches(torch.zeros(0, 3)), ValueError, "the batch is empty: N = 0"),
        (lambda: Batches(np.zeros((0, 3))), ValueError, "the batch is empty: N = 0"),
        (
            lambda: Batches(torch.zeros(100, 3), 200),
            ValueError,
            "200, but there are only 100 data",
        ),
        (lambda: Batches(torch.zeros(100, 3), 200), ValueError, "give batch_size <= 100"),
        (lambda: Batches(torch.zeros(9, 3), 0), ValueError, "at least 1, but is 0"),
        (lambda: Batches([[1.0]]), TypeError, "convert it with torch.as_tensor"),
        (lambda: Batches(np.array([[None]], dtype=object)), TypeError, "'x' has dtype object"),
        (lambda: Batches({"w": np.array(["a"])}), TypeError, "'w' has dtype <U1"),
        (lambda: Batches(np.zeros(3, ">f4")), TypeError, "the machine's byte order"),
        (
            lambda: Batches({"a": torch.zeros(3), "b": np.zeros(4)}),
            ValueError,
            "differ in their number of data",
        ),
        (lambda: load("minst"), ValueError, "unknown data 'minst': choose one of digits, mnist, "),
        (lambda: load("digits", binarize="soft"), ValueError, "none, threshold, fixed, dynamic"),
        (lambda: digits(binarize="soft"), ValueError, "unknown binarize 'soft'"),
        (
            lambda: load("digits", binarize="fixed", keep_bytes=True),
            ValueError,
            "choose 'none', or 'dynamic'",
        ),
        (
            lambda: load("binarized_mnist", binarize="dynamic"),
            ValueError,
            "load 'mnist' with binarize='dynamic'",
        ),
        (lambda: Split(torch.zeros(0, 2), torch.zeros(1, 2)), ValueError, "train part is empty"),
        (
            lambda: Split(torch.zeros(2, 2), torch.zeros(1, 3)),
            ValueError,
            r"a test datum has shape \(3,\), but a train datum \(2,\)",
        ),
        (
            lambda: Split(torch.zeros(2, 2), torch.zeros(1, 2), torch.zeros(3)),
            ValueError,
            "3 train labels for 2 data",
        ),
        (
            lambda: Split(torch.zeros(2, 2), torch.zeros(1, 2), validation_labels=torch.zeros(3)),
            ValueError,
            "3 validation labels for 0 data",
        ),
    ],
)
def test_bad_input_is_refused_in_words(make, error, words):
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5])
def test_digits_refuse_an_empty_part(share):
    with pytest.raises(ValueError, match="test_share"):
        digits(test_share=share)


@pytest.mark.parametrize("share", [1.0, -0.5, 1e-9])
def test_an_empty_validation_part_is_refused(share):
    with pytest.raises(ValueError, match="validation_share must leave both parts data"):
        load("digits", validation_share=share)


def test_an_official_validation_part_is_kept(tmp_path):
    write_binarized(tmp_path)
    with pytest.raises(ValueError, match="official validation part of 2"):
        load("binarized_mnist", root=tmp_path, validation_share=0.1)


@pytest.mark.parametrize("name", sorted(set(NAMES) - BY_HAND - set(data.OTHER_KINDS)))
def test_missing_files_name_the_call_that_mends_it(tmp_path, name):
    call = f"ppvae.data.load('{name}', root='{tmp_path}', download=True)"
    with pytest.raises(FileNotFoundError) as caught:
        load(name, root=tmp_path)
    assert call in str(caught.value)
    assert name in data.readers.ARCHIVES


@pytest.mark.parametrize("name", ["ptb", "short_yelp", "text", "mfeat", "polymnist"])
def test_missing_sentences_and_modalities_are_named(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path))):
        load(name, root=tmp_path)
    with pytest.raises(ValueError, match=f"{name} holds no gray images"):
        load(name, root=tmp_path, binarize="threshold")


def test_text_without_a_test_part_is_refused(tmp_path):
    (tmp_path / "train.txt").write_text("a cat\n")
    with pytest.raises(FileNotFoundError, match="has no test part: name a file there test.txt"):
        load("text", root=tmp_path)


def test_a_failed_download_names_the_files_to_put_there(tmp_path, monkeypatch):
    def refuse(self):
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz:\nno route to host")

    monkeypatch.setattr("torchvision.datasets.MNIST.download", refuse)
    with pytest.raises(FileNotFoundError, match=r"no route to host\).*MNIST/raw/.*by hand"):
        load("mnist", root=tmp_path, download=True)


def test_archives_that_are_not_unpacked_ask_for_download(tmp_path):
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte.gz").touch()
    with pytest.raises(FileNotFoundError, match="verifies and unpacks"):
        load("mnist", root=tmp_path)


def write_binarized(root, **changed):
    """Write a small file in the layout of the fixed split, and return its bits."""
    bits = np.random.default_rng(0).integers(0, 2, (2, 784), dtype=np.uint8)
    parts = dict.fromkeys(("train", "valid", "test"), np.packbits(bits, axis=1)) | changed
    (root / "binarized_mnist").mkdir()
    np.savez(root / "binarized_mnist" / "packed.npz", **parts)
    return bits


def test_bits_are_unpacked_in_order(tmp_path):
    bits = write_binarized(tmp_path)
    split = load("binarized_mnist", root=tmp_path)
    assert torch.equal(split.validation, torch.from_numpy(bits).float())


@pytest.mark.parametrize(
    "broken", ["absent", "two files", "truncated", "wrong width", "wrong dtype"]
)
def test_a_broken_binarized_mnist_names_its_layout(tmp_path, broken):
    folder = tmp_path / "binarized_mnist"
    if broken == "wrong width":
        write_binarized(tmp_path, train=np.zeros((2, 97), np.uint8))
    elif broken == "wrong dtype":
        write_binarized(tmp_path, train=np.zeros((2, 98), np.float32))
    elif broken != "absent":
        write_binarized(tmp_path)
        whole = (folder / "packed.npz").read_bytes()
        if broken == "truncated":
            (folder / "packed.npz").write_bytes(whole[: len(whole) // 2])
        else:
            (folder / "other.npz").write_bytes(whole)
    with pytest.raises(FileNotFoundError, match="as one .npz file, made by np.savez") as caught:
        load("binarized_mnist", root=tmp_path, download=True)
    assert str(folder) in str(caught.value)


def write_frey(root, images):
    (root / "frey").mkdir()
    np.savez(root / "frey" / "freyfaces.npz", images=images)


def test_frey_is_split_at_its_last_200_frames(tmp_path):
    drawn = np.random.default_rng(0).integers(0, 256, (230, 28, 20), dtype=np.uint8)
    write_frey(tmp_path, drawn)
    split = load("frey", root=tmp_path, keep_bytes=True, validation_share=0.2)
    assert torch.equal(split.test, to_unit(torch.from_numpy(drawn[-200:])).flatten(1))
    assert split.train.dtype == torch.uint8
    both = torch.cat([to_unit(split.train), split.validation])
    assert len(split.validation) == 6
    assert sorted(both.tolist()) == sorted(
        (drawn[:30].reshape(30, -1) / 255.0).astype("f4").tolist()
    )
    assert split.train_labels is split.validation_labels is split.test_labels is None


@pytest.mark.parametrize("broken", ["absent", "truncated", "wrong name", "wrong size", "floats"])
def test_a_broken_frey_names_its_layout(tmp_path, broken):
    path = tmp_path / "frey" / "freyfaces.npz"
    if broken == "wrong size":
        write_frey(tmp_path, np.zeros((201, 28, 28), np.uint8))
    elif broken == "floats":
        write_frey(tmp_path, np.zeros((201, 28, 20), np.float32))
    elif broken != "absent":
        write_frey(tmp_path, np.zeros((201, 28, 20), np.uint8))
        if broken == "truncated":
            path.write_bytes(path.read_bytes()[:100])
        else:
            np.savez(path, faces=np.zeros((201, 28, 20), np.uint8))
    with pytest.raises(
        FileNotFoundError, match=r"vae_vampprior.*np.savez\(path, images="
    ) as caught:
        load("frey", root=tmp_path, download=True)
    assert f"frey is not at '{path}'" in str(caught.value)
