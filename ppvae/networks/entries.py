"""An encoder of some entries of a mapping."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ppvae.protocols import Batch, Encoder, ModalityError, leaves

__all__ = ["Entries"]


class Entries(nn.Module):
    """Says which entries of a mapping an encoder sees: flat, side by side, in this order.

        h = encoder([x_a, x_b, ...])

    So every guide that takes an encoder takes a mapping, too, as regressions and conditional
    models have it.

    Args:
        encoder: Maps (N, F) to features (N, encoder.out_features).
        *names: Of the entries, of F elements in all.

    Raises:
        ValueError: If there are no names.
        ModalityError: On the first batch, if it lacks one of them.

    Example:
        >>> from ppvae.networks import MLP
        >>> encoder = Entries(MLP(3, 16), "x", "y")
        >>> encoder({"x": torch.ones(5, 2), "y": torch.ones(5)}).shape
        torch.Size([5, 16])
    """

    def __init__(self, encoder: Encoder, *names: str) -> None:
        super().__init__()
        if not names:
            raise ValueError("name at least one entry of the batch for the encoder to see")
        self.encoder, self.names = encoder, names
        self.out_features = encoder.out_features

    @property
    def activation(self) -> Callable[[], nn.Module]:
        """What the encoder has between its layers, for the guide's head."""
        return getattr(self.encoder, "activation", nn.ReLU)  # not every encoder has one

    def forward(self, batch: Batch) -> Tensor:
        """Return the features of the entries, (N, out_features)."""
        known = leaves(batch)
        if absent := [name for name in self.names if name not in known]:
            raise ModalityError(
                f"the encoder sees {list(self.names)}, but the batch has {list(known)}, without "
                f"{absent}: name the entries that are there"
            )
        parts = [known[name] for name in self.names]
        return self.encoder(torch.cat([part.reshape(len(part), -1) for part in parts], dim=1))
