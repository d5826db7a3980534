"""Fully connected networks, and what all networks do with the axes of a batch."""

from collections.abc import Callable
from itertools import pairwise
from math import prod

from torch import Tensor, nn

__all__ = ["MLP", "flatten_event"]


class MLP(nn.Sequential):
    """A fully connected network, activations between its layers and none after the last.

        h = W_L a(... a(W_1 x + v_1) ...) + v_L

    Args:
        *sizes: The layers' widths, in_features first, out_features last. As an encoder
            `MLP(784, 256)` is one hidden layer, since the guide adds activation and head.
        activation: Makes the activation a.

    Raises:
        ValueError: If fewer than two sizes are given, or the input does not end in `in_features`.

    Example:
        >>> MLP(784, 256)(torch.zeros(5, 1, 28, 28)).shape  # trailing axes are flattened
        torch.Size([5, 256])
    """

    def __init__(self, *sizes: int, activation: Callable[[], nn.Module] = nn.ReLU) -> None:
        if len(sizes) < 2:
            raise ValueError(f"MLP needs in_features and out_features, but got sizes {sizes}")
        layers = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), activation())]
        super().__init__(*layers[:-1])
        self.in_features, self.out_features = sizes[0], sizes[-1]
        self.activation = activation  # a guide applies it to the features

    def forward(self, x: Tensor) -> Tensor:
        """Map `(..., in_features)`, or events of as many elements, to `(..., out_features)`."""
        return super().forward(flatten_event(x, self.in_features))


def flatten_event(x: Tensor, features: int) -> Tensor:
    """Flatten the trailing axes of x whose sizes multiply to `features`, leaving the others.

    An axis of size one before an image's sides is its channel, unless it is the first axis of x.

    Raises:
        ValueError: If no trailing axes do.

    Example:
        >>> flatten_event(torch.zeros(3, 5, 28, 28), 784).shape
        torch.Size([3, 5, 784])
        >>> flatten_event(torch.zeros(5, 1, 28, 28), 784).shape
        torch.Size([5, 784])
    """
    if x.shape[-1:] == (features,):
        return x
    for count in (3, 2, *range(4, x.ndim)):  # images with channels before those without
        if count < x.ndim and prod(x.shape[-count:]) == features:
            return x.flatten(-count)
    raise ValueError(
        f"a network with in_features={features} got an input of shape {tuple(x.shape)}, whose "
        f"last axes do not hold {features} elements: change the network's first size or the data"
    )
