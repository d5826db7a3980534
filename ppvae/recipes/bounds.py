"""The plain VAE, and other guides and bounds on the same networks."""

from functools import partial
from typing import Literal

from pyro.infer import Trace_ELBO

from ppvae.guides import Flow, GaussianMixture, Normal
from ppvae.objectives import IWELBO, BetaELBO, warmup
from ppvae.recipes.pairs import pair
from ppvae.training import SVI

__all__ = ["betavae", "flow_vae", "iwae", "mixture_vae", "vae"]


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


def betavae(
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
        >>> betavae(64, hidden=(16,), device="cpu").loss.beta
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
