"""What a pair is: one run, read into one record that everything else is a reading of."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer.autoguide import AutoGuide
from pyro.infer.util import is_validation_enabled
from pyro.ops.provenance import get_provenance, track_provenance
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites, site_is_factor, site_is_subsample
from torch import Tensor
from torch.distributions import biject_to

from ppvae.pairing.marks import Claims, Mark
from ppvae.pairing.traces import (
    PairError,
    is_delta,
    is_deterministic,
    knows_support,
    latent_sites,
    sample_sites,
    subsampling,
)
from ppvae.protocols import (
    DATA_PLATE,
    Batch,
    Guide,
    ModalityError,
    Model,
    batch_size,
    leaves,
    modules_of,
)

__all__ = [
    "Record",
    "Role",
    "Site",
    "count_missing",
    "describe",
    "read",
    "roles_of",
    "unconstrained_size",
]

Role = Literal[
    "latent",  # sampled by both
    "observed",
    "factor",
    "deterministic",
    "auxiliary",  # the guide's alone
    "enumerated",  # the model's alone, and summed out
    "missing",  # on the other side
]


@dataclass(frozen=True)
class Site:
    """A variable of a model or guide, and all that is known of its density.

    Attributes:
        name: Its.
        role: See `Role`.
        node: Pyro's record of it, in a run of one draw.
        plates: The plates that it lies in, by name.
        scale: What its log probability is multiplied by, beyond what subsampled plates explain.
        masks: Which of its entries count, as tensors that broadcast to (*batch, *event) shapes.
        mark: What it says of itself.
        random: Whether it is drawn, and no `Delta`.
        origins: The random auxiliary sites that its value depends on; guides' sites only.
    """

    name: str
    role: Role
    node: dict
    plates: Mapping[str, object]
    scale: Tensor | float
    masks: tuple[Tensor, ...]
    mark: Mark
    random: bool
    origins: frozenset[str] = frozenset()

    @property
    def shape(self) -> torch.Size:
        """The shape of its law, batch and event."""
        return self.node["fn"].batch_shape + self.node["fn"].event_shape

    def mask(self, shape: torch.Size) -> Tensor:
        """Return which of its entries count, as booleans of a shape."""
        mask = torch.ones((), dtype=torch.bool, device=self.node["value"].device)
        for part in self.masks:
            mask = mask & part.to(mask.device)
        return mask.expand(shape)

    @property
    def counts(self) -> bool:
        """Whether its density is in the log weight at all: not where it is masked altogether."""
        return self.node["mask"] is not False


@dataclass(frozen=True)
class Record:
    """What a pair of model and guide is, on one batch.

    Attributes:
        model: The model's sites by name, in its order.
        guide: The guide's.
        size: N, the number of data in the batch.
        claims: What the model says of itself.
        autoguide: Whether a part of the guide is one of Pyro's, which knows no other data.
        constant_factors: Whether what factors say depends on no latent.
        hidden: Whether what is masked of the latents changes nothing else of the model.
    """

    model: Mapping[str, Site]
    guide: Mapping[str, Site]
    size: int
    claims: Claims
    autoguide: bool
    constant_factors: bool
    hidden: bool = True

    def of(self, owner: Literal["model", "guide"], *roles: Role) -> dict[str, Site]:
        """Return the sites of a side that play one of some roles, by name."""
        sites = self.model if owner == "model" else self.guide
        return {name: site for name, site in sites.items() if site.role in roles}

    @property
    def latents(self) -> tuple[str, ...]:
        """The latents that both sample, in the model's order."""
        return tuple(self.of("model", "latent"))

    @property
    def enumerated(self) -> tuple[str, ...]:
        """The model's sites that are summed out."""
        return tuple(self.of("model", "enumerated"))

    @property
    def joint(self) -> bool:
        """Whether the weights are of all data at once: a latent lies outside of their plate."""
        drawn = (*self.of("model", "latent", "enumerated").values(), *self._drawn_by_guide())
        return any(DATA_PLATE not in site.plates for site in drawn)

    @property
    def shared(self) -> bool:
        """Whether all data share a latent of the model: it lies in no plate of their size."""
        sizes = (self.size, -1)
        latents = self.of("model", "latent", "enumerated", "missing").values()
        return any(all(f.size not in sizes for f in site.plates.values()) for site in latents)

    @property
    def full_size(self) -> int:
        """How many data the batch stands for: more than N under a subsampled plate."""
        frames = [f for s in self.model.values() for f in s.plates.values()]
        sizes = [f.full_size for f in frames if f.name == DATA_PLATE and f.full_size]
        return max([size for size in sizes if size > 0], default=self.size)

    @property
    def points(self) -> tuple[str, ...]:
        """The guide's latents that are points: no random auxiliary site stands behind them."""
        latents = self.of("guide", "latent").items()
        return tuple(name for name, site in latents if not site.random and not site.origins)

    @property
    def unnormalized(self) -> str:
        """Why the evidence lacks ln Z; empty where it does not."""
        if self.claims.unnormalized or self.constant_factors:
            return self.claims.unnormalized
        names = ", ".join(repr(name) for name in self.of("model", "factor"))
        return f"its factor {names} depends on the latents, so that its density need not be one"

    @property
    def needs_runs(self) -> bool:
        """Whether what a trace shows is not enough: draws on the way, points, factors, masks."""
        latents = self.of("guide", "latent").values()
        aside = any(not site.random or site.masks for site in latents)
        return aside or bool(self.of("guide", "auxiliary") or self.of("model", "factor"))

    def follows(self) -> dict[str, bool]:
        """Return for each latent whether the guide draws before it all that the model does.

        Only then is KL(q(z_i | ...) || p(z_i | ...)) in closed form a term of the KL of all.
        """
        order = {name: place for place, name in enumerate(self.of("guide", "latent"))}
        names = self.latents
        return {
            name: all(order[before] < order[name] for before in names[: names.index(name)])
            for name in names
            if name in order
        }

    @cached_property
    def auxiliaries(self) -> dict[str, Site]:
        """The guide's random auxiliary sites that count."""
        sites = self.of("guide", "auxiliary").items()
        return {name: site for name, site in sites if site.random and site.counts}

    def _drawn_by_guide(self) -> Iterable[Site]:
        return self.of("guide", "latent", "auxiliary").values()


def describe(model: Model, guide: Guide, batch: Batch, *args: object, **kwargs) -> Record:
    """Run a pair, and return what it is.

    Call it in `evaluating(model, guide)`, on forked random streams. The model runs twice, on its
    own and replayed on the guide: sites that do not fit could not be replayed.

    Args:
        model: Samples p(x, z).
        guide: Samples q(z | x).
        batch: x, `(N, ...)`.
        *args: What else both take, for pairs of Pyro's own kind.
        **kwargs: Likewise.

    Raises:
        PairError: If a side does not run on the batch, or the two do not fit together so far that
            the model can run on the guide's draws.
    """
    args = (batch, *args)
    guide_trace = _run("guide", guide, *args, **kwargs)
    alone = _run("model", model, *args, **kwargs)
    _require_events(alone, guide_trace)
    checks = is_validation_enabled() and not _leaks(alone, guide_trace)
    with pyro.validation_enabled(checks):  # what hangs on a draw outside of the support is moot
        replayed = _run("model", poutine.replay(model, trace=guide_trace), *args, **kwargs)
    size = batch_size(batch) if isinstance(batch, (Tensor, Mapping)) else 1
    record = read(
        replayed,
        guide_trace,
        size,
        claims=Claims.of(model),
        autoguide=any(isinstance(part, AutoGuide) for part in modules_of(guide)),
        origins=_origins(guide, guide_trace, *args, **kwargs),
        alone=alone,
    )
    return replace(record, hidden=_hides(record, model, guide_trace, alone, *args, **kwargs))


def _hides(
    record: Record, model: Model, guide_trace: Trace, alone: Trace, *args: object, **kwargs
) -> bool:
    """Return whether other values where latents are masked leave all else as probable."""
    moved = Trace()
    for name, site in latent_sites(guide_trace).items():
        moved.add_node(name, **site)
    masked = [name for name in record.latents if record.model[name].masks]
    for name in masked:
        ours, other = guide_trace.nodes[name]["value"], alone.nodes[name]["value"]
        mask = record.model[name].mask(ours.shape)
        moved.nodes[name]["value"] = torch.where(mask, ours, other)
    if not masked:
        return True
    with pyro.validation_enabled(False):
        again = _run("model", poutine.replay(model, trace=moved), *args, **kwargs)
    before = {name: _total(record.model[name].node) for name in record.model}
    return all(
        torch.allclose(before[name], _total(site), rtol=1e-4, atol=1e-3, equal_nan=True)
        for name, site in sample_sites(again).items()
        if name in before
    )


def _total(site: dict) -> Tensor:
    """Return a site's log probability, masked, of all data at once."""
    if is_deterministic(site):
        return torch.zeros(())
    try:
        log_p = site["fn"].log_prob(site["value"])
    except ValueError:  # a draw outside of the support
        return torch.tensor(-torch.inf)
    return torch.as_tensor(scale_and_mask(log_p, 1.0, site["mask"])).sum()


def read(
    model_trace: Trace,
    guide_trace: Trace,
    size: int,
    *,
    claims: Claims = Claims(),  # noqa: B008 -- frozen
    autoguide: bool = False,
    origins: Mapping[str, frozenset[str]] | None = None,
    alone: Trace | None = None,
) -> Record:
    """Read a record off traces of one draw, of the model replayed and of the guide."""
    model_roles, guide_roles = roles_of(model_trace, guide_trace)
    sides = []
    for trace, roles in ((model_trace, model_roles), (guide_trace, guide_roles)):
        sites = sample_sites(trace)
        sides.append(
            {
                n: _site(n, roles[n], s, (origins or {}).get(n, frozenset()))
                for n, s in sites.items()
            }
        )
    constant = alone is None or _same_factors(model_trace, alone)
    return Record(*sides, size, claims, autoguide, constant)


def roles_of(model_trace: Trace, guide_trace: Trace) -> tuple[dict[str, Role], dict[str, Role]]:
    """Return the role of each site of the model and of the guide, by name."""
    model, guide = sample_sites(model_trace), sample_sites(guide_trace)
    return (
        {name: _role(site) or _of_model(site, name in guide) for name, site in model.items()},
        {name: _role(site) or _of_guide(site, name in model) for name, site in guide.items()},
    )


def _role(site: dict) -> Role | None:
    """Return the role that a site has whatever the other side does."""
    if is_deterministic(site):
        return "deterministic"
    if site["is_observed"]:
        return "factor" if site_is_factor(site) else "observed"
    return None


def _of_model(site: dict, known: bool) -> Role:
    if known:
        return "latent"
    return "enumerated" if site["infer"].get("enumerate") == "parallel" else "missing"


def _of_guide(site: dict, known: bool) -> Role:
    if known:
        return "latent"
    return "auxiliary" if Mark.of(site).is_auxiliary else "missing"


def _site(name: str, role: Role, node: dict, origins: frozenset[str]) -> Site:
    plates = {frame.name: frame for frame in node["cond_indep_stack"]}
    factor = subsampling(node)
    scale = node["scale"] / factor if factor != 1 else node["scale"]
    masks, random = tuple(_masks(node)), not is_delta(node["fn"])
    return Site(name, role, node, plates, scale, masks, Mark.of(node), random, origins)


def _masks(node: dict) -> Iterable[Tensor]:
    """Yield what masks a site, each with as many axes as batch and event of its law have."""
    fn, mask = node["fn"], node["mask"]
    if isinstance(mask, Tensor):
        yield mask.reshape(mask.shape + (1,) * len(fn.event_shape))
    while hasattr(fn, "base_dist"):
        inner = getattr(fn, "_mask", None)  # MaskedDistribution's
        if inner is not None:
            inner = torch.as_tensor(inner)
            yield inner.reshape(inner.shape + (1,) * len(fn.event_shape))
        fn = fn.base_dist


def _same_factors(model_trace: Trace, alone: Trace) -> bool:
    """Return whether factors said the same at other latents."""
    for name, site in sample_sites(model_trace).items():
        if site["is_observed"] and site_is_factor(site):
            other = alone.nodes.get(name)
            if other is None or not torch.equal(
                *(torch.as_tensor(s["fn"].log_factor) for s in (site, other))
            ):
                return False
    return True


def _origins(
    guide: Guide, guide_trace: Trace, *args: object, **kwargs
) -> dict[str, frozenset[str]]:
    """Return the random auxiliary sites that the value of each site of the guide depends on."""
    drawn = {
        name
        for name, site in sample_sites(guide_trace).items()
        if Mark.of(site).is_auxiliary and not is_delta(site["fn"])
    }
    if not drawn:
        return {}
    with _Tracked(drawn):
        nodes = poutine.trace(guide).get_trace(*args, **kwargs).nodes
    found = {
        name: frozenset(get_provenance(site["value"])) - {name}
        for name, site in nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site)
    }
    return found


class _Tracked(Messenger):
    """Marks what is computed from some sites."""

    def __init__(self, names: set[str]) -> None:
        super().__init__()
        self.names = names

    def _pyro_post_sample(self, msg: dict) -> None:
        if msg["name"] in self.names:
            msg["value"] = track_provenance(msg["value"], frozenset([msg["name"]]))


def unconstrained_size(site: dict) -> int:
    """Return how many numbers a draw has, once it is brought onto all of space."""
    fn, value = site["fn"], site["value"]
    try:
        shape = biject_to(fn.support).inverse_shape(value.shape)
    except NotImplementedError:
        return value.numel()
    return shape.numel()


def _leaks(alone: Trace, guide_trace: Trace) -> bool:
    """Return whether a draw of the guide lies outside of the model's support."""
    return any(
        not bool(site["fn"].support.check(guide_trace.nodes[name]["value"]).all())
        for name, site in latent_sites(alone).items()
        if name in guide_trace.nodes and knows_support(site["fn"])
    )


def _require_events(alone: Trace, guide_trace: Trace) -> None:
    """Raise if a latent's events differ in shape: the model could not run on the guide's draws."""
    for name, site in sample_sites(alone).items():
        q = guide_trace.nodes.get(name)
        if q is None or q["is_observed"] or site["is_observed"] or site_is_subsample(q):
            continue
        if site["fn"].event_shape != q["fn"].event_shape:
            raise PairError(
                f"site {name!r}: the model's events have shape {tuple(site['fn'].event_shape)}, "
                f"the guide's {tuple(q['fn'].event_shape)}: give both the same latent_dim"
            )


def _run(owner: str, fn: Callable[..., None], *args: object, **kwargs) -> Trace:
    """Return a trace of one side, or say in words why there is none."""
    try:
        return prune_subsample_sites(poutine.trace(fn).get_trace(*args, **kwargs))
    except (ModalityError, PairError) as error:
        raise PairError(_first_line(error)) from error  # Pyro adds the shapes of all sites
    except (FloatingPointError, NotImplementedError):
        raise  # of a chain within, which says itself what to mend
    except Exception as error:
        raise PairError(_why(owner, args[0], error)) from error


def _why(owner: str, batch: Batch, error: Exception) -> str:
    """Return why a side does not run on a batch, and what to mend."""
    if not isinstance(batch, (Tensor, Mapping)):
        return f"the {owner} does not run on what it is given: {_first_line(error)}"
    named = leaves(batch)
    for name, leaf in named.items():
        if missing := count_missing(leaf):
            return (
                f"the {owner} does not run on the batch, where {missing} of {len(leaf)} data of "
                f"{name!r} hold NaN: remove or fill them"
            )
    said = _first_line(error)
    if isinstance(error, ValueError) and said.startswith("Expected parameter"):
        return (
            f"the {owner} makes a distribution that refuses its parameter: {said}. A scale that "
            "underflows to 0, or a network whose output is not finite, looks like that: bound "
            "the parameter, as softplus(h) + 1e-4 does a scale"
        )
    described = ", ".join(f"{name}: {_describe(leaf)}" for name, leaf in named.items())
    return (
        f"the {owner} does not run on the batch ({described}): {said}. Its networks and the data "
        "must agree: check their sizes. An MLP pair takes flat data, data.flatten(1); a "
        "convolutional one images (N, C, H, W); a VAE takes a tensor, no mapping; integers need "
        "data.float()"
    )


def count_missing(value: Tensor) -> int:
    """Return how many data hold NaN."""
    rows = value.isnan().reshape(len(value) if value.ndim else 1, -1)
    return int(rows.any(1).sum())


def _describe(leaf: Tensor) -> str:
    return f"{tuple(leaf.shape)} {str(leaf.dtype).removeprefix('torch.')}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
