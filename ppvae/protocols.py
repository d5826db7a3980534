"""The contract between models, guides and objectives, written once.

    Batch = Tensor | Mapping[str, Tensor]      (N, ...) each; a modality's missing row is all NaN
    model(batch) -> None                       one `pyro.sample` site per variable of the story
    guide(batch) -> None                       the same latent sites, the same batch

The shape contract, relied on by every objective and diagnostic:

1. All sites live in `pyro.plate("data", N, dim=-1)`. Whatever else a site has is declared by
   `.to_event(...)`, so its log probability is `(N,)`, or `(K, N)` under K particles.
2. Particles are a plate at `dim=-2` which the objective opens. Networks therefore see
   `(K, N, ...)` and must accept any number of leading dimensions.
3. Latent sites have the same names, event shapes and supports in model and guide. A site that only
   the guide needs is marked `infer={"is_auxiliary": True}`.
4. A guide site without a usable density is a `Delta`, or says why in
   `infer={"weightless": "..."}`; importance weights then do not exist and `log_weights` refuses.
   The draws of a site so marked may leave the prior's support; `infer={"relaxed": True}` says that
   they do in training, though not in evaluation. A site whose density depends on random numbers
   drawn on the way says so in `infer={"conditional": "..."}`: it has weights, but no density at
   given points.
5. Parameters and buffers hold everything that must move, save or load. Losses are in nats.

Pairs of Pyro's own kind (autoguides, PyroModules, latents that all data share) are served too. A
latent outside of the data plate belongs to all data at once, and so do the weights of its pair:
`log_weights`. What takes one batch takes a mapping where a model has several inputs:
`model({"x": x, "y": y})`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Protocol, runtime_checkable

import pyro
import torch
from pyro.nn import module as pyro_module
from torch import Tensor, nn

__all__ = [
    "DATA_PLATE",
    "Batch",
    "Encoder",
    "Guide",
    "Model",
    "batch_size",
    "forked_streams",
    "leaves",
    "local_parameters",
    "map_batch",
    "module_of",
    "modules_of",
    "rows_of",
]

DATA_PLATE = "data"  # the name of the plate over the batch, at dim -1

Batch = Tensor | Mapping[str, Tensor]


@runtime_checkable
class Model(Protocol):
    """A generative story: samples the latent sites, then observes the batch."""

    def __call__(self, batch: Batch, /) -> None:
        """Sample `p(x, z)`, with `x` observed at the batch."""


@runtime_checkable
class Guide(Protocol):
    """A variational posterior: samples the model's latent sites given the batch."""

    def __call__(self, batch: Batch, /) -> None:
        """Sample `q(z | x)` at the batch x."""


@runtime_checkable
class Encoder(Protocol):
    """Any module from a batch `(N, ...)` to features `(N, out_features)`."""

    out_features: int

    def __call__(self, batch: Tensor, /) -> Tensor:
        """Return the features of the batch."""


def leaves(batch: Batch) -> dict[str, Tensor]:
    """Return the tensors of a batch by name; a bare tensor is named `x`.

    Raises:
        TypeError: If the batch is neither a tensor nor a mapping of tensors.

    Example:
        >>> list(leaves({"image": torch.zeros(3, 2)}))
        ['image']
    """
    named = batch if isinstance(batch, Mapping) else {"x": batch}
    for name, leaf in named.items():
        if not isinstance(leaf, Tensor):
            raise TypeError(
                f"a batch is a tensor or a mapping of tensors, but {name!r} is a "
                f"{type(leaf).__name__}: convert it with torch.as_tensor, and take "
                "the tensor out of a tuple such as a DataLoader's (image, label)"
            )
    return dict(named)


def batch_size(batch: Batch) -> int:
    """Return N, the number of data in a batch.

    Raises:
        TypeError: If the batch is neither a tensor nor a mapping of tensors.
        ValueError: If it is empty, has no data axis, or its tensors disagree about N.

    Example:
        >>> batch_size(torch.zeros(3, 784))
        3
    """
    named = leaves(batch)
    scalars = [name for name, leaf in named.items() if leaf.ndim == 0]
    if not named or scalars:
        raise ValueError(f"a batch needs a data axis (N, ...), but {scalars or 'it'} has none")
    sizes = {name: len(leaf) for name, leaf in named.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"the tensors of a batch differ in their number of data: {sizes}")
    size = next(iter(sizes.values()))
    if size == 0:
        raise ValueError("the batch is empty: N = 0 data; give at least one")
    return size


def map_batch(function: Callable[[Tensor], Tensor], batch: Batch) -> Batch:
    """Return the batch with `function` applied to each of its tensors.

    Raises:
        TypeError: If the batch is neither a tensor nor a mapping of tensors.

    Example:
        >>> map_batch(lambda leaf: leaf[:2], torch.zeros(3, 4)).shape
        torch.Size([2, 4])
    """
    mapped = {name: function(leaf) for name, leaf in leaves(batch).items()}
    return mapped if isinstance(batch, Mapping) else mapped["x"]


def rows_of(batch: Batch, start: int, count: int) -> Batch:
    """Return some consecutive data of a batch, at most `count` of them.

    Example:
        >>> rows_of(torch.arange(5), 3, 4)
        tensor([3, 4])
    """
    return map_batch(lambda leaf: leaf[start : start + count], batch)


def module_of(side: Callable) -> nn.Module | None:
    """Return the module that a part is, or that Pyro's handlers wrap; None for a function.

    Example:
        >>> from pyro import poutine
        >>> network = nn.Linear(1, 1)
        >>> module_of(poutine.scale(network, scale=2.0)) is network
        True
    """
    if isinstance(side, nn.Module):
        return side
    parts = (side.func, *side.args, *side.keywords.values()) if isinstance(side, partial) else ()
    found = (module_of(part) for part in parts)
    return next((module for module in found if module is not None), None)


def modules_of(side: Callable) -> list[nn.Module]:
    """Return the module behind a model or guide, and its parts; none for a function.

    Example:
        >>> len(modules_of(nn.Sequential(nn.Linear(1, 1))))
        2
    """
    module = module_of(side)
    return [] if module is None else list(module.modules())


@contextmanager
def local_parameters() -> Iterator[None]:
    """Let PyroModules keep their parameters to themselves, and Pyro's store be as it was.

    Pyro identifies parameters by name, across the process: a second `AutoNormal` would receive
    those of the first. What plain Pyro left in the store can be read here, and what is added is
    dropped.

    Example:
        >>> with local_parameters():
        ...     _ = pyro.param("loc", torch.zeros(2))
        >>> len(pyro.get_param_store())
        0
    """
    store, context = pyro.get_param_store(), pyro_module._Context
    if isinstance(vars(context).get("param_state"), _NoState):  # within ourselves
        yield
        return
    context.param_state = _NoState()
    try:
        with (
            store.scope(store.get_state()),
            pyro.settings.context(module_local_params=True),
        ):
            yield
    finally:
        del context.param_state


class _NoState:
    """The empty store of a PyroModule made outside: Pyro gives one to those made inside only."""

    def __get__(self, instance: object, owner: type) -> dict[str, dict]:
        return {"params": {}, "constraints": {}}


@contextmanager
def forked_streams() -> Iterator[None]:
    """Put torch's random streams back afterwards, those of CUDA included.

    Example:
        >>> with forked_streams():
        ...     inside = torch.rand(())
        >>> bool(inside == torch.rand(()))
        True
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        yield
