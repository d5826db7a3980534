"""Several modalities a datum: any mapping of tensors, checked, and with rows that are missing."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ppvae.pairing import check_modalities
from ppvae.protocols import batch_size, hide, leaves, seeded, seen

__all__ = ["as_modalities", "missing_at_random"]


def as_modalities(
    data: Mapping[str, Tensor],
    *,
    classes: Mapping[str, int] | None = None,
    allow_empty: bool = False,
) -> dict[str, Tensor]:
    """Return data as multimodal models take them, checked: floats by name, NaN in missing rows.

    Integers have no NaN, and so could never be missing: labels of known classes become one-hot
    rows, in which a negative label, as -1, is one that is missing. Other integers are refused.

    Args:
        data: (N, ...) each, by the names of the modalities.
        classes: How many there are, by the names of those that hold labels, (N,) integers.
        allow_empty: Whether a row may have no modality at all.

    Raises:
        TypeError: If the data are no mapping of tensors, or integers that no `classes` speak of.
        PairError: If a row is missing in part only, or has nothing seen.
        ValueError: If modalities differ in N, or labels are not integers below their number of
            classes, nor one-hot rows of as many.

    Example:
        >>> x = torch.tensor([[1.0, 2.0], [torch.nan, torch.nan]])
        >>> as_modalities({"x": x, "label": torch.tensor([2, 0])}, classes={"label": 3})["label"]
        tensor([[0., 0., 1.],
                [1., 0., 0.]])
    """
    if not isinstance(data, Mapping):
        raise TypeError(
            f"modalities come in a mapping from names to tensors, not in a {type(data).__name__}: "
            'write {"image": images, "sound": sounds}'
        )
    batch_size(leaves(data))
    classes = dict(classes or {})
    if unknown := sorted(classes.keys() - data.keys()):
        raise ValueError(
            f"classes speaks of {unknown}, but the modalities are {sorted(data)}: use their names"
        )
    floats = {name: _as_floats(name, leaf, classes.get(name)) for name, leaf in data.items()}
    some = seen(floats).any(1) if allow_empty else slice(None)
    check_modalities({name: leaf[some] for name, leaf in floats.items()})
    return floats


def missing_at_random(data: Mapping[str, Tensor], share: float, *, seed: int = 0) -> dict:
    """Return data with a share of their modalities hidden, at least one kept in every row.

    Each is hidden with the same probability, whatever it holds, and independently of the others;
    of a row that would lose all, one of those it had is kept, each as likely. So a little less
    than `share` is missing: share^M of the rows keep one. What is missing already stays so.

    Args:
        data: As `as_modalities` returns them.
        share: The probability with which a modality is hidden, below 1.
        seed: Of what is hidden.

    Raises:
        ValueError: If `share` is not in [0, 1), or a modality holds integers.

    Example:
        >>> from ppvae.protocols import seen
        >>> x = missing_at_random({"a": torch.ones(1000, 2), "b": torch.ones(1000, 3)}, 0.5)
        >>> seen(x).any(1).all(), seen(x).float().mean()  # 1/2 + 1/4 / 2
        (tensor(True), tensor(0.6270))
    """
    if not 0 <= share < 1:
        raise ValueError(f"share must be at least 0 and below 1, but is {share}")
    obs = seen(data).cpu()
    draws = torch.rand(obs.shape, generator=seeded(seed, 0)).masked_fill(~obs, -1.0)
    keep = (draws >= share) | (draws == draws.amax(1, keepdim=True))  # the last one to go
    device = next(iter(data.values())).device
    return dict(hide(data, (keep & obs).to(device)))


def _as_floats(name: str, leaf: Tensor, classes: int | None) -> Tensor:
    if leaf.is_floating_point():
        if classes is not None and leaf.shape[1:] != (classes,):
            raise ValueError(
                f"the labels {name!r} are {leaf.dtype} of shape {tuple(leaf.shape)}, where (N,) "
                f"integers or one-hot rows (N, {classes}) are due: convert them with .long()"
            )
        return leaf
    if classes is None:
        raise TypeError(
            f"the modality {name!r} holds {leaf.dtype}, of which no value says that it is "
            f"missing: convert numbers with .float(), or labels with classes={{{name!r}: ...}}"
        )
    if leaf.ndim != 1 or int(leaf.max()) >= classes:
        raise ValueError(
            f"the labels {name!r} must be (N,) integers below {classes}, but have shape "
            f"{tuple(leaf.shape)} and values up to {int(leaf.max())}"
        )
    hot = one_hot(leaf.long().clamp(min=0), classes).float()
    return torch.where((leaf >= 0)[:, None], hot, torch.nan)
