"""What is no pair, or has no log weight, said of a record in words that name site and mend."""

import torch
from torch import Tensor

from ppvae.pairing.record import Record, Site, unconstrained_size
from ppvae.pairing.traces import PairError
from ppvae.protocols import DATA_PLATE

__all__ = ["require_pair", "require_trainable"]


def require_pair(record: Record) -> None:
    """Raise if a model and a guide are no pair, or their log weight would be another number.

    Raises:
        PairError: Naming the site and the mend.
    """
    for check in (
        _require_latents,
        _require_enumerable,
        _require_observed,
        _require_no_factor,
        _require_plates,
        _require_axes,
        _require_alike,
        _require_density,
        _require_transports,
    ):
        check(record)


def require_trainable(record: Record, *, enumerating: bool) -> None:
    """Raise if an ELBO of a pair, by whatever loss, would be another number.

    A scale on both sides, such as a KL's weight, is the user's: only the log weight refuses it.

    Args:
        record: Of the pair.
        enumerating: Whether the loss sums out what is marked for it, as `TraceEnum_ELBO` does.

    Raises:
        PairError: Naming the site and the mend.
    """
    for name in () if enumerating else record.enumerated:
        raise PairError(
            f"site {name!r}: the model marks it to be summed out, which this loss does not do: "
            "train with pyro.infer.TraceEnum_ELBO(max_plate_nesting=1), or sample it in the guide"
        )
    _require_missing(record)
    _require_no_factor(record)
    _require_plates_known(record)
    _require_same_scales(record)
    _require_rows_of_guide(record)
    _require_transports(record)


def _require_rows_of_guide(record: Record) -> None:
    """Raise if the guide's plate stands for more data than the model's: whose would they be?"""
    for name in record.latents:
        p, q = (side[name].plates.get(DATA_PLATE) for side in (record.model, record.guide))
        if p is not None and q is not None and 0 < p.full_size < q.full_size:
            raise PairError(
                f'site {name!r}: the guide\'s plate "{DATA_PLATE}" stands for {q.full_size} data, '
                f"the model's for {p.full_size}: give the model the same size and subsample_size"
            )


# Which sites there are


def _require_latents(record: Record) -> None:
    _require_missing(record)
    in_model = sorted(record.of("model", "latent", "enumerated"))
    for name in record.of("guide", "missing"):
        raise PairError(
            f"site {name!r}: the guide samples it, but the model, with {in_model}, does not know "
            "it: take a guide for this model. Where it is drawn on the way to a Delta, mark it "
            'infer={"is_auxiliary": True}; otherwise sample it in the model, too'
        )


def _require_missing(record: Record) -> None:
    in_guide = sorted(record.of("guide", "latent", "missing", "auxiliary"))
    for name, site in record.of("model", "missing").items():
        mend = f"take a guide for this model, or add pyro.sample({name!r}, ...) to it"
        if site.node["fn"].has_enumerate_support:
            mend += ', or mark it infer={"enumerate": "parallel"} to be summed out'
        raise PairError(
            f"site {name!r}: the model samples it, but the guide, with {in_guide}, does not: "
            f"{mend}"
        )


def _require_enumerable(record: Record) -> None:
    for name in record.enumerated:
        try:
            record.model[name].node["fn"].enumerate_support(expand=False)
        except NotImplementedError as error:
            raise PairError(
                f"site {name!r}: the model marks it to be summed out, but its values cannot be "
                "listed: those of a discrete law of one number can, not of a continuous one, nor "
                "of an event of several (.to_event): give each a site of its own, or sample it in "
                "the guide"
            ) from error


def _require_no_factor(record: Record) -> None:
    """Raise if a guide has a factor: it would be taken for a density, which nobody draws from."""
    for name in record.of("guide", "factor"):
        raise PairError(
            f"site {name!r}: a pyro.factor in the guide changes ln q, but not what is drawn, so "
            "that it is the density of other draws: give the Jacobian of a transport to "
            "Delta(value, log_density=...), and what tilts the latents to the model"
        )


def _require_observed(record: Record) -> None:
    for name, site in record.of("guide", "observed").items():
        if not site.mark.is_auxiliary:
            raise PairError(
                f"site {name!r}: the guide observes it, but a guide only samples latents: are "
                "model and guide swapped? Hide it with poutine.block if the model knows it"
            )
    if not record.of("model", "observed") and record.constant_factors:
        raise PairError(
            "the model observes nothing, so that there is no posterior to guess: are model and "
            "guide swapped? Pass the data by pyro.sample(..., obs=batch)"
        )


# Plates and axes


def _require_plates(record: Record) -> None:
    _require_plates_known(record)
    for owner, site in _sites(record):
        frame = site.plates.get(DATA_PLATE)
        if frame is not None and site.role != "deterministic":
            _require_data_plate(record, owner, site)
    if record.joint:
        _require_rows_of_guide(record)


def _require_plates_known(record: Record) -> None:
    """Raise at a subsampled plate other than that of the data: nobody knows its rows."""
    for owner, site in _sites(record):
        for name, frame in site.plates.items():
            part = frame.size > 0 and frame.full_size not in (None, frame.size)
            if part and name != DATA_PLATE:
                raise PairError(
                    f"site {site.name!r}: the {owner}'s plate {name!r} stands for "
                    f"{frame.full_size}, of which {frame.size} are drawn: only plate "
                    f'"{DATA_PLATE}", over the batch, may be subsampled; call it so, with '
                    "subsample_size=len(batch)"
                )


def _require_data_plate(record: Record, owner: str, site: Site) -> None:
    frame = site.plates[DATA_PLATE]
    if frame.dim != -1:
        raise PairError(_outside(owner, site, f"it is at dim {frame.dim}"))
    if frame.size in (record.size, -1):
        return
    if frame.full_size == record.size:
        raise PairError(
            f'site {site.name!r}: the {owner}\'s plate "{DATA_PLATE}" draws {frame.size} of the '
            f"batch's {record.size} data by itself, other ones each time: hand over the minibatch "
            f'instead, and write pyro.plate("{DATA_PLATE}", N, subsample_size=len(batch))'
        )
    raise PairError(
        f'site {site.name!r}: the {owner}\'s plate "{DATA_PLATE}" has size {frame.size}, but the '
        f"batch {record.size} data: take the size from the batch"
    )


def _require_axes(record: Record) -> None:
    for owner, site in _sites(record):
        if site.role == "deterministic":
            continue
        lenient = record.shared or site.role == "auxiliary"
        (_require_named_axes if lenient else _require_plate)(record, owner, site)
    if record.shared:
        _require_same_plates(record)


def _require_named_axes(record: Record, owner: str, site: Site) -> None:
    shape = site.node["fn"].batch_shape
    named = {frame.dim for frame in site.plates.values()}
    bare = [dim for dim in range(-len(shape), 0) if shape[dim] > 1 and dim not in named]
    if bare:
        raise PairError(
            f"site {site.name!r}: the {owner} gives it batch shape {tuple(shape)}, but of its "
            f'axes {bare} no plate: sample it in pyro.plate("{DATA_PLATE}", N, dim=-1) if each '
            "datum has its own, in another plate, or declare axes with .to_event(...)"
        )


def _require_plate(record: Record, owner: str, site: Site) -> None:
    if DATA_PLATE not in site.plates:
        raise PairError(_outside(owner, site, f"its plates are {sorted(site.plates)}"))
    shape = site.node["fn"].batch_shape
    if shape not in ((record.size,), ()):
        raise PairError(
            f"site {site.name!r}: the {owner} gives it batch shape {tuple(shape)} where "
            f"({record.size},) is due: declare the other axes with .to_event(...)"
        )


def _require_same_plates(record: Record) -> None:
    for name in record.latents:
        p, q = (sorted(side[name].plates) for side in (record.model, record.guide))
        if p != q:
            raise PairError(
                f"site {name!r}: the model samples it in plates {p}, but the guide in {q}: "
                "sample it in the same plates"
            )


def _outside(owner: str, site: Site, found: str) -> str:
    return (
        f'site {site.name!r}: the {owner} must sample it in pyro.plate("{DATA_PLATE}", N, '
        f"dim=-1), but {found}: add the plate, and declare other axes with .to_event(...)"
    )


# Scales and masks


def _require_alike(record: Record) -> None:
    """Raise if a latent counts for other entries, or by another factor, on the two sides."""
    _require_same_scales(record)
    for name in record.latents:
        p, q = record.model[name], record.guide[name]
        if p.counts == q.counts and _same_masks(p, q):
            continue
        owner, other = ("model", "guide") if p.masks or not p.counts else ("guide", "model")
        raise PairError(
            f"site {name!r}: the {owner} masks it, but the {other} does not, or not in the same "
            "entries, so that what is left has no density: use the same poutine.mask on both "
            "sides. Of obs_mask=, keep the observed part: poutine.mask around an observed site"
        )
    if not record.hidden:
        masked = [name for name in record.latents if record.model[name].masks]
        raise PairError(
            f"site {masked[0]!r}: where the model masks it, other sites still depend on it, so "
            "that it is drawn from the guide, and no density says how: mask what depends on it, "
            "too, or do not mask it"
        )


def _same_masks(p: Site, q: Site) -> bool:
    shape = torch.broadcast_shapes(p.shape, q.shape)
    return torch.equal(p.mask(shape), q.mask(shape))


def _require_same_scales(record: Record) -> None:
    for name in record.latents:
        p, q = record.model[name], record.guide[name]
        if not _equal(p.scale, q.scale):
            raise PairError(
                f"site {name!r}: its log probability is scaled by {_number(p.scale)} in the "
                f"model and by {_number(q.scale)} in the guide, so that no law is fitted: put "
                "the same poutine.scale around both, or weigh the KL by BetaELBO(beta=...)"
            )


def _require_density(record: Record) -> None:
    """Raise if a site is scaled: what is left is a power of a density, and none."""
    for owner, site in _sites(record):
        if site.role != "deterministic" and site.counts and not _equal(site.scale, 1.0):
            raise PairError(
                f"site {site.name!r}: a poutine.scale multiplies its log probability in the "
                f"{owner} by {_number(site.scale)}, and what is left is no density: weigh the KL "
                "by the objective, BetaELBO(beta=...), and let losses be per datum as they are. "
                "fit(check=False) trains such a pair all the same"
            )


def _equal(a: Tensor | float, b: Tensor | float) -> bool:
    a, b = (torch.as_tensor(each, dtype=torch.float64).cpu() for each in (a, b))
    return torch.allclose(*torch.broadcast_tensors(a, b), rtol=1e-5, atol=0.0)


def _number(scale: Tensor | float) -> str:
    numbers = torch.as_tensor(scale).flatten()
    return f"{float(numbers[0]):.4g}" + (", ..." if len(numbers) > 1 else "")


# Auxiliary sites


def _require_transports(record: Record) -> None:
    """Raise if what a guide draws on the way is in its density, and in nothing of the model.

    Draws that a `Delta` brings onto the latents, one to one, are the density of those latents.
    """
    for name in record.auxiliaries:
        moved = [s for s in record.of("guide", "latent").values() if name in s.origins]
        if not moved or any(s.random for s in moved):
            raise PairError(_no_reverse(name))
    for names in _groups(record):
        sources = sum(unconstrained_size(record.guide[name].node) for name in names)
        ends = [n for n, s in record.of("guide", "latent").items() if s.origins & names]
        numbers = sum(unconstrained_size(record.model[name].node) for name in ends)
        if numbers != sources:
            raise PairError(
                f"site {min(names)!r}: the guide draws {sources} numbers there, but "
                f"{numbers} of its latents are computed from them, so that the map is not one to "
                "one, and its end has no density: let each latent be the image of its own draw"
            )


def _no_reverse(name: str) -> str:
    return (
        f"site {name!r}: the guide draws it on the way, marked is_auxiliary, and its density is "
        "in no log weight of the latents: bounds would be too high by its entropy. Sum it out "
        "in the guide, as guides.GaussianMixture and MixtureSameFamily do, or sample it in the "
        "model, too, by a law r(site | z, x) that takes it back"
    )


def _groups(record: Record) -> list[frozenset[str]]:
    """Return the auxiliary sites that share a latent, together."""
    groups: list[frozenset[str]] = []
    for site in record.of("guide", "latent").values():
        names = frozenset(site.origins & record.auxiliaries.keys())
        if not names:
            continue
        touching = [group for group in groups if group & names]
        groups = [group for group in groups if group not in touching]
        groups.append(names.union(*touching))
    return groups


def _sites(record: Record) -> list[tuple[str, Site]]:
    return [
        *(("guide", site) for site in record.guide.values()),
        *(("model", site) for site in record.model.values()),
    ]
