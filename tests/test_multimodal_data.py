"""Multimodal data: generators whose truth is known, six real views, digits over photographs."""

import itertools
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from real import real
from torch.nn.functional import leaky_relu

from ppvae.data import (
    Split,
    as_modalities,
    digits,
    embedded_photographs,
    linear_views,
    load,
    mfeat,
    missing_at_random,
    mixed_sources,
    polymnist,
    read_photographs,
)
from ppvae.pairing import PairError
from ppvae.protocols import seen
from ppvae.training import Batches

# Any mapping


def test_any_mapping_of_tensors():
    """Floats as they are, labels one-hot, a negative one missing."""
    x = torch.randn(4, 2, 3)
    x[1] = torch.nan
    found = as_modalities({"x": x, "y": torch.tensor([0, 2, -1, 1])}, classes={"y": 3})
    assert found["x"] is x
    assert seen(found).tolist() == [[True, True], [False, True], [True, False], [True, True]]
    assert found["y"][[0, 1, 3]].argmax(1).tolist() == [0, 2, 1]
    assert Batches(found, batch_size=3) is not None


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        (torch.zeros(3, 2), {}, TypeError, "come in a mapping from names to tensors"),
        ({"a": [1.0]}, {}, TypeError, "'a' is a list"),
        ({}, {}, ValueError, "needs a data axis"),
        ({"a": torch.zeros(3, 2), "b": torch.zeros(4, 2)}, {}, ValueError, "differ in their num"),
        ({"a": torch.zeros(3, 2).long()}, {}, TypeError, "'a' holds torch.int64, of which no val"),
        ({"a": torch.tensor([0, 3])}, {"classes": {"a": 3}}, ValueError, "integers below 3"),
        ({"a": torch.zeros(2, 2).int()}, {"classes": {"a": 3}}, ValueError, r"must be \(N,\)"),
        ({"a": torch.zeros(2, 2)}, {"classes": {"b": 3}}, ValueError, "classes speaks of .'b'."),
        ({"a": torch.zeros(2)}, {"classes": {"a": 3}}, ValueError, r"'a' are torch.float32 of sh"),
        (
            {"a": torch.tensor([[0.0, torch.nan], [1.0, 1.0]])},
            {},
            PairError,
            "the modality 'a' is NaN in part in 1 of 2 rows, such as row 0",
        ),
        (
            {"a": torch.tensor([[0.0], [torch.nan]]), "b": torch.tensor([[1.0], [torch.nan]])},
            {},
            PairError,
            "of 1 of 2 data nothing is seen, such as datum 1",
        ),
    ],
)
def test_what_is_no_multimodal_data_is_refused_in_words(data, options, error, message):
    with pytest.raises(error, match=message):
        as_modalities(data, **options)


def test_a_row_with_nothing_may_be_allowed():
    """But not one that is missing in part."""
    x = {"a": torch.tensor([[0.0, 1.0], [torch.nan, torch.nan]])}
    assert as_modalities(x, allow_empty=True)["a"] is x["a"]
    x["a"][0, 0] = torch.nan
    with pytest.raises(PairError, match="NaN in part"):
        as_modalities(x, allow_empty=True)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.9])
def test_missing_at_random(share):
    """Each view with the same probability, but for the last one of a row: share + share^M / M."""
    data = {name: torch.ones(40_000, 1) for name in "abcd"}
    obs = seen(missing_at_random(data, share, seed=1))
    assert obs.any(1).all()
    kept = 1 - share + share**4 / 4
    assert torch.allclose(obs.double().mean(0), torch.full((4,), kept).double(), atol=0.01)
    sizes = torch.bincount(obs.sum(1), minlength=5) / 40_000
    binomial = [
        share**4,
        4 * share**3 * (1 - share),
        6 * share**2 * (1 - share) ** 2,
        4 * share * (1 - share) ** 3,
        (1 - share) ** 4,
    ]
    due = torch.tensor([0.0, binomial[0] + binomial[1], *binomial[2:]])
    assert torch.allclose(sizes, due, atol=0.01)
    again = seen(missing_at_random(data, share, seed=1))
    assert torch.equal(obs, again)
    assert share == 0 or not torch.equal(obs, seen(missing_at_random(data, share, seed=2)))


def test_what_is_missing_already_stays_missing():
    """And what is left of a row is kept."""
    data = {"a": torch.ones(200, 1), "b": torch.ones(200, 1)}
    data["a"][:100] = torch.nan
    obs = seen(missing_at_random(data, 0.9))
    assert not obs[:100, 0].any() and obs[:100, 1].all() and obs.any(1).all()
    with pytest.raises(ValueError, match="share must be at least 0 and below 1, but is 1"):
        missing_at_random(data, 1.0)
    with pytest.raises(ValueError, match="no integer is NaN"):
        missing_at_random({"a": torch.ones(3, 1).long()}, 0.5)


# Generators


def test_linear_views_are_what_they_say():
    """Orthonormal columns, and the covariance W W' + I, within 5 standard errors."""
    views = linear_views(40_000, sizes=(6, 7), latent_dim=3, dtype=torch.float64, seed=3)
    for name, x in views.data.items():
        weight, bias = views.weights[name], views.biases[name]
        assert torch.allclose(weight.mT @ weight, torch.eye(3).double(), atol=1e-12)
        rest = x - views.z @ weight.mT - bias
        assert (rest.mean(0).abs() < 5 / 200).all()
        due = weight @ weight.mT + torch.eye(len(weight))
        assert ((x.mT.cov() - due).abs() < 5 * 2**0.5 * 2 / 200).all()
    assert torch.equal(views.z, linear_views(40_000, (6, 7), 3, dtype=torch.float64, seed=3).z)
    assert not torch.equal(views.z, linear_views(40_000, (6, 7), 3, dtype=torch.float64, seed=4).z)
    assert views.data["x_1"].dtype == torch.float64


def test_the_papers_linear_views():
    """Five views of 30 to 59 columns, D = 5; a gain is the columns' length."""
    views = linear_views(10)
    sizes = [x.shape[1] for x in views.data.values()]
    assert len(sizes) == 5 and all(30 <= size <= 59 for size in sizes) and len(set(sizes)) > 1
    assert views.z.shape == (10, 5)
    long = linear_views(10, sizes=(8, 9), latent_dim=2, gain=1.5)
    assert torch.allclose(long.weights["x_1"].norm(dim=0), torch.tensor(1.5))


def test_sparse_views_have_a_block_of_their_own():
    """D = 5 (1 + M): no columns of others' blocks, and orthonormal ones of its own two."""
    views = linear_views(10, sizes=(12, 13, 14), latent_dim=5, sparse=True, dtype=torch.float64)
    assert views.z.shape == (10, 20)
    for m, weight in enumerate(views.weights.values()):
        used = [*range(5 * m, 5 * m + 5), *range(15, 20)]
        rest = [d for d in range(20) if d not in used]
        assert not weight[:, rest].any()
        own = weight[:, used]
        assert torch.allclose(own.mT @ own, torch.eye(10).double(), atol=1e-12)
    with pytest.raises(ValueError, match="hold no 10 orthonormal columns"):
        linear_views(10, sizes=(9, 14), latent_dim=5, sparse=True)


def test_bimodal_sources_can_be_unmixed():
    """The inverse of the mixing finds them; both layers are the same orthogonal matrix."""
    mixed = mixed_sources(2000, noise=0.0, seed=1)
    first, second = mixed.matrices["x"]
    assert torch.equal(first, second)
    assert torch.allclose(first @ first.mT, torch.eye(2), atol=1e-6)
    inner = mixed.data["x"] @ second  # A^-1 = A'
    found = torch.where(inner > 0, inner, inner / 0.1) @ first
    assert torch.allclose(found, mixed.sources, atol=1e-4)
    assert torch.equal(mixed.data["u"].argmax(1), mixed.segments)
    for u in range(5):
        s = mixed.sources[mixed.segments == u]
        error = mixed.scale[u] / len(s) ** 0.5
        assert ((s.mean(0) - mixed.loc[u]).abs() < 5 * error).all()
        assert ((s.std(0) / mixed.scale[u] - 1).abs() < 5 / (2 * len(s)) ** 0.5).all()


def test_views_of_sources_are_noisy_mixings():
    """The official multimodal sizes; what is left beside the mixing is the noise."""
    mixed = mixed_sources(4000, views=4, sources=10, size=25, layers=3, noise=0.5)
    assert list(mixed.data) == ["x_1", "x_2", "x_3", "x_4"]
    for name, x in mixed.data.items():
        a, b, c = mixed.matrices[name]
        assert (a.shape, b.shape, c.shape) == ((25, 10), (25, 25), (25, 25))
        assert torch.allclose(b.norm(dim=0), torch.ones(25))
        clean = leaky_relu(leaky_relu(mixed.sources @ a.mT, 0.1) @ b.mT, 0.1) @ c.mT
        assert (x - clean).std().item() == pytest.approx(0.5, abs=0.01)
    assert mixed.loc.abs().max() <= 5 and 0.5 <= mixed.scale.min() and mixed.scale.max() <= 3
    assert torch.equal(mixed.segments, mixed_sources(4000, views=4, sources=10, size=25).segments)
    with pytest.raises(ValueError, match="make size equal to sources"):
        mixed_sources(sources=2, size=3)
    with pytest.raises(ValueError, match="make size at least sources"):
        mixed_sources(views=2, sources=4, size=3)


# mfeat


def write_mfeat(folder, rows=20):
    sizes = {"fac": 216, "fou": 76, "kar": 64, "mor": 6, "pix": 240, "zer": 47}
    draw = np.random.default_rng(0)
    arrays = {name: 5 + 3 * draw.standard_normal((rows, size)) for name, size in sizes.items()}
    (folder / "mfeat").mkdir()
    np.savez(folder / "mfeat" / "mfeat.npz", **arrays, labels=np.arange(rows) % 10)
    return arrays


def test_mfeat_is_split_and_standardized(tmp_path):
    """By the index modulo 5, and the train part's moments alone."""
    arrays = write_mfeat(tmp_path)
    split = mfeat(tmp_path)
    train = np.arange(20) % 5 != 4
    for name, x in arrays.items():
        mean, sd = x[train].mean(0), x[train].std(0)
        assert np.allclose(split.train[name], (x[train] - mean) / sd, atol=1e-5)
        assert np.allclose(split.test[name], (x[~train] - mean) / sd, atol=1e-5)
        assert split.train[name].dtype == torch.float32
    assert split.test_labels.tolist() == [4, 9, 4, 9]
    assert split.features == {"fac": 216, "fou": 76, "kar": 64, "mor": 6, "pix": 240, "zer": 47}


def test_the_real_mfeat():
    """1,600 and 400 rows, 40 of each class in the test part; six of its digits are there twice."""
    split = mfeat(real("mfeat").parent)
    assert len(split) == 1600 and torch.bincount(split.test_labels).tolist() == [40] * 10
    means = torch.cat([x.double().mean(0) for x in split.train.values()])
    assert means.abs().max() < 1e-5
    rows = torch.cat([torch.cat([*part.values()], 1) for part in (split.train, split.test)])
    assert len(rows) == 2000 and len(rows.unique(dim=0)) == 1994


def test_mfeat_that_is_missing_says_where_it_comes_from(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"there is no .*mfeat.npz: it holds the six views"
    ):
        mfeat(tmp_path)


# PolyMNIST


def small(count=200):
    """scikit-learn's digits, as gray images."""
    split = digits(binarize=False, flat=False)
    return Split(split.train[:count], split.test, split.train_labels[:count], split.test_labels)


def dark(count=3, side=160):
    """Photographs of one dark color each, which show exactly where ink is."""
    return [torch.full((3, side, side), 0.05 * (1 + m)) for m in range(count)]


def test_views_share_the_class_and_nothing_of_the_style():
    """Check: where it is inverted, each is a digit of the same class, permuted within it."""
    split = polymnist(photographs=dark(), digits=small(), crops=None)
    source, labels = small(), split.train_labels
    assert torch.equal(labels, source.train_labels)
    inks = []
    for m, x in enumerate(split.train.values()):
        assert x.shape == (200, 3, 28, 28)
        assert set(x.unique().tolist()) == {0.05 * (1 + m), 1 - 0.05 * (1 + m)} or torch.allclose(
            x.unique(), torch.tensor([0.05 * (1 + m), 1 - 0.05 * (1 + m)])
        )
        inks.append((x[:, 0] > 0.5).flatten(1))
    gray = torch.nn.functional.interpolate(255 * source.train, size=(28, 28), mode="bilinear")
    ink = (gray[:, 0] > 128).flatten(1)
    for view in inks:
        for label in range(10):
            rows = labels == label
            # the same images, each once: only their order differs
            found, due = (sorted(map(tuple, t[rows].int().tolist())) for t in (view, ink))
            assert found == due
    same = [(inks[0] == inks[m]).all(1).double().mean() for m in (1, 2)]
    assert max(same) < 0.3  # about one in a class of 20, and duplicates


def test_crops_come_from_the_photograph_and_are_inverted_under_ink():
    """Every image is a crop at an offset within the range, inverted in places."""
    photograph = torch.rand(3, 60, 50, generator=torch.Generator().manual_seed(0))
    split = polymnist(photographs=[photograph] * 2, digits=small(20), crops=(10, 14), views=2)
    windows = photograph.unfold(1, 28, 1).unfold(2, 28, 1)[:, 10:14, 10:14]  # (3, 4, 4, 28, 28)
    windows = windows.permute(1, 2, 0, 3, 4).reshape(16, 3, 28, 28)
    used = set()
    for image in split.train["m0"]:
        plain, inverted = image == windows, (image - (1 - windows)).abs() < 1e-6
        fits = (plain | inverted).flatten(1).all(1)
        assert fits.sum() == 1
        assert 0 < inverted[fits].double().mean() < 0.5
        used.add(int(fits.nonzero()[0]))
    assert len(used) > 5  # of 16 offsets
    with pytest.raises(ValueError, match=r"sides of at least 135 for crops=\(100, 108\)"):
        polymnist(photographs=[photograph] * 2, digits=small(20), views=2)


def test_translated_digits_are_small_and_anywhere():
    """At offsets 0 to 7 on both axes."""
    split = polymnist(photographs=dark(), digits=small(), crops=None, translated=True)
    ink = split.train["m0"][:, 0] > 0.5  # (N, 28, 28)
    heights = ink.any(2).sum(1)
    assert heights.max() <= 21 and (heights > 10).all()
    tops = ink.any(2).int().argmax(1)
    bottoms = 27 - ink.any(2).flip(1).int().argmax(1)
    assert tops.min() <= 3 and bottoms.max() >= 24


@pytest.mark.parametrize("views", [2, 5])
def test_the_same_arguments_give_the_same_data(views):
    """Without any file: embedded photographs and embedded digits."""
    made = [polymnist(digits=small(50), views=views, seed=seed) for seed in (0, 0, 1)]
    assert list(made[0].train) == [f"m{m}" for m in range(views)]
    for name in made[0].train:
        assert torch.equal(made[0].train[name], made[1].train[name])
        assert torch.equal(made[0].test[name], made[1].test[name])
        assert not torch.equal(made[0].train[name], made[2].train[name])
        assert 0 <= made[0].train[name].min() and made[0].train[name].max() <= 1
    assert len(made[0].test["m0"]) == 359 and made[0].kind == "modalities"
    few = polymnist(digits=small(50), views=views, count=30)
    assert len(few) == 30 and len(few.test_labels) == 30


@pytest.mark.parametrize("translated", [False, True])
def test_fewer_data_are_the_first_of_more(translated):
    """Row by row, image and style: what 30 are trained on is part of what 45, or all, are."""
    some = [
        polymnist(digits=small(50), views=2, count=count, translated=translated)
        for count in (30, 45, None)
    ]
    for few, more in itertools.pairwise(some):
        for name in few.train:
            assert torch.equal(few.train[name], more.train[name][: len(few)])
            assert torch.equal(few.test[name], more.test[name][: len(few.test[name])])
        assert torch.equal(few.train_labels, more.train_labels[: len(few)])


def test_embedded_photographs_show_inverted_digits():
    found = embedded_photographs()
    assert len(found) == 5
    assert all((2 * p[:, 100:135, 100:135] - 1).abs().mean() >= 0.495 for p in found)


def test_photographs_come_from_folders_and_archives(tmp_path):
    """By name, or those far from mid-gray in the order of names."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for name, gray in (("c", 250), ("a", 10), ("b", 120)):
        Image.fromarray(np.full((30, 40, 3), gray, np.uint8)).save(folder / f"{name}.png")
    (folder / "README").write_text("no image")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, f"inner/{path.name}")
    for source in (folder, tmp_path / "all.zip"):
        found = read_photographs(source, count=2)
        assert [round(255 * float(p.mean())) for p in found] == [10, 250]
        assert found[0].shape == (3, 30, 40)
        (chosen,) = read_photographs(source, ["b"])
        assert round(255 * float(chosen.mean())) == 120
        with pytest.raises(ValueError, match="only 2 of 3 photographs"):
            read_photographs(source, count=3)
        with pytest.raises(FileNotFoundError, match="holds no photograph 'z'"):
            read_photographs(source, ["z"])
    split = polymnist(photographs=folder, digits=small(20), views=2, crops=None)
    assert split.train["m0"].median() == pytest.approx(10 / 255)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"views": 6}, ValueError, "views must be between 2 and 5, but is 6"),
        ({"views": 3, "photographs": dark(2)}, ValueError, "3 views need as many photographs"),
        ({"photographs": "nowhere"}, FileNotFoundError, "no folder or archive nowhere"),
        ({"photographs": [torch.zeros(5)] * 3}, ValueError, r"must be \(3, H, W\) floats"),
        ({"digits": digits()}, ValueError, "must be gray images .* load them with flat=False"),
    ],
)
def test_polymnist_refuses_in_words(options, error, message):
    with pytest.raises(error, match=message):
        polymnist(**{"digits": small(20), **options})


def test_the_real_polymnist(root):
    """MNIST over three photographs of BSDS500, their own train and test parts."""
    archive = real("bsds500_val") / "bsds500_val_jpg.zip"
    photographs = read_photographs(archive, ("101085", "148026", "45096"))
    contrasts = [round(float((2 * p - 1).abs().mean()), 2) for p in photographs]
    assert contrasts == [0.5, 0.56, 0.79]
    mnist = load("mnist", root=root("mnist"), download=True, flat=False, keep_bytes=True)
    split = polymnist(photographs=photographs, digits=mnist, count=500)
    assert split.features == dict.fromkeys(("m0", "m1", "m2"), (3, 28, 28))
    assert split.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert split.test_labels[:5].tolist() == [7, 2, 1, 0, 4]
