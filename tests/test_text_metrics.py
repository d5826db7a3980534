"""What sentences are judged by: perplexity, information without densities, few labels, words."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from ppvae import WeightlessError, log_weights
from ppvae.data import Vocabulary
from ppvae.diagnostics import (
    active_units,
    aggregate_posterior,
    evidence,
    interpolation,
    nested_mutual_information,
    perplexity,
    posterior_moments,
    reconstruction,
    sample_sentences,
    semi_supervised_accuracy,
)
from ppvae.guides import Exact, Langevin, Normal
from ppvae.models import LinearGaussian, Sentence
from ppvae.networks import RecurrentDecoder, RecurrentEncoder
from ppvae.objectives import cyclical

WEIGHT = torch.tensor([[1.0, 0.3], [-0.5, 0.8], [0.2, -0.4]])
X = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))


def linear(scale=0.5):
    """The model of the sheet's check 2."""
    return LinearGaussian(WEIGHT, torch.tensor([0.1, -0.2, 0.3]), scale).requires_grad_(False)


# Perplexity


def test_perplexity_counts_the_end_and_not_the_start():
    """PPL = exp(sum NLL / sum tokens); sheet, section 5: 82,430 / 3,761 = 21.917 on PTB."""
    batch = torch.tensor([[3, 4, 1, 0], [1, 0, 0, 0]])
    found = perplexity(torch.tensor([-6.0, -1.0]), batch)
    assert found.per_token == pytest.approx(math.exp(7 / 4))
    assert (found.nll, found.tokens) == (3.5, 2.0)
    assert round(82_430 / 3_761, 3) == 21.917


def test_perplexity_of_longer_sentences_weighs_more():
    """Not the mean of the sentences' perplexities."""
    batch = torch.tensor([[3] * 9 + [1], [1] + [0] * 9])
    found = perplexity(-torch.tensor([10 * math.log(2), math.log(32)]), batch)
    assert found.per_token == pytest.approx(2 ** (15 / 11), rel=1e-6)


@pytest.mark.parametrize("shape", [(3,), (2, 2), ()])
def test_perplexity_wants_a_number_for_each_sentence(shape):
    """Log weights (K, N) among them."""
    with pytest.raises(ValueError, match="one log evidence for each sentence"):
        perplexity(torch.zeros(shape), torch.ones(2, 4, dtype=torch.long))


def test_reconstruction_has_its_closed_form():
    """-E ln p(x|z) under the exact posterior: (|x - m_x|^2 + tr W S W') / 2 s^2, and constants."""
    model = linear()
    model.requires_grad_(False)
    posterior = model.posterior(X)
    mean = posterior.mean @ model.weight.T + model.bias
    spread = (model.weight @ posterior.covariance_matrix @ model.weight.T).diagonal(0, -2, -1)
    squared = ((X - mean) ** 2).sum(1) + spread.sum(-1)
    expected = squared / (2 * 0.25) + 3 * math.log(0.5 * math.sqrt(2 * math.pi))
    found = [reconstruction(model, Exact(model), X, num_particles=k) for k in (1, 400)]
    assert found[1] == pytest.approx(float(expected.mean()), abs=0.02)
    assert found[0] == pytest.approx(float(expected.mean()), abs=0.3)


def test_reconstruction_asks_for_no_density():
    """A Langevin guide has one, log weights it has not; small chunks change but the draws."""
    model = linear()
    guide = Langevin(model, steps=30, step_size=0.3)
    with pytest.raises(WeightlessError, match="Langevin"):
        log_weights(model, guide, X, 2)
    found = reconstruction(model, guide, X, num_particles=50)
    exact = reconstruction(model, Exact(model), X, num_particles=50)
    assert found == pytest.approx(exact, abs=0.2)
    assert reconstruction(model, guide, X, chunk_size=7) == pytest.approx(exact, abs=0.3)


def test_reconstruction_and_kl_bound_the_evidence():
    """-ln p(x) <= Recon + KL, with equality for the exact posterior; sheet, section 5 (g)."""
    model = linear()
    kl = aggregate_posterior(model, Exact(model), X, num_particles=50).kl
    nll = -float(model.log_evidence(X).mean())
    found = reconstruction(model, Exact(model), X, num_particles=50)
    assert found + kl == pytest.approx(nll, abs=0.05)


# Information


class Nested(nn.Module):
    """a ~ N(m(x), s^2), z ~ N(a, t^2): q(z|x) = N(m(x), s^2 + t^2), known given a only."""

    def __init__(self, inner=0.4, outer=0.3):
        super().__init__()
        self.inner, self.outer = inner, outer

    def forward(self, batch):
        with pyro.plate("data", len(batch), dim=-1):
            normal = dist.Normal(batch[:, :2], self.inner).to_event(1)
            a = pyro.sample("a", normal, infer={"is_auxiliary": True})
            q = dist.Normal(a, self.outer).to_event(1)
            pyro.sample("z", q, infer={"conditional": "it is given a"})


class Marginal(nn.Module):
    """The same guide with its density."""

    def forward(self, batch):
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", dist.Normal(batch[:, :2], 0.5).to_event(1))


def exact_information():
    """I_q(x; z) of both, by densities, from 50 draws per datum."""
    model = linear()
    found = aggregate_posterior(model, Marginal(), X, num_particles=50)
    return found.mutual_information, found.standard_error["mutual_information"]


def test_the_nested_estimate_is_that_of_the_marginal():
    """Both ends within 4 standard errors and what 200 inner draws leave, about .01 nats."""
    expected, _ = exact_information()
    found = nested_mutual_information(Nested(), X, num_particles=200)
    error = 4 * 0.9 / math.sqrt(len(X))  # of the one draw of each datum
    assert found.low - error - 0.01 < expected < found.high + error + 0.01
    assert abs(found.low - found.high) < 0.05
    assert found.num_particles == 200


def test_the_two_ends_come_nearer_from_both_sides():
    """Low rises and high falls with the inner draws, averaged over 20 repetitions."""
    expected, error = exact_information()
    ends = {
        count: torch.tensor(
            [
                (found.low, found.high)
                for _ in range(20)
                if (found := nested_mutual_information(Nested(), X, num_particles=count))
            ]
        ).mean(0)
        for count in (1, 8)
    }
    spread = 4 * 0.9 / math.sqrt(20 * len(X)) + 4 * error
    assert ends[1][0] < ends[8][0] < expected + spread
    assert ends[1][1] > ends[8][1] > expected - spread
    assert ends[1][0] < expected - spread and ends[1][1] > expected + spread


def test_both_ends_are_the_pairwise_one_where_the_density_is_known():
    """Each inner run has the same law then: R copies of it, exactly that of N^2 densities."""
    pyro.set_rng_seed(3)
    found = nested_mutual_information(Marginal(), X, num_particles=50, chunk_size=64)
    pyro.set_rng_seed(3)
    z = dist.Normal(X[:, :2], 0.5).to_event(1).sample()
    log_q = dist.Normal(X[:, :2], 0.5).to_event(1).log_prob(z[:, None])  # (N, N)
    expected = float((log_q.diagonal() - log_q.logsumexp(1) + math.log(len(X))).mean())
    assert found.low == pytest.approx(expected, abs=0.01)
    assert found.high == pytest.approx(expected, abs=1e-5)


def test_no_information_is_none():
    """A guide that ignores x; and never above ln N at the low end."""
    model = LinearGaussian(torch.zeros(3, 2))
    found = nested_mutual_information(Exact(model), X, num_particles=3)
    assert (found.low, found.high) == pytest.approx((0.0, 0.0), abs=1e-5)
    sharp = nested_mutual_information(Nested(1e-3, 1e-3), X, num_particles=50)
    assert sharp.low <= math.log(len(X)) + 1e-6
    assert sharp.high > math.log(len(X)) - 0.1


def test_a_langevin_guide_has_information_by_its_last_step():
    """Of points nothing is known; and where z is stationary both ends agree with the exact."""
    model = linear()
    with pytest.raises(WeightlessError, match="Langevin"):
        nested_mutual_information(Langevin(model), X)
    guide = Langevin(model, steps=20, step_size=0.3, density="step")
    found = nested_mutual_information(guide, X, num_particles=30)
    exact = aggregate_posterior(model, Exact(model), X, num_particles=20).mutual_information
    assert found.low - 0.3 < exact < found.high + 0.3
    with pytest.raises(KeyError, match="no latent 'w'"):
        nested_mutual_information(guide, X, num_particles=1, site="w")


def test_active_units_correct_for_the_noise_of_few_draws():
    """Sheet, section 5: a dead unit scores mean_x Var_q / R, .1 at R = 10, which is subtracted."""
    model = LinearGaussian(torch.tensor([[3.0, 0.0]]))
    x = torch.linspace(-3, 3, 400)[:, None]
    mean, variance = posterior_moments(Exact(model), x, num_particles=10)
    assert 0.08 < float(mean.var(0)[1]) < 0.12
    assert float(variance.mean(0)[1] / 10) == pytest.approx(0.1, abs=0.01)
    for chunk_size in (2**14, 100):
        units = active_units(Exact(model), x, num_particles=10, threshold=0.05)
        assert units.tolist() == [True, False]
        units = active_units(
            Exact(model), x, num_particles=10, threshold=0.05, chunk_size=chunk_size
        )
        assert units.tolist() == [True, False]


# Labels


def blobs(count, distance, seed):
    """Two classes in ten dimensions, apart in one of them, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (count,), generator=generator)
    x = torch.randn(count, 10, generator=generator)
    x[:, 3] = 3 * x[:, 3] + distance * (2 * labels - 1)
    return x, labels


def test_accuracy_is_that_of_the_best_rule():
    """Phi(d / s) for classes at +-d of spread s = 3, within 3 errors and what the SVM loses."""
    train, test = blobs(4000, 4.0, 0), blobs(4000, 4.0, 1)
    best = float(dist.Normal(0.0, 1.0).cdf(torch.tensor(4 / 3)))
    found = semi_supervised_accuracy(*train, *test, counts=(0, 20, 2000))
    error = 3 * math.sqrt(best * (1 - best) / 4000)
    assert found[2000] == pytest.approx(best, abs=error + 0.02)
    assert found[20] < found[2000]
    assert found[0] == pytest.approx(best, abs=error + 0.05)  # on the first components
    assert max(found.values()) < best + error


def test_accuracy_of_noise_is_that_of_chance():
    """Without labels no less than half, since components are named as suits the test labels."""
    train, test = blobs(1000, 0.0, 0), blobs(1000, 0.0, 1)
    found = semi_supervised_accuracy(*train, *test, counts=(0, 500), draws=2)
    assert found[500] == pytest.approx(0.5, abs=0.06)
    assert 0.5 <= found[0] < 0.56


def test_accuracy_takes_another_classifier():
    """The authors' code has softmax regression; the draws are those of the seed."""
    from sklearn.linear_model import LogisticRegression

    train, test = blobs(300, 6.0, 0), blobs(300, 6.0, 1)
    options = {"counts": (50,), "classifier": LogisticRegression}
    one, again = (semi_supervised_accuracy(*train, *test, **options) for _ in range(2))
    other = semi_supervised_accuracy(*train, *test, **options, seed=1)
    assert one == again != other


def test_labels_that_do_not_fit_are_refused():
    """By part, count and mend."""
    x, y = blobs(30, 4.0, 0)
    for arguments, message in (
        ((x, y[:9], x, y), "train features must be"),
        ((x, y, x * math.nan, y), "test features hold NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            semi_supervised_accuracy(*arguments, counts=(10,))
    with pytest.raises(ValueError, match="between 0 and the 30 train data: 31"):
        semi_supervised_accuracy(x, y, x, y, counts=(31,))
    with pytest.raises(ValueError, match="5 labels drawn are all the same"):
        semi_supervised_accuracy(x, y * 0, x, y, counts=(5,))


# Words

WORDS = Vocabulary(["a", "b", "c", "d"])


def pair():
    """A model and its baseline guide; dropout is for training."""
    size = len(WORDS)
    model = Sentence(RecurrentDecoder(size, 2, 4, 8, dropout=0.5, word_dropout=0.5), latent_dim=2)
    return model, Normal(RecurrentEncoder(size, 4, 8), latent_dim=2)


def test_samples_are_words_of_the_prior():
    """Strings, as the model writes them from draws of its prior, which it is left alone by."""
    model, _ = pair()
    pyro.set_rng_seed(1)
    found = sample_sentences(model, WORDS, 5, max_length=6)
    pyro.set_rng_seed(1)
    assert found == WORDS.decode(model.generate(torch.randn(5, 2), 6))
    assert set(" ".join(found).split()) <= {*"abcd", "<unk>"}
    assert model.training


def test_a_line_goes_from_one_sentence_to_the_other():
    """Its ends are what the means of draws of the two decode to, greedily."""
    model, guide = pair()
    batch = WORDS.encode(["a b c", "d d"])
    pyro.set_rng_seed(1)
    options = {"points": 5, "num_particles": 100, "max_length": 6}
    found = interpolation(model, guide, batch, WORDS, **options)
    pyro.set_rng_seed(1)
    mean, _ = posterior_moments(guide, batch)
    middle = torch.stack([mean[0], mean.mean(0), mean[1]])
    ends = WORDS.decode(model.eval().generate(middle, 6, temperature=0))
    assert [found[0], found[2], found[4]] == ends
    assert len(found) == len(interpolation(model, guide, batch, WORDS, points=5)) == 5


@pytest.mark.parametrize(("rows", "points"), [(3, 5), (1, 5), (2, 1)])
def test_a_line_has_two_ends(rows, points):
    """Two sentences and two points at least."""
    batch = WORDS.encode(["a b"] * rows)
    with pytest.raises(ValueError, match="two sentences and at least 2 points"):
        interpolation(*pair(), batch, WORDS, points=points)


def test_a_bound_by_weights_is_above_the_perplexity():
    """More particles, a smaller bound: K = 1 and 500 of the prior-like first guide."""
    model, guide = pair()
    batch = WORDS.encode(["a b c", "d d", "a"] * 10)
    found = [
        perplexity(evidence(log_weights(model, guide, batch, k)).log_evidence, batch).per_token
        for k in (2, 500)
    ]
    assert found[1] < found[0] + 1e-3
    assert 1 < found[1] < 12


# The cyclical schedule


def test_the_cyclical_schedule_has_the_paper_form():
    """Fu et al., equation 7, M = 4 cycles, R = .5: linear to 1 in half a cycle, then 1."""
    beta = cyclical(400)
    assert [beta(t) for t in (0, 25, 50, 99, 100, 125, 150, 399)] == pytest.approx(
        [0.0, 0.5, 1.0, 1.0, 0.0, 0.5, 1.0, 1.0]
    )
    assert [beta(t) for t in (400, 425, 9999)] == [1.0, 1.0, 1.0]
    other = cyclical(100, cycles=1, ramp=1.0, start=0.2, end=2.2)
    assert [other(t) for t in (0, 50, 100)] == pytest.approx([0.2, 1.2, 2.2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 3}, "cycles must lie between 1 and steps=3, but is 4"),
        ({"steps": 9, "cycles": 0}, "but is 0"),
        ({"steps": 9, "ramp": 0.0}, r"ramp must lie in \(0, 1\]"),
        ({"steps": 9, "ramp": 1.5}, "ramp must lie"),
    ],
)
def test_cycles_out_of_range_are_refused(options, message):
    """By name."""
    with pytest.raises(ValueError, match=message):
        cyclical(**options)
