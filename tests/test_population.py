"""Mixtures of both kinds: the components of a datum's posterior, and the posteriors of a set."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from ppvae.diagnostics import component_usage, log_det_covariance, population_moments
from ppvae.distributions import MixtureOfDiagNormals
from ppvae.guides import Exact, Flow, GaussianMixture, Normal
from ppvae.models import LinearGaussian
from ppvae.networks import MLP


class Known(nn.Module):
    """A guide whose posterior is a function of the batch."""

    def __init__(self, posterior):
        super().__init__()
        self.posterior = posterior

    def forward(self, batch):
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", self.posterior(batch))


def mixture(weights, distance):
    """A mixture guide whose weights are those of the label in x, and whose means lie apart."""

    def posterior(x):
        n, components = len(x), len(weights[0])
        locs = distance * torch.arange(components).float()[:, None].expand(components, 2)
        logits = torch.tensor(weights)[x[:, 0].long()].log()
        return MixtureOfDiagNormals(
            locs.expand(n, components, 2), torch.ones(n, components, 2), logits
        )

    return Known(posterior)


LABELS = torch.arange(60) % 3


def test_components_that_part_the_labels():
    """One component per label, far apart: no entropy, perfect agreement, equal usage."""
    guide = mixture([[1.0, 0, 0], [0, 0, 1.0], [0, 1.0, 0]], 100.0)
    found = component_usage(guide, LABELS[:, None].float(), LABELS)
    assert torch.allclose(found.usage, torch.full((3,), 1 / 3))
    assert found.weight_entropy == found.responsibility_entropy == 0
    assert found.normalized_mutual_information == pytest.approx(1)
    assert found.adjusted_rand == pytest.approx(1)


@pytest.mark.parametrize(("distance", "overlap"), [(0.0, math.log(4)), (1000.0, 0.0)])
def test_responsibilities_tell_apart_what_weights_do_not(distance, overlap):
    """Equal weights: of equal components z tells nothing, of distant ones all."""
    found = component_usage(mixture([[0.25] * 4] * 3, distance), LABELS[:, None].float())
    assert found.weight_entropy == pytest.approx(math.log(4))
    assert found.responsibility_entropy == pytest.approx(overlap, abs=1e-6)
    assert math.isnan(found.adjusted_rand) and math.isnan(found.normalized_mutual_information)


def test_usage_is_the_mean_of_the_weights_and_entropy_that_of_theirs():
    """Weights (.7, .3), (.9, .1), (.2, .8), by hand; components say 2 of 3 labels apart."""
    rows = [[0.7, 0.3], [0.9, 0.1], [0.2, 0.8]]
    found = component_usage(mixture(rows, 3.0), LABELS[:, None].float(), LABELS)
    assert torch.allclose(found.usage, torch.tensor([0.6, 0.4]))
    entropies = [-sum(p * math.log(p) for p in row) for row in rows]
    assert found.weight_entropy == pytest.approx(sum(entropies) / 3, rel=1e-5)
    shared = math.log(3) - 2 / 3 * math.log(2)  # I(label; component) is H(component)
    assert found.normalized_mutual_information == pytest.approx(
        shared / ((shared + math.log(3)) / 2)
    )
    # pairs: 60 data in 3 x 20; components of 40 and 20
    same, rows_, columns, pairs = 3 * 190, 3 * 190, 780 + 190, 1770
    chance = rows_ * columns / pairs
    assert found.adjusted_rand == pytest.approx((same - chance) / ((rows_ + columns) / 2 - chance))


def test_responsibilities_of_overlapping_components():
    """Two unit Normals at distance 2 in the plane: E_q H(r) by quadrature along their line."""
    guide = mixture([[0.5, 0.5]], math.sqrt(2))  # the means part by sqrt 2 in either coordinate
    found = component_usage(guide, torch.zeros(500, 1), num_particles=200)
    t = torch.linspace(-9, 11, 20_001, dtype=torch.float64)
    parts = torch.stack([-(t**2) / 2, -((t - 2) ** 2) / 2]).exp() / math.sqrt(2 * math.pi) / 2
    r = parts / parts.sum(0)
    exact = torch.trapezoid(torch.special.entr(r).sum(0) * parts.sum(0), t)
    assert found.responsibility_entropy == pytest.approx(float(exact), abs=0.005)


def test_component_usage_of_the_guide_and_of_others():
    """GaussianMixture in pieces of its data; words for guides without components."""
    guide = GaussianMixture(MLP(4, 8), latent_dim=2, components=3).train()
    x = torch.randn(50, 4)
    whole = component_usage(guide, x, num_particles=2)
    many = component_usage(guide, x, num_particles=1000)  # 16 data at a time
    assert guide.training and torch.allclose(whole.usage, many.usage)
    assert float(many.usage.sum()) == pytest.approx(1)
    with pytest.raises(ValueError, match="site 'z' is a .*, which has no components"):
        component_usage(Normal(MLP(4, 8), latent_dim=2), x)
    with pytest.raises(KeyError, match="there is no latent 'w'"):
        component_usage(guide, x, site="w")
    with pytest.raises(ValueError, match=r"one per datum, \(50,\), but are \(49,\)"):
        component_usage(guide, x, torch.zeros(49).long())


# the population


def test_population_moments_by_hand():
    """mu = (-1, 0, 1, 2), v = (.1, .2, .3, .4), dividing by N; S is the mixture's variance."""
    guide = Known(lambda x: dist.Normal(x[:, :1], x[:, 1:].sqrt()).to_event(1))
    x = torch.tensor([[-1, 0.1], [0, 0.2], [1, 0.3], [2, 0.4]], dtype=torch.float64)
    found = population_moments(guide, x)
    assert found.mean.tolist() == [0.5]
    assert found.variance_of_means.item() == pytest.approx(1.25)
    assert found.mean_variance.item() == pytest.approx(0.25)
    assert found.total_variance.item() == pytest.approx(1.5)
    # L_pop of moments="total", the sheet's number
    m, s = found.mean, found.total_variance
    assert float((m**2 + s - 1 - s.log()).sum() / 2) == pytest.approx(0.172267, abs=1e-6)


def test_population_moments_of_a_mixture_are_the_whole_mixtures():
    """A component's distance counts as variance within a datum, not among the data."""
    found = population_moments(mixture([[0.5, 0.5]], 4.0), torch.zeros(6, 1))
    assert torch.allclose(found.variance_of_means, torch.zeros(2))
    assert torch.allclose(found.total_variance, torch.full((2,), 1.0 + 4.0))


def test_population_moments_by_draws_subtract_their_noise():
    """A flow knows no moments: means of 10 draws of variance 1 add 0.1 to V, which is removed."""

    class Unknown(dist.Normal):
        @property
        def mean(self):
            raise NotImplementedError

        variance = mean

    guide = Known(lambda x: Unknown(x, torch.ones_like(x)).to_event(1))
    x = 0.5 * torch.randn(20_000, 2)
    found = population_moments(guide, x, num_particles=10)
    exact = x.var(0, correction=0)
    assert torch.allclose(found.variance_of_means, exact, atol=0.01)
    assert torch.allclose(found.total_variance, exact + 1, atol=0.02)
    flow = population_moments(Flow(MLP(2, 8), latent_dim=2), x[:20])
    assert flow.total_variance.shape == (2,)


def test_population_moments_need_two():
    with pytest.raises(ValueError, match="give at least 2 data"):
        population_moments(Normal(MLP(4, 8), latent_dim=2), torch.randn(1, 4))


@pytest.mark.parametrize(
    ("n", "d", "bias"), [(10_000, 5, -0.0015), (10_000, 20, -0.0210), (500, 20, -0.427)]
)
def test_log_det_of_standard_normal_draws(n, d, bias):
    """E ln det of n draws: sum_{k<d} digamma((n - 1 - k) / 2) + d ln(2 / (n - 1))."""
    k = torch.arange(d, dtype=torch.float64)
    formula = torch.digamma((n - 1 - k) / 2).sum() + d * math.log(2 / (n - 1))
    assert float(formula) == pytest.approx(bias, abs=5e-4)
    guide = Exact(LinearGaussian(torch.zeros(1, d)))
    runs = torch.tensor([log_det_covariance(guide, torch.zeros(n, 1)) for _ in range(30)])
    assert float(runs.mean()) == pytest.approx(bias, abs=4 * float(runs.std()) / 30**0.5)


def test_log_det_of_a_scaled_law_and_of_too_few():
    """ln det of diag(s^2) is 2 sum ln s; more dimensions than draws have none."""
    scale = torch.tensor([0.5, 3.0])
    guide = Known(lambda x: dist.Normal(0.0, scale).expand([len(x), 2]).to_event(1))
    found = log_det_covariance(guide, torch.zeros(40_000, 1))
    assert found == pytest.approx(2 * math.log(1.5), abs=0.05)
    with pytest.raises(ValueError, match="2 draws of 2 dimensions"):
        log_det_covariance(guide, torch.zeros(2, 1))
