"""The masked bound and its kin: identities, the two-site reference, and that it is no bound."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from modalities import (
    SUBSETS,
    Bent,
    Features,
    bounds,
    data,
    exact_poe,
    linear_model,
    orthonormal_model,
    prior_like,
)
from pyro import poutine
from pyro.distributions import MultivariateNormal
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.distributions import kl_divergence
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR
from zoo import AGGREGATIONS, multimodal, multimodal_guide, train, views

from ppvae import SVI, WeightlessError, guides
from ppvae.aggregation import MoE, PoE
from ppvae.data import linear_views
from ppvae.guides import Exact
from ppvae.likelihoods import Normal
from ppvae.models import Multimodal
from ppvae.networks import MLP
from ppvae.objectives import (
    BetaELBO,
    MaskedELBO,
    bernoulli_subsets,
    mvae_subsets,
    nonempty_subsets,
    uniform_size_subsets,
)
from ppvae.protocols import hide, rows_of, seen

BOUNDS = ("masked", "mixture", "tc", "marginal")


def loss_of(model, guide, batch, *args, seed=0, **kwargs):
    """Return the loss summed over the batch, of one seed."""
    pyro.set_rng_seed(seed)
    return MaskedELBO(*args, **kwargs).loss(model, guide, batch)


def two_site(model, posterior, batch, subset):
    """Return the masked bound as a plain Pyro pair of two latents, for an ordinary Trace_ELBO."""
    there = seen(batch)
    subset = there & subset
    filled = {name: x.nan_to_num() for name, x in batch.items()}

    def guide():
        with pyro.plate("data", len(there), dim=-1):
            pyro.sample("z_all", posterior(batch))
            pyro.sample("z_sub", posterior(hide(batch, subset)))

    def joint():
        with pyro.plate("data", len(there), dim=-1):
            z_sub = pyro.sample("z_sub", model.prior())
            z_all = pyro.sample("z_all", posterior(hide(batch, subset)))
            for role, z, of in (("sub", z_sub, subset), ("rest", z_all, there & ~subset)):
                likelihoods = model.decode(z)
                for m, (name, x) in enumerate(filled.items()):
                    with poutine.mask(mask=of[:, m]):
                        pyro.sample(f"{name}_{role}", likelihoods[name], obs=x)

    return joint, guide


# Exact posteriors


def test_with_exact_posteriors_one_draw_is_the_evidence():
    """Check 2, 1e-10: for every subset and missing pattern, in the two-site ELBO and in ours."""
    model, batch = linear_model(), data()
    evidence = float(model.log_evidence(batch).sum())
    for subset in SUBSETS:
        pair = two_site(model, model.posterior, batch, subset)
        assert abs(Trace_ELBO().loss(*pair) + evidence) < 1e-10
        for particles in (1, 3):
            found = loss_of(model, Exact(model), batch, subset, num_particles=particles)
            assert abs(found + evidence) < 1e-10
    for mask in ("uniform_size", "bernoulli", mvae_subsets(2)):
        assert abs(loss_of(model, Exact(model), batch, mask) + evidence) < 1e-10


def test_with_exact_posteriors_each_marginal_is_its_own_evidence():
    """Check 2, 1e-10: L_S = ln p(x_S), row by row, the row without anything included."""
    model, batch = linear_model(), data()
    for subset in SUBSETS:
        evidence = model.log_evidence(hide(batch, subset))
        for n in range(6):
            found = loss_of(model, Exact(model), rows_of(batch, n, 1), subset, "marginal")
            assert abs(found + float(evidence[n])) < 1e-10
    with torch.no_grad():
        total = sum(model.log_evidence(hide(batch, subset)).sum() for subset in SUBSETS)
    masks = torch.stack(SUBSETS)[:, None, :].expand(8, 6, 3)
    found = loss_of(model, Exact(model), batch, masks, "marginal")
    assert abs(found + float(total)) < 1e-9  # the MVAE sums


def test_the_mixture_bound_keeps_its_gap():
    """With exact posteriors it is the evidence for S = all alone."""
    model, batch = linear_model(), data()
    for subset in SUBSETS:
        found = bounds(model, Bent(model, 0.0), batch, subset)["mixture"]
        gap = model.log_evidence(batch) - found
        p_s, p_m = model.posterior(hide(batch, subset)), model.posterior(batch)
        torch.testing.assert_close(gap, kl_divergence(p_s, p_m), rtol=0, atol=1e-10)
        assert (gap[3:] > 1e-3).all() or bool(subset.all())


# The reference


@pytest.mark.parametrize("subset", SUBSETS, ids=str)
def test_it_equals_the_two_site_elbo(subset):
    """Check 3: guide means shifted by .3, the same seed; 1e-10."""
    model, batch = linear_model(), data()
    guide = Bent(model, 0.3)
    pyro.set_rng_seed(1)
    reference = Trace_ELBO().loss(*two_site(model, guide.posterior, batch, subset))
    assert abs(loss_of(model, guide, batch, subset, seed=1) - reference) < 1e-10


def test_with_particles_it_equals_the_two_site_elbo_in_mean():
    """Check 3: 4,000 vectorized particles against the closed form, within 5 standard errors."""
    model, batch, count = linear_model(), data(), 4000
    guide = Bent(model, 0.3)
    for subset in SUBSETS[1:6:2]:
        exact = bounds(model, guide, batch, subset)
        for bound in BOUNDS:
            singles = torch.tensor(
                [loss_of(model, guide, batch, subset, bound, seed=s) for s in range(30)]
            )
            error = float(singles.std()) / math.sqrt(count)
            many = loss_of(model, guide, batch, subset, bound, num_particles=count)
            assert abs(many + float(exact[bound].sum())) < 5 * error + 1e-9


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("stl", [False, True])
@pytest.mark.parametrize("private_dim", [0, 2])
def test_features_once_or_hidden_batches_are_the_same(bound, stl, private_dim):
    """Loss and gradients of a guide that runs its encoders once, and of it behind a plain face."""

    class Plain(nn.Module):
        def __init__(self, guide):
            super().__init__()
            self.guide = guide

        def forward(self, batch):
            self.guide(batch)

    found = []
    for wrap in (lambda guide: guide, Plain):
        pyro.set_rng_seed(0)
        model = multimodal(private_dim=private_dim).double()
        guide = multimodal_guide(PoE, private_dim=private_dim).double()
        batch = {name: x.double() for name, x in views().items()}
        loss = MaskedELBO(mvae_subsets(), bound, 2.0, stl=stl, num_particles=2)
        pyro.set_rng_seed(1)
        value = loss.differentiable_loss(model, wrap(guide), batch)
        value.backward()
        parameters = [*model.parameters(), *guide.parameters()]
        found.append([value.detach(), *(p.grad for p in parameters if p.grad is not None)])
    assert len(found[0]) == len(found[1]) > 10
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(here, there, rtol=0, atol=1e-10)


# Not a bound


def by_hand(shift):
    """Return check 4's model, guide and datum: M = 2, D = 1, W = s = 1, b = 0, x = (0, 3)."""
    model = linear_model({"a": 1, "b": 1}, 1, (1.0, 1.0))
    for decoder in model.decoders.values():
        decoder.weight.data.fill_(1.0)
        decoder.bias.data.fill_(0.0)
    whole = Bent(model, 0.0)

    class Guide(Bent):
        def posterior(self, batch):
            alone = seen(batch).sum(1, keepdim=True) < 2
            q = whole.posterior(batch)
            return MultivariateNormal(q.mean + shift * alone.to(q.mean), q.covariance_matrix)

    batch = {"a": torch.zeros(1, 1).double(), "b": torch.full((1, 1), 3.0).double()}
    return model, Guide(model), batch


def test_the_masked_bound_exceeds_the_evidence_by_hand():
    """Check 4: +0.18 at d = .1, 2 d - 2 d^2 in general; the mixture's gaps."""
    first = torch.tensor([True, False])
    for shift in (-0.2, 0.0, 0.1, 0.5, 1.2):
        model, guide, batch = by_hand(shift)
        evidence = model.log_evidence(batch)
        assert abs(float(evidence.detach()) + 5.387183) < 1e-6
        alone = model.log_evidence(hide(batch, first)).detach()
        assert abs(float(alone) + 1.265512) < 1e-6
        excess = float((bounds(model, guide, batch, first)["masked"] - evidence).detach())
        assert abs(excess - (2 * shift - 2 * shift**2)) < 1e-10
        if shift == 0.1:
            value = loss_of(model, guide, batch, first, num_particles=100_000)
            assert abs(value - 5.207183) < 0.02  # sd of one draw 1.2
        if shift == 0.0:
            for subset, gap in ((first, -1.547267), (~first & first, -1.950694)):
                found = bounds(model, guide, batch, subset)["mixture"] - evidence
                assert abs(float(found.detach()) - gap) < 1e-6


def test_over_the_missing_datum_it_is_a_bound_again():
    """Check 4: for x_2 ~ p(x_2|x_1) = N(0, 3/2) the mean excess is -2 d^2, that of -Jeffreys."""
    nodes, weights = torch.tensor(list(hermite(40)), dtype=torch.float64).T
    model, guide, _ = by_hand(0.3)
    x = {"a": torch.zeros(40, 1).double(), "b": (1.5**0.5 * nodes)[:, None]}
    with torch.no_grad():
        excess = bounds(model, guide, x, torch.tensor([True, False]))["masked"]
        excess = excess - model.log_evidence(x)
    assert abs(float(weights @ excess) + 2 * 0.3**2) < 1e-10
    assert excess.max() > 0.1


def hermite(count):
    """Yield nodes and weights of an expectation under N(0, 1)."""
    import numpy as np

    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    yield from zip(nodes.tolist(), (weights / weights.sum()).tolist(), strict=True)


def random_gaussian(count, size, seed):
    """Return N Gaussians of full covariance."""
    random = torch.Generator().manual_seed(seed)
    mean = torch.randn(count, size, generator=random, dtype=torch.float64)
    root = torch.randn(count, size, size, generator=random, dtype=torch.float64)
    covariance = root @ root.mT / size + 0.3 * torch.eye(size).double()
    return MultivariateNormal(mean, covariance)


@pytest.mark.parametrize("subset", SUBSETS, ids=str)
def test_the_gaps_are_those_of_the_sheet(subset):
    """Check 5: identities of all three gaps, random q_S and q_M of full covariance; 1e-10."""
    model, batch = linear_model(), data()
    q_s, q_m = random_gaussian(6, 2, 1), random_gaussian(6, 2, 2)
    there = seen(batch)

    class Two:
        def posterior(self, x):
            return q_m if bool((seen(x) == there).all()) and not subset.all() else q_s

    hidden = hide(batch, subset)
    p_s, p_m = model.posterior(hidden), model.posterior(batch)
    q_whole = q_s if subset.all() else q_m
    same = (there & subset == there).all(1)  # of these S is all: one posterior has two names
    found = bounds(model, Two(), batch, subset)
    joint, alone = model.log_evidence(batch), model.log_evidence(hidden)
    excess = kl_divergence(q_whole, p_s) - kl_divergence(q_whole, q_s)  # E_q_M[ln q_S - ln p_S]
    gaps = {
        "marginal": (alone - found["marginal"], kl_divergence(q_s, p_s)),
        "mixture": (joint - found["mixture"], kl_divergence(q_s, p_m)),
        "masked": (
            joint - found["masked"],
            kl_divergence(q_s, p_s) + kl_divergence(q_whole, p_m) - excess,
        ),
    }
    for gap, expected in gaps.values():
        torch.testing.assert_close(gap, expected, rtol=0, atol=1e-9)
    assert same.any()


def test_on_data_of_the_model_the_mean_gap_is_jeffreys():
    """Check 5: x_C ~ p(x_C|x_S), exact q_M, q_S off by .1 in the mean and 10% in variance.

    Within 3.5 standard errors of 20,000 draws; single rows exceed the evidence.
    """
    model, subset, count = linear_model(), torch.tensor([True, False, False]), 20_000
    one = {name: x[5:6] for name, x in data().items()}
    with torch.no_grad():
        p_s = model.posterior(hide(one, subset))
        z = p_s.sample((count,))[:, 0]
        drawn = {name: p.sample() for name, p in model.decode(z).items()}
        batch = {**drawn, "a": one["a"].expand(count, -1)}
        q_s = MultivariateNormal(p_s.mean + 0.1, 1.1 * p_s.covariance_matrix)

        class Guide:
            def posterior(self, x):
                if seen(x).all():
                    return model.posterior(x)
                return q_s.expand((count,))

        found = bounds(model, Guide(), batch, subset)["masked"]
        gap = model.log_evidence(batch) - found
        jeffreys = float(kl_divergence(q_s, p_s) + kl_divergence(p_s, q_s))
    error = float(gap.std()) / math.sqrt(count)
    assert abs(float(gap.mean()) - jeffreys) < 3.5 * error
    assert gap.min() < -0.1 and error < jeffreys


# Laws of subsets


@pytest.mark.parametrize("law", ["uniform_size", "bernoulli"])
def test_laws_of_subsets(law):
    """Check 10: |S| against 1 / (M + 1) and binomial(M, 1/2); 4 standard errors of 40,000."""
    count, sizes = 40_000, 3
    make = {"uniform_size": uniform_size_subsets, "bernoulli": bernoulli_subsets}[law]
    there = torch.ones(count, 4) > 0
    there[:, 1] = False  # three are seen
    subset = make(there)
    assert not (subset & ~there).any()
    expected = {
        "uniform_size": [1 / 4] * 4,
        "bernoulli": [math.comb(3, k) / 8 for k in range(4)],
    }[law]
    for k, share in enumerate(expected):
        found = float((subset.sum(1) == k).float().mean())
        assert abs(found - share) < 4 * math.sqrt(share * (1 - share) / count)
    each = subset.float().mean(0)[[0, 2, 3]]  # no modality is preferred
    assert (each - 0.5).abs().max() < 4 * math.sqrt(1 / 4 / count) * 1.2 and sizes == 3


def test_the_subsets_of_the_mvae():
    """All that is seen, each alone, and random ones; never what is not seen."""
    there = seen(data())
    subsets = mvae_subsets(2)(there)
    assert subsets.shape == (6, 6, 3) and not (subsets & ~there).any()
    assert (subsets[0] == there).all()
    for m in range(3):
        assert (subsets[3 + m].sum(1) == there[:, m].long()).all()
        assert not subsets[3 + m][:, torch.arange(3) != m].any()


def test_what_is_not_seen_is_in_no_subset():
    """Check 10: a fixed mask of ones is what is seen."""
    model, batch = linear_model(), data()
    guide = Bent(model)
    full = loss_of(model, guide, batch, torch.ones(3) > 0)
    assert full == loss_of(model, guide, batch, seen(batch))
    assert full == loss_of(model, guide, batch, lambda there: torch.ones_like(there))
    ordinary = float(bounds(model, guide, batch, torch.ones(3) > 0)["mixture"].sum())
    many = loss_of(model, guide, batch, torch.ones(3) > 0, "mixture", num_particles=20_000)
    assert abs(many + ordinary) < 0.1


# Gradients


def gradient(model, guide, batch, loss, seed):
    """Return the gradient of the guide's parameters, flat."""
    pyro.set_rng_seed(seed)
    guide.zero_grad()
    loss.differentiable_loss(model, guide, batch).backward()
    return torch.cat([p.grad.flatten() for p in guide.parameters() if p.grad is not None])


@pytest.mark.parametrize(
    ("mask", "bound"),
    [
        (torch.ones(3) > 0, "marginal"),
        (torch.ones(3) > 0, "mixture"),
        ("uniform_size", "marginal"),
        (torch.zeros(3) > 0, "masked"),
        (torch.zeros(3) > 0, "tc"),
    ],
    ids=["whole", "mixture", "subsets", "masked", "tc"],
)
def test_sticking_the_landing_takes_the_variance_away(mask, bound):
    """Check 11: exact posteriors, gradients at most 1e-11 in each draw; without it, of sd > .5."""
    model = orthonormal_model()
    guide, batch = exact_poe(model), data()
    stuck = gradient(model, guide, batch, MaskedELBO(mask, bound, stl=True), 0)
    assert stuck.abs().max() < 1e-11
    loose = torch.stack(
        [gradient(model, guide, batch, MaskedELBO(mask, bound), s) for s in range(40)]
    )
    assert loose.std(0).max() > 0.5


def test_closed_form_divergences_keep_their_variance():
    """Check 11: TraceMeanField_ELBO has the same mean, and a noisy gradient at the optimum."""
    model = orthonormal_model()
    guide, batch = exact_poe(model), data()
    found = [gradient(model, guide, batch, TraceMeanField_ELBO(), s) for s in range(100)]
    drawn = torch.stack(found)
    assert drawn.std(0).max() > 0.5
    noisy = drawn.std(0) > 1e-9
    z = drawn.mean(0)[noisy] / (drawn.std(0)[noisy] / 10)
    assert z.abs().max() < 4.5  # of some 60 entries
    losses = torch.tensor([TraceMeanField_ELBO().loss(model, guide, batch) for _ in range(100)])
    expected = -float(model.log_evidence(batch).sum())
    assert abs(float(losses.mean()) - expected) < 4 * float(losses.std()) / 10


@pytest.mark.parametrize("bound", BOUNDS)
def test_the_landing_has_the_same_mean_gradient(bound):
    """Away from the optimum, 2,000 draws with and without: within 5 standard errors, by entry."""
    model = orthonormal_model()
    guide, batch = exact_poe(model), data(3)
    for head in guide.heads.values():
        head.bias.data += 0.3
    means, errors = [], []
    for stl in (False, True):
        mask = torch.tensor([True, True, False])
        loss = MaskedELBO(mask, bound, stl=stl, num_particles=50)
        drawn = torch.stack([gradient(model, guide, batch, loss, s) for s in range(40)])
        means.append(drawn.mean(0))
        errors.append(drawn.std(0) / 40**0.5)
    error = (errors[0].square() + errors[1].square()).sqrt()
    assert ((means[0] - means[1]).abs() < 5 * error + 1e-10).all()


def test_each_encoder_runs_once():
    """Whatever the number of subsets, the bound and the particles."""
    calls = []
    for loss in (MaskedELBO(), MaskedELBO(mvae_subsets(5), "marginal", stl=True, num_particles=3)):
        model, guide = multimodal(), multimodal_guide()
        calls.clear()
        for encoder in guide.encoders.values():
            encoder.register_forward_hook(lambda *_: calls.append(1))
        svi = train(model, guide, loss)
        svi.step(views())  # which looks at the pair, too
        calls.clear()
        svi.step(views())
        assert len(calls) == 3


def test_no_gradient_reaches_what_nobody_has():
    """Check 9: encoder, head, decoder and scale of a modality that is missing everywhere."""
    for aggregation in AGGREGATIONS.values():
        for loss in (Trace_ELBO(), MaskedELBO(), MaskedELBO(stl=True, bound="tc")):
            model, guide = multimodal(), multimodal_guide(aggregation)
            batch = views(a=[1], b=slice(None), c=[1, 2])
            svi = train(model, guide, loss)
            svi.step(batch)
            absent = [n for n in svi.parameters if ".b." in n]
            assert len(absent) == 2 + 2 + 2 + 1  # encoder, head, decoder, scale of its noise
            for name in absent:
                grad = svi.parameters[name].grad
                assert grad is None or not grad.any(), name
            there = [p.grad for n, p in svi.parameters.items() if n not in absent]
            assert all(g is not None and g.isfinite().all() for g in there)


# Mixtures of experts


def test_a_mixture_is_between_its_experts_and_the_evidence():
    """Check 12: mean of single-expert ELBOs <= MoE ELBO <= ln p(x); two samplers agree.

    3,000 draws a row; the stratified sampler draws from every expert, weighed by the mixture.
    """
    model, batch = linear_model(), {n: x[3:] for n, x in data().items()}
    encoders = {name: Features(x.shape[1]) for name, x in batch.items()}
    guide = guides.Multimodal(encoders, MoE(2), 2, activation=nn.Identity()).double()
    for head in guide.heads.values():
        head.weight.data *= 0.5
    draws = 3000
    with torch.no_grad():
        h, there = guide.features(batch)
        mixture = guide.posterior(h, there)

        def value(z, q):
            total = model.prior().log_prob(z) - q.log_prob(z)
            for name, p in model.decode(z).items():
                total = total + p.log_prob(batch[name])
            return total

        pathwise = value(z := mixture.sample((draws,)), mixture)
        singles, strata = [], []
        for m in range(3):
            expert = guide.posterior(h, (torch.arange(3) == m).expand(3, 3))
            z = expert.sample((draws,))
            singles.append(value(z, expert))
            strata.append(value(z, mixture))
        single, stratified = (torch.stack(each).mean(0) for each in (singles, strata))
        evidence = model.log_evidence(batch)
    error = ((pathwise.var(0) + stratified.var(0)) / draws).sqrt()
    assert ((pathwise.mean(0) - stratified.mean(0)).abs() < 4.5 * error).all()
    assert (single.mean(0) < stratified.mean(0)).all()
    assert (stratified.mean(0) < evidence).all()
    assert stratified.std(0).mean() < pathwise.std(0).mean()
    masks = torch.eye(3)[:, None, :].expand(3, 3, 3) > 0
    looser = -loss_of(model, guide, batch, masks, "mixture", num_particles=draws)
    spread = 4.5 * float(single.std(0).max()) / math.sqrt(draws) * 3
    assert abs(looser - float(single.mean(0).sum())) < 2 * spread
    many = -loss_of(model, guide, batch, torch.ones(3) > 0, "mixture", num_particles=draws)
    assert abs(many - float(pathwise.mean(0).sum())) < 3 * 6 * float(error.max())


# Training


def test_masked_leaves_less_of_the_evidence_than_the_mixture():
    """Check 13: dense linear data, PoE: the masked gap < 5e-4, and < 1/5 of the mixture's.

    1,000 rows and 500 steps, a third of the sheet's; Adam 1e-2 to 0 by a cosine.
    """
    batch = linear_views(1000, (10, 12, 14), 2).data
    x = torch.cat([*batch.values()], 1).double()
    values = torch.linalg.eigvalsh((x - x.mean(0)).mT @ (x - x.mean(0)) / len(x))
    fit = values[-2:].log().sum() + 2 + values[:-2].sum() + 36 * math.log(2 * math.pi)
    best, gaps = -float(fit) / 2, {}
    for bound in ("masked", "mixture"):
        pyro.set_rng_seed(0)
        model = Multimodal({n: nn.Linear(2, v.shape[1]) for n, v in batch.items()}, 2, Normal())
        for name, decoder in model.decoders.items():
            decoder.bias.data = batch[name].mean(0)
        encoders = {n: MLP(v.shape[1], 48, 48) for n, v in batch.items()}
        guide = guides.Multimodal(encoders, PoE(2), 2)
        scheduler = partial(CosineAnnealingLR, T_max=500)
        loss = MaskedELBO(bound=bound, stl=True)
        svi = SVI(model, guide, partial(Adam, lr=1e-2), loss, scheduler=scheduler)
        for _ in range(500):
            rows = torch.randint(1000, (250,))
            svi.step({n: v[rows] for n, v in batch.items()})
            svi.scheduler.step()
        with torch.no_grad():
            exact = model.double().log_evidence({n: v.double() for n, v in batch.items()})
        gaps[bound] = (best - float(exact.mean())) / abs(best)
    assert 0 < gaps["masked"] < 5e-4
    assert gaps["masked"] < gaps["mixture"] / 5


def test_beta_weighs_every_divergence():
    """beta scales ln p(z) and ln q alike; 0 leaves them out; schedules advance."""
    model, batch = linear_model(), data()
    guide = Bent(model)
    for bound in BOUNDS:
        values = [
            loss_of(model, guide, batch, SUBSETS[3], bound, beta) for beta in (0.0, 1.0, 2.0)
        ]
        assert abs(values[2] - values[1] - (values[1] - values[0])) < 1e-9
        assert values[1] != values[0]
    loss = MaskedELBO(beta=lambda step: 0.5 + step)
    loss.advance()
    assert float(loss.beta) == 1.5


def test_terms_are_recorded_by_name_and_none_is_called_elbo():
    """Nats per datum; they add up to the loss."""
    model, batch = linear_model(), data()
    names = {"masked": ["marginal", "conditional"], "marginal": ["marginal"]}
    for bound in BOUNDS:
        loss = MaskedELBO(torch.tensor([True, False, True]), bound)
        value = loss.loss(model, Bent(model), batch)
        assert list(loss.record) == names.get(bound, [bound])
        assert abs(sum(loss.record.values()) + value / 6) < 1e-9
        assert not any("elbo" in name.lower() for name in loss.record)


# Bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MaskedELBO("uniform"), r"mask must be one of \['uniform_size', 'bernoulli'\]"),
        (lambda: MaskedELBO([True, False]), r"mask must be one of .*, but is \[True, False\]"),
        (lambda: MaskedELBO(bound="elbo"), "bound must be 'masked', 'mixture', 'tc' or"),
        (lambda: MaskedELBO(beta=-1.0), "beta must be finite and not negative"),
        (lambda: mvae_subsets(-1), "random must not be negative"),
    ],
)
def test_unknown_options_are_refused(make, message):
    """At once, in words."""
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "mask",
    [torch.ones(3), torch.ones(2) > 0, torch.ones(4, 3) > 0, lambda there: there.float()],
)
def test_masks_of_another_kind_are_refused(mask):
    """On the first loss, with the shape that is due."""
    model = linear_model()
    with pytest.raises(ValueError, match=r"mask must be booleans .*\(N, M\) = \(6, 3\)"):
        loss_of(model, Exact(model), data(), mask)


def test_pairs_that_do_not_suit_are_refused():
    """No density, no pathwise gradients, sites by other names, handlers under stl."""
    model, batch = linear_model(), data()

    class Site(nn.Module):
        def __init__(self, make):
            super().__init__()
            self.make, self.loc = make, nn.Parameter(torch.zeros(2).double())

        def forward(self, batch):
            with pyro.plate("data", 6, dim=-1):
                pyro.sample("z", self.make(self.loc))

    point = Site(lambda loc: dist.Delta(loc, event_dim=1))
    with pytest.raises(WeightlessError, match="Delta"):
        loss_of(model, point, batch)

    class Stuck(dist.Normal):
        has_rsample = False

    stuck = Site(lambda loc: Stuck(loc, 1.0).to_event(1))
    loss = MaskedELBO(stl=True).differentiable_loss
    with pytest.raises(ValueError, match="pathwise gradients"):
        loss(model, stuck, batch)
    with pytest.raises(ValueError, match="a handler around it"):
        loss(model, poutine.mask(Bent(model), mask=True), batch)
    with pytest.raises(ValueError, match=r"the model observes \['x'\], but the batch has"):
        loss_of(lambda _: observe(batch), Exact(model), batch)


def observe(batch):
    """A model whose site is no modality."""
    with pyro.plate("data", 6, dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=torch.zeros(6, 2).double())


def test_sites_without_pathwise_gradients_get_the_score():
    """A Normal that says it has none: its mean gradient is the pathwise one's, within 5 errors."""
    model, batch = linear_model(), {n: x[3:4] for n, x in data().items()}

    class Guide(nn.Module):
        def __init__(self, law):
            super().__init__()
            self.loc, self.law = nn.Parameter(torch.zeros(3, 2).double()), law

        def forward(self, batch):
            loc = seen(batch).double() @ self.loc
            with pyro.plate("data", 1, dim=-1):
                pyro.sample("z", self.law(loc, 1.0).to_event(1))

    class Stuck(dist.Normal):
        has_rsample = False

    for bound in ("masked", "tc"):
        found = []
        for law in (dist.Normal, Stuck):
            guide = Guide(law)
            mask = torch.tensor([True, False, False])
            loss = MaskedELBO(mask, bound, num_particles=100)
            drawn = torch.stack([gradient(model, guide, batch, loss, s) for s in range(40)])
            found.append((drawn.mean(0), drawn.std(0) / 40**0.5))
        error = (found[0][1].square() + found[1][1].square()).sqrt()
        assert ((found[0][0] - found[1][0]).abs() < 5 * error).all()


def test_prior_like_is_the_prior():
    """The helper of the tests above."""
    q = random_gaussian(3, 2, 0)
    z = torch.zeros(3, 2).double()
    ours = linear_model().prior().log_prob(z)
    torch.testing.assert_close(prior_like(q).log_prob(z), ours)
    assert BetaELBO in MaskedELBO.__mro__


def test_nonempty_subsets_are_equally_frequent():
    """Seven of three modalities, three of two; what is missing is in none."""
    seen = torch.ones(70_000, 3, dtype=torch.bool)
    codes = nonempty_subsets(seen).long() @ torch.tensor([1, 2, 4])
    counts = codes.bincount(minlength=8)
    assert counts[0] == 0
    assert (counts[1:] - 10_000).abs().max() < 5 * 10_000**0.5
    seen[:, 1] = False
    counts = (nonempty_subsets(seen).long() @ torch.tensor([1, 2, 4])).bincount(minlength=8)
    assert counts[[0, 2, 3, 6, 7]].sum() == 0
    assert (counts[[1, 4, 5]] - 70_000 / 3).abs().max() < 5 * (70_000 / 3) ** 0.5
    seen[:] = False
    assert not nonempty_subsets(seen).any()
