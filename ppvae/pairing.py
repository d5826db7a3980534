"""Readable errors before the first step: does this guide fit this model, and this batch?"""

from collections.abc import Callable, Mapping

import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites, site_is_factor
from torch import Tensor, nn

from ppvae.protocols import (
    DATA_PLATE,
    Batch,
    Guide,
    ModalityError,
    Model,
    batch_size,
    forked_streams,
    leaves,
    local_parameters,
    module_of,
    modules_of,
    require_whole_rows,
    seen,
)

__all__ = ["PairError", "check_modalities", "check_pair"]


class PairError(ValueError):
    """A model, a guide and a batch that do not fit together; the message names site and mend."""


def check_pair(model: Model, guide: Guide, batch: Batch) -> None:
    """Check that a guide fits a model and a batch, and change nothing.

    Runs both once, in evaluation mode and on a fork of the random streams, and takes one gradient.
    An autoguide that was never run makes its parameters then. Where all data share a latent, in
    model and guide, sites may lie outside of plate "data", in plates that name all their axes.

    Args:
        model: Samples p(x, z).
        guide: Samples q(z | x).
        batch: x, `(N, ...)`.

    Raises:
        PairError: If a latent site is missing from the guide or unknown to the model, if event
            shapes, supports, plates or batch sizes differ, if a site lies outside plate "data" at
            dim -1 without need, if the data are NaN or outside the likelihood's support, if
            tensors differ in device or dtype, or if a parameter receives no gradient; of a
            mapping, if a row is partly missing, a datum has nothing, or modalities are not those
            of the model and guide.
        ValueError: If the batch is empty.
        ChainError: If a chain within the guide has no finite numbers, or diverges.
        NotImplementedError: If it cannot move the model's latents, such as discrete ones.

    Example:
        >>> from ppvae.guides import Normal
        >>> from ppvae.models import VAE
        >>> from ppvae.networks import MLP
        >>> model, guide = VAE(MLP(3, 8), latent_dim=3), Normal(MLP(8, 16), latent_dim=2)
        >>> check_pair(model, guide, torch.ones(5, 8))
        Traceback (most recent call last):
        ...
        ppvae.pairing.PairError: site 'z': the model's events have shape (3,), the guide's (2,): \
give both the same latent_dim
    """
    size = batch_size(batch)
    if isinstance(batch, Mapping):
        check_modalities(batch)
    _check_tensors(model, guide, batch)
    modes = [(m, m.training) for side in (model, guide) for m in modules_of(side)]
    try:
        for module, _ in modes:
            module.training = False
        with forked_streams(), local_parameters(), torch.enable_grad():
            _check_traces(model, guide, batch, size)
    finally:
        for module, mode in modes:
            module.training = mode


def check_modalities(batch: Batch) -> None:
    """Check that each row of a modality is there or missing as a whole, and each datum has one.

    Raises:
        PairError: If a row is NaN in part, or a datum in all of its modalities.
        ValueError: If the batch is empty, or its tensors differ in N.

    Example:
        >>> check_modalities({"image": torch.tensor([[1.0, torch.nan]])})
        Traceback (most recent call last):
        ...
        ppvae.pairing.PairError: the modality 'image' is NaN in part in 1 of 1 rows, such as row \
0: a row is missing as a whole, all NaN, or not at all; fill its holes, or hide the row
    """
    size, there = batch_size(batch), seen(batch)
    try:
        require_whole_rows(batch)
    except ModalityError as error:
        raise PairError(str(error)) from None
    nothing = ~there.any(1)
    if count := int(nothing.sum()):
        raise PairError(
            f"of {count} of {size} data nothing is seen, such as datum "
            f"{int(nothing.nonzero()[0])}: all of {list(leaves(batch))} are NaN; leave them out"
        )


def _check_traces(model: Model, guide: Guide, batch: Batch, size: int) -> None:
    guide_trace = _run("guide", guide, batch)
    _check_latents(_run("model", model, batch), guide_trace)
    model_trace = _run("model", poutine.replay(model, trace=guide_trace), batch)
    shared = _share_latents(model_trace, size)
    for owner, trace in (("guide", guide_trace), ("model", model_trace)):
        for name, site in _sites(trace).items():
            lenient = shared or site["infer"].get("is_auxiliary")
            (_check_axes if lenient else _check_plate)(owner, name, site, size)
    if shared:
        _check_same_plates(model_trace, guide_trace)
    for name, site in _sites(model_trace).items():
        if site["is_observed"] and not site_is_factor(site):
            _check_observed(name, site)
    _check_gradients(model, guide, model_trace, guide_trace)


def _run(owner: str, fn: Callable[[Batch], None], batch: Batch) -> Trace:
    try:
        return prune_subsample_sites(poutine.trace(fn).get_trace(batch))
    except ModalityError as error:
        raise PairError(_first_line(error)) from error
    except PairError as error:
        raise PairError(_first_line(error)) from error  # Pyro adds the shapes of all sites
    except (FloatingPointError, NotImplementedError):
        raise  # of a chain within, which says itself what to mend
    except Exception as error:
        for name, leaf in leaves(batch).items():
            if missing := _count_missing(leaf):
                raise PairError(
                    f"the {owner} does not run on the batch, where {missing} of {len(leaf)} data "
                    f"of {name!r} hold NaN: remove or fill them"
                ) from error
        described = ", ".join(f"{n}: {_describe(leaf)}" for n, leaf in leaves(batch).items())
        raise PairError(
            f"the {owner} does not run on the batch ({described}): {_first_line(error)}. Its "
            "networks and the data must agree: check their sizes. An MLP pair takes flat "
            "data, data.flatten(1); a convolutional one images (N, C, H, W); a VAE takes a "
            "tensor, no mapping; integers need data.float()"
        ) from error


def _check_tensors(model: Model, guide: Guide, batch: Batch) -> None:
    tensors = {f"the batch's {name!r}": leaf for name, leaf in leaves(batch).items()}
    tensors |= _parameters(model, guide)
    for what in ("device", "dtype"):
        seen = {
            name: getattr(t, what)
            for name, t in tensors.items()
            if what == "device" or t.is_floating_point()
        }
        (first, value), *others = seen.items() or [("", None)]
        for name, other in others:
            if other != value:
                mend = (
                    "model.to(device)" if what == "device" else "batch.float() or model.double()"
                )
                raise PairError(
                    f"{first} is on {value}, but {name} on {other}: move one with {mend}"
                    if what == "device"
                    else f"{first} has dtype {value}, but {name} {other}: convert one with {mend}"
                )


def _check_latents(model_trace: Trace, guide_trace: Trace) -> None:
    in_model = {n: s for n, s in _sites(model_trace).items() if not s["is_observed"]}
    in_guide = {n: s for n, s in _sites(guide_trace).items() if not s["is_observed"]}
    for name in (name for name in in_model if name not in in_guide):
        raise PairError(
            f"site {name!r}: the model samples it, but the guide, with {sorted(in_guide)}, does "
            f"not: take a guide for this model, or add pyro.sample({name!r}, ...) to it"
        )
    for name in (name for name in in_guide if name not in in_model):
        if not in_guide[name]["infer"].get("is_auxiliary"):
            raise PairError(
                f"site {name!r}: the guide samples it, but the model, with {sorted(in_model)}, "
                "does not know it: take a guide for this model, or mark the site "
                'infer={"is_auxiliary": True}'
            )
    for name, site in in_model.items():
        p, q = site["fn"], in_guide[name]["fn"]
        if p.event_shape != q.event_shape:
            raise PairError(
                f"site {name!r}: the model's events have shape {tuple(p.event_shape)}, the "
                f"guide's {tuple(q.event_shape)}: give both the same latent_dim"
            )
        if in_guide[name]["infer"].get("relaxed") and _base(p)._validate_args:
            raise PairError(
                f"site {name!r}: in training the guide's draws are relaxed, which the model's "
                f"{type(_base(p)).__name__} prior refuses to score: make it with "
                "validate_args=False"
            )
        if not _inside(p, in_guide[name]["value"]):
            if in_guide[name]["infer"].get("weightless"):
                _check_lenient(name, p)
                continue
            raise PairError(
                f"site {name!r}: the guide draws values outside the model's support {p.support}: "
                "give the guide a distribution on that support"
            )


def _check_lenient(name: str, p: torch.distributions.Distribution) -> None:
    """Raise if a prior would refuse to score the draws outside of its support."""
    if _base(p)._validate_args:
        raise PairError(
            f"site {name!r}: the guide, which has no weights, draws values outside the model's "
            f"support {p.support}: make the prior with validate_args=False, so that it scores "
            "them -inf, and leave it out of the loss (beta=0)"
        )


def _base(p: torch.distributions.Distribution) -> torch.distributions.Distribution:
    while isinstance(p, torch.distributions.Independent):
        p = p.base_dist
    return p


def _inside(p: torch.distributions.Distribution, value: Tensor) -> bool:
    return bool(p.support.check(value).all())


def _share_latents(model_trace: Trace, size: int) -> bool:
    """Return whether all data share a latent: it lies in no plate of the data's size."""
    latents = [site for site in _sites(model_trace).values() if not site["is_observed"]]
    return any(all(frame.size != size for frame in s["cond_indep_stack"]) for s in latents)


def _check_axes(owner: str, name: str, site: dict, size: int) -> None:
    frames, shape = _frames(site), site["fn"].batch_shape
    if DATA_PLATE in frames:
        _check_data_plate(owner, name, frames, size)
    named = {frame.dim for frame in frames.values()}
    bare = [dim for dim in range(-len(shape), 0) if shape[dim] > 1 and dim not in named]
    if bare:
        raise PairError(
            f"site {name!r}: the {owner} gives it batch shape {tuple(shape)}, but of its axes "
            f'{bare} no plate: sample it in pyro.plate("{DATA_PLATE}", N, dim=-1) if each datum '
            "has its own, in another plate, or declare axes with .to_event(...)"
        )


def _check_same_plates(model_trace: Trace, guide_trace: Trace) -> None:
    guided = _sites(guide_trace)
    for name, site in _sites(model_trace).items():
        if not site["is_observed"] and _frames(site).keys() != _frames(guided[name]).keys():
            raise PairError(
                f"site {name!r}: the model samples it in plates {sorted(_frames(site))}, but the "
                f"guide in {sorted(_frames(guided[name]))}: sample it in the same plates"
            )


def _check_plate(owner: str, name: str, site: dict, size: int) -> None:
    _check_data_plate(owner, name, _frames(site), size)
    if site["fn"].batch_shape not in ((size,), ()):
        raise PairError(
            f"site {name!r}: the {owner} gives it batch shape {tuple(site['fn'].batch_shape)} "
            f"where ({size},) is due: declare the other axes with .to_event(...)"
        )


def _check_data_plate(owner: str, name: str, frames: dict, size: int) -> None:
    frame = frames.get(DATA_PLATE)
    if frame is None or frame.dim != -1:
        found = (
            f"its plates are {sorted(frames)}" if frame is None else f"it is at dim {frame.dim}"
        )
        raise PairError(
            f'site {name!r}: the {owner} must sample it in pyro.plate("{DATA_PLATE}", N, dim=-1), '
            f"but {found}: add the plate, and declare other axes with .to_event(...)"
        )
    if frame.size != size:
        raise PairError(
            f'site {name!r}: the {owner}\'s plate "{DATA_PLATE}" has size {frame.size}, but the '
            f"batch {size} data: take the size from the batch"
        )


def _check_observed(name: str, site: dict) -> None:
    value, fn = site["value"], site["fn"]
    expected = fn.batch_shape + fn.event_shape
    if value.shape != expected:
        raise PairError(
            f"site {name!r}: the likelihood has shape {tuple(expected)}, but the data "
            f"{tuple(value.shape)}: let the decoder's output have the shape of the data"
        )
    masked = isinstance(site["mask"], Tensor)  # then missing, and its place may hold anything
    if not masked and (missing := _count_missing(value)):
        raise PairError(
            f"site {name!r}: {missing} of {len(value)} data hold NaN: remove or fill them"
        )
    outside = ~fn.support.check(value)
    if bad := int((outside & site["mask"] if masked else outside).sum()):
        raise PairError(
            f"site {name!r}: {bad} of {len(value)} data lie outside the likelihood's support "
            f"{fn.support}, with values in [{float(value.min()):g}, {float(value.max()):g}]: "
            "binarize or rescale them, or choose a likelihood for such data"
        )


def _count_missing(value: Tensor) -> int:
    return int(value.isnan().reshape(len(value), -1).any(1).sum())


def _check_gradients(model: Model, guide: Guide, model_trace: Trace, guide_trace: Trace) -> None:
    parameters = _parameters(model, guide)
    if not parameters:
        return
    loss = model_trace.log_prob_sum() - guide_trace.log_prob_sum()
    gradients = (
        torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        if isinstance(loss, Tensor) and loss.requires_grad
        else [None] * len(parameters)
    )
    idle = [name for name, g in zip(parameters, gradients, strict=True) if g is None]
    if idle:
        raise PairError(
            f"no gradient reaches {', '.join(idle)}: use them in the forward pass, or exclude "
            "them with requires_grad_(False)"
        )


def _frames(site: dict) -> dict[str, object]:
    return {frame.name: frame for frame in site["cond_indep_stack"]}


def _sites(trace: Trace) -> dict[str, dict]:
    return {name: site for name, site in trace.nodes.items() if site["type"] == "sample"}


def _parameters(model: Model, guide: Guide) -> dict[str, nn.Parameter]:
    return {
        f"{owner}.{name}": parameter
        for owner, side in (("model", module_of(model)), ("guide", module_of(guide)))
        if side is not None
        for name, parameter in side.named_parameters()
        if parameter.requires_grad
    }


def _describe(leaf: Tensor) -> str:
    return f"{tuple(leaf.shape)} {str(leaf.dtype).removeprefix('torch.')}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
