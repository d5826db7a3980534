"""Pyro's tutorials of a latent per datum and networks, in our own words, with exact answers."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.nn.functional import softplus
from torch.optim import Adam
from tutorials import judged, right_or_refused, trained

from ppvae import SVI, check_pair, fit, log_weights
from ppvae.diagnostics import evidence
from ppvae.objectives import IWELBO, BetaELBO


def gaussian(rows, mean, covariance):
    """Return ln N(row; mean, covariance), summed over rows."""
    return dist.MultivariateNormal(mean, covariance).log_prob(rows).sum()


def uniform(*shape, seed=0):
    """Return numbers in (0, 1)."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def real(*shape, seed=0):
    """Return standard normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# The VAE: one module, whose methods are model and guide


class Autoencoder(nn.Module):
    """x ~ N(W z + b, 1/2), with batch norm and dropout on the way to q(z|x)."""

    def __init__(self):
        super().__init__()
        self.decoder = nn.Linear(2, 4)
        hidden = nn.Linear(4, 16, bias=False)
        self.encoder = nn.Sequential(hidden, nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.1))
        self.head = nn.Linear(16, 4)

    def model(self, x):
        """Sample p(x, z)."""
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            zeros = x.new_zeros(len(x), 2)
            z = pyro.sample("latent", dist.Normal(zeros, zeros + 1).to_event(1))
            pyro.sample("obs", dist.Normal(self.decoder(z), 0.5).to_event(1), obs=x)

    def guide(self, x):
        """Sample q(z|x)."""
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, scale = self.head(self.encoder(x)).chunk(2, -1)
            pyro.sample("latent", dist.Normal(loc, softplus(scale) + 0.05).to_event(1))

    def exact(self, x):
        """Return ln p(x), summed over data."""
        weight, bias = self.decoder.weight.detach(), self.decoder.bias.detach()
        return gaussian(x, bias, weight @ weight.T + 0.25 * torch.eye(len(weight)))


@pytest.mark.parametrize("loss", [Trace_ELBO, TraceMeanField_ELBO, BetaELBO, partial(IWELBO, 5)])
def test_methods_of_one_module_are_a_pair(loss):
    """Parameters are found, once each; evaluation leaves buffers and modes as they are."""
    x = real(48, 2) @ real(2, 4, seed=1) + 0.5 * real(48, 4, seed=2)
    vae = Autoencoder()
    before = vae.decoder.weight.detach().clone()
    history = trained(vae.model, vae.guide, x, loss(), epochs=30, batch_size=16)
    assert history["loss"][-1] < history["loss"][0]
    assert not torch.equal(before, vae.decoder.weight)
    vae.train()
    held = {name: b.clone() for name, b in vae.named_buffers()}
    judged(vae.model, vae.guide, x, vae.exact(x), draws=300, slack=0.5)
    assert vae.training
    assert all(torch.equal(b, held[name]) for name, b in vae.named_buffers())


def test_methods_are_weighed_in_evaluation_mode():
    """The same weights, whichever mode the module was in."""
    vae, x = Autoencoder(), real(20, 4)
    weights = []
    for mode in (True, False):
        vae.train(mode)
        torch.manual_seed(1)
        weights.append(log_weights(vae.model, vae.guide, x, 50))
    torch.testing.assert_close(*weights)


# The semi-supervised VAE, M2


CLASSES = 3


class SemiSupervised(nn.Module):
    """y ~ Categorical, z ~ N(0, I), x ~ N(W z + V_y, 0.6); y is seen, or not."""

    def __init__(self, *, enumerate_labels=False):
        super().__init__()
        self.decoder = nn.Linear(2, 4)
        self.of_class = nn.Parameter(2 * real(CLASSES, 4, seed=5))
        self.classifier = nn.Linear(4, CLASSES)
        self.encoder = nn.Linear(4 + CLASSES, 4)
        self.infer = {"enumerate": "parallel"} if enumerate_labels else {}

    def model(self, batch):
        """Sample p(x, y, z), with y observed where the batch has it."""
        x = batch["x"]
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            prior = dist.OneHotCategorical(x.new_ones(len(x), CLASSES) / CLASSES)
            y = pyro.sample("y", prior, obs=batch.get("y"))
            mean = self.decoder(z) + y @ self.of_class
            pyro.sample("x", dist.Normal(mean, 0.6).to_event(1), obs=x)

    def guide(self, batch):
        """Sample q(y|x) q(z|x, y), or q(z|x, y) of a known y."""
        x, y = batch["x"], batch.get("y")
        with pyro.plate("data", len(x)):
            if y is None:
                law = dist.OneHotCategorical(logits=self.classifier(x))
                y = pyro.sample("y", law, infer=self.infer)
            shape = torch.broadcast_shapes(x.shape[:-1], y.shape[:-1])  # y may be enumerated
            seen = torch.cat([x.expand(*shape, -1), y.expand(*shape, -1)], -1)
            loc, scale = self.encoder(seen).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, softplus(scale) + 0.5).to_event(1))

    def exact(self, batch):
        """Return ln p(x, y), or ln p(x), summed over data."""
        weight, bias = self.decoder.weight.detach(), self.decoder.bias.detach()
        means = bias + self.of_class.detach()
        law = dist.MultivariateNormal(means, weight @ weight.T + 0.36 * torch.eye(4))
        joint = law.log_prob(batch["x"].unsqueeze(1)) - math.log(CLASSES)  # (N, C)
        if "y" in batch:
            return (joint * batch["y"]).sum()
        return joint.logsumexp(-1).sum()


def labeled(size=24):
    """Return data of three classes with their labels, and others without."""
    y = torch.eye(CLASSES)[torch.arange(size) % CLASSES]
    x = y @ (2 * real(CLASSES, 4, seed=5)) + 0.8 * real(size, 4, seed=6)
    return {"x": x, "y": y}, {"x": x + 0.3 * real(size, 4, seed=7)}


def with_classifier(elbo, model, guide, batch):
    """The loss of M2: the ELBO, and a classifier trained where y is known."""
    loss = elbo.differentiable_loss(model, guide, batch)
    if "y" not in batch:
        return loss
    logits = guide.__self__.classifier(batch["x"])
    return loss - 5.0 * dist.OneHotCategorical(logits=logits).log_prob(batch["y"]).sum()


@pytest.mark.parametrize("known_first", [True, False])
def test_labels_train_whichever_batch_comes_first(known_first):
    """The check looks at the loss that is trained: no gradient is missing in it."""
    known, unknown = labeled()
    pair = SemiSupervised()
    batches = [known, unknown] if known_first else [unknown, known]
    loss = partial(with_classifier, Trace_ELBO())
    svi = SVI(pair.model, pair.guide, partial(Adam, lr=0.02), loss)
    history = fit(svi, batches, epochs=40, progress=False)
    assert history["loss"][-1] < history["loss"][0]
    with torch.no_grad():
        guessed = pair.classifier(known["x"]).argmax(-1)
    assert float((guessed == known["y"].argmax(-1)).float().mean()) > 0.8


def test_both_kinds_of_data_have_their_evidence():
    """ln p(x, y) where y is seen, ln p(x) where it is sampled."""
    pair = SemiSupervised()
    loss = partial(with_classifier, Trace_ELBO())
    trained(pair.model, pair.guide, list(labeled()), loss, epochs=60)
    for batch in labeled():
        judged(pair.model, pair.guide, batch, pair.exact(batch), draws=2000)


def test_labels_summed_out_in_the_guide():
    """`TraceEnum_ELBO` sums over q(y|x): a bound, which fit moves; and the same evidence."""
    _, unknown = labeled()
    pair = SemiSupervised(enumerate_labels=True)
    loss = TraceEnum_ELBO(max_plate_nesting=1)
    history = trained(pair.model, pair.guide, unknown, loss, epochs=60)
    exact = pair.exact(unknown)
    assert history["loss"][-1] < history["loss"][0]
    assert -history["loss"][-1] * 24 < float(exact) + 3
    judged(pair.model, pair.guide, unknown, exact, draws=3000)


# The deep Markov model, linear so that a Kalman filter knows its evidence


STEPS = 3


class Markov(nn.Module):
    """z_t ~ N(A z_(t-1), 0.8), x_t ~ N(C z_t, 0.7), for the steps that a sequence has."""

    def __init__(self):
        super().__init__()
        self.transition = nn.Linear(2, 2, bias=False)
        self.emission = nn.Linear(2, 2, bias=False)
        nn.init.constant_(self.emission.weight, 0.5)

    def forward(self, batch):
        x, seen = batch["x"], batch["seen"]  # (N, T, 2), (N, T)
        with pyro.plate("data", len(x)):
            z = x.new_zeros(len(x), 2)
            for t in range(STEPS):
                with poutine.mask(mask=seen[:, t]):
                    mean = self.transition(z)
                    z = pyro.sample(f"z_{t + 1}", dist.Normal(mean, 0.8).to_event(1))
                    emitted = dist.Normal(self.emission(z), 0.7).to_event(1)
                    pyro.sample(f"x_{t + 1}", emitted, obs=x[:, t])


class Combiner(nn.Module):
    """q(z_t | z_(t-1), x_t, ..., x_T), by a GRU that reads from the end."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(2, 8, batch_first=True)
        self.head = nn.Linear(8 + 2, 4)

    def forward(self, batch):
        x, seen = batch["x"], batch["seen"]
        h, _ = self.rnn((x * seen.unsqueeze(-1)).flip(1))
        h = h.flip(1)  # (N, T, 8)
        with pyro.plate("data", len(x)):
            z = x.new_zeros(len(x), 2)
            for t in range(STEPS):
                of = h[:, t].expand(*z.shape[:-1], 8)
                loc, scale = self.head(torch.cat([of, z], -1)).chunk(2, -1)
                with poutine.mask(mask=seen[:, t]):
                    law = dist.Normal(loc, softplus(scale) + 0.4).to_event(1)
                    z = pyro.sample(f"z_{t + 1}", law)


def kalman(model, batch):
    """Return ln p(x), summed over sequences, each of its own length."""
    a, c = (part.weight.detach() for part in (model.transition, model.emission))
    eye, total = torch.eye(2), torch.zeros(())
    for x, seen in zip(batch["x"], batch["seen"], strict=True):
        mean, covariance = torch.zeros(2), torch.zeros(2, 2)
        for t in range(int(seen.sum())):
            mean, covariance = a @ mean, a @ covariance @ a.T + 0.64 * eye
            s = c @ covariance @ c.T + 0.49 * eye
            total = total + dist.MultivariateNormal(c @ mean, s).log_prob(x[t])
            gain = covariance @ c.T @ s.inverse()
            mean, covariance = mean + gain @ (x[t] - c @ mean), covariance - gain @ c @ covariance
    return total


def sequences(*, whole):
    """Return eight sequences, of three steps, or of one to three."""
    lengths = torch.full((8,), STEPS) if whole else torch.tensor([3, 1, 2, 3, 2, 1, 3, 2])
    return {"x": real(8, STEPS, 2), "seen": torch.arange(STEPS) < lengths.unsqueeze(1)}


@pytest.mark.parametrize("whole", [True, False])
def test_a_markov_chain_has_the_evidence_of_a_kalman_filter(whole):
    """Also where steps that a sequence lacks are masked, in model and guide alike."""
    model, guide, batch = Markov(), Combiner(), sequences(whole=whole)
    history = trained(model, guide, batch, Trace_ELBO(), epochs=60, lr=0.02, batch_size=4)
    assert history["loss"][-1] < history["loss"][0]
    judged(model, guide, batch, kalman(model, batch), draws=3000)


def test_annealing_by_a_scale_is_no_density():
    """The tutorial's `poutine.scale` around latents: their evidence, or words."""
    model, guide, batch = Markov(), Combiner(), sequences(whole=True)

    def annealed(side):
        def scaled(batch):
            inside = [f"z_{t + 1}" for t in range(STEPS)]
            with _Scaled(0.2, inside):
                side(batch)

        return scaled

    def say():
        log_w = log_weights(annealed(model), annealed(guide), batch, 3000)
        return evidence(log_w).log_evidence.sum()

    right_or_refused(say, kalman(model, batch))


class _Scaled(poutine.messenger.Messenger):
    """Scales some sites, as a `with poutine.scale(...)` around each does."""

    def __init__(self, scale, names):
        super().__init__()
        self.scale, self.names = scale, names

    def _pyro_sample(self, msg):
        if msg["name"] in self.names:
            msg["scale"] = msg["scale"] * self.scale


# ProdLDA: topics of documents


WORDS, LENGTH = 6, 20


class Topics(nn.Module):
    """The topics' words, by layers that know (N, ...) alone: dim=1, and batch norm."""

    def __init__(self):
        super().__init__()
        self.beta = nn.Linear(2, WORDS, bias=False)
        self.norm = nn.BatchNorm1d(WORDS, affine=False)
        self.drop = nn.Dropout(0.1)

    def forward(self, theta):
        return self.norm(self.beta(self.drop(theta))).softmax(dim=1)


class ProdLDA(nn.Module):
    """Logistic-normal topics, and counts of words."""

    def __init__(self):
        super().__init__()
        self.decoder = Topics()
        self.encoder = nn.Sequential(nn.Linear(WORDS, 16), nn.Softplus(), nn.Linear(16, 4))

    def model(self, docs):
        """Sample p(docs, topics)."""
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(docs)):
            zeros = docs.new_zeros(len(docs), 2)
            shares = pyro.sample("log_theta", dist.Normal(zeros, zeros + 1).to_event(1))
            words = self.decoder(shares.softmax(-1))
            pyro.sample("obs", dist.Multinomial(LENGTH, words), obs=docs)

    def guide(self, docs):
        """Sample q(topics | docs)."""
        with pyro.plate("data", len(docs)):
            loc, scale = self.encoder(docs / LENGTH).chunk(2, -1)
            pyro.sample("log_theta", dist.Normal(loc, softplus(scale) + 0.5).to_event(1))

    def exact(self, docs):
        """Return ln p(docs), by a grid of the latent."""
        axis = torch.linspace(-6, 6, 121)
        z = torch.cartesian_prod(axis, axis)
        with torch.no_grad():
            words = self.decoder.eval()(z.softmax(-1))
        self.decoder.train()
        likelihood = dist.Multinomial(LENGTH, words.unsqueeze(1)).log_prob(docs)  # (G, N)
        prior = dist.Normal(0.0, 1.0).log_prob(z).sum(-1, keepdim=True)
        return ((prior + likelihood).logsumexp(0) + 2 * (axis[1] - axis[0]).log()).sum()


def documents(size=16):
    """Return counts of words, each document of one of two kinds."""
    kinds = torch.tensor([[8.0, 6, 3, 1, 1, 1], [1.0, 1, 1, 3, 6, 8]])
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return dist.Multinomial(LENGTH, kinds[torch.arange(size) % 2]).sample()


def test_topics_of_documents():
    """Softmax over dim=1 and batch norm: weighed as they are for one draw after the other."""
    pair, docs = ProdLDA(), documents()
    history = trained(pair.model, pair.guide, docs, Trace_ELBO(), epochs=40, batch_size=8)
    assert history["loss"][-1] < history["loss"][0]
    judged(pair.model, pair.guide, docs, pair.exact(docs), draws=300, slack=0.5)


# A flow as prior


@pytest.fixture
def zuko():
    """Zuko, whose import switches argument validation off."""
    flag = torch.distributions.Distribution._validate_args
    try:
        import zuko
    finally:
        torch.distributions.Distribution.set_default_validate_args(flag)
    return zuko


class FlowPrior(nn.Module):
    """z ~ a masked autoregressive flow, x ~ N(W z + b, 0.7)."""

    def __init__(self, zuko):
        super().__init__()
        self.prior = zuko.flows.MAF(features=2, transforms=1, hidden_features=(8,))
        self.decoder = nn.Linear(2, 3)

    def forward(self, x):
        from pyro.contrib.zuko import ZukoToPyro

        with pyro.plate("data", len(x)):
            z = pyro.sample("z", ZukoToPyro(self.prior()))
            pyro.sample("x", dist.Normal(self.decoder(z), 0.7).to_event(1), obs=x)

    def exact(self, x):
        """Return ln p(x), by a grid of the latent."""
        axis = torch.linspace(-7, 7, 201)
        z = torch.cartesian_prod(axis, axis)
        with torch.no_grad():
            likelihood = dist.Normal(self.decoder(z)[:, None], 0.7).log_prob(x).sum(-1)
            joint = self.prior().log_prob(z)[:, None] + likelihood
        return (joint.logsumexp(0) + 2 * (axis[1] - axis[0]).log()).sum()


class FlowGuide(nn.Module):
    """q(z|x): a flow too, or a Normal."""

    def __init__(self, zuko, *, flow):
        super().__init__()
        self.law = (
            zuko.flows.MAF(2, context=3, transforms=1, hidden_features=(8,)) if flow else None
        )
        self.head = None if flow else nn.Linear(3, 4)

    def forward(self, x):
        from pyro.contrib.zuko import ZukoToPyro

        with pyro.plate("data", len(x)):
            if self.law is not None:
                pyro.sample("z", ZukoToPyro(self.law(x)))
            else:
                loc, scale = self.head(x).chunk(2, -1)
                pyro.sample("z", dist.Normal(loc, softplus(scale) + 0.5).to_event(1))


@pytest.mark.parametrize("flow", [True, False])
def test_a_flow_as_prior(zuko, flow):
    """A support that nobody knows is asked of the distribution, or left alone."""
    model, guide, x = FlowPrior(zuko), FlowGuide(zuko, flow=flow), real(12, 3)
    history = trained(model, guide, x, Trace_ELBO(), epochs=40)
    assert history["loss"][-1] < history["loss"][0]
    judged(model, guide, x, model.exact(x), draws=1000)


def test_the_check_changes_nothing_of_a_tutorial():
    """Random streams, modes and parameters are as before."""
    vae, x = Autoencoder(), real(8, 4)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    state = torch.get_rng_state()
    check_pair(vae.model, vae.guide, x)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    assert vae.training
