"""What a pair is: no accepted pair gives a wrong number, and each refusal names site and mend."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDelta, AutoLaplaceApproximation, AutoNormal
from torch import nn
from zoo import binary, real, train, vae

from ppvae import (
    SVI,
    Batches,
    PairError,
    WeightlessError,
    check_pair,
    compare,
    fit,
    from_pyro_svi,
    log_weights,
    networks,
    predictive,
)
from ppvae.diagnostics import evidence
from ppvae.guides import Normal
from ppvae.models import VAE
from ppvae.networks import MLP, Entries, Folded
from ppvae.objectives import IWELBO, BetaELBO, InfoELBO, MixtureELBO
from ppvae.protocols import local_parameters
from ppvae.weights import evaluating, plan_of

X = real(6, 1)
PRECISION = 1 + 1 / 0.25  # of z given x, below
EVIDENCE = dist.Normal(0.0, 1.25**0.5).log_prob(X).squeeze(-1)  # (6,)


def plate(x, **kwargs):
    """The data plate of a batch."""
    return pyro.plate("data", len(x), dim=-1, **kwargs)


def model(x, prior=lambda: dist.Normal(0.0, 1.0), around=None):
    """z ~ N(0, 1), x ~ N(z, 0.5^2)."""
    with plate(x):
        with around or poutine.mask(mask=True):
            z = pyro.sample("z", prior().expand([1]).to_event(1))
        pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)


def exact(x):
    """The posterior of `model`."""
    loc = x / 0.25 / PRECISION
    pyro.sample("z", dist.Normal(loc, PRECISION**-0.5).to_event(1))


def guide(x, around=None):
    """The same, in its plate."""
    with plate(x), around or poutine.mask(mask=True):
        exact(x)


def refused(message, *pair, batch=X, by=(check_pair, log_weights, from_pyro_svi)):
    """Assert that everything that takes a pair refuses it in these words."""
    for judge in by:
        args = (*pair, batch, 5) if judge is log_weights else (*pair, batch)
        with pytest.raises(PairError, match=message):
            judge(*args)
    with pytest.raises(PairError, match=message):
        compare({"guide": pair[1]}, pair[0], batch, num_particles=30)


def test_the_stories_of_this_file_fit():
    """The pair that is bent below is right as it stands."""
    check_pair(model, guide, X)
    torch.testing.assert_close(log_weights(model, guide, X, 3), EVIDENCE.expand(3, -1))


# Which sites there are


def test_swapped_sides_are_refused():
    """A guide that observes, a model that does not; not a model whose factor knows the data."""
    refused("the guide observes it, but a guide only samples latents", guide, model)
    refused("the model observes nothing, so that there is no posterior", guide, guide)

    def likelihood(x):
        with plate(x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([1]).to_event(1))
            pyro.factor("likelihood", dist.Normal(z, 0.5).log_prob(x).sum(-1))

    log_w = log_weights(likelihood, guide, X, 3)
    torch.testing.assert_close(torch.Tensor(log_w), EVIDENCE.expand(3, -1))
    said = "its factor 'likelihood' depends on the latents"
    assert said in log_w.note and said in str(evidence(log_w))
    assert (
        said in compare({"guide": guide}, likelihood, X, num_particles=30)["unnormalized"].item()
    )


def test_a_constant_factor_leaves_the_model_normalized():
    """Such as a penalty on parameters."""

    def constant(x):
        with plate(x):
            pyro.factor("penalty", torch.tensor(-0.5))
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([1]).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    log_w = log_weights(constant, guide, X, 3)
    torch.testing.assert_close(log_w, EVIDENCE.expand(3, -1) - 0.5)
    assert not getattr(log_w, "note", "")
    assert "unnormalized" not in compare({"guide": guide}, constant, X, num_particles=30)


def test_a_latent_that_the_guide_lacks_is_refused():
    """By everything, where it was drawn from the prior in silence."""

    def deeper(x):
        with plate(x):
            w = pyro.sample("w", dist.Gamma(2.0, 1.0))
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([1]).to_event(1))
            pyro.sample("x", dist.Normal(z, w.unsqueeze(-1)).to_event(1), obs=x)

    refused(r"site 'w': the model samples it, but the guide, with \['z'\], does", deeper, guide)
    with pytest.raises(PairError, match="site 'w'"):
        IWELBO(3).loss(deeper, guide, X)
    with pytest.raises(PairError, match="site 'w'"):
        SVI(vae_and(deeper), guide, partial(torch.optim.SGD, lr=0.0), Trace_ELBO()).step(X)


def vae_and(story):
    """A story with a parameter, as SVI wants one."""

    class Story(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(()))

        def forward(self, x):
            story(x + self.shift)

    return Story()


WEIGHTS, CENTERS = torch.tensor([0.25, 0.75]), torch.tensor([-1.0, 2.0])


def clusters(mark):
    """A cluster of each datum, and a scale of it."""

    def story(x):
        with plate(x):
            infer = {"enumerate": mark} if mark else {}
            a = pyro.sample("a", dist.Categorical(WEIGHTS), infer=infer)
            z = pyro.sample("z", dist.Normal(CENTERS[a], 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x.squeeze(-1))

    return story


def of_clusters(x):
    """A guide of z alone."""
    with plate(x):
        pyro.sample("z", dist.Normal(x.squeeze(-1), 1.0))


def test_what_is_enumerated_is_summed_out():
    """Of each datum, in its weight; without the mark it is refused, with the mark it trains."""
    story = clusters("parallel")
    scale = torch.tensor(1.25).sqrt()
    terms = WEIGHTS.log() + dist.Normal(CENTERS, scale).log_prob(X)  # (6, 2)
    found = evidence(log_weights(story, of_clusters, X, 4000))
    error = (found.log_evidence - terms.logsumexp(-1)) / found.standard_error
    assert error.abs().max() < 4
    check_pair(story, of_clusters, X)
    tree = from_pyro_svi(story, of_clusters, X, draws=7)
    assert set(tree["posterior"].data_vars) == {"z"}
    z = torch.as_tensor(tree["posterior/z"].values[0])
    log_p = torch.as_tensor(tree["log_likelihood/x"].values[0])
    assert log_p.shape == z.shape
    unmarked = clusters(None)
    refused('or mark it infer={"enumerate": "parallel"}', unmarked, of_clusters)
    svi = SVI(vae_and(story), of_clusters, partial(torch.optim.SGD, lr=0.0), Trace_ELBO())
    with pytest.raises(PairError, match="site 'a': the model marks it to be summed out"):
        svi.step(X)
    loss = TraceEnum_ELBO(max_plate_nesting=1)
    history = fit(
        SVI(vae_and(story), of_clusters, partial(torch.optim.Adam, lr=0.01), loss),
        X,
        epochs=2,
        progress=False,
    )
    assert math.isfinite(history["loss"][-1])


# Scales and masks


def test_a_scale_is_no_density():
    """On both sides, on one, or on all sites; only a subsampled plate's is understood."""
    half = poutine.scale(scale=0.5)
    message = "a poutine.scale multiplies its log probability"
    refused(message, partial(model, around=half), partial(guide, around=half))
    refused("scaled by 0.5 in the model and by 1 in the guide", partial(model, around=half), guide)
    refused(message, poutine.scale(model, scale=1 / 6), poutine.scale(guide, scale=1 / 6))


def test_a_scale_trains_where_one_knows_better():
    """And is refused as before by the weights."""
    half = poutine.scale(scale=0.5)
    story = vae_and(partial(model, around=half))
    svi = SVI(
        story, poutine.scale(guide, scale=0.5), partial(torch.optim.SGD, lr=0.0), Trace_ELBO()
    )
    with pytest.raises(PairError, match="fit\\(check=False\\) trains such a pair all the same"):
        fit(svi, X, epochs=1, progress=False)
    assert fit(svi, X, epochs=1, progress=False, check=False)["loss"]


@pytest.mark.parametrize("side", ["model", "guide"])
def test_a_mask_on_one_side_is_refused(side):
    """On both sides it leaves a datum out of the latent's density."""
    mask = torch.tensor([True, False, True, True, True, True])
    kwargs = {"around": poutine.mask(mask=mask)}
    bent = (
        partial(model, **kwargs) if side == "model" else model,
        (partial(guide, **kwargs) if side == "guide" else guide),
    )
    refused(f"site 'z': the {side} masks it, but the", *bent)


def test_what_hangs_on_a_masked_latent_is_masked_with_it():
    """Otherwise it is drawn from the guide, and no density says how."""
    mask = torch.tensor([True, False, True, True, True, True])
    masked = partial(guide, around=poutine.mask(mask=mask))
    refused(
        "where the model masks it, other sites still depend on it",
        partial(model, around=poutine.mask(mask=mask)),
        masked,
    )
    log_w = log_weights(poutine.mask(model, mask=mask), masked, X, 3)
    torch.testing.assert_close(log_w, torch.where(mask, EVIDENCE, 0.0).expand(3, -1))


def test_a_mask_within_the_law_counts_as_one():
    """`Normal(...).mask(...)` is as good as poutine's."""
    mask = torch.tensor([[True], [False], [True], [True], [True], [True]])

    def masked(x):
        with plate(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(6, 1), 1.0).mask(mask).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    refused("site 'z': the model masks it", masked, guide)


# Plates


def parts(x, name="data", size=60):
    """All data share m, and each has its z; the batch is a part of 60."""
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pyro.plate(name, size, subsample_size=len(x), dim=-1):
        loc = m.unsqueeze(-1) + torch.zeros(len(x), 1)
        z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)


class Halves(nn.Module):
    """A guide of m and z, whose plate says nothing of the 60."""

    def __init__(self, name=None):
        super().__init__()
        self.m, self.log_scale, self.name = nn.Parameter(torch.zeros(())), real(1)[0], name
        self.slope, self.width = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.zeros(()))

    def forward(self, x):
        pyro.sample("m", dist.Normal(self.m, 0.2))
        named = {"name": self.name or "data"}
        size = {"size": 60, "subsample_size": len(x)} if self.name else {"size": len(x)}
        with pyro.plate(**named, **size, dim=-1):
            pyro.sample("z", dist.Normal(self.slope * x, self.width.exp()).to_event(1))


def test_a_guide_need_not_know_how_many_data_there_are():
    """Its latents weigh as much as the model's: loss and gradients are those of one that does."""
    losses, gradients = [], []
    for name in (None, "data"):
        inner = Halves(name)
        loss = Trace_ELBO(num_particles=20_000, vectorize_particles=True)  # plates draw, too
        svi = SVI(parts, inner, partial(torch.optim.SGD, lr=0.0), loss)
        losses.append(svi.step(X).item())
        gradients.append([p.grad.clone() for p in inner.parameters()])
    assert losses[0] == pytest.approx(losses[1], abs=0.05)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=0.05, rtol=0.05)


def test_a_part_of_the_data_has_no_weight_where_they_share_a_latent():
    """The evidence is of all of them."""
    with pytest.raises(PairError, match="stands for 60 data, of which the batch has 6"):
        log_weights(parts, Halves(), X, 3)
    check_pair(parts, Halves(), X)


def test_only_the_data_plate_may_be_subsampled():
    """Another one would scale the loss by what nobody undoes."""
    story = partial(parts, name="rows")
    refused("plate 'rows' stands for 60, of which 6 are drawn", story, Halves("rows"))
    with pytest.raises(PairError, match="plate 'rows'"):
        SVI(story, Halves("rows"), partial(torch.optim.SGD, lr=0.0), Trace_ELBO()).step(X)


def test_a_plate_that_draws_its_own_subset_is_refused():
    """The weights of other data each time are those of none."""

    def own(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=2) as rows:
            pyro.sample("x", dist.Normal(m, 1.0), obs=x[rows, 0])

    def of_mean(x):
        pyro.sample("m", dist.Normal(0.0, 1.0))

    refused("draws 2 of the batch's 6 data by itself", own, of_mean)


def test_a_plate_without_a_size_is_as_large_as_the_batch():
    """Its -1 is no number of data: SVI went up for it."""

    def unsized(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data"):
            pyro.sample("x", dist.Normal(m, 1.0), obs=x.squeeze(-1))

    def sized(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with plate(x):
            pyro.sample("x", dist.Normal(m, 1.0), obs=x.squeeze(-1))

    losses = []
    for story in (unsized, sized):
        inner = AutoNormal(story, init_scale=0.3)
        svi = SVI(story, inner, partial(torch.optim.SGD, lr=0.0), Trace_ELBO())
        svi.prepare(X)
        pyro.set_rng_seed(0)
        losses.append(svi.step(X).item())
        check_pair(story, inner, X)
        assert log_weights(story, inner, X, 3).shape == (3, 1)
    assert losses[0] == pytest.approx(losses[1])


def test_local_latents_of_a_subsampled_plate_are_weighed_unscaled():
    """By every objective: per datum, as if the plate were whole."""

    def story(x):
        with pyro.plate("data", 600, subsample_size=len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([1]).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    for make in (BetaELBO, partial(BetaELBO, analytic=False), partial(IWELBO, 4)):
        svi = SVI(vae_and(story), guide, partial(torch.optim.SGD, lr=0.0), make())
        pyro.set_rng_seed(0)
        scaled = svi.evaluate(X).item()
        pyro.set_rng_seed(0)
        whole = SVI(vae_and(model), guide, partial(torch.optim.SGD, lr=0.0), make()).evaluate(X)
        assert scaled == pytest.approx(whole.item(), rel=1e-4)


# Auxiliary sites


def test_random_draws_on_the_way_are_refused():
    """Of which the density is nobody's; the law that takes them back makes a pair of them."""

    def mixed(x, mark=True):
        with plate(x):
            k = pyro.sample("k", dist.Bernoulli(0.3), infer={"is_auxiliary": True} if mark else {})
            pyro.sample("z", dist.Normal(x + k.unsqueeze(-1), 1.0).to_event(1))

    refused("site 'k': the guide draws it on the way", model, mixed)
    with pytest.raises(PairError, match="site 'k'"):
        IWELBO(3).loss(model, mixed, X)

    def with_reverse(x):
        with plate(x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([1]).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)
            odds = math.log(0.3 / 0.7) + (z - x - 0.5).squeeze(-1)
            pyro.sample("k", dist.Bernoulli(logits=odds))  # r(k | z, x), exact

    log_w = log_weights(with_reverse, partial(mixed, mark=False), X, 4000)
    found = evidence(log_w)
    assert ((found.log_evidence - EVIDENCE) / found.standard_error).abs().max() < 4


def test_a_transport_must_be_one_to_one():
    """Two draws that end in one number have no density there."""

    def folded(x):
        with plate(x):
            e = pyro.sample(
                "e", dist.Normal(torch.zeros(2), 1.0).to_event(1), infer={"is_auxiliary": True}
            )
            pyro.sample("z", dist.Delta(e.sum(-1, keepdim=True), event_dim=1))

    refused("the map is not one to one", model, folded)


def test_a_point_behind_a_point_has_no_weights():
    """`AutoLaplaceApproximation` as it trains; after it is made Normal it has."""
    trained = AutoLaplaceApproximation(shared)
    svi = SVI(shared, trained, partial(torch.optim.Adam, lr=0.05), Trace_ELBO())
    for _ in range(300):
        svi.step(X)
    with pytest.raises(WeightlessError, match="site 'm' has no importance weights"):
        log_weights(shared, trained, X, 3)
    with local_parameters():
        approximation = trained.laplace_approximation(X)
    found = evidence(log_weights(shared, approximation, X, 200))
    law = dist.MultivariateNormal(torch.zeros(6), torch.eye(6) + 1)
    assert found.mean == pytest.approx(law.log_prob(X.squeeze(-1)).item(), abs=0.01)


def shared(x):
    """All data share a mean."""
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with plate(x):
        pyro.sample("x", dist.Normal(m, 1.0), obs=x.squeeze(-1))


# Closed forms


def reversed_order():
    """z_1 -> z_2 -> x, and the exact posterior, drawn from the back."""

    def story(x):
        with plate(x):
            first = pyro.sample("first", dist.Normal(torch.zeros(len(x), 1), 2.0).to_event(1))
            second = pyro.sample("second", dist.Normal(first, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(second, 1.0).to_event(1), obs=x)

    def posterior(x):
        with plate(x):
            second = pyro.sample("second", dist.Normal(x * 5 / 6, (5 / 6) ** 0.5).to_event(1))
            pyro.sample("first", dist.Normal(second * 0.8, 0.8**0.5).to_event(1))

    return story, posterior


def test_closed_forms_in_another_order_are_left_alone():
    """The exact posterior's ELBO is the evidence; Pyro's mean-field form is refused."""
    story, posterior = reversed_order()
    x = real(2000, 1)
    truth = dist.Normal(0.0, 6**0.5).log_prob(x).mean().item()
    for make in (BetaELBO, partial(BetaELBO, analytic=False)):
        assert -make(num_particles=20).loss(story, posterior, x) / 2000 == pytest.approx(
            truth, abs=0.02
        )
    svi = SVI(vae_and(story), posterior, partial(torch.optim.SGD, lr=0.0), TraceMeanField_ELBO())
    with pytest.raises(PairError, match="draws 'second' before latents that the model draws it"):
        svi.step(x)


def test_objectives_that_would_leave_a_site_out_refuse_it():
    """Another latent, or a factor."""
    story, posterior = reversed_order()
    for loss in (MixtureELBO(site="second"), InfoELBO(1.0, 2.0, site="second")):
        with pytest.raises(PairError, match="would leave 'first' out of the loss"):
            loss.loss(story, posterior, X)


def test_free_bits_keep_factors():
    """A factor's gradient reaches its parameter."""
    weight = torch.tensor(2.0, requires_grad=True)

    def tilted(x):
        with plate(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1))
            pyro.factor("tilt", weight * z.sum(-1))
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    losses = []
    for bits in (0.0, 1e-9):
        pyro.set_rng_seed(0)
        loss = BetaELBO(free_bits=bits).differentiable_loss(tilted, guide, X)
        losses.append(torch.stack([loss, *torch.autograd.grad(loss, [weight])]))
    torch.testing.assert_close(*losses)


# Rows


class Rows(nn.Module):
    """A guide with a parameter of each datum, which no index tells apart."""

    def __init__(self, size):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(size, 1))

    def forward(self, x):
        with plate(x):
            pyro.sample("z", dist.Normal(self.loc, PRECISION**-0.5).to_event(1))


def test_rows_that_belong_to_parameters_keep_their_places():
    """All at once they are never shuffled; in minibatches they are refused."""
    x = real(12, 1)
    rows = Rows(12)
    fit(
        SVI(model, rows, partial(torch.optim.Adam, lr=0.05), BetaELBO()),
        x,
        epochs=300,
        progress=False,
    )
    torch.testing.assert_close(rows.loc.detach(), x / 0.25 / PRECISION, atol=0.3, rtol=0)
    svi = SVI(model, Rows(4), partial(torch.optim.Adam, lr=0.05), BetaELBO())
    with pytest.raises(PairError, match="parameter guide.loc has a row for each datum"):
        fit(svi, x, epochs=1, batch_size=4, progress=False)
    with pytest.raises(PairError, match="guide.loc"):
        fit(svi, Batches(x, 4), epochs=1, progress=False)
    local = AutoNormal(model)
    svi = SVI(model, local, partial(torch.optim.Adam, lr=0.05), Trace_ELBO())
    with pytest.raises(PairError, match="AutoNormal has a factor for each datum"):
        fit(svi, x, epochs=1, batch_size=4, progress=False)


def test_rows_that_are_time_are_refused_in_minibatches():
    """A model that reads the row before; what is exchangeable passes."""

    def walk(x):
        drift = pyro.sample("m", dist.Normal(0.0, 1.0))
        before = torch.cat([x.new_zeros(1, 1), x[:-1]])
        with pyro.plate("data", 12, subsample_size=len(x), dim=-1):
            pyro.sample("x", dist.Normal(before + drift.unsqueeze(-1), 0.5).to_event(1), obs=x)

    x = real(12, 1).cumsum(0)
    svi = SVI(walk, AutoNormal(walk), partial(torch.optim.Adam, lr=0.05), Trace_ELBO())
    with pytest.raises(PairError, match="depends on the order of the data"):
        fit(svi, x, epochs=1, batch_size=4, progress=False)
    svi = SVI(walk, AutoNormal(walk), partial(torch.optim.Adam, lr=0.05), Trace_ELBO())
    assert fit(svi, x, epochs=2, progress=False)["loss"]


def test_an_autoguide_of_a_subset_needs_to_know_which():
    """Without create_plates it draws anew which of its factors are asked for."""

    def story(batch):
        with pyro.plate("data", 60, subsample=batch["index"], dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=batch["x"])

    batch = {"x": X.squeeze(-1), "index": torch.arange(6)}
    svi = SVI(story, AutoNormal(story), partial(torch.optim.Adam, lr=0.05), Trace_ELBO())
    with pytest.raises(ValueError, match="has a factor for each of 60 data, and draws anew which"):
        svi.step(batch)


# What is served


class Both(nn.Module):
    """A model and a guide that are methods of one module, as Pyro's VAE tutorial has them."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(1, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.head, self.shift = nn.Linear(8, 1), nn.Parameter(torch.zeros(()))

    def model(self, x):
        model(x + self.shift)

    def guide(self, x):
        with plate(x):
            pyro.sample("z", dist.Normal(self.head(self.encoder(x)), 0.6).to_event(1))


def test_methods_of_one_module_are_a_pair():
    """Its parameters train, and evaluation leaves modes and buffers alone."""
    net = Both()
    svi = train(net.model, net.guide, Trace_ELBO())
    assert len(svi.parameters) == len(list(net.parameters()))
    fit(svi, X, epochs=2, progress=False)
    before = [b.clone() for b in net.buffers()]
    pyro.set_rng_seed(0)
    first = log_weights(net.model, net.guide, X, 5)
    pyro.set_rng_seed(0)
    net.eval()
    assert torch.equal(first, log_weights(net.model, net.guide, X, 5))
    assert all(torch.equal(a, b) for a, b in zip(before, net.buffers(), strict=True))


def test_every_module_in_a_partial_is_found():
    """Not the first alone."""

    def story(decoder, prior_net, x):
        with plate(x):
            at = prior_net(torch.zeros(len(x), 1))
            z = pyro.sample("z", dist.Normal(at, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 0.5).to_event(1), obs=x)

    nets = nn.Linear(1, 1), nn.Linear(1, 1)
    svi = train(partial(story, *nets), guide, Trace_ELBO())
    before = [p.detach().clone() for net in nets for p in net.parameters()]
    svi.step(X)
    after = [p for net in nets for p in net.parameters()]
    moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert moved == [True, True, False, True]  # the prior's weight meets zeros
    svi.load_state_dict(svi.state_dict())


def test_what_no_module_holds_is_named():
    """A list of layers hides them from the optimizer."""

    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.layers = nn.Parameter(torch.ones(())), [nn.Linear(1, 1)]

        def forward(self, x):
            with plate(x):
                loc = self.layers[0](x) * self.scale
                pyro.sample("z", dist.Normal(loc, 0.6).to_event(1))

    with pytest.raises(ValueError, match=r"depends on guide.layers\[0\].weight, guide.layers"):
        train(model, Hidden(), Trace_ELBO()).step(X)


def test_a_leaking_guide_has_weight_zero_outside():
    """Under a bounded prior; the evidence is that of the prior."""

    def bounded(x):
        with plate(x):
            z = pyro.sample("z", dist.HalfNormal(1.0).expand([1]).to_event(1))
            pyro.sample("x", dist.Normal(torch.zeros(1), z).to_event(1), obs=x)

    def leaking(x):
        with plate(x):
            pyro.sample("z", dist.Normal(torch.ones(len(x), 1), 1.0).to_event(1))

    log_w = log_weights(bounded, leaking, X, 20_000)
    assert (log_w == -math.inf).any()
    grid = torch.linspace(1e-4, 12, 100_001, dtype=torch.float64)
    joint = dist.HalfNormal(1.0).log_prob(grid) + dist.Normal(0.0, grid).log_prob(X.double())
    truth = joint.logsumexp(-1) + math.log(12 / 100_000)
    found = evidence(log_w)
    assert ((found.log_evidence - truth) / found.standard_error).abs().max() < 5


def test_deterministics_are_no_data():
    """In the plate, with Pyro's default axes: everywhere accepted, and named by the data."""

    def told(x):
        with plate(x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([1]).to_event(1))
            pyro.deterministic("twice", 2 * z)
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    check_pair(told, guide, X)
    torch.testing.assert_close(log_weights(told, guide, X, 3), EVIDENCE.expand(3, -1))
    tree = from_pyro_svi(told, guide, X, draws=4)
    assert tree["posterior/twice"].dims[:3] == ("chain", "draw", "data")
    assert tree["posterior/twice"].shape == (1, 4, 6, 1)
    torch.testing.assert_close(
        torch.as_tensor(tree["posterior/twice"].values),
        2 * torch.as_tensor(tree["posterior/z"].values),
    )


def test_gray_pixels_are_served_where_the_user_says_so():
    """`validate_args=False` is a decision."""

    def gray(x):
        with plate(x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            logits = z.sum(-1, keepdim=True).expand(-1, 8)
            pyro.sample("x", dist.Bernoulli(logits=logits, validate_args=False).to_event(1), obs=x)

    check_pair(gray, Normal(MLP(8, 4), latent_dim=2), binary(5, 8) / 2)


def test_sites_of_one_number_each():
    """As Pyro's first tutorial has them: a site per toss, outside of any plate."""
    tosses = torch.tensor([1.0, 1.0, 0.0, 1.0])

    def coin(data):
        f = pyro.sample("f", dist.Beta(10.0, 10.0))
        for i in range(len(data)):
            pyro.sample(f"toss_{i}", dist.Bernoulli(f), obs=data[i])

    def posterior(data):
        pyro.sample("f", dist.Beta(10.0 + data.sum(), 10.0 + (1 - data).sum()))

    check_pair(coin, posterior, tosses)
    ratio = torch.tensor([13.0, 11.0, 20.0]).lgamma() - torch.tensor([10.0, 10.0, 24.0]).lgamma()
    expected = (ratio[:2].sum() + ratio[2]).expand(5, 1)
    torch.testing.assert_close(log_weights(coin, posterior, tosses, 5), expected)


def test_structure_is_not_that_of_the_first_row():
    """A story with as many sites as the longest sentence has words."""
    rows = torch.tensor([[1.0, 0.0, 0.0], [1.0, 2.0, 0.0], [1.0, 2.0, 3.0]])

    def story(x):
        length = int((x != 0).sum(1).max())
        with plate(x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            for t in range(length):
                with poutine.mask(mask=x[:, t] != 0):
                    pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=x[:, t])

    def of_all(x):
        with plate(x):
            pyro.sample("z", dist.Normal(x.mean(1), 1.0))

    tree = from_pyro_svi(story, of_all, rows, draws=3)
    assert set(tree["log_likelihood"].data_vars) == {"x_0", "x_1", "x_2"}
    assert log_weights(story, of_all, rows, 4, chunk_size=4).shape == (4, 3)


def test_a_scale_that_underflows_is_reported_as_that():
    """Not as sizes that do not fit."""

    def thin(x):
        with plate(x):
            pyro.sample("z", dist.Normal(x, torch.tensor(-200.0).exp()).to_event(1))

    with pytest.raises(PairError, match="refuses its parameter: .* underflows to 0"):
        check_pair(model, thin, X)


# Particles


ROWWISE = {
    "softmax": lambda z: z.softmax(1),
    "normalize": nn.functional.normalize,
    "flatten": nn.Flatten(),
    "norm": nn.BatchNorm1d(3).eval(),
}


class Wide(nn.Module):
    """A decoder that is written for (N, ...)."""

    def __init__(self, between):
        super().__init__()
        self.between, self.last = between, nn.Linear(3, 8)

    def forward(self, z):
        return self.last(self.between(z))


@pytest.mark.parametrize("name", ROWWISE)
def test_networks_for_one_leading_axis_are_served_one_by_one(name):
    """Weighed as they train; several particles in a loss are refused, until they are folded."""
    pyro.set_rng_seed(0)
    decoder = Wide(ROWWISE[name])
    inner, batch = Normal(MLP(8, 4), latent_dim=3), binary(5, 8)
    story, right = VAE(decoder, latent_dim=3), VAE(Folded(decoder), latent_dim=3)
    with evaluating(story, right, inner):
        assert plan_of(story, inner, batch).dim is None
        assert plan_of(right, inner, batch).dim == -2
    found = [evidence(log_weights(side, inner, batch, 400)) for side in (story, right)]
    error = found[0].standard_error.square() + found[1].standard_error.square()
    difference = found[0].log_evidence - found[1].log_evidence
    assert (difference.abs() / error.sqrt()).max() < 5
    with pytest.raises(PairError, match="wrap it in networks.Folded"):
        IWELBO(3).loss(story, inner, batch)
    assert math.isfinite(IWELBO(3).loss(right, inner, batch))
    svi = train(story, inner, Trace_ELBO(num_particles=3, vectorize_particles=True))
    pyro.set_rng_seed(1)
    assert svi.step(batch).isfinite() and not svi.loss.vectorize_particles


def test_joint_shapes_are_checked_like_others():
    """A mean (N, 1) under data (N,) would sum N x N terms."""

    def wrong(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with plate(x):
            pyro.sample("x", dist.Normal(m + torch.zeros(len(x), 1), 1.0), obs=x.squeeze(-1))

    refused(r"batch shape \(6, 6\), but of its axes \[-2\] no plate", wrong, partial(at, "m"))


def at(name, x):
    """A guide of one shared number."""
    pyro.sample(name, dist.Normal(0.0, 1.0))


# Predictions


def test_predictions_at_new_inputs():
    """Whatever y is: None, or there and drawn anew; against the closed form."""
    inputs, slope = torch.linspace(-1, 1, 20), 1.5
    batch = {"x": inputs, "y": slope * inputs + 0.3 * real(20)}

    def line(b):
        w = pyro.sample("w", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(b["x"])):
            pyro.sample("y", dist.Normal(w * b["x"], 0.3), obs=b["y"])

    precision = 1 / 4 + inputs.square().sum() / 0.09
    mean = (inputs * batch["y"]).sum() / 0.09 / precision

    def posterior(b):
        pyro.sample("w", dist.Normal(mean, precision**-0.5))

    new = {"x": torch.tensor([2.0, -3.0]), "y": None}
    for b in (new, {**new, "y": torch.zeros(2)}):
        draws = predictive(line, posterior, b, 2000)
        assert draws["y"].shape == (2000, 2) and draws["w"].shape == (2000,)
        torch.testing.assert_close(draws["y"].mean(0), mean * b["x"], atol=0.06, rtol=0)
        spread = (b["x"].square() / precision + 0.09).sqrt()
        torch.testing.assert_close(draws["y"].std(0), spread, atol=0.04, rtol=0)
    kept = predictive(line, posterior, batch, 3, observe=True)
    assert torch.equal(kept["y"], batch["y"].expand(3, -1))


def test_two_autoguides_predict_for_themselves():
    """Where Pyro's Predictive takes, and keeps, the parameters of the first."""
    guides, data = [], (X + 3, X - 3)
    for x in data:
        guides.append(AutoNormal(shared))
        svi = SVI(shared, guides[-1], partial(torch.optim.Adam, lr=0.05), Trace_ELBO())
        fit(svi, x, epochs=200, progress=False)
    means = [predictive(shared, g, x, 300)["m"].mean() for g, x in zip(guides, data, strict=True)]
    assert means[0] > 1.5 and means[1] < -1.5
    assert len(pyro.get_param_store()) == 0
    own = [Normal(MLP(8, 4), latent_dim=2) for _ in range(2)]
    batch, story = binary(5, 8), vae()
    before = [p.detach().clone() for g in own for p in g.parameters()]
    found = [pyro.infer.Predictive(story, guide=g, num_samples=50)(batch)["z"] for g in own]
    assert not torch.allclose(found[0].mean(0), found[1].mean(0), atol=0.05)
    after = [p for g in own for p in g.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert len(pyro.get_param_store()) == 0


# What else is named


def test_what_cannot_be_served_is_named():
    """Losses that freeze or compare traces, and an optimizer that asks for the loss again."""
    from pyro.infer import EnergyDistance, JitTrace_ELBO

    for loss in (JitTrace_ELBO(), EnergyDistance()):
        with pytest.raises(TypeError, match=f"{type(loss).__name__} is not served"):
            train(vae(), Normal(MLP(8, 4), latent_dim=2), loss)
    with pytest.raises(TypeError, match="LBFGS is not served"):
        SVI(vae(), Normal(MLP(8, 4), latent_dim=2), torch.optim.LBFGS, Trace_ELBO())


def test_swappable_guides_take_a_mapping():
    """Whose encoder says what it sees."""

    class Conditional(nn.Module):
        def __init__(self):
            super().__init__()
            self.decoder = MLP(2, 8)

        def forward(self, batch):
            with pyro.plate("data", len(batch["x"]), dim=-1):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                logits = self.decoder(z) + batch["c"]
                pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=batch["x"])

    batch = {"x": binary(5, 8), "c": real(5, 1)}
    story, inner = Conditional(), Normal(Entries(MLP(9, 16), "x", "c"), latent_dim=2)
    check_pair(story, inner, batch)
    assert fit(train(story, inner, BetaELBO()), batch, epochs=1, progress=False)["loss"]
    assert compare({"guide": inner}, story, batch, num_particles=30).shape[0] == 1
    with pytest.raises(networks.entries.ModalityError, match=r"without \['c'\]"):
        inner({"x": binary(5, 8)})


def test_a_loss_of_ones_own_may_need_other_batches():
    """A classifier that only labels teach: it has an epoch's time, and is then named."""
    story, inner = vae(), Normal(MLP(8, 4), latent_dim=2)
    inner.classifier = nn.Linear(8, 2)

    def semi(model, guide, batch):
        loss = Trace_ELBO().differentiable_loss(model, guide, batch)
        labeled = batch[:, 0] > 2
        if labeled.any():
            loss = loss + inner.classifier(batch[labeled]).square().sum()
        return loss

    def run(*batches):
        svi = train(story, inner, semi)
        return fit(svi, list(batches), epochs=1, progress=False)

    plain = binary(5, 8)
    with pytest.raises(PairError, match="no gradient reaches guide.classifier.bias"):
        run(plain, plain)


def test_an_autodelta_is_a_point():
    """Its trees have draws, its weights are refused."""
    inner = AutoDelta(shared)
    train_it = SVI(shared, inner, partial(torch.optim.Adam, lr=0.05), Trace_ELBO())
    train_it.step(X)
    with pytest.raises(WeightlessError, match="it is a point"):
        log_weights(shared, inner, X, 2)
