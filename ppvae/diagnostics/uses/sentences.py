"""What a model of sentences writes: samples, and what lies between two sentences."""

from collections.abc import Callable
from typing import Protocol

import pyro.distributions as dist
import torch
from torch import Tensor

from ppvae.diagnostics.latents.latent import map_site
from ppvae.protocols import Guide
from ppvae.weights import evaluating

__all__ = ["interpolation", "sample_sentences"]


class _Words(Protocol):
    """What turns tokens into words, such as `data.Vocabulary`."""

    def decode(self, tokens: Tensor, /) -> list[str]:
        """Return a string for each row."""


class _Writer(Protocol):
    """What writes sentences, such as `models.Sentence`."""

    prior: Callable[[], dist.TorchDistribution]

    def generate(self, z: Tensor, max_length: int, *, temperature: float) -> Tensor:
        """Return tokens, (..., max_length)."""


def sample_sentences(
    model: _Writer,
    vocabulary: _Words,
    count: int = 10,
    *,
    max_length: int = 30,
    temperature: float = 1.0,
) -> list[str]:
    """Return sentences that the model makes up, z ~ p(z), x ~ p(x|z).

    Args:
        model: Such as `models.Sentence`.
        vocabulary: Such as `data.Vocabulary`.
        count: How many.
        max_length: In tokens; longer sentences are broken off.
        temperature: Of the words; 0 takes the likeliest one each time.

    Example:
        >>> from ppvae.data import Vocabulary
        >>> from ppvae.models import Sentence
        >>> from ppvae.networks import RecurrentDecoder
        >>> vocabulary = Vocabulary(["a", "b"])
        >>> model = Sentence(RecurrentDecoder(len(vocabulary), 2, 4, 8), latent_dim=2)
        >>> len(sample_sentences(model, vocabulary, 3))
        3
    """
    with evaluating(model):
        z = model.prior().sample((count,))
        return vocabulary.decode(model.generate(z, max_length, temperature=temperature))


def interpolation(
    model: _Writer,
    guide: Guide,
    batch: Tensor,
    vocabulary: _Words,
    *,
    points: int = 7,
    num_particles: int = 1,
    max_length: int = 30,
) -> list[str]:
    """Return what the model writes on the straight line between the codes of two sentences.

    The codes are draws of the guide, or means of several, which a law of several modes is not at
    home with. Of each point the likeliest next words are taken.

    Args:
        model: Such as `models.Sentence`.
        guide: Samples q(z | x).
        batch: The two sentences' tokens, (2, T).
        vocabulary: Such as `data.Vocabulary`.
        points: How many, both ends counted.
        num_particles: How many draws a code is the mean of.
        max_length: In tokens.

    Raises:
        ValueError: If there are not two sentences, or less than two points.

    References:
        Bowman et al. (2016), Generating Sentences from a Continuous Space, arXiv:1511.06349.

    Example:
        >>> from ppvae.data import Vocabulary
        >>> from ppvae.guides import Normal
        >>> from ppvae.models import Sentence
        >>> from ppvae.networks import RecurrentDecoder, RecurrentEncoder
        >>> vocabulary = Vocabulary(["a", "b"])
        >>> model = Sentence(RecurrentDecoder(len(vocabulary), 2, 4, 8), latent_dim=2)
        >>> guide = Normal(RecurrentEncoder(len(vocabulary), 4, 8), latent_dim=2)
        >>> len(interpolation(model, guide, vocabulary.encode(["a b", "b"]), vocabulary, points=5))
        5
    """
    if len(batch) != 2 or points < 2:
        raise ValueError(
            f"a line needs two sentences and at least 2 points, but there are {len(batch)} and "
            f"{points}"
        )
    codes = map_site(
        lambda found: found["value"].mean(0), guide, batch, num_particles=num_particles
    )
    first, second = torch.cat(codes)
    share = torch.linspace(0, 1, points).to(first).unsqueeze(1)  # (points, 1)
    with evaluating(model):
        z = (1 - share) * first + share * second
        return vocabulary.decode(model.generate(z, max_length, temperature=0.0))
