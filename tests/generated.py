"""Pairs of model and guide by chance, each with its exact evidence: what `test_generated` judges.

    p(z_1 | b) p(z_2 | z_1) ... p(x_n | z_L),  each z_l of its own family, shared or one per datum

The chain's evidence is a product of matrices over grids, and its ELBO a mean over draws by torch
alone: neither meets Pyro's handlers, plates or traces. A recipe (`Story`) may hold one `twist`: an
ingredient that makes the story another one than it looks, or that needs care. What it says is
then still what the plain story says; whoever cannot tell has to refuse.
"""

from dataclasses import dataclass, field
from functools import cached_property

import hypothesis.strategies as st
import pyro.distributions as dist
import torch

FAMILIES = ("normal", "log-normal", "gamma", "beta", "bernoulli")
TIMES = 3  # a subsampled plate stands for so many times the batch
POSITIVE = ("log-normal", "gamma")

# What a recipe may hold beside the plain story. `scalable`: needs a latent per datum.
TWISTS = {
    "none": "",
    "factor": "a factor that is no constant",
    "scaled likelihood": "poutine.scale around x",
    "scaled prior": "poutine.scale around z_L in the model alone",
    "scaled guide": "poutine.scale around z_L in the guide alone",
    "scaled latents": "the same poutine.scale around z_L in both",
    "scaled pair": "poutine.scale around the whole of both, as 1 / N",
    "masked prior": "z_L masked in the model alone",
    "masked guide": "z_L masked in the guide alone",
    "masked latents": "z_L masked in both, but not x",
    "imputed": "x sampled with obs_mask=, which the guide does not know",
    "missing": "z_L unknown to the guide",
    "unknown": "a latent of the guide, unknown to the model, without a mark",
    "indicator": "a discrete auxiliary site, so that the guide is a mixture",
    "auxiliary": "a continuous auxiliary site that z_L depends on",
    "point": "z_L a Delta",
    "point behind": "z_L a Delta behind an auxiliary Delta",
    "guide's factor": "a factor in the guide",
    "guide observes": "an observed site in the guide",
    "nothing observed": "a model without data",
    "swapped": "model and guide in each other's place",
    "plate without size": "",
    "plate of another name": "and subsampled",
    "own subset": "the plate draws rows of the batch, which is all data",
    "model subsamples": "and the guide does not",
    "guide subsamples": "and the model does not",
    "rows by index": "pyro.plate(subsample=) of indices",
    "column": "x against a mean of shape (N, 1)",
    "axis of the model": "a function of (N, ...) that is another one under particles",
    "leak": "a guide wider than the support",
    "enumerated": "z_L summed out, infer={'enumerate': 'parallel'}",
}
OF_DATA = {  # twists that need a latent per datum
    *("masked prior", "masked guide", "masked latents", "indicator", "auxiliary", "enumerated"),
    *("plate of another name", "guide subsamples", "axis of the model"),
}
OF_TWO = {"missing", "enumerated"}  # and those that need two
SUBSAMPLED = {"model subsamples", "guide subsamples", "rows by index"}
ORDERS = ("forward", "backward", "chain", "upward")


@dataclass(frozen=True)
class Story:
    """A recipe: all that there is to know of a pair and its batch."""

    families: tuple[str, ...]
    likelihood: str
    shared: int  # the first latents that all data share
    dim: int | None  # of the events, () or (dim,), whose coordinates are independent chains
    size: int  # N
    plate: str  # "whole", or subsampled: "tensor" or "drawn"
    order: str  # of the guide: "forward", "backward", or with dependence, "chain", "upward"
    heavy: bool  # tails: families without a closed-form KL
    mask: str  # "none", "data", or "rows", of model and guide alike
    flavors: frozenset[str]  # "constant factor", "deterministic", "table", "transport", "mapping"
    seed: int
    twist: str = "none"
    numbers: dict = field(init=False, repr=False, compare=False, hash=False)

    def __post_init__(self):
        generator = torch.Generator().manual_seed(self.seed)

        def uniform(low, high, *shape):
            u = torch.rand(shape, generator=generator, dtype=torch.float64)
            return low + (high - low) * u

        depth, seen = self.depth, uniform(0, 1, self.size) > 0.4
        seen[0] = True
        if self.size > 1:
            seen[-1] = False
        numbers = {
            "slope": uniform(0.5, 1.5, depth),
            "offset": uniform(-0.5, 0.5, depth),
            "scale": uniform(0.7, 1.0, depth),
            "encoder": uniform(-0.4, 0.4, 2, depth),
            "table": uniform(-0.4, 0.4, self.size),
            "bias": float(uniform(-0.4, 0.4)),
            "tilt": float(uniform(0.5, 1.0)),
            "seen": seen,
        }
        object.__setattr__(self, "numbers", numbers)

    @property
    def depth(self):
        """L, the number of latents."""
        return len(self.families)

    @property
    def names(self):
        """The latents' sites."""
        return [f"z_{l + 1}" for l in range(self.depth)]

    @property
    def last(self):
        """The latent that a twist takes hold of."""
        return self.depth - 1

    @property
    def local(self):
        """Whether each datum has its own latents, all of them."""
        return self.shared == 0

    @property
    def served(self):
        """Whether nothing here may be refused by `check_pair`."""
        return self.twist in ("none", "factor")

    @property
    def weighed(self):
        """Whether nothing here may be refused by `log_weights`."""
        return self.served and (self.local or self.plate == "whole")

    @cached_property
    def x(self):
        """The data, `(N,)` or `(N, D)`."""
        shape = (self.size,) if self.dim is None else (self.size, self.dim)
        law = {
            "normal": dist.Normal(0.0, 1.2),
            "bernoulli": dist.Bernoulli(0.5),
            "poisson": dist.Poisson(1.5),
        }[self.likelihood]
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            return law.sample(shape)

    @property
    def batch(self):
        """What both sides receive."""
        if self.mask == "none" and self.twist not in MASKING and "mapping" not in self.flavors:
            return self.x
        return {"x": self.x, "seen": self.numbers["seen"]}

    @property
    def shown(self):
        """Which data count, `(N,)`: not those that are masked."""
        return self.numbers["seen"] if self.mask != "none" or self.twist == "imputed" else None

    # The laws of the chain, for tensors of any shape

    def link(self, l, z):
        """What of z_l the next site hears, in about (-1, 1)."""
        match self.families[l]:
            case "normal":
                return z.tanh()
            case "log-normal" | "gamma":
                return (z - 1) / (z + 1)
            case _:
                return 2 * z - 1

    def prior(self, l, h):
        """p(z_l | h)."""
        a, b, s = (float(self.numbers[name][l]) for name in ("slope", "offset", "scale"))
        u = a * torch.as_tensor(h) + b
        match self.families[l]:
            case "normal":
                return dist.Normal(u, s)
            case "log-normal":
                return dist.LogNormal(u / 2, s / 2)
            case "gamma":
                return dist.Gamma(2 + s + 0 * u, (0.3 * u).exp())
            case "beta":
                return dist.Beta(2 * (0.3 * u).exp(), 2 + 0 * u)
            case _:
                return dist.Bernoulli(logits=u)

    def posterior(self, l, u):
        """q(z_l | u): wider than the prior, so that weights are bounded."""
        match self.families[l]:
            case "normal":
                return dist.StudentT(5.0, u, 1.2) if self.heavy else dist.Normal(u, 1.3)
            case "log-normal":
                return dist.LogNormal(u, 0.7)
            case "gamma":
                return dist.Gamma(1.6 + 0 * u, 0.45 * (0.2 * u).exp())
            case "beta":
                return dist.Beta(1.2 + 0 * u, 1.2 * (0.2 * u).exp())
            case _:
                return dist.Bernoulli(logits=u)

    def of_data(self, h):
        """p(x | h)."""
        match self.likelihood:
            case "normal":
                return dist.Normal(1.5 * h, 0.8)
            case "bernoulli":
                return dist.Bernoulli(logits=2 * h)
            case _:
                return dist.Poisson(h.exp())

    def tilt(self, h):
        """The logarithm of a factor of the last latent, by coordinate."""
        factor = self.numbers["tilt"] * h if self.twist == "factor" else 0 * h
        return factor + (0.3 if "constant factor" in self.flavors else 0.0)

    @property
    def tilted(self):
        """Whether there is a factor."""
        return self.twist == "factor" or "constant factor" in self.flavors

    def code(self, x, l):
        """What the guide's z_l hears of x: of all data where they share it."""
        h = x.tanh()
        return h.mean(0) if l < self.shared else h

    def steps(self):
        """The guide's order: latents, each with the one that it depends on, or None."""
        forward = list(range(self.depth))
        if self.order in ("forward", "chain"):
            before = [None, *forward[:-1]] if self.order == "chain" else [None] * self.depth
            return list(zip(forward, before, strict=True))
        parts = [forward[self.shared :][::-1], forward[: self.shared][::-1]]  # data's, and shared
        steps = []
        for part in parts[::-1]:  # those that all data share come before the plate
            before = [None, *part] if self.order == "upward" else [None] * len(part)
            steps += zip(part, before, strict=False)
        return steps


MASKING = ("masked prior", "masked guide", "masked latents", "imputed")


@st.composite
def stories(draw, twist="none"):
    """Draw a recipe with a given twist."""
    depth = draw(st.integers(1 + (twist in OF_TWO), 3))
    last = {"leak": ["beta"], "enumerated": ["bernoulli"]}
    families = [draw(st.sampled_from(FAMILIES)) for _ in range(depth - 1)]
    families.append(draw(st.sampled_from(last.get(twist, FAMILIES))))
    shared = draw(st.integers(0, depth - (twist in OF_DATA)) | st.just(0))
    mixed = 0 < shared < depth  # many dimensions for one weight
    size = draw(st.integers(2, 3 if mixed else 5))
    dim = None if mixed else draw(st.sampled_from([None, 2]))
    plate = draw(st.sampled_from(["whole", "whole", "tensor", "drawn"]))
    masks = ["none", "none", "data"] + (["rows"] if shared < depth else [])
    flavors = draw(
        st.frozensets(
            st.sampled_from(["constant factor", "deterministic", "table", "transport", "mapping"])
        )
    )
    if twist != "none":  # one thing at a time
        flavors, masks = flavors - {"table", "transport"}, ["none"]
        plate = "drawn" if twist in SUBSAMPLED else "whole"
    return Story(
        families=tuple(families),
        likelihood=draw(st.sampled_from(["normal", "bernoulli", "poisson"])),
        shared=shared,
        dim=dim,
        size=size,
        plate=plate,
        order=draw(st.sampled_from(ORDERS)),
        heavy=draw(st.booleans()),
        mask=draw(st.sampled_from(masks)),
        flavors=flavors,
        seed=draw(st.integers(0, 2**16)),
        twist=twist,
    )


# The yardsticks


def _grid(family):
    """Return points of a support, and the logarithms of their weights."""
    if family == "bernoulli":
        return torch.tensor([0.0, 1.0], dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    low, high = {"normal": (-9, 9), "beta": (-14, 14)}.get(family, (-14, 5))
    u = torch.linspace(low, high, 201, dtype=torch.float64)
    step = (u[1] - u[0]).log()
    match family:
        case "normal":
            return u, step.expand(201)
        case "beta":
            z = u.sigmoid().clamp(1e-12, 1 - 1e-12)
            return z, step + z.log() + (1 - z).log()
    return u.exp(), step + u


def _passed(table, message):
    """Return ln sum_j exp(table_ij + message_j...), for every i."""
    top = message.amax(0, keepdim=True)
    return (table.exp() @ (message - top).exp().flatten(1)).log().reshape(
        len(table), *message.shape[1:]
    ) + top


def exact(story):
    """Return ln p(x_n), `(N,)`, or ln p(x_1, ..., x_N), `(1,)`, where data share a latent."""
    x = story.x.double().reshape(story.size, -1)  # (N, D)
    grids = [_grid(family) for family in story.families]
    h = story.link(story.last, grids[-1][0])  # (G,)
    message = story.of_data(h[:, None, None]).log_prob(x)  # (G, N, D)
    if story.twist == "nothing observed":
        message = torch.zeros_like(message)
    if story.mask == "data" or story.twist == "imputed":
        message = message * story.shown[:, None]
    tilt = story.tilt(h)[:, None, None]  # in the plate where z_L is
    if story.shared == story.depth:
        message = _joint(story, message)
    message = message + tilt
    for l in range(story.last, -1, -1):
        z, log_weight = grids[l]
        above = story.link(l - 1, grids[l - 1][0]) if l else torch.tensor([story.numbers["bias"]])
        table = story.prior(l, above.double()[:, None]).log_prob(z) + log_weight
        message = _passed(table, message)
        if l == story.shared and l:
            message = _joint(story, message)
    if story.local:
        message = message * _counted(story)
    return message[0].sum(-1)


def _counted(story):
    rows = story.shown if story.mask == "rows" else torch.ones(story.size, dtype=torch.bool)
    return rows[:, None]


def _joint(story, message):
    """Return the message of all data, (G, 1, D)."""
    return (message * _counted(story)).sum(1, keepdim=True)


@dataclass(frozen=True)
class Draws:
    """Log probabilities of draws of the guide, `(S, N)` each, or `(S, 1)` of what is shared."""

    log_p: dict  # by site: latents, "x" and "factor"
    log_q: dict

    def terms(self, story, scale):
        """Return the likelihood, the factor and each latent's KL, `(S,)`, per datum of all."""
        shared = set(story.names[: story.shared])
        if story.shared == story.depth:
            shared |= {"factor"}

        def per_datum(name, value):
            return value.sum(-1) / story.size / (scale if name in shared else 1)

        kl = {n: per_datum(n, q - self.log_p[n]) for n, q in self.log_q.items()}
        return per_datum("x", self.log_p["x"]), per_datum("factor", self.log_p["factor"]), kl


def draws(story, count):
    """Draw from the guide by torch alone; of the plain story, whatever its twist."""
    x = story.x.double()
    slope, offset = story.numbers["encoder"]
    z, log_p, log_q = {}, {}, {}
    for l, after in story.steps():
        u = slope[l] * story.code(x, l) + offset[l]
        if "table" in story.flavors and l >= story.shared:
            table = story.numbers["table"]
            u = u + (table if story.dim is None else table[:, None])
        if l < story.shared:  # (1,) or (1, D): an axis for the data
            u = u.unsqueeze(0)
        if after is not None:
            u = u + 0.8 * story.link(after, z[after])
        q = story.posterior(l, u.expand(count, *u.shape[-1 - (story.dim is not None) :]))
        z[l] = q.sample()
        log_q[l] = q.log_prob(z[l])
    h = torch.tensor(story.numbers["bias"], dtype=torch.float64)
    for l in range(story.depth):
        log_p[l] = story.prior(l, h).log_prob(z[l])
        h = story.link(l, z[l])
    likelihood = story.of_data(h).log_prob(x)
    log_p |= {"x": likelihood, "factor": story.tilt(h)}
    if story.dim is not None:
        log_p, log_q = ({n: v.sum(-1) for n, v in d.items()} for d in (log_p, log_q))
    if story.mask != "none":
        log_p["x"] = log_p["x"] * story.shown
    if story.mask == "rows":
        for terms in (log_p, log_q):
            for name in terms:
                if (
                    name == "x"
                    or (name == "factor" and story.shared < story.depth)
                    or name != "factor"
                    and name >= story.shared
                ):
                    terms[name] = terms[name] * story.shown
    names = dict(enumerate(story.names))
    return Draws(*({names.get(n, n): v for n, v in d.items()} for d in (log_p, log_q)))
