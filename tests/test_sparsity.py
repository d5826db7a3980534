"""Sparsity, the pPCA bound, and what codes say of labels: closed forms and brute force."""

import math
from itertools import combinations

import pyro
import pyro.distributions as dist
import pytest
import torch
from real import real
from torch import nn

from ppvae.data import load
from ppvae.diagnostics import (
    active_by_kl,
    kl_per_dimension,
    knn_accuracy,
    lifetime_sparsity,
    paper_units,
    population_sparsity,
    ppca_bound,
    proportion_zeros,
    shattering_dimensionality,
    sparsity,
)
from ppvae.guides import Categorical, Exact
from ppvae.models import VAE, LinearGaussian
from ppvae.networks import MLP
from ppvae.weights import log_weights

# Sparsity: check 11 of the closed forms


def test_sparsity_of_known_activities():
    """Constant 0, one-hot 1, silent 1."""
    z = torch.zeros(50, 3)
    z[:, 0], z[7, 1] = 2.5, 3.0
    assert torch.allclose(lifetime_sparsity(z), torch.tensor([0.0, 1.0, 1.0]))
    assert torch.allclose(population_sparsity(z.T), torch.tensor([0.0, 1.0, 1.0]))
    assert proportion_zeros(z) == pytest.approx(99 / 150)


@pytest.mark.parametrize("rate", [0.05, 1.0, 7.0])
def test_sparsity_of_counting_noise(rate):
    """1 / (1 + lam): high for low rates, though nothing is coded."""
    z = torch.poisson(torch.full((400_000, 2), rate))
    assert lifetime_sparsity(z).tolist() == pytest.approx([1 / (1 + rate)] * 2, rel=0.02)
    assert population_sparsity(z.T).tolist() == pytest.approx([1 / (1 + rate)] * 2, rel=0.02)
    assert proportion_zeros(z) == pytest.approx(math.exp(-rate), abs=0.005)


def test_sparsity_is_the_formula():
    """Written out in loops; signs do not matter."""
    z = torch.randn(9, 4, dtype=torch.float64)
    for d, found in enumerate(lifetime_sparsity(z).tolist()):
        first = sum(abs(float(v)) for v in z[:, d])
        second = sum(float(v) ** 2 for v in z[:, d])
        assert found == pytest.approx((1 - first**2 / (9 * second)) / (1 - 1 / 9))
    assert torch.equal(lifetime_sparsity(-z), lifetime_sparsity(z))


class Counts(nn.Module):
    """A guide of counts: the first unit follows x, the second is silent, the third noise."""

    def forward(self, batch):
        rates = torch.cat([100 * batch, torch.full_like(batch, 1e-9), torch.ones_like(batch)], 1)
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", dist.Poisson(rates).to_event(1))


def test_sparsity_of_a_guide():
    batch = torch.cat([torch.zeros(999, 1) + 1e-9, torch.ones(1, 1)])
    found = sparsity(Counts(), batch)
    assert found.lifetime.tolist() == pytest.approx([1.0, 1.0, 0.5], abs=0.05)
    assert found.population.shape == (1000,)
    assert found.zeros == pytest.approx((2 + math.exp(-1)) / 3, abs=0.02)


def test_one_datum_has_no_sparsity():
    for z in (torch.rand(1, 3), torch.rand(5)):
        with pytest.raises(ValueError, match="with 2 data at least"):
            lifetime_sparsity(z)
    for z in (torch.rand(3, 1), torch.rand(5)):
        with pytest.raises(ValueError, match="with 2 units at least"):
            population_sparsity(z)


class Shifts(nn.Module):
    """A guide whose units are N(w x, 1), w = 0.1, 0, 1."""

    def forward(self, batch):
        with pyro.plate("data", len(batch), dim=-1):
            loc = batch * torch.tensor([0.1, 0.0, 1.0])
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


def test_active_units_are_those_that_cost_nats():
    """w^2 / 2 for x of variance 1: 0.005, 0 and 0.5 nats."""
    model, batch = LinearGaussian(torch.zeros(1, 3)), torch.tensor([[1.0], [-1.0]])
    assert kl_per_dimension(model, Shifts(), batch).tolist() == pytest.approx([0.005, 0, 0.5])
    assert active_by_kl(model, Shifts(), batch).tolist() == [False, False, True]
    found = active_by_kl(model, Shifts(), batch, threshold=1e-3)
    assert found.tolist() == [True, False, True]


def test_the_kl_of_classes_sums_to_the_kl():
    """Per class q ln(q/p) - q + p, none negative."""
    prior = dist.OneHotCategorical(logits=torch.tensor([0.3, -1.0, 0.5]), validate_args=False)
    model = VAE(MLP(3, 8), 3, prior=prior)
    guide = Categorical(MLP(8, 16), latent_dim=3).eval()
    batch = torch.rand(20, 8).round()
    parts = kl_per_dimension(model, guide, batch)
    q = dist.OneHotCategorical(logits=guide.head(guide.activation(guide.encoder(batch))))
    total = torch.distributions.kl_divergence(q, prior).mean().detach()
    assert parts.shape == (3,) and bool((parts >= 0).all())
    assert float(parts.sum()) == pytest.approx(float(total), rel=1e-5)


# Probabilistic PCA: check 10


def test_ppca_on_mnist(root):
    """The numbers that the published Gaussian conv | lin reaches within 0.02, with 22 units."""
    split = load("mnist", root=root("mnist"), download=True)
    found = ppca_bound(split.train, split.test, 22)  # a 23rd, l = 0.503, would bring 0.0001
    assert found.nelbo == pytest.approx(40.017, abs=5e-4)
    assert found.kl == pytest.approx(11.621, abs=5e-4)
    assert found.mse_map == pytest.approx(22.525, abs=5e-4)
    assert found.mse == pytest.approx(28.396, abs=5e-4)
    for part, power, about_mean in ((split.train, 87.81, 52.72), (split.test, 89.34, 52.85)):
        x = part.double()
        assert float(x.square().sum(1).mean()) == pytest.approx(power, abs=5e-3)
        assert float((x - x.mean(0)).square().sum(1).mean()) == pytest.approx(about_mean, abs=6e-3)


def test_ppca_on_whitened_patches():
    split = load("olshausen_whitened", root=real("olshausen_whitened").parent)
    found = ppca_bound(split.train, split.test)
    assert found.units == 110
    assert found.nelbo == pytest.approx(153.58, abs=5e-3)
    assert found.kl == pytest.approx(69.71, abs=5e-3)
    assert found.mse_map == pytest.approx(48.20, abs=5e-3)
    assert found.mse == pytest.approx(83.87, abs=5e-3)


def ppca_model(x):
    """The maximum-likelihood p(x|z) = N(Phi z, I/2), by the textbook's formula."""
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    used = values > 0.5
    phi = vectors[:, used] * (values[used] - 0.5).sqrt()
    return LinearGaussian(phi, bias=torch.zeros(x.shape[1]), scale=math.sqrt(0.5))


def test_ppca_is_what_its_model_and_exact_posterior_give():
    """nELBO, KL and mse of the zoo's own LinearGaussian and Exact, at the optimum."""
    torch.manual_seed(0)
    mixing = torch.randn(6, 6, dtype=torch.float64)
    x, y = (torch.randn(n, 6, dtype=torch.float64) @ mixing + 0.5 for n in (200, 100))
    found = ppca_bound(x, y)
    model = ppca_model(x).double()
    q = model.posterior(y)
    zeros = torch.zeros_like(q.mean[0])
    prior = dist.MultivariateNormal(zeros, torch.eye(len(zeros), dtype=zeros.dtype))
    kl = torch.distributions.kl_divergence(q, prior).mean().detach()
    assert found.kl == pytest.approx(float(kl), rel=1e-6)
    evidence = float(log_weights(model, Exact(model), y, 1).mean())  # of an exact posterior
    assert found.nelbo == pytest.approx(paper_units(-evidence, 6), rel=1e-5)
    assert found.mse == pytest.approx(found.nelbo - found.kl)
    residual = (y - q.mean @ model.weight.T).square().sum(1).mean().detach()
    assert found.mse_map == pytest.approx(float(residual), rel=1e-5)


def test_ppca_is_a_bound_on_its_train_data():
    """No other linear decoder with its exact posterior does better."""
    x = torch.randn(300, 4, dtype=torch.float64) @ torch.diag(
        torch.tensor([2.0, 1, 0.8, 0.3]).double()
    )
    best = ppca_bound(x, x).nelbo
    for _ in range(5):
        model = ppca_model(x + 0.3 * torch.randn_like(x)).double()
        other = paper_units(-float(log_weights(model, Exact(model), x, 1).mean()), 4)
        assert other > best


def test_paper_units_leave_out_a_constant():
    """-ELBO of Normal(decoder, sqrt(1/2)) less (M/2) ln pi is the squared error plus the KL."""
    assert paper_units(0.0, 256) == pytest.approx(-146.525, abs=5e-4)
    assert paper_units(0.0, 784) == pytest.approx(-448.734, abs=5e-4)
    h, x = torch.randn(5, 7), torch.randn(5, 7)
    nats = -dist.Normal(h, math.sqrt(0.5)).log_prob(x).sum(1).mean()
    assert paper_units(float(nats), 7) == pytest.approx(float((x - h).square().sum(1).mean()))


def test_ppca_refuses_in_words():
    with pytest.raises(ValueError, match="4 elements, validation data 3"):
        ppca_bound(torch.rand(5, 4), torch.rand(5, 3))
    with pytest.raises(ValueError, match="1 units pay on these data, but units is 2"):
        ppca_bound(*(torch.tensor([[2.0, 0.0], [0.0, 0.1]]),) * 2, units=2)
    with pytest.raises(ValueError, match="NaN or infinity"):
        ppca_bound(torch.rand(5, 4), torch.full((5, 4), math.nan))


# Labels


def test_neighbors_vote_as_by_hand():
    x, y = torch.randn(60, 3, dtype=torch.float64), torch.randint(0, 3, (60,))
    t, u = torch.randn(40, 3, dtype=torch.float64), torch.randint(0, 3, (40,))
    nearest = torch.cdist(t, x).topk(5, largest=False).indices
    votes = nn.functional.one_hot(y[nearest], 3).sum(1).argmax(1)  # ties to the smallest class
    expected = float((votes == u).double().mean())
    assert knn_accuracy(x, y, t, u, [60], neighbors=5) == {60: pytest.approx(expected)}


def test_more_labels_help_and_draws_go_by_seed():
    x = torch.randn(600, 2) + 2 * torch.arange(600)[:, None] % 5
    y = torch.arange(600) % 5
    found = knn_accuracy(x[:300], y[:300], x[300:], y[300:], [10, 300])
    assert found[10] < found[300]
    assert found == knn_accuracy(x[:300], y[:300], x[300:], y[300:], [10, 300])
    assert found[10] != knn_accuracy(x[:300], y[:300], x[300:], y[300:], [10], seed=1)[10]


def test_shattering_counts_the_splits_that_a_plane_cuts():
    """Of a square's three even splits two are cut by a line, and the diagonal one is not."""
    corners = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    noise = 0.05 * torch.randn(400, 2)
    x, y = corners.repeat(100, 1) + noise, torch.arange(4).repeat(100)
    found = shattering_dimensionality(x, y, x, y)
    assert (2 + 0.3) / 3 < found < (2 + 0.77) / 3  # a line gets at most 3 of 4 corners right
    lifted = torch.cat([x, (x - 0.5).prod(1, keepdim=True)], 1)  # the diagonal cut is a plane now
    assert shattering_dimensionality(lifted, y, lifted, y) == 1.0


def test_half_of_the_splits_are_enough():
    """All C choose C/2 of them have the same mean."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    x, y = torch.randn(200, 3) + torch.arange(200)[:, None] % 6, torch.arange(200) % 6
    t, u = torch.randn(100, 3) + torch.arange(100)[:, None] % 6, torch.arange(100) % 6
    scaler = StandardScaler().fit(x.numpy())
    scores = []
    for half in combinations(range(6), 3):
        a, b = (torch.isin(labels, torch.tensor(half)).numpy() for labels in (y, u))
        fitted = LogisticRegression(max_iter=1000).fit(scaler.transform(x.numpy()), a)
        scores.append(fitted.score(scaler.transform(t.numpy()), b))
    assert len(scores) == 20
    assert shattering_dimensionality(x, y, t, u) == pytest.approx(sum(scores) / 20, abs=2e-3)


def test_labels_that_do_not_fit_are_refused():
    x, y = torch.rand(20, 3), torch.arange(20) % 4
    with pytest.raises(ValueError, match="the 20 data of the pool, but 21 does not"):
        knn_accuracy(x, y, x, y, [21])
    with pytest.raises(ValueError, match="the 5 neighbors"):
        knn_accuracy(x, y, x, y, [4])
    with pytest.raises(ValueError, match=r"test features must be .* \(20, 3\) and \(19,\)"):
        knn_accuracy(x, y, x, y[1:], [20])
    with pytest.raises(ValueError, match="train features hold NaN"):
        shattering_dimensionality(x * math.nan, y, x, y)
    with pytest.raises(ValueError, match="3 classes have no even splits"):
        shattering_dimensionality(x, y % 3, x, y % 3)
