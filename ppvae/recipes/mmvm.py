"""MMVM: a VAE per modality, tied by the mixture of their posteriors."""

from collections.abc import Mapping
from functools import partial
from typing import Literal

import torch

from ppvae.distributions import MoEPrior, VariationalMoEPrior
from ppvae.guides import ModalLatents as ModalGuide
from ppvae.models import ModalLatents
from ppvae.objectives import BetaELBO, cosine
from ppvae.recipes.views import view_likelihood, view_networks
from ppvae.training import SVI, resolve_device
from ppvae.training.callbacks import anneal

__all__ = ["mmvm"]


def mmvm(
    features: Mapping[str, int | tuple[int, ...]],
    *,
    kl: Literal["pairwise", "mc", "variational", "independent"] = "pairwise",
    beta: float = 1.0,
    alpha: float = 0.0,
    anneal_epochs: int = 0,
    latent_dim: int = 16,
    hidden: tuple[int, ...] = (128, 128),
    likelihood: Literal["normal", "laplace", "bernoulli"] = "normal",
    scale: float | None = 0.5,
    learning_rate: float = 1e-3,
    device: str | torch.device = "auto",
) -> SVI:
    """MMVM: a VAE for each modality, drawn together by the mixture of the posteriors of all.

    The sizes are for the six views of mfeat, in batches of 100 and 60 epochs. Images, whose sizes
    are (C, H, W), have the small convolutional pair of the authors' code: for them take 64 latents
    and a Laplace likelihood of scale 0.1. The loss bounds no evidence, except that of independent
    VAEs: judge by `diagnostics.coherence` and by reconstructions, of which the forms that share
    nothing have the better ones.

    Args:
        features: The sizes of the modalities by name, as `Split.features` has them: elements, or
            (C, H, W) of images.
        kl: To the mixture: "pairwise", the mean of the KLs to all posteriors, which published code
            minimizes; "mc", the KL itself, by draws, and "variational", a bound on it, which are
            at most log M and share next to nothing; "independent", to N(0, I), which is M VAEs.
        beta: The weight of the KLs.
        alpha: The share of N(0, I) in the prior at the end, for data of which much is missing.
        anneal_epochs: Over how many epochs it falls there from 1, on half a cosine; 0 for from the
            start.
        latent_dim: The size of each latent.
        hidden: The widths of the hidden layers, from the data to the latent; the last is the
            decoder's, and of the features of images.
        likelihood: Of a modality given its latent; bernoulli wants binary data.
        scale: Of the likelihood, fixed; None learns one for each modality, from 1.
        learning_rate: Adam's.
        device: Where to train: "auto" takes CUDA where there is one.

    Raises:
        ValueError: If `kl` is unknown, a size is neither a number nor (C, H, W), there is no
            hidden layer, or alpha is asked of independent VAEs.

    References:
        Sutter et al. (2024), Unity by Diversity: Improved Representation Learning for Multimodal
        VAEs, arXiv:2403.05300.

    Example:
        >>> svi = mmvm({"image": (3, 28, 28), "sound": 12}, latent_dim=4, device="cpu")
        >>> svi.model.decode(torch.zeros(5, 4))["image"].event_shape
        torch.Size([3, 28, 28])
    """
    if kl not in ("pairwise", "mc", "variational", "independent"):
        raise ValueError(
            f"kl must be 'pairwise', 'mc', 'variational' or 'independent', but is {kl!r}"
        )
    if kl == "independent" and (alpha or anneal_epochs):
        raise ValueError(
            "independent VAEs have N(0, I) for a prior throughout: leave alpha and anneal_epochs "
            "out, or take another kl"
        )
    where = resolve_device(device)
    pairs = {name: view_networks(size, latent_dim, hidden) for name, size in features.items()}
    guide = ModalGuide({name: encoder for name, (encoder, _) in pairs.items()}, latent_dim)
    model = ModalLatents(
        {name: decoder for name, (_, decoder) in pairs.items()},
        latent_dim,
        view_likelihood(likelihood, scale),
        guide=None if kl == "independent" else guide,
        alpha=alpha,
        prior=VariationalMoEPrior if kl == "variational" else MoEPrior,
    )
    schedules = []
    if anneal_epochs:
        model.alpha.fill_(1.0)
        schedules.append(anneal("model.alpha", cosine(anneal_epochs, 1.0, alpha)))
    return SVI(
        model.to(where),
        guide.to(where),
        partial(torch.optim.Adam, lr=learning_rate),
        BetaELBO(beta, analytic=kl != "mc").to(where),
        callbacks=schedules,
    )
