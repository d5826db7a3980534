"""Model, guide and objective put together: what to train, with the numbers that it is known by."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal, NamedTuple

import pyro
import torch
from pyro.infer import ELBO, Trace_ELBO
from torch import nn

from ppvae.batches import resolve_device
from ppvae.data import Split
from ppvae.guides import Flow, FullRank, GaussianMixture, Normal
from ppvae.models import VAE
from ppvae.networks import MLP
from ppvae.objectives import IWELBO, BetaELBO, warmup
from ppvae.svi import SVI
from ppvae.training import fit

__all__ = [
    "FIVE_GUIDES",
    "RECIPES",
    "Entry",
    "beta_vae",
    "five_guides",
    "flow_vae",
    "iwae",
    "mixture_vae",
    "pair",
    "vae",
]


def pair(
    guide: Callable[..., nn.Module],
    loss: ELBO,
    features: int,
    *,
    latent_dim: int = 50,
    hidden: tuple[int, ...] = (200, 200),
    likelihood: Literal["bernoulli", "normal", "laplace", "poisson"] = "bernoulli",
    learning_rate: float = 1e-3,
    device: str | torch.device = "auto",
) -> SVI:
    """Return a VAE of tanh layers with a guide, ready to train: what all recipes here share.

    Sizes and optimizer are those of Burda et al., appendix: two hidden layers of 200 tanh units,
    50 latents, Adam with epsilon 1e-4; the learning rate is the first of their schedule.

    Args:
        guide: Makes the guide from (encoder, latent_dim, activation).
        loss: What to train it with.
        features: The number of elements of one datum, which the data hold flat.
        latent_dim: The size of the latent.
        hidden: The widths of the hidden layers, from the data to the latent.
        likelihood: Of the data given the latent; bernoulli wants binary data.
        learning_rate: Adam's.
        device: Where to train: "auto" takes CUDA where there is one.

    References:
        Burda, Grosse, Salakhutdinov (2016), Importance Weighted Autoencoders, arXiv:1509.00519.

    Example:
        >>> pair(Normal, Trace_ELBO(), 64, hidden=(16,), latent_dim=2, device="cpu").device
        device(type='cpu')
    """
    where = resolve_device(device)
    decoder = MLP(latent_dim, *reversed(hidden), features, activation=nn.Tanh)
    model = VAE(decoder, latent_dim, likelihood).to(where)
    encoder = MLP(features, *hidden, activation=nn.Tanh)
    made = guide(encoder, latent_dim=latent_dim, activation=nn.Tanh()).to(where)
    optim = partial(torch.optim.Adam, lr=learning_rate, eps=1e-4)
    return SVI(model, made, optim, loss.to(where) if isinstance(loss, nn.Module) else loss)


def vae(features: int, **kwargs) -> SVI:
    """The plain VAE: a factorized Normal guide, trained by the ELBO.

    Args:
        features: The number of elements of one datum, which the data hold flat.
        **kwargs: As in `pair`.

    References:
        Kingma, Welling (2014), Auto-Encoding Variational Bayes, arXiv:1312.6114.

    Example:
        >>> vae(64, hidden=(16,), latent_dim=2, device="cpu").guide.head.out_features
        4
    """
    return pair(Normal, Trace_ELBO(), features, **kwargs)


def iwae(
    features: int,
    *,
    particles: int = 50,
    estimator: Literal["iwae", "dreg", "stl"] = "iwae",
    **kwargs,
) -> SVI:
    """The importance-weighted autoencoder: the pair of the VAE, trained by a tighter bound.

    Args:
        features: The number of elements of one datum, which the data hold flat.
        particles: The number of draws per datum in the bound; 50 is the paper's largest.
        estimator: Of the guide's gradient, as in `IWELBO`.
        **kwargs: As in `pair`.

    References:
        Burda, Grosse, Salakhutdinov (2016), arXiv:1509.00519, table 1.

    Example:
        >>> iwae(64, hidden=(16,), latent_dim=2, device="cpu").loss.num_particles
        50
    """
    return pair(Normal, IWELBO(particles, estimator=estimator), features, **kwargs)


def beta_vae(
    features: int,
    *,
    beta: float = 4.0,
    warmup_steps: int = 0,
    latent_dim: int = 10,
    learning_rate: float = 1e-4,
    **kwargs,
) -> SVI:
    """The beta-VAE: the KL weighted by beta, for fewer and more independent coordinates.

    beta = 4, 10 latents and a learning rate of 1e-4 are the paper's; its networks are
    convolutional, these are not.

    Args:
        features: The number of elements of one datum, which the data hold flat.
        beta: The weight of the KL.
        warmup_steps: Over how many steps the weight rises from 0; none by default.
        latent_dim: The size of the latent.
        learning_rate: Adam's.
        **kwargs: As in `pair`.

    References:
        Higgins et al. (2017), beta-VAE, ICLR.

    Example:
        >>> beta_vae(64, hidden=(16,), device="cpu").loss.beta
        tensor(4.)
    """
    loss = BetaELBO(warmup(warmup_steps, end=beta) if warmup_steps else beta)
    kwargs |= {"latent_dim": latent_dim, "learning_rate": learning_rate}
    return pair(Normal, loss, features, **kwargs)


def flow_vae(features: int, *, transforms: int = 4, **kwargs) -> SVI:
    """The VAE with a normalizing flow for its guide, trained by the ELBO.

    Args:
        features: The number of elements of one datum, which the data hold flat.
        transforms: The number of coupling layers.
        **kwargs: As in `pair`.

    References:
        Rezende, Mohamed (2015), arXiv:1505.05770; its flows are planar, these are couplings.

    Example:
        >>> type(flow_vae(64, hidden=(16,), latent_dim=2, device="cpu").guide).__name__
        'Flow'
    """
    return pair(partial(Flow, transforms=transforms), Trace_ELBO(), features, **kwargs)


def mixture_vae(features: int, *, components: int = 4, **kwargs) -> SVI:
    """The VAE with a mixture of Normals per datum for its guide, trained by the ELBO.

    Args:
        features: The number of elements of one datum, which the data hold flat.
        components: The number of components.
        **kwargs: As in `pair`.

    References:
        Jankowiak, Karaletsos (2019), arXiv:1806.01856.

    Example:
        >>> type(mixture_vae(64, hidden=(16,), latent_dim=2, device="cpu").guide).__name__
        'GaussianMixture'
    """
    return pair(partial(GaussianMixture, components=components), Trace_ELBO(), features, **kwargs)


RECIPES = {recipe.__name__: recipe for recipe in (vae, iwae, beta_vae, flow_vae, mixture_vae)}


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
