"""One latent for several modalities: MVAE, MMVAE, MoPoE, and the masked bound."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import torch
from pyro.infer import ELBO

from ppvae.aggregation import Aggregation, MoE, MoPoE, PoE, SelfAttention, SumPooling
from ppvae.guides import Multimodal as MultimodalGuide
from ppvae.models import Multimodal
from ppvae.objectives import IWELBO, BetaELBO, MaskedELBO, mvae_subsets, nonempty_subsets
from ppvae.priors import NormalMixture
from ppvae.recipes.views import view_likelihood, view_networks
from ppvae.training import SVI, resolve_device

__all__ = [
    "masked_attention",
    "masked_sum",
    "mmvae",
    "mopoe",
    "multimodal_pair",
    "mvae",
]

Features = Mapping[str, int | tuple[int, ...]]


def multimodal_pair(
    aggregation: Callable[..., Aggregation],
    loss: ELBO,
    features: Features,
    *,
    latent_dim: int = 16,
    private_dim: int = 0,
    components: int = 1,
    hidden: tuple[int, ...] = (128, 128),
    likelihood: Literal["normal", "laplace", "bernoulli"] = "normal",
    scale: float | None = 0.5,
    labels: str | None = None,
    learning_rate: float = 1e-3,
    device: str | torch.device = "auto",
) -> SVI:
    """Return a multimodal model with a guide, ready to train: what the recipes here share.

    Sizes are for the six views of mfeat, in batches of 100 and 60 epochs. Images, whose sizes are
    (C, H, W), have a small convolutional pair: for them take 64 latents and a Laplace likelihood
    of scale 0.1.

    Args:
        aggregation: Makes the guide's from (latent_dim, components=).
        loss: What to train it with.
        features: The sizes of the modalities by name: elements, or (C, H, W) of images.
        latent_dim: The size of the shared latent.
        private_dim: That of each modality's own; none by default.
        components: Of the guide's mixtures, and of a learned prior; one each, and N(0, I), by
            default. Experts say N(0, I) of what nothing is seen of, whatever prior is learned, and
            bounds with empty subsets draw it there; pooling and attention learn what to say.
        hidden: The widths of the hidden layers, from the data to the latent; the last is the
            decoder's, and of the features of images.
        likelihood: Of the modalities given the latent; bernoulli wants binary data.
        scale: Of the likelihood, fixed; None learns one for each modality, from 1.
        labels: The name of the modality that holds one-hot labels, if one does.
        learning_rate: Adam's.
        device: Where to train: "auto" takes CUDA where there is one.

    Raises:
        ValueError: If a size is neither a number nor (C, H, W), there is no hidden layer, or
            `labels` is no modality.

    Example:
        >>> sizes = {"image": (3, 28, 28), "label": 10}
        >>> svi = multimodal_pair(PoE, BetaELBO(), sizes, labels="label", device="cpu")
        >>> svi.model.decode(torch.zeros(5, 16))["image"].event_shape
        torch.Size([3, 28, 28])
    """
    if labels is not None and labels not in features:
        raise ValueError(f"labels is {labels!r}, but the modalities are {list(features)}")
    where = resolve_device(device)
    inputs = latent_dim + private_dim
    pairs = {name: view_networks(size, inputs, hidden) for name, size in features.items()}
    likelihoods = {name: view_likelihood(likelihood, scale) for name in features}
    if labels is not None:
        likelihoods[labels] = "one_hot"
    model = Multimodal(
        {name: decoder for name, (_, decoder) in pairs.items()},
        latent_dim,
        likelihoods,
        NormalMixture(latent_dim, components) if components > 1 else None,
        private_dim=private_dim,
    )
    guide = MultimodalGuide(
        {name: encoder for name, (encoder, _) in pairs.items()},
        aggregation(latent_dim, components=components),
        latent_dim,
        private_dim=private_dim,
    )
    loss = loss.to(where) if isinstance(loss, torch.nn.Module) else loss
    optim = partial(torch.optim.Adam, lr=learning_rate)
    return SVI(model.to(where), guide.to(where), optim, loss)


def mvae(features: Features, *, random_subsets: int = 1, beta: float = 1.0, **kwargs) -> SVI:
    """The MVAE: a product of experts, trained by the sum of the ELBOs of some subsets.

    All that is seen, each modality alone, and `random_subsets` more. The sum bounds no evidence.

    Args:
        features: The sizes of the modalities by name: elements, or (C, H, W) of images.
        random_subsets: How many subsets are drawn anew at each step.
        beta: The weight of the KLs.
        **kwargs: As in `multimodal_pair`.

    References:
        Wu, Goodman (2018), Multimodal Generative Models for Scalable Weakly-Supervised Learning,
        arXiv:1802.05335.

    Example:
        >>> mvae({"a": 8, "b": 3}, device="cpu").guide.aggregation
        PoE()
    """
    loss = MaskedELBO(mvae_subsets(random_subsets), "marginal", beta)
    return multimodal_pair(PoE, loss, features, **kwargs)


def mmvae(features: Features, *, particles: int = 1, beta: float = 1.0, **kwargs) -> SVI:
    """The MMVAE: a mixture of experts, trained by the ELBO, or by DReG with more particles.

    Draws are of the whole mixture, by its pathwise gradient; the authors draw from each expert.

    Args:
        features: The sizes of the modalities by name: elements, or (C, H, W) of images.
        particles: The number of draws per datum; 30 is the paper's.
        beta: The weight of the KL, with one particle.
        **kwargs: As in `multimodal_pair`.

    Raises:
        ValueError: If there is a beta for more than one particle, or as in `multimodal_pair`.

    References:
        Shi et al. (2019), Variational Mixture-of-Experts Autoencoders for Multi-Modal Deep
        Generative Models, arXiv:1911.03393.

    Example:
        >>> mmvae({"a": 8, "b": 3}, particles=4, device="cpu").loss.estimator
        'dreg'
    """
    if particles > 1 and beta != 1:
        raise ValueError(f"beta={beta} is for one particle: the bound of {particles} has no KL")
    loss = BetaELBO(beta) if particles == 1 else IWELBO(particles, estimator="dreg")
    return multimodal_pair(MoE, loss, features, **kwargs)


def mopoe(
    features: Features,
    *,
    bound: Literal["subsets", "mixture"] = "subsets",
    beta: float = 1.0,
    **kwargs,
) -> SVI:
    """The MoPoE-VAE: a mixture of the products of experts of all subsets.

    By "subsets" it is trained as its authors do, by the mean of the ELBOs of the products, of one
    random subset per datum; the guide is the product, and `aggregation.MoPoE` in its place, which
    has no parameters either, the mixture. By "mixture" it is the mixture's own ELBO, a tighter
    bound whose gradient is so noisy that images are not learned in a few epochs.

    Args:
        features: The sizes of the modalities by name: elements, or (C, H, W) of images.
        bound: "subsets" or "mixture".
        beta: The weight of the KL.
        **kwargs: As in `multimodal_pair`.

    Raises:
        ValueError: If `bound` is unknown, or as in `multimodal_pair`.

    References:
        Sutter, Daunhawer, Vogt (2021), Generalized Multimodal ELBO, arXiv:2105.02470.

    Example:
        >>> mopoe({"a": 8, "b": 3}, bound="mixture", device="cpu").guide.aggregation
        MoPoE()
    """
    if bound not in ("subsets", "mixture"):
        raise ValueError(f"bound must be 'subsets' or 'mixture', but is {bound!r}")
    if bound == "mixture":
        return multimodal_pair(MoPoE, BetaELBO(beta), features, **kwargs)
    return multimodal_pair(PoE, MaskedELBO(nonempty_subsets, "mixture", beta), features, **kwargs)


def masked_sum(features: Features, *, width: int = 128, beta: float = 1.0, **kwargs) -> SVI:
    """The masked bound with a learned sum over modalities, sticking the landing.

    Args:
        features: The sizes of the modalities by name: elements, or (C, H, W) of images.
        width: Of the pooling networks; 256 is the paper's.
        beta: The weight of the KLs.
        **kwargs: As in `multimodal_pair`.

    References:
        Hirt et al. (2024), Learning Multi-Modal Generative Models with Permutation-Invariant
        Encoders and Tighter Variational Objectives, arXiv:2309.00380.

    Example:
        >>> masked_sum({"a": 8, "b": 3}, device="cpu").loss.bound
        'masked'
    """
    loss = MaskedELBO(beta=beta, stl=True)
    return multimodal_pair(partial(SumPooling, width=width), loss, features, **kwargs)


def masked_attention(features: Features, *, width: int = 128, beta: float = 1.0, **kwargs) -> SVI:
    """The masked bound with self-attention over modalities, sticking the landing.

    Args:
        features: The sizes of the modalities by name: elements, or (C, H, W) of images.
        width: Of the attention, a multiple of its 4 heads; 256 is the paper's.
        beta: The weight of the KLs.
        **kwargs: As in `multimodal_pair`.

    References:
        Hirt et al. (2024), arXiv:2309.00380.

    Example:
        >>> len(masked_attention({"a": 8, "b": 3}, device="cpu").guide.aggregation.blocks)
        1
    """
    loss = MaskedELBO(beta=beta, stl=True)
    return multimodal_pair(partial(SelfAttention, width=width), loss, features, **kwargs)
