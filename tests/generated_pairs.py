"""The recipes of `generated` as Pyro's modules, twists included."""

from contextlib import ExitStack

import pyro
import pyro.distributions as dist
import torch
from generated import TIMES
from pyro import poutine
from torch import nn

AMISS = ("missing", "enumerated")  # the guide has no z_L


class Side(nn.Module):
    """What model and guide of a recipe have in common."""

    def __init__(self, story):
        super().__init__()
        self.story = story

    @property
    def twist(self):
        """The recipe's."""
        return self.story.twist

    def forward(self, batch):
        """Sample the sites."""
        x, seen = (batch["x"], batch["seen"]) if isinstance(batch, dict) else (batch, None)
        with ExitStack() as around:
            if self.twist == "scaled pair":
                around.enter_context(poutine.scale(scale=1 / self.story.size))
            self.tell(x, seen)

    def event(self, fn):
        """Return a law with the events' shape."""
        if self.story.dim is None:
            return fn
        return (fn if fn.batch_shape else fn.expand((self.story.dim,))).to_event(1)

    def straight(self, z):
        """Return z as it is: for `(N, ...)` only, where the twist says so."""
        if not self.twist.startswith("axis"):
            return z
        return z.flip(0 if self.story.dim is None else 1).flip(z.ndim - 1)

    def around(self, seen, *twists):
        """Return what is around z_L: a scale or a mask, if the twist is one of these."""
        around = ExitStack()
        if self.twist in twists:
            masked = "masked" in self.twist
            scale = 0.4 if self.story.seed % 2 else 2.5
            handler = poutine.mask(mask=seen) if masked else poutine.scale(scale=scale)
            around.enter_context(handler)
        return around

    def plate(self, x, subsamples):
        """Return the data plate, and rows: those of the batch that it holds."""
        n, whole = len(x), TIMES * self.story.size
        kind = "drawn" if self.twist == subsamples else self.story.plate
        if self.twist.endswith("subsamples") and self.twist != subsamples:
            kind = "whole"
        match self.twist:
            case "plate without size":
                return pyro.plate("data", dim=-1), slice(None)
            case "plate of another name":
                return pyro.plate("rows", whole, subsample=x, dim=-1), slice(None)
            case "own subset":
                plate = pyro.plate("data", n, subsample_size=max(1, n - 1), dim=-1)
                return plate, plate.indices if n > 1 else slice(None)
            case "rows by index":
                return pyro.plate("data", whole, subsample=torch.arange(n), dim=-1), slice(None)
        plates = {
            "whole": {"size": n},
            "tensor": {"size": whole, "subsample": x},
            "drawn": {"size": whole, "subsample_size": n},
        }
        return pyro.plate("data", dim=-1, **plates[kind]), slice(None)


class Model(Side):
    """The chain, and x at its end."""

    def __init__(self, story):
        super().__init__(story)
        self.bias = nn.Parameter(torch.tensor(story.numbers["bias"]))

    def tell(self, x, seen):
        """Sample the latents that all data share, then those in the plate, and x."""
        story, h = self.story, self.bias
        for l in range(story.shared):
            h = self.latent(l, h, seen)
        if story.shared == story.depth:
            self.factor(h)
        plate, rows = self.plate(x, "model subsamples")
        with plate, ExitStack() as masked:
            if story.mask == "rows":
                masked.enter_context(poutine.mask(mask=seen))
            for l in range(story.shared, story.depth):
                h = self.latent(l, h, seen)
            if story.shared < story.depth:
                self.factor(h)
            self.observe(h, x[rows], seen)

    def latent(self, l, h, seen):
        """Sample z_l given h, and return what it tells the next."""
        last = l == self.story.last
        infer = {"enumerate": "parallel"} if last and self.twist == "enumerated" else {}
        twists = ("scaled prior", "scaled latents", "masked prior", "masked latents")
        with self.around(seen, *twists) if last else ExitStack():
            law = self.event(self.story.prior(l, h))
            z = pyro.sample(self.story.names[l], law, infer=infer)
        if last and self.twist == "axis of the model":
            z = self.straight(z)
        return self.story.link(l, z)

    def factor(self, h):
        """Tilt the prior."""
        if self.story.tilted:
            tilt = self.story.tilt(h)
            pyro.factor("tilt", tilt if self.story.dim is None else tilt.sum(-1))

    def observe(self, h, x, seen):
        """Observe x."""
        if self.twist == "nothing observed":
            return
        if self.twist == "column":
            h = h.expand(len(x)).unsqueeze(-1) if h.ndim < 1 else h.unsqueeze(-1)
        h = h if self.story.dim is None or h.ndim else h.expand(self.story.dim)
        if "deterministic" in self.story.flavors:
            pyro.deterministic("mean", h)
        law = self.story.of_data(h)
        law = law if self.story.dim is None else law.to_event(1)
        options = {"obs_mask": seen} if self.twist == "imputed" else {}
        masked = poutine.mask(mask=seen) if self.story.mask == "data" else ExitStack()
        with masked, self.around(seen, "scaled likelihood"):
            pyro.sample("x", law, obs=x, **options)


class Guide(Side):
    """The wide posterior, in an order of its own."""

    def __init__(self, story):
        super().__init__(story)
        encoder = story.numbers["encoder"].float()
        self.slope, self.offset = nn.Parameter(encoder[0]), nn.Parameter(encoder[1])
        if "table" in story.flavors and story.shared < story.depth:
            self.table = nn.Parameter(story.numbers["table"].float())

    def tell(self, x, seen):
        """Sample the latents that all data share, then those in the plate."""
        z = {}
        steps = [(l, after) for l, after in self.story.steps() if not self.lacks(l)]
        for l, after in (step for step in steps if step[0] < self.story.shared):
            self.latent(l, after, z, x, seen)
        plate, rows = self.plate(x, "guide subsamples")
        with plate, ExitStack() as masked:
            if self.story.mask == "rows":
                masked.enter_context(poutine.mask(mask=seen))
            for l, after in (step for step in steps if step[0] >= self.story.shared):
                self.latent(l, after, z, x[rows], seen)
            if self.twist == "unknown":
                pyro.sample("extra", dist.Normal(self.offset[0], 1.0))
            if self.twist == "guide observes":
                pyro.sample(
                    "seen",
                    dist.Normal(x, 1.0 + self.offset[0].exp()).to_event(
                        self.story.dim is not None
                    ),
                    obs=x,
                )

    def lacks(self, l):
        """Return whether the guide does not know z_l."""
        return l == self.story.last and self.twist in AMISS

    def latent(self, l, after, z, x, seen):
        """Sample z_l, with what it depends on among the latents z so far."""
        story, last = self.story, l == self.story.last
        u = self.slope[l] * story.code(x, l) + self.offset[l]
        if hasattr(self, "table") and l >= story.shared:
            u = u + (self.table if story.dim is None else self.table[:, None])
        if after in z:
            u = u + 0.8 * story.link(after, z[after])
        with (
            self.around(seen, "scaled guide", "scaled latents", "masked guide", "masked latents")
            if last
            else ExitStack()
        ):
            z[l] = self.sample(l, u) if last else self.plain(l, u)
        if last and self.twist == "guide's factor":
            h = story.link(l, z[l])
            pyro.factor(
                "tilt of the guide",
                0.7 * (h if story.dim is None else h.sum(-1)),
                has_rsample=False,
            )

    def plain(self, l, u):
        """Sample z_l as the recipe says."""
        return pyro.sample(self.story.names[l], self.event(self.story.posterior(l, u)))

    def sample(self, l, u):
        """Sample z_L as the twist says."""
        story, name, wide = self.story, self.story.names[l], self.story.dim is not None
        hidden = {"is_auxiliary": True}
        match self.twist:
            case "indicator":
                k = pyro.sample(
                    "k", dist.Bernoulli(0.5 + 0 * (u[..., 0] if wide else u)), infer=hidden
                )
                k = k.unsqueeze(-1) if wide else k
                return self.plain(l, u + k - 0.5)
            case "auxiliary":
                e = pyro.sample("e", self.event(dist.Normal(u, 0.5)), infer=hidden)
                return self.plain(l, e)
            case "point" | "point behind":
                value = story.posterior(l, u)
                value = (
                    (value.probs > 0.5).float() + 0 * u
                    if story.families[l] == "bernoulli"
                    else value.mean
                )
                if self.twist == "point behind":
                    value = pyro.sample("e", dist.Delta(value, event_dim=int(wide)), infer=hidden)
                return pyro.sample(name, dist.Delta(value, event_dim=int(wide)))
            case "leak":
                return pyro.sample(name, self.event(dist.Normal(0.5 + 0.1 * u, 0.25)))
        if "transport" in story.flavors and story.families[l] == "log-normal":
            e = pyro.sample("e", self.event(dist.Normal(u, 0.7)), infer=hidden)
            shrunk = -e.sum(-1) if wide else -e
            return pyro.sample(name, dist.Delta(e.exp(), shrunk, event_dim=int(wide)))
        return self.plain(l, u)


def pair(story):
    """Return model and guide of a recipe."""
    model, guide = Model(story), Guide(story)
    return (guide, model) if story.twist == "swapped" else (model, guide)
