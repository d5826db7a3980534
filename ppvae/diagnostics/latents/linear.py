"""What a linear classifier reads off a code, or off the data themselves."""

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from ppvae.diagnostics.uses.coherence import ROWS, given_only
from ppvae.protocols import Batch, Guide, batch_size, leaves, map_batch, rows_of, seen

__all__ = ["latent_classification", "linear_classifier"]

ITERATIONS = 10_000


def linear_classifier(x: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a logistic regression, a function from (N, ...) to labels (N,).

    scikit-learn's, regularized by C = 1: as a classifier of views for `coherence`, or of codes.

    Args:
        x: (N, ...), flattened.
        labels: (N,) integers.

    Raises:
        ValueError: If data and labels differ in number.

    Example:
        >>> x = torch.tensor([[-1.0], [-2.0], [1.0], [2.0]])
        >>> linear_classifier(x, torch.tensor([0, 0, 7, 7]))(torch.tensor([[-3.0], [3.0]]))
        tensor([0, 7])
    """
    from sklearn.linear_model import LogisticRegression

    if labels.shape != (len(x),):
        raise ValueError(
            f"there must be one label for each of {len(x)} data, but labels have shape "
            f"{tuple(labels.shape)}"
        )
    flat = x.detach().flatten(1).double().cpu().numpy()
    fitted = LogisticRegression(max_iter=ITERATIONS).fit(flat, labels.cpu().numpy())

    def classify(x: Tensor) -> Tensor:
        return torch.from_numpy(fitted.predict(x.detach().flatten(1).double().cpu().numpy()))

    return classify


def latent_classification(
    guide: Guide,
    train: Batch,
    train_labels: Tensor,
    test: Batch,
    test_labels: Tensor,
    subsets: Sequence[Collection[str]] | None = None,
    *,
    most_data: int = 10_000,
) -> dict[str, float]:
    """Return how well a logistic regression reads labels off the means of q(z|x_S), by subset S.

    Fitted on the first data of the train part that have any of S, scored on those of the test part
    that have. The codes are not scaled before, as in published numbers.

    Args:
        guide: With a method `joint`, as in `coherence`.
        train: Data to fit to, (N, ...) by name.
        train_labels: (N,) integers.
        test: Data that are scored, (T, ...) by name.
        test_labels: (T,) integers.
        subsets: The names in each S; every modality alone, and all of them, by default.
        most_data: How many data to fit to at most.

    Returns:
        Accuracies, by the names in S joined by "+".

    Raises:
        ValueError: If a subset is not of the batch's modalities, or no datum has one of it.

    References:
        Sutter et al. (2024), Unity by Diversity, arXiv:2403.05300: max_iter 10,000, and as many
        train data at most.

    Example:
        >>> from ppvae.guides import ModalLatents
        >>> from ppvae.networks import MLP
        >>> guide = ModalLatents({"a": MLP(1, 8), "b": MLP(1, 8)}, latent_dim=2)
        >>> x, y = torch.linspace(-1, 1, 50)[:, None], torch.arange(50) // 25
        >>> sorted(latent_classification(guide, {"a": x, "b": -x}, y, {"a": x, "b": x}, y))
        ['a', 'a+b', 'b']
    """
    names = list(leaves(train))
    chosen = subsets if subsets is not None else [*([name] for name in names), names]
    scores = {}
    for subset in chosen:
        (x, y), (x_test, y_test) = (
            _codes(guide, part, labels, subset, most)
            for part, labels, most in (
                (train, train_labels, most_data),
                (test, test_labels, batch_size(test)),
            )
        )
        right = linear_classifier(x, y)(x_test) == y_test.cpu()
        scores["+".join(subset)] = float(right.double().mean())
    return scores


def _codes(
    guide: Guide, batch: Batch, labels: Tensor, subset: Collection[str], most: int
) -> tuple[Tensor, Tensor]:
    """Return means of q(z|x_S) and labels, of data that have any of S."""
    columns = [m for m, name in enumerate(leaves(batch)) if name in subset]
    rows = seen(batch)[:, columns].any(1).nonzero()[:most, 0]
    if len(rows) == 0:
        raise ValueError(f"no datum has any of {list(subset)}, of {list(leaves(batch))}")
    some = map_batch(lambda leaf: leaf[rows], batch)
    means = [
        given_only(guide, rows_of(some, start, ROWS), subset).mean
        for start in range(0, len(rows), ROWS)
    ]
    return torch.cat(means), labels[rows.to(labels.device)]
