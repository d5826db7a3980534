"""Guides that others are compared with: their KL divergences by formula, their draws by law."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO
from torch import nn
from torch.distributions import kl_divergence

from ppvae import SVI, PairError, check_pair, fit, log_weights
from ppvae.distributions import RelaxedOneHot
from ppvae.guides import Categorical, Laplace, Normal
from ppvae.models import VAE
from ppvae.networks import MLP, bounded_exp
from ppvae.objectives import BetaELBO


def posterior(guide, batch):
    """Return q(z|x) of a guide."""
    return poutine.trace(guide).get_trace(batch).nodes["z"]["fn"]


# Laplace


def test_the_laplace_kl_is_its_formula_and_integral():
    """|m| - ln b - 1 + b e^(-|m|/b), which quadrature gives, too."""
    m = torch.tensor([0.0, 0.3, -2.0, 5.0], dtype=torch.float64)
    b = torch.tensor([1.0, 0.2, 3.0, 0.05], dtype=torch.float64)
    q, p = dist.Laplace(m, b), dist.Laplace(torch.zeros(4).double(), 1.0)
    found = kl_divergence(q, p)
    expected = m.abs() - b.log() - 1 + b * (-m.abs() / b).exp()
    assert torch.allclose(found, expected, rtol=1e-12)
    t = torch.linspace(-40, 40, 800_001, dtype=torch.float64)[:, None]
    z = m + b * t
    integral = torch.trapezoid(b * q.log_prob(z).exp() * (q.log_prob(z) - p.log_prob(z)), t, dim=0)
    assert torch.allclose(found, integral, atol=1e-6)


def test_the_laplace_pair_has_its_kl_in_closed_form():
    """Under Pyro's mean-field ELBO the loss is the likelihood at the draw, and the formula."""
    zeros = torch.zeros(2)
    model = VAE(MLP(2, 8), 2, likelihood="normal", prior=dist.Laplace(zeros, 1.0).to_event(1))
    guide, batch = Laplace(MLP(8, 16), latent_dim=2), torch.randn(5, 8)
    torch.manual_seed(1)
    loss = TraceMeanField_ELBO().loss(model, guide, batch)
    torch.manual_seed(1)
    trace = poutine.trace(guide).get_trace(batch)
    base = trace.nodes["z"]["fn"].base_dist
    m, b = base.loc, base.scale
    kl = (m.abs() - b.log() - 1 + b * (-m.abs() / b).exp()).sum()
    replayed = poutine.trace(poutine.replay(model, trace)).get_trace(batch)
    replayed.compute_log_prob()
    likelihood = replayed.nodes["x"]["log_prob"].sum()
    assert loss == pytest.approx(float((kl - likelihood).detach()), rel=1e-5)


@pytest.mark.parametrize("family", [Normal, Laplace])
def test_scales_are_softplus_or_bounded(family):
    """exp(5.3 tanh(u / 5.3)): exp near 0, and never beyond e^5.3."""
    guide = family(MLP(8, 16), latent_dim=1, scale=bounded_exp, min_scale=0.0)
    nn.init.zeros_(guide.head.weight)
    for u, expected in ((0.0, 1.0), (0.01, math.exp(0.01)), (2.0, 6.755), (500, 200.34)):
        guide.head.bias.data[1] = u
        base = posterior(guide, torch.rand(3, 8)).base_dist
        assert base.scale.flatten().tolist() == pytest.approx([expected] * 3, rel=2e-3)
    plain = family(MLP(8, 16), latent_dim=1)
    nn.init.zeros_(plain.head.weight), nn.init.zeros_(plain.head.bias)
    base = posterior(plain, torch.rand(3, 8)).base_dist
    assert base.scale.flatten().tolist() == pytest.approx([math.log(2) + 1e-4] * 3)


# Categorical


def one_hot_vae(classes, **kwargs):
    prior = dist.OneHotCategorical(logits=torch.zeros(classes), validate_args=False)
    return VAE(MLP(classes, 8), classes, prior=prior, **kwargs)


def test_the_categorical_kl_is_ln_k_less_the_entropy():
    logits = 3 * torch.randn(200, 512, dtype=torch.float64)
    logits[0], logits[1] = 0.0, -1000.0
    logits[1, 3] = 0.0
    p = dist.OneHotCategorical(logits=torch.zeros(512, dtype=torch.float64))
    for q in (RelaxedOneHot(torch.tensor(0.3), logits), dist.OneHotCategorical(logits=logits)):
        kl = kl_divergence(q, p)
        pi = logits.softmax(-1)
        expected = math.log(512) + torch.special.xlogy(pi, pi).sum(-1)
        assert torch.allclose(kl, expected, rtol=1e-10, atol=1e-10)
        assert bool((kl <= math.log(512) + 1e-9).all()) and math.log(512) == pytest.approx(
            6.238, abs=5e-4
        )
        assert kl[:2].tolist() == pytest.approx([0.0, math.log(512)])


def test_relaxed_choices_have_the_law_of_the_choices():
    """The largest coordinate is class k with probability pi_k at any T; at low T z is one-hot."""
    logits = torch.tensor([1.0, 0.0, -1.0])
    for T in (1.0, 0.1):
        z = RelaxedOneHot(torch.tensor(T), logits).sample((100_000,))
        share = nn.functional.one_hot(z.argmax(-1), 3).float().mean(0)
        assert torch.allclose(share, logits.softmax(-1), atol=0.006)
        assert torch.allclose(z.sum(-1), torch.ones(len(z)))
    assert float(z.amax(-1).mean()) > 0.95
    assert float(RelaxedOneHot(torch.tensor(5.0), logits).sample((1000,)).amax(-1).mean()) < 0.5


def test_the_relaxed_gradient_is_that_of_its_own_mean():
    """dE[f(z)]/dlogits by pathwise draws against differences of means on the same seed."""
    logits, weight = (
        torch.tensor([0.5, -0.3, 0.1]).double(),
        torch.tensor([1.0, -2.0, 0.5]).double(),
    )

    def mean(logits):
        torch.manual_seed(0)
        q = RelaxedOneHot(torch.tensor(0.7).double(), logits)
        return (q.rsample((1000,)) @ weight).square().mean()

    assert torch.autograd.gradcheck(mean, logits.requires_grad_())


def test_evaluation_is_exact_and_training_is_relaxed():
    guide, batch = Categorical(MLP(8, 16), latent_dim=4), torch.rand(50, 8)
    relaxed = poutine.trace(guide).get_trace(batch).nodes["z"]["value"]
    assert bool(((relaxed > 0) & (relaxed < 1)).all())
    guide.temperature.fill_(0.05)  # in place, as a callback does
    assert float(posterior(guide, batch).temperature) == pytest.approx(0.05)
    assert float(guide.state_dict()["temperature"]) == pytest.approx(0.05)
    exact = poutine.trace(guide.eval()).get_trace(batch).nodes["z"]["value"]
    assert exact.unique().tolist() == [0.0, 1.0] and bool((exact.sum(-1) == 1).all())


def test_weights_of_choices_estimate_the_evidence():
    """ln 1/K sum_k p(x|e_k) by enumeration."""
    model, batch = one_hot_vae(3), torch.rand(6, 8).round()
    h = model.decoder(torch.eye(3))  # (K, 8)
    log_p = dist.Bernoulli(logits=h).log_prob(batch[:, None]).sum(-1)  # (N, K)
    expected = (log_p.logsumexp(1) - math.log(3)).mean()
    log_w = log_weights(model, Categorical(MLP(8, 16), latent_dim=3), batch, 20_000)
    found = (log_w.logsumexp(0) - math.log(20_000)).mean()
    assert float(found) == pytest.approx(float(expected.detach()), abs=0.01)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_that_relaxes_nothing_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature must be positive and finite"):
        Categorical(MLP(8, 16), latent_dim=3, temperature=temperature)


def test_a_choice_needs_two_classes():
    with pytest.raises(ValueError, match="2 classes at least, but latent_dim is 1"):
        Categorical(MLP(8, 16), latent_dim=1)


def test_the_categorical_resumes_exactly(tmp_path):
    """With and without validation its gradients are the same bits."""

    def build(seed=0):
        pyro.set_rng_seed(seed)
        prior = dist.OneHotCategorical(logits=torch.zeros(4), validate_args=False)
        model, guide = VAE(MLP(4, 8), 4, prior=prior), Categorical(MLP(8, 16), 4)
        return SVI(model, guide, partial(torch.optim.Adam, lr=1e-2), BetaELBO())

    x = (torch.rand(48, 8, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    run = partial(fit, data=x, batch_size=16, progress=False)
    whole = build()
    run(whole, epochs=4)
    run(build(), epochs=2, checkpoint=tmp_path)
    resumed = build(seed=1)
    run(resumed, epochs=4, checkpoint=tmp_path, resume=True)
    for name, parameter in whole.parameters.items():
        assert torch.equal(parameter, resumed.parameters[name]), name


def test_a_prior_that_refuses_relaxed_draws_is_named_before_the_first_step():
    """Evaluation draws exactly, and would not show it."""
    prior = dist.OneHotCategorical(logits=torch.zeros(4), validate_args=True)
    model, guide = VAE(MLP(4, 8), 4, prior=prior), Categorical(MLP(8, 16), 4)
    with pytest.raises(PairError, match="'z': in training .* make it with validate_args=False"):
        check_pair(model, guide, torch.zeros(5, 8))
