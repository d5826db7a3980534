"""Likelihoods with all their constants, and priors that move, against scipy."""

import math
import re

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from pyro import poutine
from torch import nn
from zoo import GUIDES, LearnedPrior, binary, counts, real, student, train, vae

from ppvae.likelihoods import (
    Laplace,
    Normal,
    bernoulli,
    likelihood_head,
    neutral,
    one_hot,
    poisson,
)
from ppvae.models import VAE
from ppvae.networks import MLP
from ppvae.objectives import BetaELBO
from ppvae.priors import FixedPrior, StandardNormal, prior_head

H = real(5, 8).double()


def positive(h):
    """Return softplus(h) + 1e-6 by numpy."""
    return np.log1p(np.exp(h)) + 1e-6


CONSTANTS = {
    "bernoulli": (bernoulli, binary(5, 8), lambda h: scipy.stats.bernoulli(1 / (1 + np.exp(-h)))),
    "poisson": (poisson, counts(5, 8), lambda h: scipy.stats.poisson(positive(h))),
    "normal": (Normal(0.3), real(5, 8), lambda h: scipy.stats.norm(h, 0.3)),
    "laplace": (Laplace(0.3), real(5, 8), lambda h: scipy.stats.laplace(h, 0.3)),
}


@pytest.mark.parametrize(("head", "x", "reference"), CONSTANTS.values(), ids=CONSTANTS)
def test_every_constant_is_included(head, x, reference):
    """ln p(x|h) is scipy's, with its log 2 pi and log x!."""
    frozen = reference(H.numpy())
    density = getattr(frozen, "logpdf", None) or frozen.logpmf
    if isinstance(head, nn.Module):
        head = head.double()
    found = head(H).log_prob(x.double())
    np.testing.assert_allclose(found.detach().numpy(), density(x.numpy()), rtol=1e-6)


@pytest.mark.parametrize("name", ["bernoulli", "normal", "laplace", "poisson"])
def test_the_model_sums_over_the_event(name):
    """One log probability per datum, images too."""
    batch = binary(5, 1, 4, 2)
    model = VAE(nn.Sequential(MLP(2, 8), nn.Unflatten(-1, (1, 4, 2))), 2, likelihood=name)
    trace = poutine.trace(model).get_trace(batch)
    trace.compute_log_prob()
    site = trace.nodes["x"]
    assert site["log_prob"].shape == (5,)
    assert site["fn"].event_shape == (1, 4, 2)
    torch.testing.assert_close(
        site["log_prob"], site["fn"].base_dist.log_prob(batch).flatten(1).sum(1)
    )


def test_a_likelihood_may_declare_events_of_its_own():
    """The model declares the rest: here each row of an image is one categorical."""

    def rows(h):
        return dist.OneHotCategorical(logits=h)  # events are rows already

    model = VAE(nn.Sequential(MLP(2, 12), nn.Unflatten(-1, (3, 4))), 2, likelihood=rows)
    batch = nn.functional.one_hot(torch.arange(15).reshape(5, 3) % 4, 4).float()
    trace = poutine.trace(model).get_trace(batch)
    trace.compute_log_prob()
    assert trace.nodes["x"]["log_prob"].shape == (5,)


@pytest.mark.parametrize("head", [Normal, Laplace])
def test_scales_are_learned_or_fixed(head):
    """A parameter, or a buffer that moves with the model but does not train."""
    learned, fixed = head(0.5, learned=True), head(0.5)
    assert [n for n, _ in learned.named_parameters()] == ["log_scale"]
    assert list(fixed.parameters()) == []
    assert fixed.scale.item() == pytest.approx(0.5)
    assert fixed.double().scale.dtype == torch.float64
    assert "log_scale" in fixed.state_dict()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("normal", lambda x: x.std().item()), ("laplace", lambda x: x.abs().mean().item())],
)
def test_a_learned_scale_finds_the_datas(name, expected):
    """With a decoder that knows nothing: the maximum-likelihood scale."""
    x = 0.3 * real(500, 8)
    x = x - (x.mean() if name == "normal" else x.median())
    model = vae(likelihood=name)
    for parameter in model.decoder.parameters():
        parameter.data.zero_()
        parameter.requires_grad_(False)
    svi = train(model, GUIDES["normal"](MLP(8, 4)), BetaELBO(0.0))
    for _ in range(300):
        svi.step(x)
    assert model.likelihood.scale.item() == pytest.approx(expected(x), rel=0.02)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Normal(0.0), ValueError, "scale must be positive, but is 0.0"),
        (lambda: Laplace(-1.0), ValueError, "scale must be positive, but is -1.0"),
        (
            lambda: likelihood_head("mse"),
            ValueError,
            "unknown likelihood 'mse': choose 'bernoulli'",
        ),
        (
            lambda: likelihood_head(3),
            TypeError,
            "likelihood must be a name or a callable, but is 3",
        ),
        (
            lambda: prior_head(3, 2),
            TypeError,
            "prior must be a distribution or a callable, but is 3",
        ),
        (
            lambda: prior_head(dist.Normal(0.0, 1.0), 2),
            ValueError,
            "batch shape () and event shape (), but latent_dim=2 needs () and (2,): expand it",
        ),
        (
            lambda: vae(prior=dist.Normal(torch.zeros(2), 1.0)),
            ValueError,
            "batch shape (2,) and event shape (), but latent_dim=2 needs",
        ),
        (
            lambda: vae(prior=dist.Normal(torch.zeros(3), 1.0).to_event(1)),
            ValueError,
            "event shape (3,), but latent_dim=2",
        ),
    ],
)
def test_what_is_no_likelihood_or_prior_is_refused(make, error, message):
    """When it is given, not when it fails."""
    with pytest.raises(error, match=re.escape(message)):
        make()


def test_callables_and_names_are_heads():
    """ "normal" and "laplace" learn their scale."""
    assert likelihood_head(student) is student
    assert likelihood_head("poisson") is poisson
    assert list(likelihood_head("normal").parameters()) and list(
        likelihood_head("laplace").parameters()
    )


def test_a_rate_never_underflows():
    """softplus(-200) is 0, whose logarithm would be minus infinity."""
    assert poisson(torch.full((1,), -200.0)).log_prob(torch.ones(1)).isfinite().all()


# Priors

TANGLED = dist.TransformedDistribution(
    dist.Independent(dist.Normal(torch.zeros(2), torch.ones(2)), 1),
    [dist.transforms.AffineTransform(torch.ones(2), 2 * torch.ones(2), event_dim=1)],
)
MIXTURE = dist.MixtureSameFamily(
    dist.Categorical(torch.ones(3)), dist.Normal(torch.zeros(3, 2), 1.0).to_event(1)
)
FIXED = {
    "laplace": dist.Laplace(torch.zeros(2), 1.0).to_event(1),
    "full": dist.MultivariateNormal(torch.ones(2), 2 * torch.eye(2)),
    "transformed": TANGLED,
    "mixture": MIXTURE,
}


@pytest.mark.parametrize("prior", FIXED.values(), ids=FIXED)
def test_a_fixed_prior_moves_with_its_model(prior):
    """And leaves the caller's distribution where it was."""
    z = torch.randn(5, 2)
    before = prior.log_prob(z)
    model = vae(prior=prior).double()
    assert list(model.prior.parameters()) == []
    moved = model.prior().log_prob(z.double())
    assert moved.dtype == torch.float64
    torch.testing.assert_close(moved, before.double(), rtol=1e-5, atol=1e-5)
    assert model.prior().sample().dtype == torch.float64
    assert prior.log_prob(z).dtype == torch.float32 and torch.equal(prior.log_prob(z), before)


@pytest.mark.parametrize("prior", FIXED.values(), ids=FIXED)
def test_a_fixed_prior_moves_as_a_module_of_its_own(prior):
    """To a device as to a type; `meta` stands for one here."""
    module = FixedPrior(prior).to("meta")
    assert module().sample().device.type == "meta"
    assert prior.sample().device.type == "cpu"


def test_the_standard_normal_is_one():
    """With its constants, and out of the state: it is known."""
    prior = StandardNormal(3)
    assert prior().log_prob(torch.zeros(3)).item() == pytest.approx(-1.5 * math.log(2 * math.pi))
    assert prior.state_dict() == {}
    assert prior.double()().sample().dtype == torch.float64


def test_a_learned_prior_learns():
    """It goes where the guide's draws are."""
    model, guide = vae(prior=LearnedPrior()), GUIDES["normal"](MLP(8, 4))
    with torch.no_grad():
        guide.head.bias[:2] = 3.0
        guide.head.weight.zero_()
    guide.requires_grad_(False)
    pyro.set_rng_seed(0)
    svi = train(model, guide, BetaELBO())
    for _ in range(800):
        svi.step(binary(5, 8))
    assert model.prior.loc.tolist() == pytest.approx([3.0, 3.0], abs=0.1)
    scale = nn.functional.softplus(guide.head.bias[2:]) + 1e-4
    torch.testing.assert_close(model.prior.log_scale.exp(), scale, rtol=0.1, atol=0)


@pytest.mark.parametrize(
    ("p", "value"),
    [
        (one_hot(torch.zeros(2, 3)), [1.0, 0.0, 0.0]),
        (one_hot(torch.zeros(2, 1)), [1.0]),
        (bernoulli(torch.zeros(2, 3)).to_event(1), [0.0, 0.0, 0.0]),
        (poisson(torch.zeros(2, 2)).to_event(1), [0.0, 0.0]),
        (dist.Beta(torch.ones(2, 2), 1.0).to_event(1), [0.5, 0.5]),
    ],
    ids=["labels", "one-label", "bits", "counts", "shares"],
)
def test_what_stands_for_missing_data_can_be_scored(p, value):
    """A value of the support, whose log probability is finite."""
    found = neutral(p, torch.empty((), dtype=torch.float64))
    assert found.dtype == torch.float64
    assert found.tolist() == value
    assert p.log_prob(found.float()).isfinite().all()
