"""Whether a decoder is one matrix: by what its parts are, and by what it does."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ppvae.protocols import seeded

__all__ = ["follows", "linear_layer"]

SHAPES = (nn.Identity, nn.Flatten, nn.Unflatten)  # what may stand beside the matrix
SCALES = (0.1, 1.0, 10.0)  # how far out a function is tried
COUNT = 16  # points at each


def linear_layer(decoder: object) -> nn.Linear | str:
    """Return the one `nn.Linear` among a decoder's parts, or what they are instead, in words.

    What stands in a `forward`, and not in a part, does not show here: see `follows`.

    Example:
        >>> linear_layer(nn.Sequential(nn.Linear(2, 6), nn.Unflatten(-1, (2, 3))))
        Linear(in_features=2, out_features=6, bias=True)
        >>> linear_layer(nn.Sequential(nn.Linear(2, 6), nn.ReLU()))
        'Linear, ReLU'
    """
    inner = decoder.modules() if isinstance(decoder, nn.Module) else ()
    parts = [part for part in inner if not any(part.children())]
    layers = [part for part in parts if not isinstance(part, SHAPES)]
    if [type(layer) for layer in layers] == [nn.Linear]:
        return layers[0]
    return ", ".join(type(layer).__name__ for layer in layers) or "missing"


def follows(function: Callable[[Tensor], Tensor], layer: nn.Linear) -> bool:
    """Return whether a function gives what a layer does, at random points near and far.

    Reads numbers, so that it is for validation. No random stream is touched.

    Args:
        function: From latents `(P, D)` to anything of P rows.
        layer: The layer it should come down to.

    Example:
        >>> layer = nn.Linear(2, 3)
        >>> follows(layer, layer), follows(lambda z: layer(z).relu(), layer)
        (True, False)
    """
    z = torch.randn(len(SCALES), COUNT, layer.in_features, generator=seeded(0, 0), device="cpu")
    z = torch.cat([scale * some for scale, some in zip(SCALES, z, strict=True)]).to(layer.weight)
    with torch.no_grad():
        due, found = nn.functional.linear(z, layer.weight, layer.bias), function(z)
    if found.numel() != due.numel():
        return False
    gap = (found.reshape(due.shape) - due).abs().amax(-1)
    bound = z.abs() @ layer.weight.abs().amax(0)  # what rounding is relative to
    bound = bound + (0.0 if layer.bias is None else layer.bias.abs().amax())
    return bool((gap <= torch.finfo(z.dtype).eps ** 0.5 * bound).all())
