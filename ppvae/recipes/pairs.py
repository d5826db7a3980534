"""A VAE with a guide, ready to train: what the recipes share."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import pyro.distributions as dist
import torch
from pyro.infer import ELBO
from torch import nn
from torch.optim import Optimizer

from ppvae.models import VAE
from ppvae.networks import MLP
from ppvae.protocols import Encoder
from ppvae.training import SVI, resolve_device

__all__ = ["pair"]


def pair(
    guide: Callable[..., nn.Module],
    loss: ELBO,
    features: int,
    *,
    latent_dim: int = 50,
    hidden: tuple[int, ...] = (200, 200),
    likelihood: Literal["bernoulli", "normal", "laplace", "poisson"] = "bernoulli",
    prior: dist.TorchDistribution | None = None,
    encoder: Encoder | None = None,
    decoder: nn.Module | None = None,
    optim: Callable[..., Optimizer] | None = None,
    learning_rate: float = 1e-3,
    device: str | torch.device = "auto",
) -> SVI:
    """Return a VAE with a guide, ready to train: what all recipes here share.

    Sizes and optimizer are those of Burda et al., appendix: two hidden layers of 200 tanh units,
    50 latents, Adam with epsilon 1e-4; the learning rate is the first of their schedule.

    Args:
        guide: Makes the guide from (encoder, latent_dim).
        loss: What to train it with.
        features: The number of elements of one datum, which the data hold flat.
        latent_dim: The size of the latent.
        hidden: The widths of the hidden layers, from the data to the latent.
        likelihood: Of the data given the latent; bernoulli wants binary data.
        prior: Of the latent; N(0, I) by default.
        encoder: From a datum to features; an MLP of tanh layers by default.
        decoder: From the latent to a datum's likelihood; the mirrored MLP by default.
        optim: Makes the optimizer, of the pair and of critics; the Adam above by default.
        learning_rate: Adam's.
        device: Where to train: "auto" takes CUDA where there is one.

    References:
        Burda, Grosse, Salakhutdinov (2016), Importance Weighted Autoencoders, arXiv:1509.00519.

    Example:
        >>> from pyro.infer import Trace_ELBO
        >>> from ppvae.guides import Normal
        >>> pair(Normal, Trace_ELBO(), 64, hidden=(16,), latent_dim=2, device="cpu").device
        device(type='cpu')
    """
    where = resolve_device(device)
    if encoder is None:
        encoder = MLP(features, *hidden, activation=nn.Tanh)
    if decoder is None:
        decoder = MLP(latent_dim, *reversed(hidden), features, activation=nn.Tanh)
    model = VAE(decoder, latent_dim, likelihood, prior).to(where)
    made = guide(encoder, latent_dim=latent_dim).to(where)
    optim = optim or partial(torch.optim.Adam, eps=1e-4)
    loss = loss.to(where) if isinstance(loss, nn.Module) else loss
    return SVI(model, made, partial(optim, lr=learning_rate), loss)
