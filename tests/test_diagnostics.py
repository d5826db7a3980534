"""Verdicts against what is known in closed form, and at the edges."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from arviz_stats.base import array_stats
from torch.distributions import kl_divergence
from zoo import GUIDES, PAIRS, binary, linear, named, real, vae

from ppvae.diagnostics import (
    Evidence,
    Pareto,
    Verdict,
    active_units,
    aggregate_posterior,
    compare,
    evidence,
    judge,
    kl_per_dimension,
    mutual_information,
    pareto_k,
    pareto_threshold,
    tabulate,
)
from ppvae.diagnostics.bounds.pareto import tail_length
from ppvae.divergences import kl_per_coordinate
from ppvae.guides import Exact
from ppvae.models import LinearGaussian
from ppvae.networks import MLP
from ppvae.protocols import rows_of
from ppvae.weights import evaluating, log_weights, trace_pair

# Pareto k


@pytest.mark.parametrize("k", [0.2, 0.5, 0.7, 1.0, 1.3])
def test_pareto_k_of_exact_pareto_weights(k):
    """u^-k has tail index k: a million draws tell it within 0.1."""
    log_w = -k * torch.rand(1_000_000, 1, dtype=torch.float64).log()
    assert pareto_k(log_w).k.item() == pytest.approx(k, abs=0.1)
    assert pareto_k(log_w - 1000).k.item() == pytest.approx(pareto_k(log_w).k.item(), abs=1e-6)


def test_pareto_k_takes_the_weights_as_they_are():
    """ArviZ wants them negated: light and heavy tails must not be swapped."""
    u = torch.rand(4000, 1, dtype=torch.float64)
    heavy, light = pareto_k(-2 * u.log()), pareto_k(2 * u.log())
    assert heavy.k > 1
    assert light.k < 0
    assert heavy.ess < light.ess


@pytest.mark.parametrize("draws", [100, 900, 10_000])
def test_pareto_k_is_that_of_arviz_where_tails_are_as_long(draws):
    """The same fit and smoothing, and R's length: at 1000 draws ArviZ takes 94, R's loo 95."""
    log_w = torch.randn(draws, 6, dtype=torch.float64) * torch.tensor([0.1, 0.5, 1, 2, 4, 8])
    found = pareto_k(log_w)
    for n, column in enumerate(log_w.T.numpy()):
        smoothed, k = array_stats.psislw(-column)
        assert found.k[n].item() == pytest.approx(k, abs=1e-9)
        assert found.ess[n].item() == pytest.approx(1 / np.exp(2 * smoothed).sum(), rel=1e-9)
    assert [tail_length(s) for s in (30, 225, 1000, 4000)] == [6, 45, 95, 190]


@pytest.mark.parametrize("level", [-1e9, -1e6, 1e3, 1e6])
@pytest.mark.parametrize("k", [0.1, 0.6, 1.2])
def test_pareto_k_does_not_depend_on_the_level(level, k):
    """Weights are known up to a factor, of any size."""
    log_w = -k * torch.rand(1000, 3, dtype=torch.float64).log()
    near, far = pareto_k(log_w), pareto_k(log_w + level)
    torch.testing.assert_close(far.k, near.k, rtol=0, atol=1e-4)
    torch.testing.assert_close(far.ess, near.ess, rtol=1e-4, atol=0)


@pytest.mark.parametrize("classes", [4, 10])
def test_weights_of_few_values_are_bounded(classes):
    """A latent of few classes, each met: no tail, whatever the weights; the error is right."""
    probs = dist.Dirichlet(torch.ones(2, 200, classes).double() * 3).sample()
    q, p = dist.Categorical(probs[0]), probs[1]
    log_w = (p.log() - probs[0].log()).gather(1, q.sample((1000,)).T).T  # E w = 1
    found, tail = evidence(log_w), pareto_k(log_w)
    assert tail.share_bad < 0.02
    assert (tail.k == 0).double().mean() > 0.9
    scores = found.log_evidence / found.standard_error
    assert scores.square().mean().sqrt().item() == pytest.approx(1, abs=0.15)
    assert pareto_k(log_w).k.equal(tail.k)  # ties are not broken by chance


@pytest.mark.parametrize("k", [0.3, 0.6, 1.0])
@pytest.mark.parametrize("ratio", [0.5, 0.3])
def test_ties_leave_the_index_of_a_tail_alone(k, ratio):
    """w = ratio^(-k z) of a geometric z: an unbounded tail of index k, on a lattice."""
    z = dist.Geometric(torch.tensor(1 - ratio).double()).sample((1000, 100))
    found = pareto_k(-k * math.log(ratio) * z).k
    assert found.mean().item() == pytest.approx(k, abs=0.12)
    assert (found > 0).all()


def test_one_rare_large_weight_is_no_bound():
    """Met a few times only, beside equal weights: what else was not met?"""
    rare = torch.where(torch.arange(1000) < 3, math.log(500.0), 0.0)[:, None]
    assert pareto_k(rare).share_bad == 1
    often = torch.where(torch.arange(1000) < 30, math.log(500.0), 0.0)[:, None]
    assert pareto_k(often).k.item() == 0


def test_pareto_k_uses_up_no_random_numbers():
    """Nor does the error that follows from it."""
    log_w, before = torch.randn(1000, 3), torch.get_rng_state()
    found = evidence(log_w), pareto_k(log_w)
    assert torch.get_rng_state().equal(before)
    assert evidence(log_w).standard_error.equal(found[0].standard_error)


def test_pareto_k_counts_the_bad():
    """The share above 0.7, and above what this number of draws can bear."""
    u = torch.rand(10_000, 4, dtype=torch.float64)
    tail = pareto_k(-torch.tensor([0.1, 0.3, 1.2, 2.0]) * u.log())
    assert tail.k.shape == tail.ess.shape == (4,)
    assert tail.share_bad == tail.share_above_threshold == 0.5
    assert (tail.ess > 0).all() and (tail.ess <= 10_000).all()


@pytest.mark.parametrize(
    ("draws", "threshold"), [(100, 0.5), (1000, 2 / 3), (10**4, 0.7), (10**6, 0.7)]
)
def test_the_threshold_depends_on_the_number_of_draws(draws, threshold):
    """min(1 - 1 / log10 S, 0.7)."""
    assert pareto_threshold(draws) == pytest.approx(threshold)


@pytest.mark.parametrize("level", [0.0, -1e4, 1e4])
def test_equal_weights_have_no_tail(level):
    """k = 0 and every draw counts, rounding aside."""
    tail = pareto_k(level + 1e-7 * torch.randn(200, 2))
    assert tail.k.tolist() == [0, 0]
    assert tail.ess.tolist() == [200, 200]


@pytest.mark.parametrize(
    ("log_w", "bad", "ess"),
    [
        (1e3 * torch.randn(1000, 1), True, 1.0),
        (torch.where(torch.arange(1000) == 7, 0.0, -torch.inf)[:, None], True, 1.0),
        (torch.where(torch.arange(1000) < 20, torch.randn(1000), -torch.inf)[:, None], True, None),
        (torch.full((1000, 1), -torch.inf), True, 0.0),
        (torch.where(torch.arange(1000) == 7, math.nan, 0.0)[:, None], True, 0.0),
        (torch.where(torch.arange(1000) < 500, 0.0, -1.0)[:, None], False, None),
    ],
    ids=["wide", "one", "few", "none", "nan", "tied"],
)
def test_weights_that_no_pareto_fits(log_w, bad, ess):
    """Never NaN, which compares as good: infinity where they cannot be trusted."""
    tail = pareto_k(log_w)
    assert (tail.k.item() == math.inf) is bad
    assert tail.share_bad == float(bad)
    assert tail.ess.isfinite().all()
    if ess is not None:
        assert tail.ess.item() == pytest.approx(ess, rel=1e-3)


@pytest.mark.parametrize("judge", [evidence, pareto_k])
@pytest.mark.parametrize("shape", [(100,), (1, 5), (100, 0), (2, 3, 4)])
def test_what_is_no_matrix_of_weights_is_refused(judge, shape):
    """By its shape."""
    with pytest.raises(ValueError, match=r"log weights of shape \(K, N\) with K >= "):
        judge(torch.zeros(shape))


# Evidence


def test_evidence_by_hand():
    """Two particles of weight 1 and 3: ln 2, with error sd / (sqrt(2) mean) = 1 / 2."""
    estimate = evidence(torch.tensor([[1.0], [3.0]]).log())
    assert estimate.mean == pytest.approx(math.log(2))
    assert estimate.standard_error.item() == pytest.approx(math.sqrt(2) / math.sqrt(2) / 2)
    bias = math.log(2) - math.log(3) / 2  # of one draw; of two half as much
    assert estimate.bias.item() == pytest.approx(bias)
    assert estimate.mean_standard_error == pytest.approx(math.hypot(0.5, bias))
    assert str(estimate).startswith("0.6931 +- 0.5203 nats (K = 2)")
    assert math.isnan(estimate.data_standard_error)


def test_evidence_neither_overflows_nor_rounds():
    """In float32, a thousand nats away from zero."""
    log_w = torch.randn(100, 3)
    near, far = evidence(log_w), evidence(log_w - 1000)
    torch.testing.assert_close(far.log_evidence + 1000, near.log_evidence, rtol=0, atol=1e-3)
    torch.testing.assert_close(far.standard_error, near.standard_error, rtol=1e-3, atol=0)


# The latent


def test_the_kl_splits():
    """KL = mutual information + marginal KL, exactly, and each is right for a linear model."""
    model, x = linear().double(), torch.randn(400, 3, dtype=torch.float64) * 1.5
    guide = Exact(model)
    split = aggregate_posterior(model, guide, x, num_particles=5)
    assert split.kl == pytest.approx(split.mutual_information + split.marginal_kl, abs=1e-9)
    prior = dist.MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
    exact = kl_divergence(model.posterior(x), prior).mean().item()
    assert split.kl == pytest.approx(exact, abs=4 * split.standard_error["kl"])
    assert 0 < split.mutual_information < math.log(400)
    assert split.draws["z"].shape == (2000, 2)


@pytest.mark.parametrize("error", ["monte_carlo_error", "standard_error"])
def test_errors_of_the_split_are_those_of_repetitions(error):
    """The data given, and the data drawn anew: each is the spread of 120 repetitions."""
    model = linear(scale=0.5).double()
    guide, given = Exact(model), _data_of(model, 120)
    draw = (lambda: given) if error == "monte_carlo_error" else (lambda: _data_of(model, 120))
    runs = [aggregate_posterior(model, guide, draw(), num_particles=4) for _ in range(120)]
    for name in ("kl", "mutual_information", "marginal_kl"):
        spread = torch.tensor([getattr(run, name) for run in runs]).std()
        said = torch.tensor([getattr(run, error)[name] for run in runs]).square().mean().sqrt()
        assert float(spread / said) == pytest.approx(1, abs=0.26), name  # 4 errors of the spread


def _data_of(model, count):
    with torch.no_grad():
        z = torch.randn(count, model.weight.shape[1], dtype=torch.float64)
        noise = torch.randn(count, len(model.weight), dtype=torch.float64)
        x = z @ model.weight.mT + model.bias + model.log_scale.exp() * noise
    return 1.5 * x  # more spread than the model's own, so that q(z) is not the prior


def test_what_a_single_datum_or_draw_cannot_tell_is_nan():
    model = linear()
    one = aggregate_posterior(model, Exact(model), real(1, 3), num_particles=10)
    assert math.isnan(one.standard_error["kl"]) and one.monte_carlo_error["kl"] > 0
    once = aggregate_posterior(model, Exact(model), real(10, 3))
    assert math.isnan(once.monte_carlo_error["kl"]) and once.standard_error["kl"] > 0


def test_the_mutual_information_is_that_of_the_channel():
    """x of the model itself: I(x; z) = 1/2 ln det(I + W W' / s^2), here far below ln N."""
    model = LinearGaussian(torch.tensor([[1.0], [0.5]], dtype=torch.float64))
    x = torch.randn(3000, 1, dtype=torch.float64) @ model.weight.T.detach()
    x = x + torch.randn(3000, 2, dtype=torch.float64)
    found = mutual_information(model, Exact(model), x)
    assert found == pytest.approx(0.5 * math.log(1 + 1.25), abs=0.05)


def test_a_collapsed_guide_knows_nothing():
    """q(z|x) = p(z): no KL, no information, no active unit."""
    model = LinearGaussian(torch.zeros(3, 2))
    guide, x = Exact(model), real(20, 3)
    assert mutual_information(model, guide, x) == 0.0
    torch.testing.assert_close(
        kl_per_dimension(model, guide, x, num_particles=20_000), torch.zeros(2), atol=2e-3, rtol=0
    )
    assert not active_units(guide, x).any()


def test_the_mutual_information_is_bounded_by_the_number_of_data():
    """Posteriors that do not overlap tell which datum they are of: ln N."""
    model = linear(scale=1e-3)
    x = 10 * real(8, 3)
    assert mutual_information(model, Exact(model), x) == pytest.approx(math.log(8), abs=1e-3)


@pytest.mark.parametrize("guide", GUIDES)
def test_kl_per_dimension_against_moments(guide):
    """In closed form where guide and prior factorize; else of the marginals' moments."""
    model, guide = vae(), GUIDES[guide](MLP(8, 16))
    batch = binary(5, 8)
    found = kl_per_dimension(model, guide, batch, num_particles=20_000)
    with evaluating(model, guide):
        z = trace_pair(model, guide, batch, 20_000)[1].nodes["z"]["value"]
    moments = dist.Normal(z.mean(0), z.std(0))
    expected = kl_divergence(moments, dist.Normal(0.0, 1.0)).mean(0)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)


@pytest.mark.parametrize("draws", [3, 5, 20])
def test_kl_per_dimension_of_few_draws_is_unbiased(draws):
    """Of Normal marginals exactly so: not too large by 1 / draws, 0.33 nats of three."""
    loc, scale = torch.tensor([[0.0, 2.0, -1.0]]), torch.tensor([[1.0, 0.1, 3.0]])

    def guide(batch):  # dependent in name only, so that its KL is taken by moments
        q = dist.MultivariateNormal(loc.expand(len(batch), 3), scale_tril=scale[0].diag())
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", q)

    model, x = LinearGaussian(torch.zeros(2, 3)), torch.zeros(20_000, 2)
    exact = kl_divergence(dist.Normal(loc, scale), dist.Normal(0.0, 1.0))[0]
    found = kl_per_dimension(model, guide, x, num_particles=draws)
    spread = (scale**2 / 2**0.5 + loc.abs() * scale)[0] * (draws - 1) ** -0.5
    assert ((found - exact).abs() < 4 * (spread + draws**-0.5) / 20_000**0.5).all()


def test_kl_per_dimension_of_few_draws_of_two_modes():
    """A variance that is better known than a Normal's: to first order, by kurtosis."""
    sides = dist.Normal(torch.tensor([-1.0, 1.0]), 0.1)

    def guide(batch):
        with pyro.plate("data", len(batch), dim=-1):
            mixed = dist.MixtureSameFamily(
                dist.Categorical(torch.ones(len(batch), 1, 2)), sides.expand((len(batch), 1, 2))
            )
            pyro.sample("z", mixed.to_event(1))

    model, x = LinearGaussian(torch.zeros(2, 1)), torch.zeros(20_000, 2)
    exact = kl_divergence(dist.Normal(0.0, 1.01**0.5), dist.Normal(0.0, 1.0))
    found = kl_per_dimension(model, guide, x, num_particles=20)
    assert found.item() == pytest.approx(exact.item(), abs=0.006)  # of a Normal 1/20 is taken off


def test_kl_per_dimension_needs_a_form():
    """A dependent guide under a Laplace prior has none."""
    prior = dist.Laplace(torch.zeros(2), 1.0).to_event(1)
    model, guide = vae(prior=prior), GUIDES["full-rank"](MLP(8, 16))
    with pytest.raises(ValueError, match=r"'z' has no form for a .* guide under a Laplace prior"):
        kl_per_dimension(model, guide, binary(5, 8))
    assert kl_per_dimension(model, GUIDES["normal"](MLP(8, 16)), binary(5, 8)).shape == (2,)


@pytest.mark.parametrize(
    "judge", [kl_per_dimension, lambda m, *rest, site: active_units(*rest, site=site)]
)
def test_an_unknown_latent_is_named(judge):
    """With those there are."""
    model, guide = vae(), GUIDES["normal"](MLP(8, 16))
    with pytest.raises(KeyError, match=r"there is no latent 'y'; there are \['z'\]"):
        judge(model, guide, binary(5, 8), site="y")


def test_the_kl_per_coordinate_adds_up():
    """To the closed form of the whole."""
    q = dist.Normal(real(5, 3), real(5, 3).exp()).to_event(1)
    p = dist.Normal(torch.zeros(3), 2.0).to_event(1)
    torch.testing.assert_close(kl_per_coordinate(q, p).sum(-1), kl_divergence(q, p))
    dependent = dist.MultivariateNormal(torch.zeros(3), torch.eye(3))
    with pytest.raises(TypeError, match="does not split over coordinates: they are dependent"):
        kl_per_coordinate(dependent, p)
    with pytest.raises(TypeError, match="no KL is registered for Normal and StudentT"):
        kl_per_coordinate(q, dist.StudentT(torch.full((3,), 4.0)).to_event(1))


def test_active_units_see_through_the_noise():
    """With two draws per datum the means scatter far beyond the threshold: that is subtracted."""
    model = LinearGaussian(torch.tensor([[2.0, 0.0]]))
    x = torch.linspace(-3, 3, 20_000)[:, None]
    found = active_units(Exact(model), x, num_particles=2, threshold=0.05)
    assert found.tolist() == [True, False]
    strict = active_units(Exact(model), x, num_particles=2, threshold=100.0)
    assert not strict.any()


# The verdict


def test_the_comparison_has_a_row_per_guide():
    """Its numbers are those of the functions it is made of."""
    model, x = linear(), real(30, 3)
    guides = {name: make(MLP(3, 16)) for name, make in GUIDES.items()}
    table = compare({**guides, "exact": Exact(model)}, model, x, num_particles=200)
    assert table.index.tolist() == [*guides, "exact"]
    columns = "elbo evidence evidence_se k_bad ess kl mutual_information active_units parameters"
    assert set(table.columns) >= set(columns.split())
    exact = table.loc["exact"]
    truth = model.log_evidence(x).mean().item()
    assert exact["elbo"] == pytest.approx(truth, abs=1e-4)
    assert exact["evidence"] == pytest.approx(truth, abs=1e-4)
    assert (exact["k_bad"], exact["ess"], exact["parameters"]) == (0, 200, 0)
    assert (table["elbo"] < table["evidence"] + 1e-4).all()
    assert table["elbo"].idxmax() == "exact"
    normal = guides["normal"]
    assert table.loc["normal", "parameters"] == sum(p.numel() for p in normal.parameters())
    assert not np.isnan(table.to_numpy(dtype=float)).any()


def _verdict(evidence_, bound=None):
    """A verdict of which only the numbers per datum matter."""
    size = len(evidence_)
    zeros = torch.zeros(size)
    found = Evidence(evidence_, zeros, 100, zeros, zeros)
    tail = Pareto(zeros, zeros, 0.7)
    bound = evidence_ if bound is None else bound
    return Verdict(bound, found, tail, None, torch.empty(0), torch.empty(0), 0, size)


def test_differences_are_paired():
    """What makes all data hard cancels: the errors are those of the difference itself."""
    hard, d = 50 * torch.randn(400), torch.randn(400)
    table = tabulate({"a": [_verdict(hard)], "b": [_verdict(hard + 0.5 + d)]})
    a = table.loc["a"]
    assert a["evidence_difference"] == pytest.approx(-(0.5 + d).mean().item(), abs=1e-4)
    assert a["evidence_difference_se"] == pytest.approx(d.std().item() / 20, rel=1e-4)
    assert a["evidence_data_se"] == pytest.approx(hard.std().item() / 20, rel=1e-4)
    assert a["elbo_difference_se"] == pytest.approx(a["evidence_difference_se"])
    assert table.loc["b", "evidence_difference"] == 0 == table.loc["b", "elbo_difference_se"]
    assert table[["best_rank", "worst_rank"]].to_numpy().tolist() == [[2, 2], [1, 1]]


@pytest.mark.parametrize(("shifts", "open"), [((0.5, 0.6, 0.7), False), ((0.5, 0.6, -0.1), True)])
def test_a_ranking_that_one_seed_reverses_is_none(shifts, open):
    """However small its error over the data."""
    hard = torch.randn(3, 400)
    b = [_verdict(x + s + 0.01 * torch.randn(400)) for x, s in zip(hard, shifts, strict=True)]
    table = tabulate({"a": [_verdict(x) for x in hard], "b": b})
    places = [[1, 2], [1, 2]] if open else [[2, 2], [1, 1]]
    assert table[["best_rank", "worst_rank"]].to_numpy().tolist() == places
    spread = torch.tensor(shifts).std().item() / 3**0.5
    assert table.loc["a", "evidence_difference_se"] == pytest.approx(spread, rel=0.05)
    assert table.loc["a", "evidence_seed_sd"] > 0


def test_the_error_of_a_difference_is_that_of_repetitions():
    """Data and seeds drawn anew 200 times: the spread is what is said of it."""
    found, said = [], []
    for _ in range(200):
        seeds, data = 0.1 * torch.randn(4, 1), torch.randn(100)
        runs = seeds + data + 0.3 * torch.randn(4, 100)
        table = tabulate(
            {"a": [_verdict(torch.zeros(100)) for _ in range(4)], "b": [*map(_verdict, runs + 1)]}
        )
        found.append(table.loc["a", "evidence_difference"])
        said.append(table.loc["a", "evidence_difference_se"])
    ratio = np.std(found) / np.sqrt(np.mean(np.square(said)))
    assert ratio == pytest.approx(1, abs=0.2)  # 4 errors of the spread


def test_seeds_are_averaged():
    """Each is a pair of its own."""
    x = real(30, 3)
    pairs = [(m, Exact(m)) for m in (linear(), linear(scale=2.0))]
    table = compare({"exact": pairs}, None, x, num_particles=50)
    truth = torch.stack([m.log_evidence(x).mean() for m, _ in pairs])
    assert table.loc["exact", "evidence"] == pytest.approx(truth.mean().item(), abs=1e-4)
    assert table.loc["exact", "evidence_seed_sd"] == pytest.approx(truth.std().item(), abs=1e-4)


BOUNDED = [p for p in PAIRS if p.density and not p.name.startswith("modal-latents")]


@pytest.mark.parametrize("pair", named(BOUNDED))
def test_one_datum_is_judged(pair):
    """What is said of how data differ is NaN; all else is there."""
    one = rows_of(pair.batch, 0, 1)
    verdict = judge(*pair.make(), one, num_particles=30, site=pair.latent)
    assert verdict.bounds.isfinite().all() and len(verdict.active) == 0
    assert math.isnan(verdict.row["active_units"]) and math.isnan(verdict.row["elbo_se"])
    table = tabulate({"a": [verdict], "b": [verdict, verdict]})
    assert table["evidence_difference_se"].notna().all()


def test_pairs_may_bring_their_own_models():
    """Where each was trained with its own."""
    x = real(30, 3)
    models = {"a": linear(), "b": linear(scale=2.0)}
    table = compare({n: (m, Exact(m)) for n, m in models.items()}, None, x, num_particles=50)
    for name, model in models.items():
        truth = model.log_evidence(x).mean().item()
        assert table.loc[name, "elbo"] == pytest.approx(truth, abs=1e-4)


@pytest.mark.parametrize(
    ("guides", "message"),
    [({}, "there are no guides to compare"), ({"a": None}, "the guide 'a' has no model")],
)
def test_a_comparison_of_nothing_is_refused(guides, message):
    """In words."""
    with pytest.raises(ValueError, match=message):
        compare(guides, None, real(5, 3))


@pytest.mark.parametrize("pair", named(p for p in PAIRS if p.density and p.marginal))
def test_the_split_holds_for_every_pair(pair):
    """KL = mutual information + marginal KL, information at most ln N."""
    split = aggregate_posterior(*pair.make(), pair.batch, num_particles=20)
    assert split.kl == pytest.approx(split.mutual_information + split.marginal_kl, abs=1e-4)
    assert split.mutual_information <= math.log(5) + 4 * split.standard_error["mutual_information"]


def test_weights_of_an_exact_guide_are_the_evidence():
    """Each of them, so that k is 0 and the error nothing."""
    model, x = linear(), real(5, 3)
    log_w = log_weights(model, Exact(model), x, 100)
    assert pareto_k(log_w).k.tolist() == [0.0] * 5
    assert evidence(log_w).mean_standard_error < 1e-5


def test_compare_looks_at_the_last_latent_of_a_model_without_z():
    ladder = next(pair for pair in PAIRS if pair.name == "ladder")
    model, guide = ladder.make()
    row = compare({"ladder": guide}, model, ladder.batch, num_particles=50).loc["ladder"]
    assert 0 <= row["active_units"] <= 2
