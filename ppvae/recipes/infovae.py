"""The VAEs whose aggregate posterior is held to the prior: InfoVAE, MMD-VAE, adversarial."""

from functools import partial

from ppvae.divergences import Critic, mmd, mmd_gaussian
from ppvae.guides import Normal
from ppvae.networks import MLP
from ppvae.objectives import InfoELBO
from ppvae.recipes.pairs import pair
from ppvae.training import SVI

__all__ = ["aae", "infovae", "mmdvae"]


def infovae(
    features: int,
    *,
    alpha: float = 0.0,
    lam: float = 1000.0,
    sampled: bool = False,
    latent_dim: int = 5,
    learning_rate: float = 1e-4,
    **kwargs,
) -> SVI:
    """InfoVAE: the ELBO, with the maximum mean discrepancy of all codes from the prior weighted.

    alpha = 0 and lam = 1000 are the paper's on MNIST, 5 latents its figure 2's, 1e-4 its code's
    learning rate, with batches of 200; its networks are convolutional, these are not, and its
    discrepancy is sampled: mostly noise at lam = 1000, in batches of 100. No batch may be of one.

    Args:
        features: The number of elements of one datum, which the data hold flat.
        alpha: The weight of the information, at most 1.
        lam: The weight of the discrepancy, in nats; alpha + lam is at least 1.
        sampled: Whether to estimate the discrepancy from draws, and not in closed form.
        latent_dim: The size of the latent.
        learning_rate: Adam's.
        **kwargs: As in `pair`.

    References:
        Zhao, Song, Ermon (2019), InfoVAE, arXiv:1706.02262, section 5 and figure 2.

    Example:
        >>> infovae(64, hidden=(16,), device="cpu").loss.penalty_names
        ('aggregate',)
    """
    kwargs |= {"latent_dim": latent_dim, "learning_rate": learning_rate}
    loss = InfoELBO(alpha, lam, mmd if sampled else partial(mmd_gaussian, estimator="u"))
    return pair(Normal, loss, features, **kwargs)


def mmdvae(
    features: int,
    *,
    lam: float = 1000.0,
    sampled: bool = False,
    latent_dim: int = 5,
    learning_rate: float = 1e-4,
    **kwargs,
) -> SVI:
    """MMD-VAE: InfoVAE without a KL per datum, alpha = 1, so that codes keep what they can of x.

    Also the Wasserstein autoencoder with MMD, but for its random codes. The authors' figure 2 has
    50 MMD beside a reconstruction per pixel, 39,200 MMD in our nats, of a wider kernel.

    Args:
        features: The number of elements of one datum, which the data hold flat.
        lam: The weight of the discrepancy, in nats, not negative.
        sampled: As in `infovae`.
        latent_dim: The size of the latent.
        learning_rate: Adam's.
        **kwargs: As in `pair`.

    References:
        Zhao, Song, Ermon (2019), arXiv:1706.02262. Tolstikhin et al. (2018), arXiv:1711.01558.

    Example:
        >>> mmdvae(64, hidden=(16,), device="cpu").loss.beta
        tensor(0.)
    """
    kwargs |= {"sampled": sampled, "latent_dim": latent_dim, "learning_rate": learning_rate}
    return infovae(features, alpha=1.0, lam=lam, **kwargs)


def aae(
    features: int,
    *,
    lam: float = 1.0,
    critic_hidden: tuple[int, ...] = (1000, 1000),
    latent_dim: int = 8,
    **kwargs,
) -> SVI:
    """The adversarial autoencoder: a critic of codes in the place of the KL, alpha = 1.

    The sizes are ours, after the paper's large critics; its steps alternate between the sides,
    where one backward pass moves both here.

    Args:
        features: The number of elements of one datum, which the data hold flat.
        lam: The weight of the divergence, in nats, not negative.
        critic_hidden: The widths of the critic's hidden layers.
        latent_dim: The size of the latent.
        **kwargs: As in `pair`.

    References:
        Makhzani et al. (2015), Adversarial Autoencoders, arXiv:1511.05644.

    Example:
        >>> aae(64, hidden=(16,), critic_hidden=(16,), device="cpu").loss.penalty_names
        ('aggregate',)
    """
    critic = Critic(MLP(latent_dim, *critic_hidden, 1), event_dim=1)
    return pair(Normal, InfoELBO(1.0, lam, critic), features, latent_dim=latent_dim, **kwargs)
