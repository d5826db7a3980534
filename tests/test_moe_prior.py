"""The mixture of posteriors as a prior: its KL by quadrature, by draws and in two closed forms."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

from ppvae.distributions import MoEPrior, VariationalMoEPrior
from ppvae.objectives import cosine

GRID = torch.linspace(-40, 50, 200_001, dtype=torch.float64)


def posteriors(loc, scale):
    """Return M Normals side by side: (M,) or (M, D)."""
    loc, scale = (torch.as_tensor(t, dtype=torch.float64) for t in (loc, scale))
    return (loc[:, None], scale[:, None]) if loc.ndim == 1 else (loc, scale)


def mixture(loc, scale, obs=None, alpha=0.0, kind=MoEPrior):
    obs = torch.ones(len(loc), dtype=torch.bool) if obs is None else torch.tensor(obs)
    return kind.of(loc, scale, obs, alpha)


def each(loc, scale):
    return [dist.Normal(m, s).to_event(1) for m, s in zip(loc, scale, strict=True)]


def by_quadrature(q, p):
    """KL(q || p) in one dimension."""
    log_q = q.log_prob(GRID[:, None])
    return torch.trapezoid(log_q.exp() * (log_q - p.log_prob(GRID[:, None])), GRID)


def by_draws(q, p, count=20_000):
    """KL(q || p), and the standard error."""
    z = q.sample((count,))
    difference = q.log_prob(z) - p.log_prob(z)
    return difference.mean(), difference.std() / math.sqrt(count)


def closed(q, loc, scale, **kwargs):
    """The variational and the pairwise form."""
    return tuple(
        kl_divergence(q, mixture(loc, scale, kind=kind, **kwargs))
        for kind in (VariationalMoEPrior, MoEPrior)
    )


@pytest.mark.parametrize(
    ("d", "mc", "variational", "slope"),
    [
        (0.5, 0.030311, 0.060548, 0.11763),
        (1.0, 0.111421, 0.219070, 0.19899),
        (2.0, 0.336831, 0.566219, 0.22480),
        (4.0, 0.632720, 0.692812, 0.06860),
        (8.0, 0.693054, 0.693147, 0.00020),
    ],
)
def test_two_normals_part(d, mc, variational, slope):
    """Check 1: the KL saturates at ln 2 and its slope dies; the pairwise form is d^2 / 4."""
    at = torch.tensor(d, dtype=torch.float64, requires_grad=True)
    loc, scale = torch.stack([at, torch.zeros_like(at)])[:, None], torch.ones(2, 1).double()
    q = each(loc, scale)[0]
    exact = by_quadrature(q, mixture(loc, scale))
    assert exact.item() == pytest.approx(mc, abs=1e-5)
    assert torch.autograd.grad(exact, at, retain_graph=True)[0].item() == pytest.approx(
        slope, abs=1e-5
    )
    bound, pairwise = closed(q, loc, scale)
    assert bound.item() == pytest.approx(variational, abs=1e-6)
    assert pairwise.item() == pytest.approx(d**2 / 4, abs=1e-12)
    assert torch.autograd.grad(pairwise, at)[0].item() == pytest.approx(d / 2, abs=1e-12)


THREE = posteriors([0.0, 1.0, 2.0], [1.0, 0.5, 2.0])


def test_three_normals():
    """Check 2: every form, of each of the three."""
    found = [(by_quadrature(q, mixture(*THREE)), *closed(q, *THREE)) for q in each(*THREE)]
    exact, variational, pairwise = torch.tensor(found).T.tolist()
    assert exact == pytest.approx([0.316933, 0.440763, 0.298433], abs=1e-6)
    assert sum(exact) == pytest.approx(1.056130, abs=2e-6)
    assert variational == pytest.approx([0.692052, 0.514273, 1.039689], abs=1e-6)
    assert pairwise == pytest.approx([1.208333, 0.620231, 3.640186], abs=1e-6)
    assert sum(pairwise) == pytest.approx(5.468750, abs=2e-6)
    for q, value in zip(each(*THREE), exact, strict=True):
        drawn, error = by_draws(q, mixture(*THREE))
        assert abs(drawn - value) < 3 * error


def test_an_expert_that_is_missing_weighs_nothing():
    """Check 2, third expert missing; its moments may be anything finite."""
    for loc, scale in ((2.0, 2.0), (1e6, 1e-3)):
        moments = posteriors([0.0, 1.0, loc], [1.0, 0.5, scale])
        h = mixture(*moments, obs=[True, True, False])
        exact = [by_quadrature(q, h).item() for q in each(*moments)[:2]]
        assert exact == pytest.approx([0.178110, 0.269858], abs=1e-6)
        assert h.weights.tolist() == [0.5, 0.5, 0.0, 0.0]
        two = tuple(t[:2] for t in moments)
        for q in each(*two):
            assert closed(q, *moments, obs=[True, True, False]) == closed(q, *two)


def test_the_mixture_is_the_best_prior_that_all_share():
    """Check 3: of any other, the excess over M JS is M KL(h || h')."""
    h = mixture(*THREE)
    least = sum(by_quadrature(q, h) for q in each(*THREE))
    for loc, variance, cost in ((1.0, 29 / 12, 1.323584), (0.0, 1.0, 3.625000)):
        other = dist.Normal(torch.tensor([loc]).double(), math.sqrt(variance)).to_event(1)
        total = sum(kl_divergence(q, other) for q in each(*THREE))
        assert total.item() == pytest.approx(cost, abs=1e-6)
        assert (total - least).item() == pytest.approx(
            3 * by_quadrature(h, other).item(), abs=1e-6
        )
    excess = 3 * by_quadrature(h, dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
    assert excess.item() == pytest.approx(2.568870, abs=1e-6)


def test_the_sum_is_the_divergence_of_jensen_and_shannon():
    """Check 4: sum_m KL(q_m || h) = M (H(h) - mean H(q_m)) <= M ln M."""
    h = mixture(*THREE)
    log_h = h.log_prob(GRID[:, None])
    entropy = -torch.trapezoid(log_h.exp() * log_h, GRID)
    mean = sum(q.entropy() for q in each(*THREE)) / 3
    total = sum(by_quadrature(q, h) for q in each(*THREE))
    assert total.item() == pytest.approx(3 * (entropy - mean).item(), abs=1e-6)
    assert total <= 3 * math.log(3)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_equal_posteriors_cost_nothing(scale):
    """Check 4: wherever they are, at any scale, in every form."""
    loc = torch.tensor([[3.0, -5.0]]).double().expand(4, 2)
    for q in each(loc, torch.full((4, 2), scale).double()):
        h = mixture(loc, torch.full((4, 2), scale).double())
        z = q.sample((100,))
        assert torch.allclose(q.log_prob(z), h.log_prob(z), atol=1e-10)
        assert torch.stack(closed(q, loc, torch.full((4, 2), scale).double())).abs().max() < 1e-12


def random_posteriors(size, separation, seed):
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(2, 3, size, generator=draw, dtype=torch.float64)
    return separation * noise[0], (0.5 * (0.3 * noise[1]).exp()).sqrt()


def test_the_forms_are_ordered():
    """Check 4: 0 <= mc (in mean) <= variational <= min(pairwise, ln M)."""
    for seed in range(20):
        loc, scale = random_posteriors(1 + seed % 5, 0.1 * (1 + seed), seed)
        for q in each(loc, scale):
            exact, error = by_draws(q, mixture(loc, scale), 4000)
            variational, pairwise = closed(q, loc, scale)
            assert -4 * error <= exact <= variational + 4 * error + 1e-9  # rounding
            assert variational <= min(pairwise, math.log(3)) + 1e-12


@pytest.mark.parametrize(
    ("size", "separation", "expected"),
    [
        (2, 0.05, (0.023, 0.043, 0.043)),
        (2, 1.0, (0.829, 1.059, 2.63)),
        (16, 0.3, (0.693, 1.029, 2.83)),
        (256, 0.05, (1.067, 1.0986, 8.83)),
        (256, 1.0, (1.0986, 1.0986, 389.0)),
    ],
)
def test_only_the_pairwise_form_grows_with_the_dimension(size, separation, expected):
    """Check 5: orders of magnitude, so over 30 instances; the forms of at most ln 3 saturate."""
    found = []
    for seed in range(30):
        loc, scale = random_posteriors(size, separation, seed)
        q = each(loc, scale)[0]
        found.append([by_draws(q, mixture(loc, scale), 500)[0], *closed(q, loc, scale)])
    means = torch.tensor(found).mean(0)
    ratios = means / torch.tensor(expected).double()
    factor = 2.0 if size < 256 else 1.15
    assert (1 / factor < ratios).all() and (ratios < factor).all()


def test_small_separations_cost_half():
    """Summed over m, mc / pairwise -> 1/2, whatever M."""
    for count in (2, 3, 6):
        draw = torch.Generator().manual_seed(count)
        loc = 0.03 * torch.randn(count, 1, generator=draw, dtype=torch.float64)
        scale = torch.ones_like(loc)
        exact = sum(by_quadrature(q, mixture(loc, scale)) for q in each(loc, scale))
        pairwise = sum(closed(q, loc, scale)[1] for q in each(loc, scale))
        assert (exact / pairwise).item() == pytest.approx(0.5, abs=1e-2)


def test_a_share_of_the_standard_normal():
    """Check 8: alpha = 1 is the VAEs' KL; 1/(M + 1) makes N(0, I) one more component."""
    standard = dist.Normal(torch.zeros(1).double(), 1.0).to_event(1)
    loc, scale = THREE
    more = torch.cat([loc, loc.new_zeros(1, 1)]), torch.cat([scale, scale.new_ones(1, 1)])
    for q in each(*THREE):
        alone = kl_divergence(q, standard)
        for form in closed(q, *THREE, alpha=1.0):
            assert form.item() == pytest.approx(alone.item(), abs=1e-12)
        variational, pairwise = closed(q, *THREE, alpha=0.25)
        assert [variational.item(), pairwise.item()] == pytest.approx(
            [form.item() for form in closed(q, *more)], abs=1e-12
        )
        parts = sum(kl_divergence(q, each(*THREE)[k]) for k in range(3))
        for alpha in (0.1, 0.7):
            expected = alpha * alone + (1 - alpha) / 3 * parts
            assert closed(q, *THREE, alpha=alpha)[1].item() == pytest.approx(expected.item())
            literal = by_quadrature(q, mixture(*THREE, alpha=alpha))
            assert literal <= -math.log((1 - alpha) / 3)


def test_the_share_falls_on_a_cosine():
    """Check 8: 1, 1/2 and 0 at 0, 75,000 and 150,000 steps."""
    schedule = cosine(150_000)
    found = [schedule(step) for step in (0, 75_000, 150_000, 10**6)]
    assert found == pytest.approx([1.0, 0.5, 0.0, 0.0], abs=1e-12)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        cosine(0)


def test_a_row_without_experts_has_the_standard_normal():
    """Its logits are finite, and so are all gradients."""
    loc = torch.zeros(2, 3, 4, requires_grad=True)
    obs = torch.tensor([[True, False, True], [False, False, False]])
    h = MoEPrior.of(loc, torch.ones(2, 3, 4), obs, 0.0)
    assert h.weights.tolist() == [[0.5, 0, 0.5, 0], [0, 0, 0, 1]]
    q = dist.Normal(loc[:, 0] + 1, 1.0).to_event(1)
    z = torch.zeros(2, 4)
    assert h.log_prob(z)[1] == dist.Normal(torch.zeros(4), 1.0).to_event(1).log_prob(z[1])
    total = kl_divergence(q, h).sum() + h.log_prob(z).sum()
    assert torch.autograd.grad(total, loc)[0].isfinite().all()


@pytest.mark.parametrize("kind", [MoEPrior, VariationalMoEPrior])
def test_the_mixture_expands_and_keeps_its_kind(kind):
    """As plates of particles demand; particles may differ in the first argument."""
    loc, scale = torch.randn(5, 3, 2), torch.rand(5, 3, 2) + 0.5
    h = kind.of(loc, scale, torch.ones(5, 3).bool())
    wide = h.expand((7, 5))
    assert type(wide) is kind and wide.sample().shape == (7, 5, 2)
    q = dist.Normal(loc[:, 0], scale[:, 0]).to_event(1)
    assert torch.allclose(kl_divergence(q.expand((7, 5)), wide), kl_divergence(q, h))
    assert torch.allclose(h.mean, (loc.sum(1)) / 3, atol=1e-6)


def test_the_closed_forms_refuse_in_words():
    """Falling back to draws unnoticed would make another objective."""
    h = MoEPrior.of(torch.zeros(3, 2), torch.ones(3, 2), torch.ones(3).bool())
    with pytest.raises(TypeError, match="a factorized Normal .* but the guide has Laplace"):
        kl_divergence(dist.Laplace(torch.zeros(2), 1.0).to_event(1), h)
    with pytest.raises(TypeError, match=r"of event shape \(5,\)"):
        kl_divergence(dist.Normal(torch.zeros(5), 1.0).to_event(1), h)
