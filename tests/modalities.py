"""Linear-Gaussian modalities: a model, data with missing rows, and expectations in closed form."""

import math
from itertools import product

import pyro
import torch
from pyro.distributions import MultivariateNormal
from torch import nn
from torch.distributions import kl_divergence

from ppvae import guides
from ppvae.aggregation import PoE
from ppvae.likelihoods import Normal
from ppvae.models import Multimodal
from ppvae.protocols import hide, leaves, seen

SIZES = {"a": 3, "b": 2, "c": 4}
SUBSETS = [torch.tensor(bits) for bits in product([False, True], repeat=3)]


def linear_model(sizes=SIZES, latent_dim=2, scales=(0.7, 1.2, 0.9), seed=0):
    """Return a model with random weights, one noise each, in float64 and without gradients."""
    random = torch.Generator().manual_seed(seed)
    decoders, heads = {}, {}
    for (name, size), scale in zip(sizes.items(), scales, strict=True):
        decoders[name], heads[name] = nn.Linear(latent_dim, size), Normal(scale)
        decoders[name].weight.data = torch.randn(size, latent_dim, generator=random)
        decoders[name].bias.data = torch.randn(size, generator=random)
    return Multimodal(decoders, latent_dim, heads).double().requires_grad_(False)


def orthonormal_model(scales=(0.7, 1.2, 0.9), latent_dim=2):
    """Return a model whose weights have orthonormal columns, so that products are exact."""
    model = linear_model({"a": 3, "b": 2, "c": 4}, latent_dim, scales)
    for decoder in model.decoders.values():
        decoder.weight.data = torch.linalg.qr(decoder.weight.data).Q
    return model


def data(count=6, sizes=SIZES):
    """Return rows of which some lack modalities; row 0 has none at all."""
    random = torch.Generator().manual_seed(1)
    batch = {
        n: torch.randn(count, k, generator=random, dtype=torch.float64) for n, k in sizes.items()
    }
    for name, missing in {"a": [0, 1], "b": [0, 2], "c": [0, 1]}.items():
        batch[name][missing] = torch.nan
    return batch


class Features(nn.Identity):
    """An encoder that says what it sees."""

    def __init__(self, size):
        super().__init__()
        self.out_features = size


def exact_poe(model, **kwargs):
    """Return the PoE guide whose experts are the likelihoods of an orthonormal model."""
    aggregation = PoE(model.latent_dim, min_variance=0.0)
    encoders = {name: Features(d.out_features) for name, d in model.decoders.items()}
    guide = guides.Multimodal(
        encoders, aggregation, model.latent_dim, activation=nn.Identity(), **kwargs
    ).double()
    for name, head in guide.heads.items():  # N(W' (x - b), s^2)
        weight, bias = model.decoders[name].weight.detach(), model.decoders[name].bias.detach()
        size = model.latent_dim
        head.weight.data.zero_()[:size] = weight.mT
        head.bias.data[:size] = -weight.mT @ bias
        head.bias.data[size:] = model.likelihoods[name].log_scale.detach()
    return guide


class Bent(nn.Module):
    """The exact posterior of any subset, its means shifted and its covariance scaled."""

    def __init__(self, model, shift=0.3, widen=1.0):
        super().__init__()
        self._model, self.shift, self.widen = (model,), shift, widen

    def posterior(self, batch):
        p = self._model[0].posterior(batch)
        return MultivariateNormal(p.mean + self.shift, self.widen * p.covariance_matrix)

    def forward(self, batch):
        q = self.posterior(batch)
        with pyro.plate("data", len(q.mean), dim=-1):
            pyro.sample("z", q)


def expected_log_likelihood(model, batch, of, q):
    """Return E_q ln p(x_of|z), (N,), for a Gaussian q and booleans (N, M)."""
    total = 0.0
    there = (seen(batch) & of).unbind(1)
    for (name, x), obs in zip(leaves(batch).items(), there, strict=True):
        layer, scale = model.decoders[name], model.likelihoods[name].scale
        rest = torch.where(obs[:, None], x, 0.0) - layer.bias - q.mean @ layer.weight.mT
        spread = (layer.weight @ q.covariance_matrix @ layer.weight.mT).diagonal(0, -2, -1).sum(-1)
        value = -x.shape[1] * (scale.log() + math.log(2 * math.pi) / 2)
        value = value - (rest.square().sum(-1) + spread) / (2 * scale**2)
        total = total + torch.where(obs, value, 0.0)
    return total


def prior_like(q):
    """Return N(0, I), as a MultivariateNormal."""
    return MultivariateNormal(torch.zeros_like(q.mean), torch.eye(q.mean.shape[-1]).to(q.mean))


def bounds(model, guide, batch, subset):
    """Return the expectations of the bounds of `MaskedELBO`, (N,) each, and their parts."""
    there = seen(batch)
    subset = there & subset
    rest = there & ~subset
    q_s, q_m = guide.posterior(hide(batch, subset)), guide.posterior(batch)
    p = prior_like(q_s)
    marginal = expected_log_likelihood(model, batch, subset, q_s) - kl_divergence(q_s, p)
    tie = kl_divergence(q_m, q_s)
    conditional = expected_log_likelihood(model, batch, rest, q_m) - tie
    return {
        "marginal": marginal,
        "masked": marginal + conditional,
        "mixture": expected_log_likelihood(model, batch, there, q_s) - kl_divergence(q_s, p),
        "tc": expected_log_likelihood(model, batch, there, q_m) - tie,
    }
