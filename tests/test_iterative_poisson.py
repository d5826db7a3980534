"""Inference by the model's own dynamics: by hand, at its fixed point, in its KL and weights."""

import math
from functools import partial

import pyro
import pytest
import torch
from pyro import poutine
from scipy.optimize import brentq
from torch import nn

from ppvae import SVI, check_pair, fit, log_weights
from ppvae.diagnostics import evidence
from ppvae.guides import IterativePoisson
from ppvae.models import VAE, PoissonVAE
from ppvae.networks import MLP
from ppvae.objectives import BetaELBO


def scalar():
    """K = M = 1, Phi = 1, r = 1."""
    model = PoissonVAE(nn.Linear(1, 1, bias=False), 1, log_rate=(0.0, 0.0))
    nn.init.ones_(model.decoder.weight)
    return model


def several(seed=0):
    """Three latents, four data dimensions."""
    torch.manual_seed(seed)
    return PoissonVAE(nn.Linear(3, 4, bias=False), 3, log_rate=(-1.0, 0.5))


def rates(guide, x):
    """The rates of the last counts."""
    return poutine.trace(guide).get_trace(x).nodes["z"]["fn"].base_dist.rate.detach()


def test_the_steps_are_the_papers():
    """u + Phi'(x - Phi z), z ~ Poisson(exp u), on the same random numbers."""
    model, x = several(), torch.randn(5, 4)
    guide = IterativePoisson(model, steps=3).eval()
    torch.manual_seed(1)
    found = rates(guide, x)
    torch.manual_seed(1)
    phi, gain = model.decoder.weight.detach(), torch.zeros(5, 3)
    for _ in range(3):
        z = torch.poisson(model.rate(gain).detach())
        gain = gain + (x - z @ phi.mT) @ phi
    torch.testing.assert_close(found, model.rate(gain).detach())


def test_the_fixed_point_balances_reconstruction_and_prior():
    """2 (x - lam) = ln lam at Phi = r = 1, x = 2: the mean of slow dynamics with a leak."""
    guide = IterativePoisson(scalar(), steps=1500, step_size=0.01, leak=0.01).eval()
    torch.manual_seed(0)
    found = rates(guide, torch.full((2000, 1), 2.0)).log()
    exact = math.log(brentq(lambda lam: 2 * (2 - lam) - math.log(lam), 0.1, 3))
    assert float(found.mean()) == pytest.approx(exact, abs=0.02)
    assert float(found.std()) < 0.15


def test_the_kl_is_right():
    """r f(lam / r), not the lam f(lam / r) of published code."""
    model, x = several(), torch.randn(5, 4)
    guide, loss = IterativePoisson(model, steps=4).eval(), BetaELBO()
    torch.manual_seed(1)
    loss.loss(model, guide, x)
    torch.manual_seed(1)
    lam, r = rates(guide, x), model.log_rate.detach().exp()
    ratio = lam / r
    kl = r * (1 - ratio + ratio * ratio.log())
    assert float(loss.record["kl"]) == pytest.approx(float(kl.sum(-1).mean()), rel=1e-5)
    wrong = (kl * ratio).sum(-1).mean()
    assert abs(float(wrong - kl.sum(-1).mean())) > 0.1


def test_weights_average_to_the_evidence():
    """Whatever counts were drawn on the way: ln p(x) = -1.625478 (the sheet's check 9)."""
    guide = IterativePoisson(scalar(), steps=3, step_size=0.1)
    torch.manual_seed(0)
    log_w = log_weights(scalar(), guide, torch.tensor([[2.0]]), 200_000)
    found = evidence(log_w)
    assert float(found.log_evidence) == pytest.approx(-1.625478, abs=0.02)


def test_more_steps_infer_better():
    """The reconstruction at the mean falls on the way."""
    model, x = several(), 2 * torch.rand(200, 4)
    losses = []
    for steps in (1, 4, 32):
        guide = IterativePoisson(model, steps=steps, step_size=0.05).eval()
        torch.manual_seed(0)
        error = (x - model.decoder(rates(guide, x))).detach()
        losses.append(float(error.square().sum(-1).mean()))
    assert losses[0] > losses[1] > losses[2]


def test_training_goes_through_the_steps():
    """The decoder's gradient differs from what the last draw alone gives, and the loss falls."""
    pyro.set_rng_seed(0)
    phi = torch.randn(6, 12)
    x = torch.poisson(torch.full((300, 6), 0.3)) @ phi
    model = PoissonVAE(nn.Linear(8, 12, bias=False), 8, log_rate=(-2.0, -1.0))
    guide = IterativePoisson(model, steps=6, step_size=0.1, temperature=0.3)
    check_pair(model, guide, x)
    svi = SVI(model, guide, partial(torch.optim.Adam, lr=1e-2), BetaELBO())
    history = fit(svi, x, epochs=30, progress=False)
    assert history["loss"][-1] < history["loss"][0] - 2
    assert dict(guide.named_parameters()) == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"step_size": 0.0}, "step_size must be positive"),
        ({"leak": 1.5}, "leak must lie between 0 and 1"),
        ({"temperature": 0.0}, "temperature must be positive"),
    ],
)
def test_bad_input_is_refused_in_words(options, message):
    with pytest.raises(ValueError, match=message):
        IterativePoisson(scalar(), **options)


def test_a_model_without_rates_is_refused():
    with pytest.raises(TypeError, match="no Poisson prior"):
        IterativePoisson(VAE(MLP(2, 8), latent_dim=2))
