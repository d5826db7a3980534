"""Readable errors before the first step: does this guide fit this model, and this batch?"""

from collections.abc import Callable, Collection, Mapping

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor, nn

from ppvae.pairing.reached import leaves_of
from ppvae.pairing.record import Record, Site, count_missing, describe
from ppvae.pairing.refusals import require_pair
from ppvae.pairing.traces import PairError, knows_support
from ppvae.protocols import (
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

__all__ = ["check_modalities", "check_pair", "check_seen", "idle_error", "look"]


def check_pair(
    model: Model, guide: Guide, batch: Batch, *, loss: Callable[..., Tensor] | None = None
) -> None:
    """Check that a guide fits a model and a batch, and change nothing.

    Runs both once, in evaluation mode and on a fork of the random streams, and takes one gradient.
    An autoguide that was never run makes its parameters then. Where all data share a latent, in
    model and guide, sites may lie outside of plate "data", in plates that name all their axes.

    Args:
        model: Samples p(x, z).
        guide: Samples q(z | x).
        batch: x, `(N, ...)`.
        loss: A function of (model, guide, batch) that is to be trained instead of an ELBO; it may
            move parameters that log p(x, z) - log q(z|x) does not have.

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
        ppvae.pairing.traces.PairError: site 'z': the model's events have shape (3,), the \
guide's (2,): give both the same latent_dim
    """
    _, idle = look(model, guide, batch, loss)
    if idle:
        raise idle_error(idle)


def look(
    model: Model, guide: Guide, batch: Batch, loss: Callable[..., Tensor] | None = None
) -> tuple[Record, set[str]]:
    """Return what a pair is, and the parameters that neither its loss nor its log weight moves.

    Raises:
        PairError: As in `check_pair`, idle parameters aside.
    """
    batch_size(batch)  # raises in words
    if isinstance(batch, Mapping):
        check_seen(batch)
    _check_tensors(model, guide, batch)
    modes = [(m, m.training) for side in (model, guide, loss) for m in modules_of(side)]
    record_of_loss = getattr(loss, "record", None)
    try:
        for module, _ in modes:
            module.training = False
        with forked_streams(), local_parameters(), torch.enable_grad():
            record = describe(model, guide, batch)
            _check_record(record)
            idle = _idle(model, guide, batch, loss, record)
    finally:
        for module, mode in modes:
            module.training = mode
        if record_of_loss is not None:
            loss.record = record_of_loss
    return record, idle


def _idle(
    model: Model, guide: Guide, batch: Batch, loss: Callable | None, record: Record
) -> set[str]:
    """Return the names of the parameters that nothing moves."""
    parameters = _parameters(model, guide)
    log_w = [_log_prob(s) for side in (record.model, record.guide) for s in side.values()]
    total = sum(log_p.sum() for log_p in log_w)
    reached = {id(leaf) for leaf in leaves_of(torch.as_tensor(total))}
    if loss is not None and any(id(p) not in reached for p in parameters.values()):
        reached |= {id(leaf) for leaf in leaves_of(loss(model, guide, batch))}
    return {name for name, p in parameters.items() if id(p) not in reached}


def _log_prob(site: Site) -> Tensor:
    """Return a site's log probability, 0 where the law refuses the draw."""
    try:
        value = site.node["fn"].log_prob(site.node["value"])
    except ValueError:
        return torch.zeros(())
    return torch.as_tensor(scale_and_mask(value, 1.0, site.node["mask"]))


def idle_error(names: Collection[str]) -> PairError:
    """Return the error that names parameters which nothing moves."""
    return PairError(
        f"no gradient reaches {', '.join(sorted(names))}: use them in the forward pass, or "
        "exclude them with requires_grad_(False)"
    )


def check_modalities(batch: Batch) -> None:
    """Check that each row of a modality is there or missing as a whole, and each datum has one.

    Raises:
        PairError: If a row is NaN in part, or a datum in all of its modalities.
        ValueError: If the batch is empty, or its tensors differ in N.

    Example:
        >>> check_modalities({"image": torch.tensor([[1.0, torch.nan]])})
        Traceback (most recent call last):
        ...
        ppvae.pairing.traces.PairError: the modality 'image' is NaN in part in 1 of 1 rows, such \
as row 0: a row is missing as a whole, all NaN, or not at all; fill its holes, or hide the row
    """
    try:
        require_whole_rows(batch)
    except ModalityError as error:
        raise PairError(str(error)) from None
    check_seen(batch)


def check_seen(batch: Batch) -> None:
    """Check that something is seen of each datum.

    Raises:
        PairError: If all that a datum has is NaN.

    Example:
        >>> check_seen({"image": torch.tensor([[1.0, torch.nan]])})
    """
    size, there = batch_size(batch), seen(batch)
    nothing = ~there.any(1)
    if count := int(nothing.sum()):
        raise PairError(
            f"of {count} of {size} data nothing is seen, such as datum "
            f"{int(nothing.nonzero()[0])}: all of {list(leaves(batch))} are NaN; leave them out"
        )


def _check_record(record: Record) -> None:
    require_pair(record)
    for name in record.latents:
        _check_draws(name, record.model[name], record.guide[name])
    for name, site in record.of("model", "observed").items():
        _check_observed(name, site.node)


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


def _check_draws(name: str, model: Site, guide: Site) -> None:
    """Raise if the model would refuse to score what the guide draws."""
    p = model.node["fn"]
    if guide.mark.relaxed and _base(p)._validate_args:
        raise PairError(
            f"site {name!r}: in training the guide's draws are relaxed, which the model's "
            f"{type(_base(p)).__name__} prior refuses to score: make it with validate_args=False"
        )
    if not knows_support(p) or bool(p.support.check(guide.node["value"]).all()):
        return
    if guide.mark.weightless:
        _check_lenient(name, p)
        return
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


def _check_observed(name: str, site: dict) -> None:
    value, fn = site["value"], site["fn"]
    expected = fn.batch_shape + fn.event_shape
    if any(frame.size == -1 for frame in site["cond_indep_stack"]):  # it takes what there is
        expected = torch.broadcast_shapes(expected, value.shape)
    if value.shape != expected:
        raise PairError(
            f"site {name!r}: the likelihood has shape {tuple(expected)}, but the data "
            f"{tuple(value.shape)}: let the decoder's output have the shape of the data"
        )
    masked = isinstance(site["mask"], Tensor)  # then missing, and its place may hold anything
    if masked or _takes_anything(fn, value):
        _check_inside(name, site)
        return
    if missing := count_missing(value):
        raise PairError(
            f"site {name!r}: {missing} of {_rows(value)} data hold NaN: remove or fill them"
        )
    _check_inside(name, site)


def _takes_anything(fn: torch.distributions.Distribution, value: Tensor) -> bool:
    """Return whether a likelihood scores NaN by design, as masked Normals do."""
    try:
        return bool(value.isnan().any()) and bool(fn.log_prob(value).isfinite().all())
    except ValueError:
        return False


def _check_inside(name: str, site: dict) -> None:
    """Raise if data lie outside of a likelihood's support, and nobody said that they may."""
    value, fn = site["value"], site["fn"]
    if not knows_support(fn) or not _base(fn)._validate_args or value.isnan().any():
        return
    outside = ~fn.support.check(value)
    if isinstance(site["mask"], Tensor):
        outside = outside & site["mask"]
    if bad := int(outside.sum()):
        raise PairError(
            f"site {name!r}: {bad} of {_rows(value)} data lie outside the likelihood's support "
            f"{fn.support}, with values in [{float(value.min()):g}, {float(value.max()):g}]: "
            "binarize or rescale them, or choose a likelihood for such data; one made with "
            "validate_args=False takes them as they are"
        )


def _rows(value: Tensor) -> int:
    return len(value) if value.ndim else 1


def _parameters(model: Model, guide: Guide) -> dict[str, nn.Parameter]:
    return {
        f"{owner}.{name}": parameter
        for owner, side in (("model", module_of(model)), ("guide", module_of(guide)))
        if side is not None
        for name, parameter in side.named_parameters()
        if parameter.requires_grad
    }
