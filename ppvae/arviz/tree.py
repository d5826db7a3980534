"""What both converters share: which axes a site has, and the tree that names them."""

import sys
from collections.abc import Container, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from ppvae.pairing import is_deterministic, log_prob_of

if TYPE_CHECKING:
    from xarray import DataTree

__all__ = [
    "VARIABLES",
    "Groups",
    "Layout",
    "Layouts",
    "Names",
    "Values",
    "first",
    "join",
    "layouts_of",
    "read",
    "tree_of",
    "unflatten",
]

Names = Mapping[str, Sequence]
Values = Mapping[str, Tensor]
Groups = dict[str, dict[str, Tensor]]

VARIABLES = ("latent", "deterministic")


class Layout(NamedTuple):
    """The axes of a site to the right of its draws."""

    kind: str  # "latent", "deterministic", "observed" or "constant"
    plates: tuple[str | None, ...]  # one per batch axis; None where no plate names it
    shape: tuple[int, ...]  # batch axes, then event axes
    discrete: bool = False


Layouts = dict[str, Layout]


def layouts_of(trace: Trace, conditioned: Container[str] = ()) -> Layouts:
    """Return the layout of each variable of a trace of one draw; `pyro.factor` makes none."""
    return {
        name: _layout(site, site["is_observed"] and name not in conditioned)
        for name, site in prune_subsample_sites(trace).nodes.items()
        if site["type"] == "sample"
        and not (site["is_observed"] and site["infer"].get("is_auxiliary"))
    }


def _layout(site: dict, observed: bool) -> Layout:
    shape, rank = tuple(site["fn"].shape()), len(site["fn"].batch_shape)
    kind = "observed" if observed else "latent"
    frames = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
    if any(frame.size == -1 for frame in frames):  # as many as there are data
        shape = tuple(site["value"].shape)
        rank = len(shape) - site["fn"].event_dim
    if is_deterministic(site):
        kind, shape = "deterministic", tuple(site["value"].shape)
        rank = len(shape) - site["fn"].event_dim or _leading(shape, frames)
    names = {
        frame.dim: frame.name
        for frame in frames
        if -frame.dim <= rank and shape[rank + frame.dim] in _sizes(frame)
    }
    kept = [  # an axis of size 1 right of a plate only pads
        axis
        for axis in range(-rank, 0)
        if axis in names or shape[rank + axis] > 1 or not any(dim < axis for dim in names)
    ]
    sizes = [shape[rank + axis] for axis in kept]
    plates, axes = tuple(names.get(axis) for axis in kept), (*sizes, *shape[rank:])
    return Layout(kind, plates, axes, kind != "deterministic" and _is_discrete(site["fn"]))


def _leading(shape: tuple[int, ...], frames: Sequence) -> int:
    """Return how many axes of a deterministic value are those of plates.

    By default Pyro declares all of them an event. The data come first, as (N, ...), where that
    fits; otherwise plates are to the right, as those of laws are.
    """
    rank = max((-frame.dim for frame in frames), default=0)
    fits = len(shape) > rank and all(shape[rank + f.dim] in _sizes(f) for f in frames)
    return rank if fits else len(shape)


def _sizes(frame: object) -> Container[int]:
    """Return the sizes that an axis of a plate may have: any, where it does not say one."""
    return (frame.size,) if frame.size >= 0 else range(1, sys.maxsize)


def _is_discrete(fn: dist.TorchDistribution) -> bool:
    try:
        return fn.support.is_discrete
    except NotImplementedError:  # a distribution need not say
        return False


def read(
    trace: Trace, layouts: Layouts, kinds: Sequence[str], draws: int, key: str = "value"
) -> dict[str, Tensor]:
    """Return the values, or log probabilities, of the sites of some kinds: `(S, *axes)` each."""
    found = {}
    for name, layout in layouts.items():
        if layout.kind in kinds:
            axes = layout.shape if key == "value" else layout.shape[: len(layout.plates)]
            site = trace.nodes[name]
            value = (log_prob_of(site) if key == "log_prob" else site[key]).detach().cpu()
            lead = (
                draws if value.numel() == draws * prod(axes) else 1
            )  # 1: it has no latent parent
            found[name] = value.reshape(lead, *axes).expand(draws, *axes)
    return found


def tree_of(
    groups: Groups, layouts: Layouts, coords: Names | None, dims: Names | None, attrs: Mapping
) -> "DataTree":
    """Return the groups as a tree, their axes named by plates, `dims` and `coords`."""
    from arviz_base import dict_to_dataset
    from xarray import DataTree

    lead = {group: [] if group.endswith("_data") else ["chain", "draw"] for group in groups}
    ranks = {}  # the most axes: a site has fewer of them where it is scored
    for group, values in groups.items():
        for name, value in values.items():
            ranks[name] = max(ranks.get(name, 0), value.ndim - len(lead[group]))
    axes = _axes(ranks, layouts, dims or {})
    whole = {name for name, layout in layouts.items() if layout.discrete}
    datasets = {
        group: dict_to_dataset(
            {
                name: _numpy(value, name in whole and not group.startswith("log_"))
                for name, value in values.items()
            },
            attrs=attrs.get(group),
            inference_library=pyro,
            dims={n: axes[n][: value.ndim - len(lead[group])] for n, value in values.items()},
            sample_dims=lead[group],
        )
        for group, values in groups.items()
        if values
    }
    labels = _labels(datasets, coords or {})
    return DataTree.from_dict(
        {
            group: ds.assign_coords({dim: labels[dim] for dim in ds.dims if dim in labels})
            for group, ds in datasets.items()
        }
    )


def _numpy(value: Tensor, whole: bool) -> np.ndarray:
    """Return an array, of integers for counts: ArviZ takes floats for continuous."""
    value = value.detach().cpu()
    whole = whole and value.is_floating_point() and bool((value == value.round()).all())
    return (value.int() if whole else value).numpy()


def _axes(ranks: Mapping[str, int], layouts: Layouts, dims: Names) -> dict[str, list[str | None]]:
    """Return the name of each axis: of its plate, or as given, or None for ArviZ to name."""
    if unknown := sorted(set(dims) - set(ranks)):
        raise ValueError(
            f"dims names axes of {unknown}, unknown here: choose from {sorted(ranks)}"
        )
    axes = {}
    for name, rank in ranks.items():
        plates = layouts[name].plates if name in layouts else ()
        known = [*plates, *[None] * rank][:rank]
        given = dims.get(name, [None] * known.count(None))
        if isinstance(given, str) or len(given) != known.count(None):
            raise ValueError(
                f"dims[{name!r}] is {given!r}, but of the {rank} axes of {name!r} there are "
                f"{known.count(None)} that no plate names: give a list with a name for each of "
                "them"
            )
        names = iter(given)
        axes[name] = [axis or next(names) for axis in known]
    return axes


def _labels(datasets: Mapping[str, Mapping], coords: Names) -> dict[str, np.ndarray]:
    sizes = {dim: size for dataset in datasets.values() for dim, size in dataset.sizes.items()}
    for dim, labels in coords.items():
        if dim not in sizes:
            raise ValueError(
                f"coords labels {dim!r}, which is no dim: choose from {sorted(sizes)}"
            )
        if len(labels) != sizes[dim]:
            raise ValueError(
                f"coords[{dim!r}] has {len(labels)} labels, but {dim!r} has {sizes[dim]} entries: "
                "give one label each"
            )
    return {dim: np.asarray(labels) for dim, labels in coords.items()}


def first(values: Values) -> dict[str, Tensor]:
    """Return the values without their leading axis."""
    return {name: value[0] for name, value in values.items()}


def unflatten(values: Values, lead: tuple[int, int]) -> dict[str, Tensor]:
    """Return the values with their leading axis split."""
    return {name: value.unflatten(0, lead) for name, value in values.items()}


def join(parts: Sequence[Groups], dim: int) -> Groups:
    """Return the parts of each value, concatenated."""
    if len(parts) == 1:  # what data share has no axis to join
        return parts[0]
    return {
        group: {name: torch.cat([part[group][name] for part in parts], dim) for name in values}
        for group, values in parts[0].items()
    }
