"""A sentence, word by word, as a distribution."""

from typing import Protocol

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

__all__ = ["END", "PADDING", "TokenDecoder", "TokenSequence"]

PADDING, END = 0, 1  # token ids after a sentence and at its end, as networks write them


class TokenDecoder(Protocol):
    """What scores and writes tokens given a latent, such as `networks.RecurrentDecoder`."""

    out_features: int

    def log_prob(self, z: Tensor, tokens: Tensor, /) -> Tensor:
        """Return ln p(x_t | x_<t, z), (..., T), 0 at padding."""

    def generate(self, z: Tensor, max_length: int, /) -> Tensor:
        """Draw tokens, (..., max_length), padding after the end."""


class _Sentences(constraints.Constraint):
    """Token ids with nothing but padding after <eos> or padding, and a token at the start."""

    is_discrete, event_dim = True, 1

    def __init__(self, size: int) -> None:
        self.ids = constraints.integer_interval(0, size)

    def check(self, value: Tensor) -> Tensor:
        over = (value[..., :-1] == PADDING) | (value[..., :-1] == END)
        ended = (~over | (value[..., 1:] == PADDING)).all(-1)
        return self.ids.check(value).all(-1) & ended & (value[..., 0] != PADDING)


class TokenSequence(dist.TorchDistribution):
    """Tokens drawn one after the other: the likelihood of a sentence of at most T tokens.

        p(x|z) = prod_t p(x_t | x_<t, z),  over the t before the padding

    A draw reads what it has written. That is not what a `Categorical` over teacher-forced logits
    does, which would draw each word as if those of the datum stood before it. Sentences that end
    within T tokens, and beginnings of T tokens, have probabilities that sum to one.

    Args:
        decoder: Scores and writes tokens.
        z: Latents, `(..., D)`, of which p(x|z) is differentiable.
        length: T, the number of tokens, padding included.

    Raises:
        ValueError: Under validation, from `log_prob`, of tokens that no draw can be: of unknown
            ids, with a token after <eos> or padding, or empty.

    References:
        Bowman et al. (2016), Generating Sentences from a Continuous Space, arXiv:1511.06349.

    Example:
        >>> from ppvae.networks import RecurrentDecoder
        >>> decoder = RecurrentDecoder(10, latent_dim=2, embedding_dim=4, hidden=8)
        >>> p = TokenSequence(decoder, torch.zeros(5, 2), length=7)
        >>> p.sample().shape, p.log_prob(p.sample()).shape
        (torch.Size([5, 7]), torch.Size([5]))
    """

    arg_constraints = {"z": constraints.real_vector}  # noqa: RUF012
    has_rsample = False

    def __init__(
        self,
        decoder: TokenDecoder,
        z: Tensor,
        length: int,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.decoder, self.z = decoder, z
        super().__init__(z.shape[:-1], torch.Size((length,)), validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "TokenSequence":
        """Return the distribution with its batch shape expanded."""
        z = self.z.expand(*batch_shape, self.z.shape[-1])
        return TokenSequence(self.decoder, z, *self.event_shape, validate_args=self._validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:
        """Sentences: token ids, of padding after their end."""
        return _Sentences(self.decoder.out_features)

    @property
    def mean(self) -> Tensor:
        """None: words cannot be averaged."""
        raise NotImplementedError("tokens are names, not numbers, so that they have no mean")

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw sentences, `(*sample_shape, ..., T)`."""
        z = self.z.expand(*sample_shape, *self.z.shape)
        return self.decoder.generate(z, *self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return ln p(x|z)."""
        if self._validate_args:
            self._validate_sample(value)
        return self.decoder.log_prob(self.z, value).sum(-1)
