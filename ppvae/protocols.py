"""The contract between models, guides and objectives, written once.

    Batch = Tensor | Mapping[str, Tensor]      (N, ...) each; a modality's missing row is all NaN
    model(batch) -> None                       one `pyro.sample` site per variable of the story
    guide(batch) -> None                       the same latent sites, the same batch

The shape contract, relied on by every objective and diagnostic:

1. All sites live in `pyro.plate("data", N, dim=-1)`. Whatever else a site has is declared by
   `.to_event(...)`, so its log probability is `(N,)`, or `(K, N)` under K particles.
2. Particles are a plate at `dim=-2` which the objective opens. Networks therefore see
   `(K, N, ...)` and should accept any number of leading dimensions; those that do not are weighed
   one particle at a time, and `networks.Folded` makes them do.
3. Latent sites have the same names, event shapes, supports, masks and scales in model and guide.
   A latent of the model that the guide lacks is marked `infer={"enumerate": "parallel"}`, and
   then summed out exactly. The model observes something, the guide nothing; `pyro.deterministic`
   is neither. A draw that only the guide needs is marked `infer={"is_auxiliary": True}`, and a
   `Delta` brings it onto a latent one to one: its density is the latent's. Other draws on the way
   belong into the model, too, by a law that takes them back.
4. Only plate "data" may be subsampled, to as many rows as the batch has:
   `pyro.plate("data", size, subsample_size=len(batch))`. Its factor N / B is undone where a datum
   has weights of its own; `poutine.scale` makes a density another function, and is refused. A
   guide may say `len(batch)` for the plate's size all the same.
5. A guide site without a usable density is a `Delta`, or says why in
   `infer={"weightless": "..."}`; importance weights then do not exist and `log_weights` refuses.
   The draws of a site so marked may leave the prior's support; `infer={"relaxed": True}` says that
   they do in training, though not in evaluation. A site whose density depends on random numbers
   drawn on the way says so in `infer={"conditional": "..."}`: it has weights, but no density at
   given points. A weightless site that stands for draws of the posterior, with which the ELBO is
   Q = E[log p(x, z)] and bounds nothing, adds `infer={"q_function": True}`: histories then have
   `q` where others have an ELBO, and no epoch is chosen by it. `ppvae.pairing.Mark` reads them.
6. A model whose prior is made of the batch says so in words, in its attribute `reads_data`: its
   weights bound no evidence, and `evidence` refuses them. One whose density does not integrate to
   one says `unnormalized`, or has a `pyro.factor` of its latents: its evidence lacks ln Z.
7. Parameters and buffers hold everything that must move, save or load. Losses are in nats.
8. Rows are exchangeable. What keeps their place, a parameter of each datum or a model of time,
   takes all data at once, and is then never shuffled.

Pairs of Pyro's own kind (autoguides, PyroModules, methods of one module, latents that all data
share) are served too. A latent outside of the data plate belongs to all data at once, and so do
the weights of its pair: `log_weights`. What takes one batch takes a mapping where a model has
several inputs: `model({"x": x, "y": y})`; None is an entry that is not known.

`ppvae.pairing` holds a pair to this, once and everywhere: `check_pair`, losses, weights and trees
are readings of one record of it.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Protocol, runtime_checkable

import pyro
import torch
from pyro.infer.util import is_validation_enabled
from pyro.nn import module as pyro_module
from torch import Tensor, nn

__all__ = [
    "DATA_PLATE",
    "Batch",
    "Encoder",
    "Guide",
    "ModalityError",
    "Model",
    "SetGuide",
    "batch_size",
    "forked_streams",
    "hide",
    "leaves",
    "local_parameters",
    "map_batch",
    "modalities",
    "module_of",
    "modules_of",
    "require_names",
    "require_whole_rows",
    "rows_of",
    "seeded",
    "seen",
    "spaced",
]

DATA_PLATE = "data"  # the name of the plate over the batch, at dim -1

Batch = Tensor | Mapping[str, Tensor]


class ModalityError(ValueError):
    """A batch whose modalities are not those of a model or guide."""


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


@runtime_checkable
class SetGuide(Protocol):
    """A guide of any subset of modalities, whose encoders need to run but once for all subsets."""

    names: tuple[str, ...]  # of the modalities, in the order of h and `seen`

    def features(self, batch: Batch, /) -> tuple[Tensor, Tensor]:
        """Return what the encoders say, h `(N, M, E)`, and what was seen, `(N, M)` booleans."""

    def sample(self, h: Tensor, seen: Tensor, /) -> None:
        """Sample `q(z | x_S)` for a subset S of what was seen, `(N, M)` booleans."""


def leaves(batch: Batch) -> dict[str, Tensor]:
    """Return the tensors of a batch by name; a bare tensor is named `x`, and None is left out.

    Raises:
        TypeError: If the batch is neither a tensor nor a mapping of tensors.

    Example:
        >>> list(leaves({"image": torch.zeros(3, 2)}))
        ['image']
    """
    named = batch if isinstance(batch, Mapping) else {"x": batch}
    named = {name: leaf for name, leaf in named.items() if leaf is not None}  # not known
    for name, leaf in named.items():
        if not isinstance(leaf, Tensor):
            raise TypeError(
                f"a batch is a tensor or a mapping of tensors, but {name!r} is a "
                f"{type(leaf).__name__}: convert it with torch.as_tensor, and take "
                "the tensor out of a tuple such as a DataLoader's (image, label)"
            )
    return dict(named)


def require_names(names: Collection[str]) -> None:
    """Raise if a modality has the name of another site, or one that no module can have.

    Raises:
        ValueError: If so, with the name.

    Example:
        >>> require_names(["image", "z"])
        Traceback (most recent call last):
        ...
        ValueError: a modality cannot be called 'z': that names the latents, the data plate or a \
part of torch's modules, or holds a dot; call it otherwise
    """
    latents = {"z", DATA_PLATE, *(f"z_{name}" for name in names)}
    for name in names:
        if name in latents or "." in name or not name or hasattr(nn.ModuleDict, name):
            raise ValueError(
                f"a modality cannot be called {name!r}: that names the latents, the data plate or "
                "a part of torch's modules, or holds a dot; call it otherwise"
            )


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
    if not isinstance(batch, Mapping):
        return mapped["x"]
    return {name: mapped.get(name) for name in batch}


def rows_of(batch: Batch, start: int, count: int) -> Batch:
    """Return some consecutive data of a batch, at most `count` of them.

    Example:
        >>> rows_of(torch.arange(5), 3, 4)
        tensor([3, 4])
    """
    return map_batch(lambda leaf: leaf[start : start + count], batch)


def spaced(batch: Batch, most: int) -> Batch:
    """Return at most so many data, from all over the batch: it may be ordered by class or length.

    Example:
        >>> spaced(torch.arange(9), 3)
        tensor([0, 4, 8])
    """
    size = batch_size(batch)
    rows = torch.linspace(0, size - 1, min(size, most)).long()
    return map_batch(lambda leaf: leaf[rows.to(leaf.device)], batch)


def module_of(side: Callable) -> nn.Module | None:
    """Return the module that a part is, or that it is a method of, or that it wraps.

    Pyro's handlers wrap one, `functools.partial` may hold several: they come as one `ModuleDict`,
    by the names or places of the arguments. None for a function.

    Example:
        >>> from pyro import poutine
        >>> network = nn.Linear(1, 1)
        >>> module_of(poutine.scale(network, scale=2.0)) is network
        True
        >>> module_of(network.forward) is network
        True
    """
    if isinstance(side, nn.Module):
        return side
    owner = getattr(side, "__self__", None)  # of a bound method
    if isinstance(owner, nn.Module):
        return owner
    if not isinstance(side, partial):
        return None
    parts = {"func": side.func, **{str(i): part for i, part in enumerate(side.args)}}
    held = {name: module_of(part) for name, part in (parts | side.keywords).items()}
    held = {name: module for name, module in held.items() if module is not None}
    if len({id(module) for module in held.values()}) < 2:
        return next(iter(held.values()), None)
    return nn.ModuleDict({f"{n}_" if hasattr(nn.ModuleDict, n) else n: m for n, m in held.items()})


def modules_of(side: Callable) -> list[nn.Module]:
    """Return the module behind a model or guide, and its parts; none for a function.

    Example:
        >>> len(modules_of(nn.Sequential(nn.Linear(1, 1))))
        2
    """
    module = module_of(side)
    return [] if module is None else list(module.modules())


def modalities(batch: Batch, names: Collection[str], owner: str = "model") -> dict[str, Tensor]:
    """Return a batch's modalities in the order of `names`.

    Raises:
        ModalityError: If the batch is no mapping, lacks one of them, or has another; where Pyro
            validates, if a row is missing in part.

    Example:
        >>> list(modalities({"b": torch.zeros(2, 1), "a": torch.ones(2, 1)}, ["a", "b"]))
        ['a', 'b']
    """
    if not isinstance(batch, Mapping):
        raise ModalityError(
            f"the {owner} takes a mapping of the modalities {list(names)} to tensors (N, ...), "
            f"but the batch is a {type(batch).__name__}: write {{name: tensor, ...}}"
        )
    named = leaves(batch)
    if absent := [name for name in names if name not in named]:
        raise ModalityError(
            f"the batch has {list(named)}, but lacks {absent}, which the {owner} knows: where a "
            "modality is missing from all rows, pass rows of NaN"
        )
    if unknown := [name for name in named if name not in names]:
        raise ModalityError(
            f"the {owner} does not know the modalities {unknown} of the batch, only "
            f"{list(names)}: drop them, or build the {owner} with them"
        )
    if is_validation_enabled():  # it reads values, which a step must not wait for
        require_whole_rows(named)
    return {name: named[name] for name in names}


def require_whole_rows(batch: Batch) -> None:
    """Raise if a row of a modality is missing in part.

    Raises:
        ModalityError: If it is, naming modality and row.

    Example:
        >>> require_whole_rows({"image": torch.tensor([[1.0, 2.0], [torch.nan, torch.nan]])})
    """
    size = batch_size(batch)
    for name, leaf in leaves(batch).items():
        missing = leaf.isnan().reshape(size, -1)
        partly = missing.any(1) & ~missing.all(1)
        if count := int(partly.sum()):
            raise ModalityError(
                f"the modality {name!r} is NaN in part in {count} of {size} rows, such as row "
                f"{int(partly.nonzero()[0])}: a row is missing as a whole, all NaN, or not at "
                "all; fill its holes, or hide the row"
            )


def seen(batch: Batch) -> Tensor:
    """Return which modalities each datum has, `(N, M)` booleans in the batch's order.

    A modality is missing where its row is all NaN; integers are always there.

    Example:
        >>> nan = float("nan")
        >>> seen({"image": torch.tensor([[1.0, 2.0], [nan, nan]]), "label": torch.eye(2)})
        tensor([[ True,  True],
                [False,  True]])
    """
    size = batch_size(batch)
    columns = [~leaf.isnan().reshape(size, -1).all(1) for leaf in leaves(batch).values()]
    return torch.stack(columns, dim=1)


def hide(batch: Batch, keep: Tensor) -> Batch:
    """Return the batch with NaN wherever a modality is not to be seen.

    Args:
        batch: x, `(N, ...)` each.
        keep: Which modalities stay, `(N, M)` or `(M,)` booleans in the batch's order.

    Raises:
        ValueError: If `keep` has another shape, or a modality holds integers, which have no NaN.

    Example:
        >>> hide({"a": torch.ones(2, 1), "b": torch.ones(2, 1)}, torch.tensor([True, False]))["b"]
        tensor([[nan],
                [nan]])
    """
    named, size = leaves(batch), batch_size(batch)
    if keep.dtype != torch.bool or keep.shape not in ((size, len(named)), (len(named),)):
        raise ValueError(
            f"keep must be booleans of shape (N, M) = ({size}, {len(named)}) or (M,), one column "
            f"for each of {list(named)}, but is {keep.dtype} of shape {tuple(keep.shape)}"
        )
    for name, leaf in named.items():
        if not leaf.is_floating_point():
            raise ValueError(
                f"the modality {name!r} holds {leaf.dtype}, and no integer is NaN, so that it "
                "cannot be hidden: keep labels and text one-hot, in float"
            )
    hidden = {
        name: torch.where(column.reshape(-1, *(1,) * (leaf.ndim - 1)), leaf, torch.nan)
        for (name, leaf), column in zip(
            named.items(), keep.expand(size, -1).unbind(1), strict=True
        )
    }
    return hidden if isinstance(batch, Mapping) else hidden["x"]


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


def seeded(seed: int, index: int, device: str | torch.device = "cpu") -> torch.Generator:
    """Return the random numbers of one epoch, or of one part of a data set, and of no other.

    Example:
        >>> torch.rand((), generator=seeded(0, 1)) == torch.rand((), generator=seeded(0, 2))
        tensor(False)
    """
    mixed = (seed + index * 0x9E3779B97F4A7C15) % 2**63  # neighbors share no order
    return torch.Generator(device).manual_seed(mixed)
