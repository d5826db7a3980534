"""Spike counts inferred by a recurrent dynamics of the model itself: no encoder."""

import math

import torch
from torch import Tensor

from ppvae.guides.counts import Counts, Rates

__all__ = ["IterativePoisson"]


class IterativePoisson(Counts):
    """Poisson posterior whose log rates ascend the likelihood, a draw of counts at every step.

        u_0 = ln r,  z_t ~ Poisson(exp u_t),  q(z|x) = Poisson(exp u_T)
        u_(t+1) = u_t + step_size d ln p(x|z_t)/dz_t - leak (u_t - ln r)

    With a linear decoder Phi and variance 1/2 the gradient is 2 Phi'(x - Phi z_t), so that the
    default is the paper's u + Phi'(x - Phi z). On average that is a natural-gradient step on the
    log rates of the reconstruction at the mean, |x - Phi lam|^2 / 2, which leaves out what the
    counts' variance costs. A `leak` of `step_size` adds the step of the KL.

    No parameters of its own: training goes through the steps to the model's, so that its decoder
    learns to be inferred by. The KL is that of the last rates to the prior's, sum_k r_k f(lam_k /
    r_k); published code has lam_k in front of f, which is too large by lam_k / r_k.

    Counts on the way are random, too: all particles of a call share one path, and their weights
    average to p(x) over paths. q's density at given counts, over all paths, is not known, so that
    the KL is not split into information and aggregate.

    Args:
        model: As in `Counts`, with `decoder` and `likelihood`, such as `models.PoissonVAE`.
        steps: The number T of updates; 16 is the paper's in training.
        step_size: In units of log rate per nat and event, below the inverse curvature.
        leak: How much of the way back to the prior a step goes, between 0 and 1.
        **kwargs: As in `Counts`: kernel, temperature, gradient and max_events. Counts on the way
            are drawn as the last are; under "score" no gradient passes through them.

    Sites:
        z: (N, K) the counts, as in `Counts`.

    Raises:
        TypeError: If the model has no Poisson prior.
        ValueError: If `steps`, `step_size` or `leak` is out of range, or as in `Counts`.

    References:
        Vafaii et al. (2025), Brain-like Variational Inference, arXiv:2410.19315.

    Example:
        >>> from pyro import poutine
        >>> from ppvae.models import PoissonVAE
        >>> model = PoissonVAE(nn.Linear(2, 8, bias=False), latent_dim=2)
        >>> guide = IterativePoisson(model, steps=4, temperature=0.1)
        >>> poutine.trace(guide).get_trace(torch.rand(5, 8)).nodes["z"]["value"].shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        model: Rates,
        *,
        steps: int = 16,
        step_size: float = 0.5,
        leak: float = 0.0,
        **kwargs,
    ) -> None:
        super().__init__(model, **kwargs)
        if steps < 1:
            raise ValueError(f"steps must be at least 1, but is {steps}")
        if not 0 < step_size < math.inf:
            raise ValueError(f"step_size must be positive and finite, but is {step_size}")
        if not 0 <= leak <= 1:
            raise ValueError(f"leak must lie between 0 and 1, but is {leak}")
        self.steps, self.step_size, self.leak = steps, step_size, leak
        self.infer["conditional"] = "it is that of the rates to which counts on the way have led"

    def log_gain(self, batch: Tensor) -> Tensor:
        """Return u_T - ln r, (N, K)."""
        gain = batch.new_zeros(len(batch), self._model[0].latent_dim)
        for _ in range(self.steps):
            q = self.posterior(gain)
            z = q.rsample() if q.has_rsample else q.sample()
            gain = (1 - self.leak) * gain + self.step_size * self._slope(z, batch)
        return gain

    def _slope(self, z: Tensor, batch: Tensor) -> Tensor:
        """Return d ln p(x|z)/dz, (N, K), differentiable where training is to go through it."""
        model, through = self._model[0], torch.is_grad_enabled()
        with torch.enable_grad():
            z = z if z.requires_grad else z.detach().requires_grad_()
            log_p = model.likelihood(model.decoder(z)).log_prob(batch).sum()
            return torch.autograd.grad(log_p, z, create_graph=through)[0]
