"""One model with five guides: what `ppvae compare` trains."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import pyro
import torch
from pyro.infer import ELBO, Trace_ELBO
from torch import nn

from ppvae.data import Split
from ppvae.guides import Flow, FullRank, GaussianMixture, Normal
from ppvae.models import VAE
from ppvae.networks import MLP
from ppvae.objectives import IWELBO
from ppvae.training import SVI, fit, resolve_device

__all__ = ["FIVE_GUIDES", "Entry", "five_guides"]


class Entry(NamedTuple):
    """A way to make a guide from (encoder, latent_dim), and a loss to train it with."""

    guide: Callable[..., nn.Module]
    loss: Callable[[], ELBO]


FIVE_GUIDES = {
    "normal": Entry(Normal, Trace_ELBO),
    "full rank": Entry(FullRank, Trace_ELBO),
    "mixture": Entry(partial(GaussianMixture, components=4), Trace_ELBO),
    "flow": Entry(Flow, Trace_ELBO),
    "normal, IW-16": Entry(Normal, partial(IWELBO, 16)),
}


def five_guides(
    split: Split,
    *,
    latent_dim: int = 8,
    hidden: int = 256,
    epochs: int = 300,
    learning_rate: float = 1e-3,
    batch_size: int | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    progress: bool = True,
) -> Iterator[tuple[str, SVI]]:
    """Train one VAE with five guides, each from the same decoder, seed and order of the data.

        p(x, z) = N(z; 0, I) Bernoulli(x; sigmoid(decoder(z)))

    Normal, FullRank, GaussianMixture with four components, and Flow by the ELBO; Normal again by
    the importance-weighted bound with 16 particles.

    Args:
        split: Binary data; the test part is scored after every epoch, and trains nothing.
        latent_dim: The size D of the latent.
        hidden: The width of the hidden layer in encoder and decoder.
        epochs: How many times to go through the data.
        learning_rate: Adam's.
        batch_size: The number of data in a batch, as in `Batches`.
        seed: Of weights, draws and order.
        device: Where to train; "auto" takes CUDA where there is one.
        progress: Whether to show a bar, and print a line, per guide.

    Yields:
        Each guide's name and its trained SVI, which holds model, guide and records.

    Raises:
        ValueError: If CUDA is asked for and absent.

    Example:
        >>> from ppvae.data import digits
        >>> [name for name, _ in five_guides(digits(), epochs=1, device="cpu", progress=False)]
        ['normal', 'full rank', 'mixture', 'flow', 'normal, IW-16']
    """
    where = resolve_device(device)
    features = split.train[0].numel()
    for name, entry in FIVE_GUIDES.items():
        pyro.set_rng_seed(seed)
        model = VAE(MLP(latent_dim, hidden, features), latent_dim).to(where)
        guide = entry.guide(MLP(features, hidden), latent_dim=latent_dim).to(where)
        svi = SVI(model, guide, partial(torch.optim.Adam, lr=learning_rate), entry.loss())
        history = fit(
            svi,
            split.batches(batch_size, seed=seed, device=where),
            epochs=epochs,
            validation=split.test,
            progress=progress,
        )
        if progress and history:
            print(
                f"{name}: {epochs} epochs in {sum(history['seconds']):.1f} s, "
                f"ELBO {history['validation_elbo'][-1]:.2f} nats on the test data",
                flush=True,
            )
        yield name, svi
