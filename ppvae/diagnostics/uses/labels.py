"""What a code says of labels it never saw: by neighbors, by linear cuts, by few labels or none."""

from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from ppvae.protocols import seeded

__all__ = ["knn_accuracy", "semi_supervised_accuracy", "shattering_dimensionality"]


def knn_accuracy(
    pool: Tensor,
    pool_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    counts: Sequence[int] = (200, 1000, 5000),
    *,
    neighbors: int = 5,
    draws: int = 5,
    seed: int = 0,
) -> dict[int, float]:
    """Return how often the nearest neighbors know the label, by the number of labels at hand.

    Published numbers are of MNIST's test part: the first 5,000 images are the pool, the last 5,000
    are scored, by 5 neighbors. The larger sets of a draw hold the smaller ones.

    Args:
        pool: Features of the data that labels are drawn from, (P, F).
        pool_labels: (P,) integers.
        test: Features of the data that are scored, (T, F).
        test_labels: (T,) integers.
        counts: How many labels N, each between `neighbors` and P.
        neighbors: How many vote.
        draws: How many sets of N the accuracy is the mean of.
        seed: Of the draws.

    Returns:
        The proportion of right votes by N.

    Raises:
        ValueError: If features and labels do not fit, or a count is not between `neighbors` and P.

    References:
        Vafaii, Galor, Yates (2024), Poisson Variational Autoencoder, arXiv:2405.14473, table 3.

    Example:
        >>> x, y = torch.arange(20.0)[:, None], torch.arange(20) // 10
        >>> knn_accuracy(x, y, x + 0.1, y, counts=[20], neighbors=1)
        {20: 1.0}
    """
    from sklearn.neighbors import KNeighborsClassifier

    _require(pool, pool_labels, "pool")
    _require(test, test_labels, "test")
    if bad := [n for n in counts if not neighbors <= n <= len(pool)]:
        raise ValueError(
            f"counts must lie between the {neighbors} neighbors and the {len(pool)} data of the "
            f"pool, but {bad[0]} does not"
        )
    x, y, x_test, y_test = (
        t.detach().cpu().numpy() for t in (pool, pool_labels, test, test_labels)
    )
    right = dict.fromkeys(counts, 0.0)
    for draw in range(draws):
        order = torch.randperm(len(x), generator=seeded(seed, draw)).numpy()
        for n in counts:
            chosen = order[:n]
            known = KNeighborsClassifier(neighbors).fit(x[chosen], y[chosen])
            right[n] += float(known.score(x_test, y_test)) / draws
    return right


def shattering_dimensionality(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor
) -> float:
    """Return how well linear cuts part the classes into two halves, whichever halves.

        mean over the C choose C/2 even splits of C classes of a logistic regression's accuracy

    252 splits of ten digits; a half and its complement are one regression, so that 126 are
    fitted. Features are scaled by the train data's mean and standard deviation before, since the
    regression is regularized (scikit-learn's default, C = 1).

    Args:
        train: Features to fit to, (N, F).
        train_labels: (N,) integers, of an even number of classes.
        test: Features that are scored, (T, F).
        test_labels: (T,) integers, of the same classes.

    Returns:
        Between 1/2, for features that say nothing of balanced classes, and 1.

    Raises:
        ValueError: If features and labels do not fit, or the number of classes is odd.

    References:
        Bernardi et al. (2020), The Geometry of Abstraction in the Hippocampus and Prefrontal
        Cortex, Cell 183.

    Example:
        >>> corners = torch.eye(4).repeat(5, 1)  # every half of them is cut off by a plane
        >>> labels = torch.arange(4).repeat(5)
        >>> shattering_dimensionality(corners, labels, corners, labels)
        1.0
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    _require(train, train_labels, "train")
    _require(test, test_labels, "test")
    classes = train_labels.unique().tolist()
    if len(classes) % 2:
        raise ValueError(
            f"{len(classes)} classes have no even splits: give the labels of an even number"
        )
    scaler = StandardScaler().fit(train.detach().cpu().numpy())
    x, x_test = (scaler.transform(t.detach().cpu().numpy()) for t in (train, test))
    scores = []
    for others in combinations(classes[1:], len(classes) // 2 - 1):  # the first one's half
        half = torch.tensor([classes[0], *others])
        y, y_test = (
            torch.isin(t.cpu(), half).numpy().astype(int) for t in (train_labels, test_labels)
        )
        scores.append(LogisticRegression(max_iter=1000).fit(x, y).score(x_test, y_test))
    return sum(scores) / len(scores)


def semi_supervised_accuracy(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    counts: Sequence[int] = (0, 100, 1000, 10_000),
    *,
    classifier: Callable[[], object] | None = None,
    draws: int = 1,
    seed: int = 0,
) -> dict[int, float]:
    """Return how often a classifier that saw few labels, or none, is right.

    With labels, a support vector machine on those, as in the paper. Without, a Gaussian mixture of
    as many components as classes, full covariances, on the first four principal components of the
    train features, its components named as suits the test labels best: in two classes no less than
    half is right whatever the features.

    Args:
        train: Features, such as posterior means of 200 draws, (N, F).
        train_labels: (N,) integers.
        test: Features that are scored, (T, F).
        test_labels: (T,) integers, of the same classes.
        counts: How many labels, each between 0 and N.
        classifier: Makes the classifier of scikit-learn's kind; `sklearn.svm.SVC` by default. The
            authors' code has `sklearn.linear_model.LogisticRegression`.
        draws: How many sets of labels the accuracy is the mean of; the larger hold the smaller.
        seed: Of the draws, and of the mixture.

    Returns:
        The proportion of right answers by the number of labels.

    Raises:
        ValueError: If features and labels do not fit, a count is out of range, or the labels of a
            draw are all the same.

    References:
        Pang et al. (2021), Generative Text Modeling through Short Run Inference, arXiv:2106.02513.
        Fu et al. (2019), Cyclical Annealing Schedule, arXiv:1903.10145.

    Example:
        >>> y = torch.arange(40) % 2
        >>> x = 5.0 * y[:, None] + torch.randn(40, 3)
        >>> semi_supervised_accuracy(x, y, x + 0.1, y, counts=[0, 20])
        {0: 1.0, 20: 1.0}
    """
    from sklearn.svm import SVC

    _require(train, train_labels, "train")
    _require(test, test_labels, "test")
    if bad := [n for n in counts if not 0 <= n <= len(train)]:
        raise ValueError(f"counts must lie between 0 and the {len(train)} train data: {bad[0]}")
    x, y, x_test, y_test = (
        t.detach().cpu().numpy() for t in (train, train_labels, test, test_labels)
    )
    right = dict.fromkeys(counts, 0.0)
    for n in counts:
        if n == 0:
            right[n] = _unsupervised(x, x_test, y_test, seed)
    for draw in range(draws):
        order = torch.randperm(len(x), generator=seeded(seed, draw)).numpy()
        for n in filter(None, counts):
            chosen = order[:n]
            if len(set(y[chosen].tolist())) < 2:
                raise ValueError(f"{n} labels drawn are all the same: ask for more")
            known = (classifier or SVC)().fit(x[chosen], y[chosen])
            right[n] += float(known.score(x_test, y_test)) / draws
    return right


def _unsupervised(x: np.ndarray, x_test: np.ndarray, labels: np.ndarray, seed: int) -> float:
    """Return how often a mixture's components, named by the best assignment, are the classes."""
    from scipy.optimize import linear_sum_assignment
    from sklearn.decomposition import PCA
    from sklearn.metrics.cluster import contingency_matrix
    from sklearn.mixture import GaussianMixture

    pca = PCA(min(4, x.shape[1])).fit(x)
    classes = len(set(labels.tolist()))
    mixture = GaussianMixture(classes, random_state=seed).fit(pca.transform(x))
    table = contingency_matrix(labels, mixture.predict(pca.transform(x_test)))
    rows, columns = linear_sum_assignment(-table)
    return float(table[rows, columns].sum() / table.sum())


def _require(features: Tensor, labels: Tensor, name: str) -> None:
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ValueError(
            f"{name} features must be (N, F) and their labels (N,), but are "
            f"{tuple(features.shape)} and {tuple(labels.shape)}: flatten features, and give one "
            "label for each"
        )
    if not bool(features.isfinite().all()):
        raise ValueError(f"{name} features hold NaN or infinity: remove those data")
