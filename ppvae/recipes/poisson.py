"""The Poisson VAE: spike counts as a latent."""

from functools import partial
from typing import Literal

import torch
from torch import nn

from ppvae.guides import Poisson
from ppvae.models import PoissonVAE
from ppvae.networks import MLP, Flat
from ppvae.objectives import BetaELBO, LinearELBO, warmup
from ppvae.protocols import Encoder
from ppvae.training import SVI, resolve_device
from ppvae.training.callbacks import anneal, bound_events

__all__ = ["poisson"]


def poisson(
    features: int,
    *,
    gradient: Literal["relaxed", "straight-through", "score", "exact"] = "relaxed",
    kernel: Literal["cubic", "sigmoid", "linear", "quintic", "cosine"] = "cubic",
    beta: float = 1.0,
    temperature: float = 0.05,
    anneal_epochs: int = 50,
    latent_dim: int = 512,
    hidden: tuple[int, ...] = (),
    likelihood: Literal["bernoulli", "normal", "laplace", "poisson"] | None = None,
    learning_rate: float = 0.002,
    device: str | torch.device = "auto",
) -> SVI:
    """The Poisson VAE: counts as a latent, and a gain on each of their rates as a posterior.

    Without hidden layers encoder and decoder are linear, as in sparse coding. 512 latents, Adamax
    at 0.002 with a decay of 3e-4, gradients of norm 1,000 at most, and what starts where are the
    paper's on MNIST, in batches of 200; its temperature falls from 1 to 0.05 and its beta rises
    from 1e-4 over the first half of 1,200 epochs, and its learning rate on a cosine, which is left
    out here. Pixels as they are want `--binarize none`.

    Args:
        features: The number of elements of one datum, which the data hold flat.
        gradient: As in `guides.Poisson`, or "exact": no draws, for linear decoders.
        kernel: Of the relaxed draws, as in `RelaxedPoisson`.
        beta: The weight of the KL at the end, in nats.
        temperature: Of the relaxed draws at the end; 1 at the start.
        anneal_epochs: Over how many epochs both get there; 0 for from the start.
        latent_dim: The number of latents.
        hidden: The widths of the hidden layers, from the data to the latent.
        likelihood: Of the data given the latent; a Normal of variance 1/2 by default.
        learning_rate: Adamax's.
        device: Where to train: "auto" takes CUDA where there is one.

    Raises:
        ValueError: If `gradient` is "exact" and there are hidden layers, or a likelihood is given.

    References:
        Vafaii, Galor, Yates (2024), Poisson Variational Autoencoder, arXiv:2405.14473.

    Example:
        >>> svi = poisson(64, latent_dim=4, device="cpu")
        >>> sum(p.numel() for p in svi.parameters.values())  # two matrices and the prior's rates
        516
    """
    if gradient == "exact" and (hidden or likelihood is not None):
        raise ValueError(
            "gradient='exact' needs linear networks and the Normal likelihood of variance 1/2: "
            "leave hidden and likelihood out, or take gradient='relaxed'"
        )
    where = resolve_device(device)
    encoder, decoder = _networks(features, latent_dim, hidden)
    log_rate = (-6.0, -2.0) if hidden else (-6.0, -4.0)
    model = PoissonVAE(decoder, latent_dim, likelihood, log_rate=log_rate).to(where)
    relaxed = gradient in ("relaxed", "straight-through")
    guide = Poisson(
        encoder,
        model,
        kernel=kernel,
        temperature=1.0 if anneal_epochs else temperature,
        gradient="relaxed" if gradient == "exact" else gradient,
        bias=bool(hidden),
    ).to(where)
    loss = (LinearELBO if gradient == "exact" else BetaELBO)(1e-4 if anneal_epochs else beta)
    schedules = []
    if anneal_epochs:
        schedules.append(anneal("loss.beta", warmup(anneal_epochs, 1e-4, beta)))
    if anneal_epochs and relaxed:
        schedules.append(anneal("guide.temperature", warmup(anneal_epochs, 1.0, temperature)))
    if relaxed and where.type == "cuda":
        schedules.append(bound_events())
    return SVI(
        model,
        guide,
        partial(torch.optim.Adamax, lr=learning_rate, weight_decay=3e-4),
        loss.to(where),
        clip_norm=1000.0,
        callbacks=schedules,
    )


def _networks(
    features: int, latent_dim: int, hidden: tuple[int, ...]
) -> tuple[Encoder, nn.Module]:
    """Return the encoder and the decoder, started as in the paper."""
    if not hidden:
        decoder = nn.Linear(latent_dim, features, bias=False)
        nn.init.normal_(decoder.weight, std=0.05)
        return Flat(features), decoder
    decoder = MLP(latent_dim, *reversed(hidden), features, activation=nn.SiLU)
    for layer in decoder:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.1)
    return MLP(features, *hidden, activation=nn.SiLU), decoder
