"""No network at all."""

from torch import Tensor, nn

from ppvae.networks.mlp import flatten_event

__all__ = ["Flat"]


class Flat(nn.Module):
    """The data themselves, flattened: an encoder that leaves all to the guide's head.

        h = x

    A guide on it has a linear encoder, as sparse coding's models have. Guides take features
    through `activation`, which is none here.

    Args:
        features: The number of elements of one datum.

    Raises:
        ValueError: On input that does not end in `features` elements.

    Example:
        >>> Flat(784)(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 784])
    """

    activation = nn.Identity

    def __init__(self, features: int) -> None:
        super().__init__()
        self.in_features = self.out_features = features

    def forward(self, x: Tensor) -> Tensor:
        """Map `(..., features)`, or events of as many elements, to `(..., features)`."""
        return flatten_event(x, self.in_features)
