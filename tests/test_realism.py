"""Images judged: sharpness, Frechet distances, overlap in features, frequencies of classes."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from ppvae.data import digits
from ppvae.diagnostics import (
    Classifier,
    Inception,
    class_mismatch,
    density_coverage,
    frechet_distance,
    precision_recall,
    sharpness,
    train_classifier,
)
from ppvae.diagnostics.samples.features import features_of

# sharpness


def test_sharpness_of_constants_and_noise():
    """0 for constant images; 20 s^2 for white noise, the squares of the filter's entries."""
    assert sharpness(torch.full((3, 1, 9, 9), 0.7)) == 0
    noise = 0.5 + 0.1 * torch.randn(4, 1, 400, 400, dtype=torch.float64)
    assert sharpness(noise) == pytest.approx(20 * 0.1**2, rel=0.01)


def test_sharpness_of_a_parabola_and_of_a_dot():
    """Curvature that is the same everywhere has no variance; a dot's response is the filter."""
    i = torch.arange(12, dtype=torch.float64)
    assert sharpness((i[:, None] ** 2 + i**2)[None, None] / 300) == pytest.approx(0, abs=1e-20)
    dot = torch.zeros(1, 1, 7, 7)
    dot[..., 3, 3] = 1  # 25 responses with mean 0 and squares 16 + 4
    assert sharpness(dot) == pytest.approx(20 / 25)
    edge = torch.zeros(1, 1, 7, 7)
    edge[..., 0, 3] = 1  # at the border it meets the filter once, inside of the image only
    assert sharpness(edge) == pytest.approx(1 / 25 - 1 / 25**2)


def test_sharpness_is_of_the_gray_image():
    """Equal channels are their gray; flat images are what they are with their shape."""
    gray = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    assert sharpness(gray.expand(3, 3, 8, 8)) == pytest.approx(sharpness(gray))
    assert sharpness(gray.flatten(1)) == sharpness(gray)
    assert sharpness(gray.reshape(3, -1), image=(1, 4, 16)) != sharpness(gray)
    red = torch.cat([gray, torch.zeros(3, 2, 8, 8)], 1)
    assert sharpness(red) == pytest.approx(0.299**2 * sharpness(gray))


@pytest.mark.parametrize("shape", [(2, 2, 8, 8), (2, 1, 2, 8), (2, 60)])
def test_sharpness_refuses_what_is_no_image(shape):
    with pytest.raises(ValueError, match=r"pass image=\(C, H, W\)"):
        sharpness(torch.rand(shape))


# the Frechet distance


def with_moments(mean, covariance, count=500):
    """Return points with exactly these moments, n - 1 in the denominator."""
    mean, covariance = (torch.tensor(m, dtype=torch.float64) for m in (mean, covariance))
    x = torch.randn(count, len(mean), dtype=torch.float64)
    x = x - x.mean(0)
    x = torch.linalg.solve_triangular(torch.linalg.cholesky(x.T.cov()), x.T, upper=False).T
    values, vectors = torch.linalg.eigh(covariance)
    return mean + x @ (vectors * values.clamp(min=0).sqrt()).T


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [
        pytest.param(([0, 0], [[1, 0], [0, 1]]), ([3, 4], [[1, 0], [0, 1]]), 25, id="means"),
        pytest.param(([0, 0], [[4, 0], [0, 9]]), ([0, 0], [[1, 0], [0, 1]]), 1 + 4, id="scales"),
        pytest.param(([0, 0], [[4, 0], [0, 0]]), ([0, 0], [[0, 0], [0, 9]]), 4 + 9, id="lines"),
        pytest.param(([0, 0], [[1, 1], [1, 1]]), ([1, 0], [[1, 1], [1, 1]]), 1, id="singular"),
        pytest.param(([0, 0], [[1, 1], [1, 1]]), ([0, 0], [[1, 0], [0, 1]]), 2 - 2 * (2**0.5 - 1),
                     id="a line against a disk"),
        pytest.param(([900, 900], [[1, 0.5], [0.5, 1]]), ([900, 900], [[0, 0], [0, 0]]), 2,
                     id="a point, far from the origin"),
    ],
)  # fmt: skip
def test_frechet_distance_of_known_moments(first, second, distance):
    """|m - m'|^2 + tr(S + S' - 2 (S S')^1/2): zero eigenvalues are as good as any."""
    found = frechet_distance(with_moments(*first), with_moments(*second))
    assert found.value == pytest.approx(distance, abs=1e-6)
    assert found.name == "Frechet distance"


def test_frechet_distance_is_that_of_torchmetrics_and_of_the_square_root():
    """With an extractor, image by image; and against scipy's matrix square root."""
    from scipy.linalg import sqrtm

    extractor = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Tanh())
    extractor.num_features = 10
    real, fake = torch.rand(700, 1, 8, 8), torch.rand(600, 1, 8, 8) ** 2
    metric = FrechetInceptionDistance(extractor, normalize=True)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    found = frechet_distance(real, fake, extractor)
    assert found.value == pytest.approx(float(metric.compute()), rel=1e-4)  # it returns floats
    assert found.name == "Frechet distance in Sequential features"
    a, b = (features_of(x, extractor).double().numpy() for x in (real, fake))
    s, t = np.cov(a.T), np.cov(b.T)
    exact = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s + t - 2 * sqrtm(s @ t).real)
    assert found.value == pytest.approx(exact, rel=1e-6)


def test_frechet_distance_refuses_in_words():
    """Too few samples, features of two extractors, and what is not (N, F)."""
    with pytest.raises(ValueError, match="of 10 features needs 11 samples.*50 real and 10 fake"):
        frechet_distance(torch.randn(50, 10), torch.randn(10, 10))
    with pytest.raises(ValueError, match="3 and 2 features: take both from one extractor"):
        frechet_distance(torch.randn(50, 3), torch.randn(50, 2))
    with pytest.raises(ValueError, match=r"\(5, 4, 6, 6\) for 5 images: end it in nn.Flatten"):
        frechet_distance(torch.rand(5, 1, 8, 8), torch.rand(5, 1, 8, 8), nn.Conv2d(1, 4, 3))
    with pytest.raises(ValueError, match=r"\(5, 1, 8, 8\) for 5 images: pass extractor="):
        frechet_distance(torch.rand(5, 1, 8, 8), torch.rand(5, 1, 8, 8))


def test_an_extractor_is_left_as_it_was():
    """In evaluation mode meanwhile, in pieces that do not show, without gradients."""
    extractor = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(), nn.Linear(3, 2)).train()
    before = {name: value.clone() for name, value in extractor.state_dict().items()}
    x = torch.randn(1100, 3, requires_grad=True)
    features = features_of(x, extractor)
    assert extractor.training and not features.requires_grad
    assert all(torch.equal(before[name], v) for name, v in extractor.state_dict().items())
    assert torch.allclose(features, extractor.eval()(x))


# precision and recall, density and coverage


def brute_force(real, fake, k):
    """Count balls by their definition, in double loops."""

    def balls(centers):
        return [sorted((c - o).norm() for o in centers)[k] for c in centers]  # [0] is itself

    inside = [[(f - r).norm() <= b for r, b in zip(real, balls(real), strict=True)] for f in fake]
    among = [[(r - f).norm() <= b for f, b in zip(fake, balls(fake), strict=True)] for r in real]
    inside, among = torch.tensor(inside), torch.tensor(among)  # (M, N), (N, M)
    precision, recall = inside.any(1).double().mean(), among.any(1).double().mean()
    return (precision, recall), (inside.sum() / (k * len(fake)), inside.any(0).double().mean())


@pytest.mark.parametrize(("k", "shift"), [(1, 0.0), (3, 0.5), (5, 2.0)])
def test_overlap_against_brute_force(k, shift):
    """Every number of both pairs, on sets of unequal size."""
    real, fake = torch.randn(40, 3).double(), 0.7 * torch.randn(30, 3).double() + shift
    pair, other = brute_force(real, fake, k)
    assert precision_recall(real, fake, neighbors=k) == pytest.approx([float(v) for v in pair])
    assert density_coverage(real, fake, neighbors=k) == pytest.approx([float(v) for v in other])


def test_overlap_of_equal_laws_and_of_equal_sets():
    """Naeem et al.: density 1 on average, coverage 1 - prod_j (N - j) / (2 N - j), j = 1 to k.

    A set against itself: each ball has its center and its k neighbors, however they are rounded.
    """
    n, k = 2000, 5
    real, fake = torch.randn(n, 8) + 100, torch.randn(n, 8) + 100
    density, coverage = density_coverage(real, fake)
    assert density == pytest.approx(1, abs=0.05)
    expected = 1 - math.prod((n - j) / (2 * n - j) for j in range(1, k + 1))
    assert coverage == pytest.approx(expected, abs=0.02)
    assert density_coverage(real, real) == (pytest.approx((k + 1) / k, rel=1e-12), 1)
    assert precision_recall(real, real) == (1, 1)


def test_overlap_needs_more_points_than_neighbors():
    with pytest.raises(ValueError, match="neighbors=5 needs more points.*9 real and 5 fake"):
        density_coverage(torch.randn(9, 2), torch.randn(5, 2))
    with pytest.raises(ValueError, match="neighbors=3 needs more points"):
        precision_recall(torch.randn(3, 2), torch.randn(9, 2))


def test_overlap_takes_an_extractor():
    """Features of images are those of their extractor."""
    real, fake = torch.rand(50, 1, 4, 4), torch.rand(50, 1, 4, 4)
    flat = precision_recall(real.flatten(1), fake.flatten(1))
    assert precision_recall(real, fake, nn.Flatten()) == flat


# the classifier


@pytest.fixture(scope="module")
def trained():
    """A classifier of the embedded digits."""
    split = digits()
    return train_classifier(split.train, split.train_labels, steps=400), split


def test_the_classifier_knows_digits_it_has_not_seen(trained):
    """On the held-out tenth, and on the test part."""
    classifier, split = trained
    right = (classifier.predict(split.test) == split.test_labels).double().mean()
    assert classifier.accuracy > 0.9 and right > 0.9
    assert not classifier.training and not any(p.requires_grad for p in classifier.parameters())


def test_the_classifier_is_a_matter_of_its_seed():
    """Same seed, same weights, whatever else drew; the global numbers are left alone."""
    split = digits()
    state = torch.get_rng_state()
    first = train_classifier(split.train, split.train_labels, steps=5, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.randn(3)
    again = train_classifier(split.train, split.train_labels, steps=5, seed=1)
    other = train_classifier(split.train, split.train_labels, steps=5, seed=2)
    assert torch.equal(first.head.weight, again.head.weight) and first.accuracy == again.accuracy
    assert not torch.equal(first.head.weight, other.head.weight)


def test_a_distance_in_its_features_is_named(trained):
    """FID-r, and never FID; 0 for the same images, and the larger the more pixels are flipped."""
    classifier, split = trained
    real, same = split.train, frechet_distance(split.train, split.train, classifier)
    flips = [(torch.rand_like(real) < share).to(real) for share in (0.05, 0.15, 0.3)]
    found = [frechet_distance(real, (real - flip).abs(), classifier) for flip in flips]
    assert same.value == pytest.approx(0, abs=1e-6)
    assert same.value < found[0].value < found[1].value < found[2].value
    assert {d.name for d in (same, *found)} == {"FID-r"} and str(same).startswith("FID-r ")


def test_the_classifier_takes_other_images():
    """Color and flat 28 x 28, in float64."""
    images, labels = torch.rand(40, 3, 12, 8, dtype=torch.float64), torch.arange(40) % 4
    classifier = train_classifier(images, labels, steps=2, features=7)
    assert classifier(images).shape == (40, 7) and classifier(images).dtype == torch.float64
    assert train_classifier(torch.rand(40, 784), labels, steps=1).image == (1, 28, 28)
    assert math.isnan(Classifier((1, 8, 8), classes=2).accuracy)


def test_the_classifier_refuses_in_words():
    images = torch.rand(40, 64)
    with pytest.raises(ValueError, match="labels must be integers, one per image.*float32"):
        train_classifier(images, torch.zeros(40))
    with pytest.raises(ValueError, match=r"shape \(39,\) for images of shape \(40, 64\)"):
        train_classifier(images, torch.zeros(39).long())
    with pytest.raises(ValueError, match="uint8: divide by 255"):
        train_classifier(images.byte(), torch.zeros(40).long())
    with pytest.raises(ValueError, match="no square images"):
        train_classifier(images[:, :60], torch.zeros(40).long())


# frequencies of classes


def test_class_mismatch_of_exact_draws_is_a_floor():
    """5,000 draws of ten equal classes: L1 .0338, L2 .0130, cross entropy ln 10 + .0009."""
    p = torch.full((10,), 0.1)
    runs = [class_mismatch(torch.randint(10, (5000,)), p) for _ in range(400)]
    l1, l2, cross = (
        np.array([getattr(r, n) for r in runs]) for n in ("l1", "l2", "cross_entropy")
    )
    for values, floor in ((l1, 0.0338), (l2, 0.0130), (cross - math.log(10), 0.0009)):
        error = values.std() / math.sqrt(len(values))
        assert values.mean() == pytest.approx(floor, abs=5 * error + 0.5e-4)


def test_class_mismatch_by_hand():
    """f = (3/4, 1/4, 0) against p = (1/2, 1/2, 0): a class of probability 0 costs nothing."""
    found = class_mismatch(torch.tensor([0, 0, 0, 1]), torch.tensor([0.5, 0.5, 0.0]))
    assert found.l1 == pytest.approx(0.5) and found.l2 == pytest.approx(0.125**0.5)
    assert found.cross_entropy == pytest.approx(-(math.log(3 / 4) + math.log(1 / 4)) / 2)
    missing = class_mismatch(torch.tensor([0, 0]), torch.tensor([0.5, 0.5]))
    assert missing.cross_entropy == math.inf


def test_class_mismatch_refuses_in_words():
    with pytest.raises(ValueError, match="sum 40: divide the counts by their sum"):
        class_mismatch(torch.tensor([0, 1]), torch.tensor([20.0, 20.0]))
    with pytest.raises(ValueError, match="labels must be some of 0 to 1"):
        class_mismatch(torch.tensor([0, 2]), torch.tensor([0.5, 0.5]))


# Inception


def test_inception_of_torchvision_is_named(tmp_path):
    """2048 features of gray images, from a state dict, under a name that is not FID alone."""
    from torchvision.models import inception_v3

    network = inception_v3(weights=None, init_weights=False, aux_logits=True)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    extractor = Inception(tmp_path / "weights.pt")
    assert features_of(torch.rand(2, 1, 8, 8), extractor).shape == (2, 2048)
    assert extractor.name == "FID (torchvision Inception)"
    assert not any(p.requires_grad for p in extractor.parameters())
    with pytest.raises(ValueError, match=r"these are \(2, 64\): reshape them"):
        extractor(torch.rand(2, 64))
    with pytest.raises(ValueError, match="2048 features needs 2049 samples"):
        frechet_distance(torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 8), extractor)


def test_inception_refuses_in_words(tmp_path, monkeypatch):
    """A file that is not there, another network, and FID's weights without their network."""
    with pytest.raises(FileNotFoundError, match="no weights at nowhere.pt.*train_classifier"):
        Inception("nowhere.pt")
    torch.save(nn.Linear(2, 3).state_dict(), tmp_path / "other.pt")
    with pytest.raises(ValueError, match="holds no Inception v3.*is None"):
        Inception(tmp_path / "other.pt")
    torch.save({"fc.weight": torch.zeros(10, 2048)}, tmp_path / "ten.pt")
    with pytest.raises(ValueError, match=r"is \(10, 2048\)"):
        Inception(tmp_path / "ten.pt")
    torch.save({"fc.weight": torch.zeros(1008, 2048)}, tmp_path / "fid.pt")
    for name in ("torch_fidelity", "torch_fidelity.feature_extractor_inceptionv3"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(ModuleNotFoundError, match="pip install torch-fidelity"):
        Inception(tmp_path / "fid.pt")
