"""One latent, several modalities, any of them missing: closed forms, masks, and the whole way."""

import math
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from modalities import SUBSETS, Features, data, exact_poe, linear_model, orthonormal_model
from pyro import poutine
from pyro.infer import Trace_ELBO
from real import real
from torch import nn
from zoo import AGGREGATIONS, multimodal, multimodal_guide, train, views

from ppvae import Batches, PairError, check_pair, compare, fit, from_pyro_svi, guides, log_weights
from ppvae.aggregation import PoE
from ppvae.data import mfeat
from ppvae.diagnostics import conditional_evidence, evidence
from ppvae.guides import Exact
from ppvae.likelihoods import Normal, bernoulli, neutral, one_hot
from ppvae.models import ModalLatents, Multimodal
from ppvae.networks import MLP
from ppvae.objectives import BetaELBO, MaskedELBO
from ppvae.pairing import check_modalities
from ppvae.priors import NormalMixture
from ppvae.protocols import ModalityError, SetGuide, hide, map_batch, modalities, rows_of, seen
from ppvae.recipes.multimodal import masked_attention, masked_sum, mmvae, mopoe, mvae

NAN = math.nan


def log_probs(model, batch, z):
    """Return the log probabilities of the model's sites at given latents, by name."""
    trace = poutine.trace(poutine.condition(model, data={"z": z})).get_trace(batch)
    trace.compute_log_prob()
    return {n: s["log_prob"] for n, s in trace.nodes.items() if s["type"] == "sample"}


# Closed forms


class Bending(nn.Module):
    """One layer, and a nonlinearity that is no module."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, z):
        return self.layer(z).tanh()


class BendingOnce(nn.Sequential):
    """A container of known parts, linear near zero only."""

    def __init__(self):
        super().__init__(nn.Linear(2, 3))

    def forward(self, z):
        return super().forward(z).clamp(max=5.0)


class Widening(Normal):
    """A likelihood whose scale is not its attribute's."""

    def forward(self, h):
        return dist.Normal(h, 2 * self.scale)


@pytest.mark.parametrize("subset", SUBSETS, ids=str)
def test_the_evidence_is_that_of_the_joint_gaussian(subset):
    """Check 1: N(b_S, W_S W_S' + diag s^2), every subset, 1e-10; of nothing 0."""
    model, batch = linear_model(), {n: x[3:] for n, x in data().items()}
    names = [name for name, on in zip(batch, subset.tolist(), strict=True) if on]
    found = model.log_evidence(hide(batch, subset))
    if not names:
        assert (found == 0).all()
        return
    weight = torch.cat([model.decoders[n].weight for n in names])
    bias = torch.cat([model.decoders[n].bias for n in names])
    noise = torch.cat([model.likelihoods[n].scale.expand(len(batch[n][0])) for n in names])
    dense = dist.MultivariateNormal(bias, weight @ weight.mT + torch.diag(noise**2))
    expected = dense.log_prob(torch.cat([batch[n] for n in names], 1))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("subset", SUBSETS, ids=str)
def test_the_posterior_is_the_one_that_makes_all_weights_equal(subset):
    """Check 2, 1e-10: ln p(x_S, z) - ln p(z|x_S) = ln p(x_S) at any z, missing rows included."""
    model, batch = linear_model(), hide(data(), subset)
    expected = model.log_evidence(batch).expand(3, 6)
    found = log_weights(model, Exact(model), batch, 3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_an_exact_product_of_experts_weighs_the_same():
    """Check 7 through the guide, 1e-10: encoders, heads and aggregation in one."""
    model, batch = orthonormal_model(), data()
    found = log_weights(model, exact_poe(model), batch, 3)
    expected = model.log_evidence(batch).expand(3, 6)
    torch.testing.assert_close(found.detach(), expected, rtol=0, atol=1e-10)


def test_images_are_linear_too():
    """A decoder of one nn.Linear and a shape, data (N, C, H, W)."""
    decoder = nn.Sequential(nn.Linear(2, 12), nn.Unflatten(-1, (1, 3, 4)))
    flat = Multimodal({"a": decoder[0]}, 2, Normal(0.5))
    image = Multimodal({"a": decoder}, 2, Normal(0.5))
    x = torch.randn(5, 1, 3, 4)
    torch.testing.assert_close(
        image.log_evidence({"a": x}), flat.log_evidence({"a": x.flatten(1)})
    )
    weights = log_weights(image, Exact(image), {"a": x}, 2)
    torch.testing.assert_close(weights, image.log_evidence({"a": x}).detach().expand(2, 5))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Multimodal({"a": MLP(2, 4, 3)}, 2), "decoder of 'a' that is not one nn.Linear"),
        (lambda: Multimodal({"a": nn.Identity()}, 2), "decoder of 'a' .*, but missing"),
        (lambda: Multimodal({"a": Bending()}, 2), "mean or a scale of 'a' at random z"),
        (lambda: Multimodal({"a": BendingOnce()}, 2), "mean or a scale of 'a' at random z"),
        (lambda: Multimodal({"a": nn.Linear(2, 3)}, 2, Widening()), "mean or a scale of 'a'"),
        (lambda: Multimodal({"a": nn.Linear(2, 3)}, 2, "laplace"), "likelihood of 'a' .* Laplace"),
        (
            lambda: Multimodal({"a": nn.Linear(2, 3)}, 2, bernoulli),
            "likelihood of 'a' .*bernoulli",
        ),
        (
            lambda: Multimodal({"a": nn.Linear(2, 3)}, 2, prior=NormalMixture(2, 3)),
            "another prior",
        ),
        (lambda: Multimodal({"a": nn.Linear(4, 3)}, 2, private_dim=2), "private latents"),
    ],
)
def test_what_has_no_closed_form_says_so(make, why):
    """And names the way that works."""
    model, batch = make(), {"a": torch.zeros(5, 3)}
    for ask in (model.log_evidence, model.posterior, Exact(model)):
        with pytest.raises(TypeError, match=f"{why}.*: use guides.Multimodal"):
            ask(batch)


@pytest.mark.parametrize("units", [8, 16])
def test_no_guide_beats_probabilistic_pca_on_digits(units):
    """Check 14: sd .5, linear; -770.7, -621.1 nats a row, which Exact reaches; PoE does not."""
    x = mfeat(real("mfeat").parent).train
    flat = torch.cat([*x.values()], 1).double()
    values, vectors = torch.linalg.eigh((flat - flat.mean(0)).mT @ (flat - flat.mean(0)) / 1600)
    weight = vectors[:, -units:] * (values[-units:] - 0.25).sqrt()
    sizes = {name: leaf.shape[1] for name, leaf in x.items()}
    model = Multimodal({n: nn.Linear(units, k) for n, k in sizes.items()}, units, Normal(0.5))
    for decoder, w, b in zip(
        model.decoders.values(),
        weight.split([*sizes.values()]),
        flat.mean(0).split([*sizes.values()]),
        strict=True,
    ):
        decoder.weight.data, decoder.bias.data = w, b
    model.double().requires_grad_(False)
    batch = map_batch(torch.Tensor.double, x)
    best = float(model.log_evidence(batch).mean())
    assert abs(best - {8: -770.7, 16: -621.1}[units]) < 0.05
    few = rows_of(batch, 0, 50)
    assert abs(float(log_weights(model, Exact(model), few, 2).std(0).max())) < 1e-8
    encoders = {name: Features(size) for name, size in sizes.items()}
    guide = guides.Multimodal(encoders, PoE(units), units, activation=nn.Identity()).double()
    for name, head in guide.heads.items():  # a first guess: W' (x - b), as if columns were free
        head.weight.data[:units] = model.decoders[name].weight.mT
        head.bias.data.zero_()
    found = evidence(log_weights(model, guide, few, 50))
    gap = found.log_evidence - model.log_evidence(few)
    assert float(gap.mean()) < 3 * found.mean_standard_error
    assert float(gap.mean()) < -0.1


# What is missing


def test_a_missing_modality_adds_exactly_nothing():
    """Check 9: log probability 0, and the others as if it were no part of the model."""
    model, batch, z = multimodal(), views(), torch.randn(5, 2)
    found = log_probs(model, batch, z)
    for m, name in enumerate(batch):
        missing = ~seen(batch)[:, m]
        assert (found[name][missing] == 0).all() and (found[name][~missing] != 0).all()
        alone = Multimodal({name: model.decoders[name]}, 2, {name: model.likelihoods[name]})
        lone = log_probs(alone, {name: batch[name]}, z)[name]
        torch.testing.assert_close(found[name], lone)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("private_dim", [0, 2])
def test_nothing_seen_and_a_batch_of_one_stay_finite(aggregation, private_dim):
    """Check 9: the loss and every gradient; `check_pair` refuses the row, the networks do not."""
    batch = {name: x[:1] * NAN for name, x in views().items()}
    model = multimodal(private_dim=private_dim)
    guide = multimodal_guide(AGGREGATIONS[aggregation], private_dim=private_dim)
    for loss in (Trace_ELBO(), MaskedELBO(), BetaELBO(num_particles=3)):
        svi = train(model, guide, loss)
        assert svi.step(batch).isfinite()
        assert all(p.grad is None or p.grad.isfinite().all() for p in svi.parameters.values())
    z = poutine.trace(guide).get_trace(batch).nodes["z"]["fn"]
    if aggregation in ("poe", "moe", "mopoe"):
        torch.testing.assert_close(z.mean, torch.zeros(1, 2))


def test_the_fill_does_not_matter():
    """Loss and gradients are the same whatever would stand in a hidden row, and no NaN is met."""
    grads = []
    for value in (0.0, 1.0):
        batch = views(a=[], b=[], c=[])
        batch["a"][:3] = value
        keep = torch.ones(5, 3) > 0
        keep[:3, 0] = False
        pyro.set_rng_seed(0)
        svi = train(multimodal(), multimodal_guide(), MaskedELBO())
        loss = svi.step(hide(batch, keep))
        grads.append([loss, *(p.grad for p in svi.parameters.values())])
    for here, there in zip(*grads, strict=True):
        assert torch.equal(here, there) and here.isfinite().all()


@pytest.mark.parametrize(
    ("p", "events"),
    [
        (dist.Normal(torch.zeros(5, 3), 1.0).to_event(1), 1),
        (dist.Bernoulli(logits=torch.zeros(5, 3)).to_event(1), 1),
        (dist.Poisson(torch.ones(5, 3)).to_event(1), 1),
        (dist.Gamma(torch.ones(5, 3), 1.0).to_event(1), 1),
        (dist.Beta(torch.ones(5, 3), 1.0).to_event(1), 1),
        (dist.Dirichlet(torch.ones(5, 3)), 1),
        (dist.Uniform(torch.arange(15.0).reshape(5, 3), 20.0).to_event(1), 1),
        (one_hot(torch.zeros(5, 3)), 1),
        (one_hot(torch.zeros(5, 2, 3)).to_event(1), 2),
    ],
    ids=lambda p: str(p)[:14],
)
def test_what_stands_in_for_the_missing_lies_in_the_support(p, events):
    """Of any likelihood, so that its log probability and gradient are finite."""
    x = neutral(p, torch.zeros(())).expand(p.batch_shape + p.event_shape)
    assert p.support.check(x).all() and p.event_dim == events
    assert p.log_prob(x).isfinite().all()


def test_private_latents_are_their_prior_where_a_modality_is_missing():
    """The sites z_<name>: N(0, I) there, Normal given the modality elsewhere, and decoded."""
    model, guide = multimodal(private_dim=2), multimodal_guide(private_dim=2)
    batch = views()
    trace = poutine.trace(guide).get_trace(batch)
    for m, name in enumerate(batch):
        q = trace.nodes[f"z_{name}"]["fn"]
        missing = ~seen(batch)[:, m]
        assert (q.mean[missing] == 0).all() and (q.variance[missing] == 1).all()
        assert (q.mean[~missing] != 0).all()
    z = torch.randn(4, 5, 2)
    decoded = model.decode(z, {name: torch.zeros(4, 5, 2) for name in batch})
    assert {n: p.batch_shape for n, p in decoded.items()} == dict.fromkeys(batch, (4, 5))
    assert decoded["a"].event_shape == (8,) and decoded["c"].event_shape == (4,)
    drawn = [model.decode(z)["b"].mean for _ in range(2)]
    assert not torch.equal(*drawn)  # from their prior, where they are not given


def test_joint_is_what_the_guide_samples_from():
    """Of batch shape (N,), event (D,); and the guide is one of any subset."""
    guide, batch = multimodal_guide(), views()
    q, site = guide.joint(batch), poutine.trace(guide).get_trace(batch).nodes["z"]["fn"]
    assert q.batch_shape == (5,) and q.event_shape == (2,)
    assert torch.equal(q.mean, site.mean)
    assert isinstance(guide, SetGuide) and not isinstance(Exact(linear_model()), SetGuide)


def test_the_order_of_a_batch_does_not_matter():
    """Names count, not positions; private latents included."""
    batch = views()
    turned = {name: batch[name] for name in ("c", "a", "b")}
    losses = []
    for x in (batch, turned):
        pyro.set_rng_seed(0)
        model, guide = multimodal(private_dim=2), multimodal_guide(private_dim=2)
        losses.append(MaskedELBO("bernoulli").loss(model, guide, x))
    assert losses[0] == losses[1]


# Seen and hidden


def test_seen_and_hide_are_inverse():
    """What is hidden is not seen, and the rest is as before; of one tensor too."""
    batch = views(a=[], b=[], c=[])
    keep = torch.rand(5, 3) > 0.5
    hidden = hide(batch, keep)
    assert torch.equal(seen(hidden), keep)
    for m, name in enumerate(batch):
        assert torch.equal(hidden[name][keep[:, m]], batch[name][keep[:, m]])
    lone = hide(batch["a"], torch.tensor([[True], [False], [True], [True], [True]]))
    assert seen(lone)[:, 0].tolist() == [True, False, True, True, True]
    text = {"a": batch["a"], "words": torch.zeros(5, 7, dtype=torch.long)}
    assert seen(text).all()  # integers are always there


@pytest.mark.parametrize("keep", [torch.ones(5, 3), torch.ones(5, 2) > 0, torch.ones(4) > 0])
def test_hide_wants_a_boolean_for_each(keep):
    """In words."""
    with pytest.raises(ValueError, match=r"keep must be booleans of shape \(N, M\) = \(5, 3\)"):
        hide(views(), keep)


# The whole way


def test_training_evaluation_and_resuming_take_missing_rows(tmp_path):
    """fit with validation and checkpoints, Batches, evidence, compare and ArviZ, NaN and all."""
    batch = map_batch(lambda leaf: leaf.repeat(8, 1), views())

    def run(folder, epochs, **kwargs):
        pyro.set_rng_seed(0)
        svi = train(multimodal(), multimodal_guide(), MaskedELBO())
        history = fit(
            svi,
            Batches(batch, 10, seed=0),
            epochs=epochs,
            validation=views(),
            checkpoint=tmp_path / folder,
            progress=False,
            **kwargs,
        )
        return svi, history

    svi, history = run("whole", 4)
    assert history["loss"][0] > history["loss"][-1]
    names = {"marginal", "conditional", "validation_elbo"}
    assert names <= history.records[-1].keys()
    run("parts", 2)
    resumed, again = run("parts", 4, resume=True)
    assert history["loss"] == again["loss"]
    assert all(
        torch.equal(p, q)
        for p, q in zip(svi.parameters.values(), resumed.parameters.values(), strict=True)
    )
    assert svi.evaluate(batch).isfinite()
    log_w = log_weights(svi.model, svi.guide, batch, 40)
    assert evidence(log_w).log_evidence.isfinite().all()
    table = compare({"trained": svi.guide}, svi.model, views(), num_particles=40)
    assert table["evidence"].notna().all()
    tree = from_pyro_svi(svi.model, svi.guide, views(), draws=3)
    assert tree["posterior/z"].shape == (1, 3, 5, 2)
    observed = tree["observed_data/a"].values
    assert torch.equal(torch.from_numpy(observed).float().isnan(), views()["a"].isnan())
    likelihood = tree["log_likelihood/a"].values
    assert (likelihood[..., [1, 4]] == 0).all() and (likelihood[..., [0, 2, 3]] < 0).all()


def test_labels_and_a_learned_mixture_prior_train():
    """The identifiable variant: u one-hot beside x; the prior's components move."""
    u = torch.eye(3)[torch.arange(60) % 3]
    batch = {"x": u @ torch.tensor([[4.0, 0], [-4, 0], [0, 4]]) + torch.randn(60, 2), "u": u}
    prior = NormalMixture(2, 3)
    start = prior.loc.detach().clone()
    decoders = {"x": MLP(2, 16, 2), "u": MLP(2, 16, 3)}
    model = Multimodal(decoders, 2, {"x": Normal(1.0), "u": "one_hot"}, prior)
    guide = guides.Multimodal({"x": MLP(2, 16), "u": MLP(3, 16)}, PoE(2, components=3), 2)
    svi = train(model, guide, MaskedELBO())
    losses = [float(svi.step(batch)) for _ in range(60)]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    assert not torch.equal(prior.loc, start)


# Bad input


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"d": torch.zeros(5, 2)}, r"the guide does not know the modalities \['d'\] of the batch"),
        ({"a": None}, r"lacks \['a'\], which the guide knows: where a modality is missing"),
        ({"c": torch.zeros(4, 4)}, r"differ in their number of data: {'a': 5, 'b': 5, 'c': 4}"),
        (
            {"b": torch.tensor([[0.0, NAN, 0]]).repeat(5, 1)},
            r"the modality 'b' is NaN in part in 5 of 5 rows, such as row 0: .*hide the row",
        ),
        (
            {n: x.index_fill(0, torch.tensor(3), NAN) for n, x in views().items()},
            r"of 1 of 5 data nothing is seen, such as datum 3: .*leave them out",
        ),
        (
            {"c": torch.full((5, 4), 0.5)},
            r"site 'c': 5 of 5 data lie outside the likelihood's support",
        ),
    ],
    ids=["unknown", "absent", "sizes", "partly", "nothing", "support"],
)
def test_batches_that_do_not_fit_are_refused(batch, message):
    """Before the first step, in words."""
    batch = {n: x for n, x in {**views(), **batch}.items() if x is not None}
    with pytest.raises((PairError, ValueError), match=message):
        check_pair(multimodal(), multimodal_guide(), batch)


@pytest.mark.parametrize("loss", [Trace_ELBO, MaskedELBO])
def test_a_row_that_is_missing_in_part_is_named_wherever_it_comes(loss):
    """In a later batch of the first epoch, whichever that is; and by what judges a pair."""
    batch = map_batch(lambda leaf: leaf.repeat(8, 1), views(a=[], b=[], c=[]))
    batch["b"][37, 1] = NAN
    message = "the modality 'b' is NaN in part in 1 of .* rows, such as row"
    for seed in range(3):
        svi = train(multimodal(), multimodal_guide(), loss())
        with pytest.raises(ValueError, match=message):
            fit(svi, Batches(batch, 8, seed=seed), epochs=1, progress=False)
    model, guide = multimodal(), multimodal_guide()
    with pytest.raises(PairError, match=message):
        log_weights(model, guide, batch, 3)
    with pytest.raises(ValueError, match=message):
        conditional_evidence(model, guide, batch, "a", "b", num_particles=3)
    with pytest.raises(ModalityError, match=message):
        guide.joint(batch)


def test_model_and_guide_say_themselves_what_they_do_not_know():
    """Also where nobody checks before."""
    for owner, side in (("model", multimodal()), ("guide", multimodal_guide())):
        for batch, message in (
            ({**views(), "d": torch.zeros(5, 2)}, rf"the {owner} does not know .*\['d'\]"),
            ({"a": views()["a"]}, rf"lacks \['b', 'c'\], which the {owner} knows"),
            (torch.zeros(5, 8), rf"the {owner} takes a mapping of the modalities \['a', 'b', 'c'"),
        ):
            with pytest.raises(ModalityError, match=message):
                side(batch)
    assert list(modalities(views(), ["c", "a", "b"])) == ["c", "a", "b"]


def test_checks_of_modalities_let_the_rest_pass():
    """Missing rows are fine, and so are integers."""
    check_modalities(views())
    check_modalities({"words": torch.zeros(5, 7, dtype=torch.long), **views()})


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Multimodal({}, 2), ValueError, "needs a decoder and a likelihood"),
        (
            lambda: Multimodal({"a": nn.Linear(2, 3)}, 2, {"b": "normal"}),
            ValueError,
            r"decoders for \['a'\] and likelihoods for \['b'\]",
        ),
        (
            lambda: Multimodal({"a": nn.Linear(2, 3)}, 2, {"a": "gauss"}),
            ValueError,
            "unknown likelihood 'gauss': .*'one_hot'",
        ),
        (lambda: guides.Multimodal({}, PoE(2), 2), ValueError, "an encoder for each modality"),
        (
            lambda: guides.Multimodal({"a": nn.Identity()}, PoE(2), 2),
            TypeError,
            "has no out_features",
        ),
        (
            lambda: guides.Multimodal({"a": MLP(3, 4)}, PoE(3), 2),
            ValueError,
            "PoE is of a latent of size 3, but latent_dim=2",
        ),
        (lambda: NormalMixture(2, 0), ValueError, "must be at least 1"),
    ],
)
def test_parts_that_do_not_fit_are_refused(make, error, message):
    """When they are put together, in words."""
    with pytest.raises(error, match=message):
        make()


def test_features_that_differ_in_size_are_refused():
    """By name: an aggregation takes one size."""
    guide = multimodal_guide()
    guide.heads["b"] = nn.Linear(16, 6)
    message = r"features of the modalities differ in size, {'a': 4, 'b': 6, 'c': 4}"
    with pytest.raises(ValueError, match=message):
        guide(views())


# Recipes


@pytest.mark.parametrize("recipe", [mvae, mmvae, mopoe, masked_sum, masked_attention])
def test_recipes_train_on_what_is_seen(recipe):
    """Numbers, images and labels, some missing; and with private latents and mixtures."""
    batch = {
        "image": torch.rand(6, 1, 16, 16),
        "view": torch.randn(6, 8),
        "label": torch.eye(3)[torch.arange(6) % 3],
    }
    batch["image"][:2], batch["label"][2:4] = NAN, NAN
    sizes = {"image": (1, 16, 16), "view": 8, "label": 3}
    for kwargs in ({}, {"private_dim": 2, "components": 3}):
        svi = recipe(sizes, latent_dim=4, hidden=(16,), labels="label", device="cpu", **kwargs)
        check_pair(svi.model, svi.guide, batch)
        losses = [float(svi.step(batch)) for _ in range(25)]
        assert sum(losses[-5:]) < sum(losses[:5])
        assert evidence(log_weights(svi.model, svi.guide, batch, 5)).log_evidence.isfinite().all()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"labels": "b"}, r"labels is 'b', but the modalities are \['a'\]"),
        ({"hidden": ()}, "hidden is empty"),
        ({"features": {"a": (3, 4)}}, r"number of elements, or \(C, H, W\)"),
    ],
)
def test_recipes_refuse_sizes_that_do_not_fit(kwargs, message):
    """In words."""
    with pytest.raises(ValueError, match=message):
        mvae(**{"features": {"a": 3}, "device": "cpu", **kwargs})


@pytest.mark.parametrize("name", ["z", "data", "z_a", "a.b", "keys"])
def test_a_modality_with_the_name_of_something_else_is_refused(name):
    networks = {"a": MLP(3, 3), name: MLP(3, 3)}
    for make in (
        lambda: Multimodal(networks, 3),
        lambda: guides.Multimodal(networks, PoE(3), 3),
        lambda: ModalLatents(networks, 3),
        lambda: guides.ModalLatents(networks, 3),
    ):
        with pytest.raises(ValueError, match=f"a modality cannot be called '{re.escape(name)}'"):
            make()


def test_a_datum_of_nothing_is_named_in_whatever_batch_it_comes():
    model, guide = Multimodal({"a": MLP(2, 3)}, 2), guides.Multimodal({"a": MLP(3, 4)}, PoE(2), 2)
    x = torch.randn(12, 3)
    x[9] = torch.nan
    svi = train(model, guide, Trace_ELBO())
    with pytest.raises(ValueError, match="nothing"):
        fit(svi, Batches({"a": x}, 4, shuffle=False), epochs=1, progress=False)


def test_the_weight_of_a_kl_is_that_of_the_recipe():
    assert float(mopoe({"a": 3}, beta=2.0, device="cpu").loss.beta) == 2
    assert float(mopoe({"a": 3}, bound="mixture", beta=2.0, device="cpu").loss.beta) == 2
    with pytest.raises(ValueError, match="bound must be 'subsets' or 'mixture', but is 'all'"):
        mopoe({"a": 3}, bound="all", device="cpu")
    assert float(mvae({"a": 3}, beta=2.0, device="cpu").loss.beta) == 2
    assert float(mmvae({"a": 3}, beta=2.0, device="cpu").loss.beta) == 2
    with pytest.raises(ValueError, match="the bound of 4 has no KL"):
        mmvae({"a": 3}, beta=2.0, particles=4, device="cpu")
