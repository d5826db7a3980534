"""A network that is written for (N, ...), under particles."""

from torch import Tensor, nn

__all__ = ["Folded"]


class Folded(nn.Module):
    """Lets a network that knows one leading axis take several, (K, N, ...) as (K N, ...).

    For decoders with `nn.Flatten`, `nn.Unflatten`, `nn.BatchNorm1d`, convolutions or
    `softmax(dim=1)`, which fail under particles, or do something else there in silence.

    Args:
        network: Maps (N, *event) to (N, ...), row by row.
        event_dim: How many axes an event has at its input.

    Raises:
        ValueError: If `event_dim` is negative.

    Example:
        >>> import torch
        >>> decoder = Folded(nn.Sequential(nn.Flatten(), nn.Linear(3, 8)))
        >>> decoder(torch.ones(4, 5, 3)).shape, decoder(torch.ones(5, 3)).shape
        (torch.Size([4, 5, 8]), torch.Size([5, 8]))
    """

    def __init__(self, network: nn.Module, event_dim: int = 1) -> None:
        super().__init__()
        if event_dim < 0:
            raise ValueError(f"event_dim must not be negative, but is {event_dim}")
        self.network, self.event_dim = network, event_dim

    def forward(self, x: Tensor) -> Tensor:
        """Return the network's outputs, (*lead, ...)."""
        lead = x.shape[: x.ndim - self.event_dim]
        out = self.network(x.reshape(-1, *x.shape[len(lead) :]))
        return out.reshape(*lead, *out.shape[1:])
