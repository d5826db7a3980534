"""How well what is hidden is filled in from what is seen."""

from torch import Tensor

from ppvae.diagnostics.uses.coherence import ROWS
from ppvae.protocols import Batch, Guide, Model, batch_size, hide, leaves, rows_of, seen
from ppvae.weights import evaluating

__all__ = ["imputation_error"]


def imputation_error(
    model: Model, guide: Guide, batch: Batch, keep: Tensor, *, draws: int = 10
) -> dict[str, float]:
    """Return the mean squared error of what is hidden, as the mean of draws given the rest.

        x^_m = 1/K sum_k E[x_m|z_k],  z_k ~ q(z|x_keep)
        error_m = mean of (x_m - x^_m)^2 over hidden rows and elements

    Draws add 1/K of the posterior's own variance to the error. Random numbers are drawn from
    torch's global generators.

    Args:
        model: With a method `decode`, as in `coherence`.
        guide: With a method `joint`, as in `coherence`.
        batch: x, (N, ...) by name, with the truth of what is to be hidden.
        keep: What stays, (N, M) or (M,) booleans, as in `protocols.hide`; something in each row.
        draws: The number K of draws per datum.

    Returns:
        The errors by modality, in units of it squared; of those that were hidden somewhere.

    Raises:
        ValueError: If nothing is hidden whose truth is known, a row keeps nothing, or as in
            `hide`.

    Example:
        >>> from ppvae.guides import ModalLatents as Guide
        >>> from ppvae.models import ModalLatents
        >>> from ppvae.networks import MLP
        >>> guide = Guide({"a": MLP(3, 8), "b": MLP(4, 8)}, latent_dim=2)
        >>> model = ModalLatents({"a": MLP(2, 3), "b": MLP(2, 4)}, latent_dim=2, guide=guide)
        >>> batch = {"a": torch.rand(9, 3), "b": torch.rand(9, 4)}
        >>> list(imputation_error(model, guide, batch, torch.tensor([True, False])))
        ['b']
    """
    if draws < 1:
        raise ValueError(f"draws must be at least 1, but is {draws}")
    named, size = leaves(batch), batch_size(batch)
    visible = hide(batch, keep)
    truth, left = seen(batch), seen(visible)
    if not bool(left.any(1).all()):
        raise ValueError(
            f"{int((~left.any(1)).sum())} of {size} rows keep no modality to impute from: keep one"
        )
    hidden = truth & ~left  # (N, M)
    if not bool(hidden.any()):
        raise ValueError("nothing is hidden whose truth is known: let keep be False somewhere")
    sums = dict.fromkeys(named, 0.0)
    for start in range(0, size, ROWS):
        with evaluating(model, guide):
            z = guide.joint(rows_of(visible, start, ROWS)).sample((draws,))  # (K, n, D)
            means = {name: p_x.mean.mean(0) for name, p_x in model.decode(z).items()}
        for m, (name, x) in enumerate(rows_of(named, start, ROWS).items()):
            rows = hidden[start : start + ROWS, m]
            sums[name] += float((means[name] - x)[rows].double().square().sum())
    counts = {n: int(hidden[:, m].sum()) * x[0].numel() for m, (n, x) in enumerate(named.items())}
    return {name: sums[name] / count for name, count in counts.items() if count}
