"""How images look, and how two sets of them overlap in features."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from ppvae.diagnostics.samples.features import features_of, image_shape

LAPLACE = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601: red, green, blue
SLACK = 1e-7  # of the largest radius: a rounded ball must not lose the neighbor that defines it

__all__ = ["density_coverage", "precision_recall", "sharpness"]


def sharpness(images: Tensor, *, image: Sequence[int] | None = None) -> float:
    """Return the mean variance of the Laplace filter's response, a measure of sharp edges.

        mean_n Var_ij[(L * gray_n)_ij],  L = [[0, 1, 0], [1, -4, 1], [0, 1, 0]]

    Responses are taken where the filter lies inside of the image. 0 for constant images, and
    20 s^2 for white noise of variance s^2: noise is sharp as well, so compare with the data's.
    Not the mean size of an image's gradient.

    Args:
        images: In [0, 1]: (N, C, H, W), C = 1 or 3, or flat.
        image: The shape (C, H, W) of one; read off the images, or a square, by default.

    Raises:
        ValueError: If the images have no shape, or neither 1 nor 3 channels, or sides below 3.

    References:
        Tolstikhin et al. (2018), Wasserstein Auto-Encoders, arXiv:1711.01558, section 5.
        Qin, Huang (2024), Epanechnikov VAE, arXiv:2405.12783.

    Example:
        >>> sharpness(torch.full((2, 1, 8, 8), 0.5)), sharpness(torch.eye(8)[None, None])
        (0.0, 3.765...)
    """
    shape = image_shape(images, image)
    if shape[0] not in (1, 3) or min(shape[1:]) < 3:
        raise ValueError(
            f"sharpness is of gray or RGB images of 3 x 3 pixels at least, but these are {shape}: "
            "pass image=(C, H, W)"
        )
    pixels = images.detach().reshape(-1, *shape)
    weights = pixels.new_tensor(LUMA if shape[0] == 3 else (1.0,))
    gray = torch.einsum("nchw,c->nhw", pixels, weights).unsqueeze(1)
    response = conv2d(gray, gray.new_tensor(LAPLACE)[None, None])  # (N, 1, H - 2, W - 2)
    return float(response.flatten(1).var(1, correction=0).mean())


def precision_recall(
    real: Tensor, fake: Tensor, extractor: nn.Module | None = None, *, neighbors: int = 3
) -> tuple[float, float]:
    """Return the share of fakes among the real ones, and the share of real ones among the fakes.

        precision = 1/M sum_j 1[some i: |f_j - r_i| <= radius(r_i)],  recall with roles exchanged

    The radius of a point is the distance to its k-th neighbor within its own set. Compare at equal
    N and M only; a single outlier has a large ball, which `density_coverage` mends.

    Args:
        real: Features (N, F), or images if there is an extractor.
        fake: Likewise, (M, F).
        extractor: Maps images to features.
        neighbors: k.

    Raises:
        ValueError: If features are not (N, F), or a set has no more than k of them.

    References:
        Kynkaanniemi et al. (2019), Improved Precision and Recall Metric for Assessing Generative
        Models, arXiv:1904.06991.

    Example:
        >>> real = torch.randn(200, 2)
        >>> precision_recall(real, real / 100)[0]
        1.0
    """
    real, fake = _points(real, fake, extractor, neighbors)
    precision = _balls_around(real, fake, neighbors)[0] > 0
    recall = _balls_around(fake, real, neighbors)[0] > 0
    return float(precision.mean()), float(recall.mean())


def density_coverage(
    real: Tensor, fake: Tensor, extractor: nn.Module | None = None, *, neighbors: int = 5
) -> tuple[float, float]:
    """Return how many real balls a fake lies in, and the share of real balls that hold a fake.

        density  = 1/(k M) sum_j sum_i 1[|f_j - r_i| <= radius(r_i)]
        coverage = 1/N sum_i 1[some j: |f_j - r_i| <= radius(r_i)]

    Of equal laws and N = M, the density is 1 on average and the coverage about 1 - 2^-k. The
    density exceeds 1 where fakes crowd.

    Args:
        real: Features (N, F), or images if there is an extractor.
        fake: Likewise, (M, F).
        extractor: Maps images to features.
        neighbors: k.

    Raises:
        ValueError: If features are not (N, F), or a set has no more than k of them.

    References:
        Naeem et al. (2020), Reliable Fidelity and Diversity Metrics for Generative Models,
        arXiv:2002.09797.

    Example:
        >>> real = torch.randn(200, 2)
        >>> density_coverage(real, real + 100)
        (0.0, 0.0)
    """
    real, fake = _points(real, fake, extractor, neighbors)
    around, holding = _balls_around(real, fake, neighbors)
    return float(around.mean() / neighbors), float((holding > 0).mean())


def _points(
    real: Tensor, fake: Tensor, extractor: nn.Module | None, neighbors: int
) -> list[np.ndarray]:
    points = [features_of(images, extractor).double().cpu().numpy() for images in (real, fake)]
    if min(map(len, points)) <= neighbors:
        raise ValueError(
            f"neighbors={neighbors} needs more points than that in each set, but there are "
            f"{len(points[0])} real and {len(points[1])} fake: give more, or fewer neighbors"
        )
    return points


def _balls_around(
    centers: np.ndarray, points: np.ndarray, neighbors: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return for every point the number of balls it lies in, for every ball that of its points."""
    from sklearn.metrics import pairwise_distances_chunked
    from sklearn.neighbors import NearestNeighbors

    middle = centers.mean(0)  # distances are differences of squares: keep those small
    centers, points = centers - middle, points - middle
    nearest = NearestNeighbors(n_neighbors=neighbors, algorithm="brute").fit(centers)
    radius = nearest.kneighbors()[0][:, -1]  # of the centers themselves: none is its own neighbor
    limit = radius + SLACK * radius.max()
    around, holding = [], np.zeros(len(centers), dtype=int)
    for distances in pairwise_distances_chunked(points, centers):
        inside = distances <= limit
        around.append(inside.sum(1))
        holding += inside.sum(0)
    return np.concatenate(around), holding
