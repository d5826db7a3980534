"""Which of the seen modalities an objective looks at: laws of subsets."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = [
    "Subsets",
    "bernoulli_subsets",
    "mvae_subsets",
    "nonempty_subsets",
    "uniform_size_subsets",
]

Subsets = Callable[[Tensor], Tensor]  # seen (N, M) -> S (N, M), or (L, N, M) for L of them


def bernoulli_subsets(seen: Tensor) -> Tensor:
    """Return S, `(N, M)`: each seen modality with probability 1/2, so that all subsets are equal.

    Example:
        >>> bernoulli_subsets(torch.ones(2, 3) > 0)
        tensor([[ True, False,  True],
                [ True,  True, False]])
    """
    return seen & (_uniform(seen) < 0.5)


def uniform_size_subsets(seen: Tensor) -> Tensor:
    """Return S, `(N, M)`, whose size is uniform: P(|S| = k) = 1 / (M + 1) for M seen ones.

    One number u ~ U(0, 1) is drawn per datum, and each modality kept with probability u.

    Example:
        >>> uniform_size_subsets(torch.ones(4, 2) > 0).shape
        torch.Size([4, 2])
    """
    return seen & (_uniform(seen) < _uniform(seen[:, :1]))


def nonempty_subsets(seen: Tensor) -> Tensor:
    """Return S, `(N, M)`: each subset of the seen modalities but the empty one equally often.

    With products of experts and the bound "mixture" that is the MoPoE-VAE as its authors train
    it: the mean of the components' ELBOs, looser than the ELBO of their mixture.

    References:
        Sutter, Daunhawer, Vogt (2021), Generalized Multimodal ELBO, arXiv:2105.02470.

    Example:
        >>> nonempty_subsets(torch.ones(50, 2) > 0).any(1).all()
        tensor(True)
    """
    count = seen.sum(-1, keepdim=True)  # (N, 1)
    code = 1 + (_uniform(seen[:, :1]).double() * (2.0**count - 1)).floor().long()
    rank = seen.cumsum(-1) - 1  # of each modality among the seen ones
    return seen & (code >> rank.clamp(min=0)).remainder(2).bool()


def mvae_subsets(random: int = 1) -> Subsets:
    """Return a law of 1 + M + `random` subsets: all that is seen, each alone, and random ones.

    Raises:
        ValueError: If `random` is negative.

    References:
        Wu, Goodman (2018), arXiv:1802.05335, equation 5.

    Example:
        >>> mvae_subsets(random=2)(torch.ones(4, 3) > 0).shape
        torch.Size([6, 4, 3])
    """
    if random < 0:
        raise ValueError(f"random must not be negative, but is {random}")

    def subsets(seen: Tensor) -> Tensor:
        count = seen.shape[1]
        single = torch.eye(count, dtype=torch.bool, device=seen.device).unsqueeze(1)  # (M, 1, M)
        drawn = [bernoulli_subsets(seen) for _ in range(random)]
        return torch.cat([torch.stack([seen, *drawn]), seen & single])

    return subsets


def _uniform(like: Tensor) -> Tensor:
    return torch.rand(like.shape, device=like.device)
