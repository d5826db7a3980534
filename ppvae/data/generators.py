"""Multimodal data whose latents are known: linear views, and views that mix sources."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu, one_hot

from ppvae.protocols import seeded

__all__ = ["LinearViews", "MixedSources", "linear_views", "mixed_sources"]

SLOPE, SEGMENTS = 0.1, 5  # of the mixing's leaky ReLU; of the nonstationary sources
CANDIDATES = 100  # matrices among which one of the best conditioned quarter is taken


class LinearViews(NamedTuple):
    """What `linear_views` draws, and what it is drawn from.

    Attributes:
        data: x_m by name, (N, size of the view).
        z: The latents, (N, D).
        weights: W_m by name, (size, D).
        biases: b_m by name, (size,).
        scale: s, the standard deviation of the noise.

    Example:
        >>> views = linear_views(3, sizes=(4, 6), latent_dim=2)
        >>> views.weights["x_2"].shape, views.z.shape
        (torch.Size([6, 2]), torch.Size([3, 2]))
    """

    data: dict[str, Tensor]
    z: Tensor
    weights: dict[str, Tensor]
    biases: dict[str, Tensor]
    scale: float


def linear_views(
    count: int = 5000,
    sizes: Sequence[int] | None = None,
    latent_dim: int = 5,
    *,
    sparse: bool = False,
    gain: float = 1.0,
    scale: float = 1.0,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> LinearViews:
    """Draw views that are linear in one Gaussian latent, of orthonormal columns each.

        z ~ N(0, I_D),  x_m = W_m z + b_m + s e,  e ~ N(0, I),  b_m ~ N(0, I)
        W_m = gain Q_m,  Q_m the Q factor of a matrix of entries U(-1, 1)

    Sparse: z is M private blocks and, last, one that is shared, `latent_dim` each, so that D =
    `latent_dim` (1 + M); W_m is zero for the private blocks of other views, and the columns of its
    own two blocks are orthonormal together.

    Args:
        count: The number N of data.
        sizes: Of the views; five between 30 and 59, drawn by the seed, by default.
        latent_dim: D, or the size of a block.
        sparse: Whether views have latents of their own.
        gain: The length of W's columns.
        scale: s, the standard deviation of the noise.
        dtype: Of all that is drawn.
        seed: Of all that is drawn.

    Raises:
        ValueError: If a view is smaller than the number of columns it needs.

    References:
        Hirt et al. (2024), Learning multi-modal generative models with permutation-invariant
        encoders and tighter variational objectives, arXiv:2309.00380, section 5.

    Example:
        >>> views = linear_views(100, sizes=(4, 6), latent_dim=2)
        >>> {name: tuple(x.shape) for name, x in views.data.items()}
        {'x_1': (100, 4), 'x_2': (100, 6)}
    """
    draw = seeded(seed, 0)
    if sizes is None:
        sizes = torch.randint(30, 60, (5,), generator=draw).tolist()
    columns = latent_dim * (2 if sparse else 1)
    if min(sizes) < columns:
        raise ValueError(
            f"views of sizes {tuple(sizes)} hold no {columns} orthonormal columns: make them "
            "larger, or latent_dim smaller"
        )
    total = latent_dim * (len(sizes) + 1) if sparse else latent_dim
    z = torch.randn(count, total, generator=draw, dtype=torch.float64)
    data, weights, biases = {}, {}, {}
    for m, size in enumerate(sizes):
        uniform = 2 * torch.rand(size, columns, generator=draw, dtype=torch.float64) - 1
        q = gain * torch.linalg.qr(uniform).Q
        weight = q
        if sparse:
            weight = q.new_zeros(size, total)
            weight[:, m * latent_dim : (m + 1) * latent_dim] = q[:, :latent_dim]
            weight[:, -latent_dim:] = q[:, latent_dim:]
        bias = torch.randn(size, generator=draw, dtype=torch.float64)
        noise = torch.randn(count, size, generator=draw, dtype=torch.float64)
        name = f"x_{m + 1}"
        data[name] = (z @ weight.mT + bias + scale * noise).to(dtype)
        weights[name], biases[name] = weight.to(dtype), bias.to(dtype)
    return LinearViews(data, z.to(dtype), weights, biases, scale)


class MixedSources(NamedTuple):
    """What `mixed_sources` draws, and what it is drawn from.

    Attributes:
        data: The views by name, (N, size) each; `u`, the segments one-hot, where they are shown.
        sources: s, (N, d): what an identifiable model finds, up to order and scale.
        segments: u, (N,) integers.
        loc: The sources' means by segment, (5, d).
        scale: Their standard deviations, (5, d).
        matrices: Those of each view's mixing, by name, the first first.

    Example:
        >>> mixed = mixed_sources(3)
        >>> list(mixed.data), len(mixed.matrices["x"])
        (['x', 'u'], 2)
    """

    data: dict[str, Tensor]
    sources: Tensor
    segments: Tensor
    loc: Tensor
    scale: Tensor
    matrices: dict[str, tuple[Tensor, ...]]


def mixed_sources(
    count: int = 4000,
    *,
    views: int | None = None,
    sources: int = 2,
    size: int = 2,
    layers: int = 2,
    noise: float = 0.1,
    seed: int = 0,
) -> MixedSources:
    """Draw views that mix sources whose means and variances depend on a segment.

        u ~ U{1..5},  s | u ~ N(m_u, diag L_u^2),  m ~ U(-5, 5),  L ~ U(0.5, 3)
        x = f(s) + noise e,  f = A_L leaky(... leaky(A_1 s)),  e ~ N(0, I)

    Without `views`, one view x beside the segment u, one-hot: the layers share one orthogonal
    matrix. With `views`, as many x_m and no u: the entries of a matrix are uniform, its columns of
    length 1, and its condition number in the best quarter. The official code has 4 views of 25
    from 10 sources through 3 layers with noise 0.5, of which half are missing.

    Args:
        count: The number N of data.
        views: How many; None for the bimodal data.
        sources: d.
        size: Of a view, at least `sources`; the same for the bimodal data.
        layers: The number L of matrices, with a leaky ReLU of slope 0.1 between two.
        noise: Its standard deviation.
        seed: Of all that is drawn.

    Raises:
        ValueError: If a view is smaller than the sources, or not of their size without `views`.

    References:
        Khemakhem et al. (2020), Variational Autoencoders and Nonlinear ICA, arXiv:1907.04809.
        Hirt et al. (2024), arXiv:2309.00380, sections 5.2 and 5.3.

    Example:
        >>> mixed = mixed_sources(100, views=4, sources=10, size=25, layers=3, noise=0.5)
        >>> sorted(mixed.data), mixed.sources.shape
        (['x_1', 'x_2', 'x_3', 'x_4'], torch.Size([100, 10]))
    """
    if size < sources or (views is None and size != sources):
        raise ValueError(
            f"views of size {size} cannot show {sources} sources one to one: make size "
            + ("equal to sources" if views is None else "at least sources")
        )
    draw = seeded(seed, 0)
    loc = 10 * torch.rand(SEGMENTS, sources, generator=draw) - 5
    scale = 0.5 + 2.5 * torch.rand(SEGMENTS, sources, generator=draw)
    u = torch.randint(SEGMENTS, (count,), generator=draw)
    s = loc[u] + scale[u] * torch.randn(count, sources, generator=draw)
    names = ("x",) if views is None else tuple(f"x_{m + 1}" for m in range(views))
    data, matrices = {}, {}
    for name in names:
        if views is None:
            square = 2 * torch.rand(sources, sources, generator=draw) - 1
            chain = (torch.linalg.qr(square).Q,) * layers
        else:
            widths = (sources,) + (size,) * layers
            chain = tuple(_conditioned(widths[i + 1], widths[i], draw) for i in range(layers))
        x = s
        for depth, matrix in enumerate(chain):
            x = (leaky_relu(x, SLOPE) if depth else x) @ matrix.mT
        data[name] = x + noise * torch.randn(count, size, generator=draw)
        matrices[name] = chain
    if views is None:
        data["u"] = one_hot(u, SEGMENTS).float()
    return MixedSources(data, s, u, loc, scale, matrices)


def _conditioned(rows: int, columns: int, draw: torch.Generator) -> Tensor:
    """Return a uniform matrix of columns of length 1, among the best conditioned quarter."""
    matrices = 2 * torch.rand(CANDIDATES, rows, columns, generator=draw) - 1
    matrices = matrices / matrices.norm(dim=1, keepdim=True)
    conditions = torch.linalg.cond(matrices)
    return matrices[int((conditions <= conditions.quantile(0.25)).nonzero()[0])]
