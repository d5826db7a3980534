"""From any subset of modalities to one posterior: algebra of experts, and what holds for all."""

from functools import partial

import pyro.distributions as dist
import pytest
import torch
from modalities import SUBSETS, data, linear_model, orthonormal_model
from torch import nn
from torch.distributions import kl_divergence

from ppvae.aggregation import MoE, MoPoE, PoE, SelfAttention, SumPooling
from ppvae.distributions import MixtureOfDiagNormals
from ppvae.protocols import hide, seen

AGGREGATIONS = {
    "poe": PoE,
    "moe": MoE,
    "mopoe": MoPoE,
    "sum": partial(SumPooling, width=8),
    "attention": partial(SelfAttention, width=8),
}
each = pytest.mark.parametrize("name", AGGREGATIONS)
each_count = pytest.mark.parametrize("components", [1, 3])


def made(name, components=1, latent_dim=2):
    """Return an aggregation, features of five data and three modalities, and a mixed mask."""
    aggregation = AGGREGATIONS[name](latent_dim, components=components)
    h = torch.randn(5, 3, aggregation.in_features)
    mask = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 0]]) > 0
    return aggregation, h, mask


def moments(q):
    """Return what tells two posteriors apart, and the density at a few points."""
    z = torch.linspace(-2, 2, 7)[:, None, None].expand(7, *q.batch_shape, q.event_shape[0])
    return torch.cat([q.mean.flatten(), q.variance.flatten(), q.log_prob(z).flatten()])


# What holds for all


@each
@each_count
def test_the_order_of_modalities_does_not_matter(name, components):
    """Check 9: permuted with their masks; 1e-6 in float32."""
    aggregation, h, mask = made(name, components)
    order = torch.tensor([2, 0, 1])
    here, there = aggregation(h, mask), aggregation(h[:, order], mask[:, order])
    torch.testing.assert_close(moments(here), moments(there), rtol=1e-5, atol=1e-6)


@each
@each_count
def test_a_modality_that_is_missing_changes_nothing(name, components):
    """Check 9: one more that nobody has, whatever its features say."""
    aggregation, h, mask = made(name, components)
    more = torch.cat([h, torch.full_like(h[:, :1], 1e3)], 1)
    wider = torch.cat([mask, torch.zeros(5, 1) > 0], 1)
    torch.testing.assert_close(
        moments(aggregation(h, mask)), moments(aggregation(more, wider)), rtol=1e-5, atol=1e-5
    )


@each
@each_count
def test_each_datum_has_its_own_subset(name, components):
    """A batch of mixed masks, the empty one among them, is what its data are one by one."""
    aggregation, h, mask = made(name, components)
    q = aggregation(h, mask)
    assert q.batch_shape == (5,) and q.event_shape == (2,)
    for n in range(5):
        alone = aggregation(h[n : n + 1], mask[n : n + 1])
        assert moments(alone).isfinite().all()
        torch.testing.assert_close(alone.mean[0], q.mean[n], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone.variance[0], q.variance[n], rtol=1e-4, atol=1e-5)


@each
@each_count
def test_particles_may_come_first(name, components):
    """(K, N, M, E) in, (K, N) out."""
    aggregation, h, mask = made(name, components)
    q = aggregation(h.expand(4, *h.shape), mask.expand(4, *mask.shape))
    assert q.batch_shape == (4, 5) and q.rsample().shape == (4, 5, 2)
    torch.testing.assert_close(q.mean[2], aggregation(h, mask).mean, rtol=1e-5, atol=1e-6)


@each
@each_count
def test_no_gradient_reaches_what_was_not_seen(name, components):
    """Exactly zero, whatever stood there; and finite where it was seen, or nothing was."""
    aggregation, h, mask = made(name, components)
    h[~mask] = 1e4
    h.requires_grad_()
    q = aggregation(h, mask)
    (q.log_prob(q.rsample()).sum() + q.rsample().sum()).backward()
    assert (h.grad[~mask] == 0).all()
    assert h.grad.isfinite().all() and h.grad[mask].any()
    assert all(p.grad.isfinite().all() for p in aggregation.parameters() if p.grad is not None)


@each
def test_draws_have_the_density_they_say(name):
    """Mean and variance of draws, within 5 standard errors, of mixtures of three."""
    aggregation, h, mask = made(name, 3)
    with torch.no_grad():
        q = aggregation(h, mask)
        z = q.rsample((20_000,))
    error = (q.variance / len(z)).sqrt()
    assert ((z.mean(0) - q.mean).abs() < 5 * error).all()
    torch.testing.assert_close(z.var(0), q.variance, rtol=0.15, atol=1e-3)


@each
def test_heads_of_mixtures_are_mixtures(name):
    """And with one component, the pooled ones and the product are Normal."""
    one, three = (made(name, count)[0](*made(name, count)[1:]) for count in (1, 3))
    assert isinstance(three, MixtureOfDiagNormals)
    assert isinstance(one, dist.Independent) == (name in ("poe", "sum", "attention"))


# Experts


def experts(model, batch, *, likelihood=True):
    """Return N(W' r, s^2) of each modality, or the posteriors given one: h (N, M, 2 D)."""
    columns = []
    for name, x in batch.items():
        layer, scale = model.decoders[name], model.likelihoods[name].scale
        mean, variance = (x.nan_to_num() - layer.bias) @ layer.weight, scale**2
        if not likelihood:
            mean, variance = mean / (1 + variance), variance / (1 + variance)
        log_scale = (variance.log() / 2).expand_as(mean)
        columns.append(torch.cat([mean, log_scale], -1))
    return torch.stack(columns, 1).detach()


def test_the_product_of_experts_is_exact_where_columns_are_orthonormal():
    """Check 7, 1e-12, for every subset; not with posteriors for experts, nor as a mixture."""
    model, batch = orthonormal_model(), data()
    for subset in SUBSETS:
        hidden = hide(batch, subset)
        p, mask = model.posterior(hidden), seen(hidden)
        q = PoE(2, min_variance=0.0)(experts(model, batch), mask)
        torch.testing.assert_close(q.mean, p.mean, rtol=0, atol=1e-12)
        torch.testing.assert_close(q.variance, p.variance, rtol=0, atol=1e-12)
        two = mask.sum(1) >= 2
        twice = PoE(2, min_variance=0.0)(experts(model, batch, likelihood=False), mask)
        wide = MoE(2, min_scale=0.0)(experts(model, batch, likelihood=False), mask)
        assert (twice.variance < p.variance - 1e-3)[mask.any(1)].all()  # the prior counted again
        assert (wide.variance > p.variance + 1e-3)[two].all()


def test_a_mixture_of_one_expert_is_that_expert():
    """Check 7, 1e-12: with posteriors for experts, the mixture is exact for one modality."""
    model, batch = orthonormal_model(), data()
    for m in range(3):
        hidden = hide(batch, torch.arange(3) == m)
        q = MoE(2, min_scale=0.0)(experts(model, batch, likelihood=False), seen(hidden))
        p = model.posterior(hidden)
        torch.testing.assert_close(q.mean, p.mean, rtol=0, atol=1e-12)
        torch.testing.assert_close(q.variance, p.variance, rtol=0, atol=1e-12)


def test_an_expert_may_know_nothing_of_some_coordinates():
    """Check 7, sparse: precision 0, log variance infinite, where a modality has no part in z."""
    model = orthonormal_model()
    for m, decoder in enumerate(model.decoders.values()):
        decoder.weight.data[:, m % 2] = 0.0
    batch = data()
    h = experts(model, batch)
    for m in range(3):
        h[:, m, 2 + m % 2] = torch.inf  # log standard deviation
    p = model.posterior(batch)
    q = PoE(2, min_variance=0.0)(h, seen(batch))
    torch.testing.assert_close(q.mean, p.mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(q.variance, p.variance, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["poe", "mopoe"])
def test_an_expert_that_knows_nothing_has_a_gradient(name):
    """e^(2 s) overflows in float32 from s = 45 on, and 1 / inf has no gradient."""
    aggregation, h, mask = made(name)
    h[..., 2:] = 60.0
    h.requires_grad_()
    q = aggregation(h, mask)
    (q.rsample() + q.variance).sum().backward()
    assert h.grad.isfinite().all()
    torch.testing.assert_close(q.variance, torch.ones(5, 2))


def test_nothing_seen_leaves_the_prior():
    """For experts, exactly."""
    for name in ("poe", "moe", "mopoe"):
        aggregation, h, mask = made(name)
        q = aggregation(h, torch.zeros_like(mask))
        torch.testing.assert_close(q.mean, torch.zeros(5, 2), rtol=0, atol=0)
        torch.testing.assert_close(q.variance, torch.ones(5, 2), rtol=0, atol=0)


@each_count
def test_mixtures_of_experts_are_sums_of_densities(components):
    """MoE by hand, expert by expert and component by component, with a missing one."""
    aggregation, h, mask = made("moe", components)
    z, q = torch.randn(5, 2), aggregation(h, mask)
    for n, row in enumerate(mask[:3]):
        densities = []
        for m in row.nonzero()[:, 0].tolist():
            loc, log_scale, logits = aggregation.read(h[n, m])
            parts = dist.Normal(loc, log_scale.exp() + 1e-3).to_event(1).log_prob(z[n])
            densities.append((logits.log_softmax(-1) + parts).logsumexp(-1))
        by_hand = torch.stack(densities).logsumexp(0) - torch.tensor(float(len(densities))).log()
        torch.testing.assert_close(q.log_prob(z)[n], by_hand, rtol=1e-4, atol=1e-5)


@each_count
def test_mixtures_of_products_hold_every_nonempty_subset_once(components):
    """MoPoE by hand: 2^|S| - 1 products, equal weights."""
    aggregation, h, mask = made("mopoe", components)
    product = PoE(2, components=components)
    z, q = torch.randn(5, 2), aggregation(h, mask)
    for n, row in enumerate(mask[:3]):
        inside = [s for s in SUBSETS if s.any() and not (s & ~row).any()]
        assert len(inside) == 2 ** int(row.sum()) - 1
        densities = [product(h[n : n + 1], s[None]).log_prob(z[n : n + 1])[0] for s in inside]
        count = torch.tensor(float(len(inside)))
        by_hand = torch.stack(densities).logsumexp(0) - count.log()
        torch.testing.assert_close(q.log_prob(z)[n], by_hand, rtol=1e-4, atol=1e-5)


def test_products_of_mixtures_go_component_by_component():
    """Component c is the product of components c, its weight the normalized product of theirs."""
    aggregation, h, mask = made("poe", 3)
    q = aggregation(h, mask)
    loc, log_scale, logits = aggregation.read(h)  # (5, 3, C, 2)
    precision = mask[:, :, None, None] / (1e-3 + (2 * log_scale).exp())
    total = 1 + precision.sum(1)
    torch.testing.assert_close(q.locs, (precision * loc).sum(1) / total)
    torch.testing.assert_close(q.coord_scale, total.rsqrt())
    torch.testing.assert_close(q.probs, (mask[:, :, None] * logits).sum(1).softmax(-1))


# Pooling


def test_sum_pooling_can_be_exact():
    """Check 8, 1e-12: chi = (eta_m, T_m), rho = (eta / (1 + T), -1/2 log(1 + T))."""
    model, batch = orthonormal_model(), data()
    aggregation = SumPooling(2, width=8, min_scale=0.0)

    class Chi(nn.Module):
        def forward(self, h):
            mean, log_scale = h.chunk(2, -1)
            precision = (-2 * log_scale).exp()
            return torch.cat([precision * mean, precision], -1)

    class Rho(nn.Module):
        def forward(self, g):
            eta, precision = g.chunk(2, -1)
            return torch.cat([eta / (1 + precision), -(1 + precision).log() / 2], -1)

    aggregation.chi, aggregation.rho = Chi(), Rho()
    for subset in SUBSETS:
        hidden = hide(batch, subset)
        p, q = model.posterior(hidden), aggregation(experts(model, batch), seen(hidden))
        torch.testing.assert_close(q.mean, p.mean, rtol=0, atol=1e-12)
        torch.testing.assert_close(q.variance, p.variance, rtol=0, atol=1e-12)


def test_attention_looks_at_the_null_token_when_nothing_was_seen():
    """Its posterior of nothing is learned, finite, and the same for all."""
    aggregation, h, mask = made("attention")
    q = aggregation(h, torch.zeros_like(mask))
    assert q.mean.isfinite().all() and (q.mean == q.mean[0]).all()
    q.mean.sum().backward()
    assert aggregation.null.grad.any()


def test_the_best_factorized_normal_has_the_exact_mean_and_inverse_precisions():
    """Check 6: the gap is (sum ln Lambda_ii - ln |Lambda|) / 2; 0.143841 for [[2, 1], [1, 2]]."""
    model = linear_model({"a": 1}, 2, (1.0,))
    model.decoders["a"].weight.data = torch.ones(1, 2, dtype=torch.float64)
    p = model.posterior({"a": torch.ones(1, 1, dtype=torch.float64)})
    torch.testing.assert_close(p.precision_matrix[0], torch.tensor([[2.0, 1], [1, 2]]).double())
    scale = p.precision_matrix[0].diagonal().rsqrt()

    def gap(factor):
        q = dist.MultivariateNormal(p.mean, torch.diag((factor * scale) ** 2))
        return float(kl_divergence(q, p).detach())

    assert abs(gap(1.0) - 0.143841) < 1e-6
    assert gap(0.99) > gap(1.0) < gap(1.01)


# Bad input


@each
def test_features_of_another_size_are_refused(name):
    """In words, with the size that is due."""
    aggregation, h, mask = made(name)
    with pytest.raises(ValueError, match=r"takes 4 features of each modality.*linear head of 4"):
        aggregation(h[..., :3], mask)


@pytest.mark.parametrize("mask", [torch.ones(5, 3), torch.ones(5, 2) > 0])
def test_what_was_seen_must_be_booleans_of_the_same_shape(mask):
    """In words."""
    aggregation, h, _ = made("poe")
    with pytest.raises(ValueError, match=r"seen must be booleans of shape \(N, M\) = \(5, 3\)"):
        aggregation(h, mask)


def test_sizes_that_cannot_be_are_refused():
    """In words."""
    with pytest.raises(ValueError, match="latent_dim and components must be at least 1"):
        PoE(0)
    with pytest.raises(ValueError, match="latent_dim and components must be at least 1"):
        MoE(2, components=0)
    with pytest.raises(ValueError, match="width must be a multiple of heads"):
        SelfAttention(2, width=6)
