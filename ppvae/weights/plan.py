"""How a pair is to be weighed: per datum or all data at once, with which plate for particles."""

from typing import NamedTuple

from pyro.infer.autoguide import AutoGuide

from ppvae.pairing import (
    PairError,
    Record,
    describe,
    few_rows,
    require_pair,
    takes_particles,
    takes_parts,
)
from ppvae.protocols import (
    DATA_PLATE,
    Batch,
    Guide,
    Model,
    batch_size,
    forked_streams,
    modules_of,
    spaced,
)

__all__ = ["Plan", "check_autoguide", "plan_of", "require_all_data"]

ENOUGH = 256  # rows that tell what the sites are


class Plan(NamedTuple):
    """How a pair is to be weighed: a reading of its `Record`.

    Attributes:
        joint: Whether a latent lies outside of the data plate, so that weights are of all data at
            once.
        whole: Whether the batch must stay whole: joint, or with an autoguide, or a parameter of
            each datum, which know no other data.
        dim: Where the particles' plate goes, left of all others; None where draws are made one by
            one, since networks do not take them together.
        points: The latents that the guide draws from no density, `Delta` sites.
        size: How many data a particle's weights are of: N, or more where joint and subsampled.
        latents: The model's latent sites, in its order.
        reason: Why weights bound no evidence, where a prior reads the data.
        note: What the evidence lacks, where the model is unnormalized.
    """

    joint: bool
    whole: bool
    dim: int | None
    points: tuple[str, ...]
    size: int
    latents: tuple[str, ...]
    reason: str = ""
    note: str = ""

    def rows(self, size: int, chunk_size: int, num_particles: int) -> int:
        """Return how many of N data go together: few, with all particles, to encode them once."""
        return size if self.whole else max(1, min(size, chunk_size // num_particles))

    def counts(self, rows: int, chunk_size: int, num_particles: int) -> list[int]:
        """Return how many particles go together, one chunk after the other."""
        return _counts(num_particles, 1 if self.dim is None else max(1, chunk_size // rows))


def plan_of(model: Model, guide: Guide, batch: Batch) -> Plan:
    """Return how a pair is to be weighed, found out by running it on a fork of the random streams.

    Raises:
        PairError: If the two are no pair, or have no log weight: what `check_pair` says of their
            sites.
        ValueError: If an autoguide was made for other data.
    """
    check_autoguide(guide, batch)
    with forked_streams():
        record = _described(model, guide, batch)
        require_pair(record)
        joint = record.joint
        whole = joint or record.autoguide or not takes_parts(model, guide, batch)
        dim = -1 - max(1, *_axes(record)) if joint else -2
        some = batch if whole else few_rows(batch)
        together = takes_particles(model, guide, some, dim)
    return Plan(
        joint,
        whole,
        dim if together else None,
        record.points,
        record.full_size if joint else batch_size(batch),
        record.latents,
        record.claims.reads_data,
        record.unnormalized,
    )


def _described(model: Model, guide: Guide, batch: Batch) -> Record:
    """Return what a pair is, of enough rows: a first one may be the shortest sentence."""
    size = batch_size(batch)
    if size > ENOUGH and not any(isinstance(part, AutoGuide) for part in modules_of(guide)):
        try:
            record = describe(model, guide, spaced(batch, ENOUGH))
            if not record.joint:
                return record
        except PairError:  # some pairs know only all of their data
            pass
    return describe(model, guide, batch)


def _axes(record: Record) -> list[int]:
    sites = (*record.model.values(), *record.guide.values())
    return [len(site.node["fn"].batch_shape) for site in sites]


def require_all_data(plan: Plan, batch: Batch) -> None:
    """Raise if the batch is a part of the data that share a latent: it has no weight of its own.

    Raises:
        PairError: If so.
    """
    size = batch_size(batch)
    if plan.joint and plan.size != size:
        raise PairError(
            f'all data share {", ".join(map(repr, plan.latents))}, and plate "{DATA_PLATE}" '
            f"stands for {plan.size} data, of which the batch has {size}: their weights are of "
            "all data at once, so pass all of them"
        )


def check_autoguide(guide: Guide, batch: Batch) -> None:
    """Check that the autoguides in a guide were made for as many data as the batch has.

    Raises:
        ValueError: If one of them has a factor for each of other data.
    """
    for part in modules_of(guide):
        if not isinstance(part, AutoGuide) or part.create_plates or part.master is not None:
            continue
        frame = (part._prototype_frames or {}).get(DATA_PLATE)
        if frame is not None and frame.full_size not in (None, frame.size):
            raise ValueError(
                f"this {type(part).__name__} has a factor for each of {frame.full_size} data, and "
                f"draws anew which {frame.size} of them it is asked for, whatever the batch is: "
                "give it create_plates=, a function of the batch that returns "
                'pyro.plate("data", N, subsample=index), or take an amortized guide, such as '
                "ppvae.guides.Normal"
            )
        if frame is not None and frame.size not in (batch_size(batch), -1):
            raise ValueError(
                f"this {type(part).__name__} has a factor for each of the {frame.size} data that "
                f"it first saw, and the batch {batch_size(batch)} data: pass all data at once, "
                "give it create_plates=, or take an amortized guide, such as ppvae.guides.Normal"
            )


def _counts(total: int, most: int) -> list[int]:
    return [min(most, total - start) for start in range(0, total, most)]
