# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Inference without an encoder
#
# **Claim.** Twenty Langevin steps from the prior replace an encoder, and a model can be learned
# with them. What they leave out is known in a Gaussian, and can be measured in any other
# posterior; but the number they are trained by is no bound.
#
# For each datum start at the prior and climb the log joint, with noise,
#
# $$z_0 \sim p(z), \qquad
#   z_{k+1} = z_k + \tfrac{s^2}{2}\,\nabla_z \ln p_\theta(x, z_k) + s\,\varepsilon_k .$$
#
# The model then learns from $z_K$ as if it were a draw of the posterior, by the gradient of
# $Q = \mathbb E[\ln p_\theta(x, z_K)]$. That lacks the entropy of $q(z_K \mid x)$, whose density
# nobody knows, so that $Q$ is *above* $\ln p_\theta(x)$ where the posterior is sharp.
#
# On a Gaussian posterior of precision $\lambda$ and mean $m$, with $a = 1 - s^2 \lambda / 2$, the
# law of $z_K$ is Gaussian,
#
# $$\mathbb E z_K - m = a^K (\mathbb E z_0 - m), \qquad
#   v_{k+1} = a^2 v_k + s^2 \;\to\; \frac{1}{\lambda\,(1 - s^2 \lambda / 4)} .$$
#
# Few steps remember the prior, large steps are too wide, and beyond $s^2 \lambda = 4$ they
# diverge.

# %%
import os
from functools import partial

import pyro
from pyro.infer import Trace_ELBO
from torch.optim import Adam

from ppvae import SVI, compare, fit, plots
from ppvae.arviz import from_langevin
from ppvae.data import digits
from ppvae.diagnostics import search_step_size
from ppvae.guides import Flow, Langevin, Normal
from ppvae.models import VAE
from ppvae.networks import MLP

EPOCHS = 2 if os.environ.get("PPVAE_SMOKE") else 100  # the tests run every cell, but briefly
split = digits()
plots.short_runs()

# %% [markdown]
# Left, lines are that formula and dots are chains. Right, after 20 steps, against the step size.
# A *density* of where a chain ends makes a bound. Given all but the last noise, the last step's is
# Normal: `density="step"`. Given all noises, $z_0 \mapsto z_K$ is a map with a Jacobian:
# `density="transport"`, as in the paper. Each has a best step of its own, and the second punishes
# a chain for forgetting where it started.
#
# ## Learning a model
#
# Two latents, so that the posterior can be seen. The one line that names the guide is all that
# tells this from notebook 01. There is no encoder; the history says `q`, and no ELBO.

# %%
pyro.set_rng_seed(0)
model = VAE(MLP(2, 256, 64), latent_dim=2)
guide = Langevin(model, steps=20, step_size=0.2)
history = fit(SVI(model, guide, partial(Adam, lr=1e-3), Trace_ELBO()), split.train, epochs=EPOCHS)
history.frame.tail(2).round(2)

# %% [markdown]
# ## Where its chains go
#
# The posterior of one digit, computed on a grid: lines are around 50 and 95 percent of its mass,
# here on two islands. Hollow dots are starts, the same in each panel, full ones are ends. Small
# steps do not arrive; more of them do; too large ones overshoot. A chain ends on the island it
# started near, whatever mass that has.

# %%
runs = {"20 of 0.05": [0.05] * 20, "20 of 0.2": [0.2] * 20, "200 of 0.05": [0.05] * 200}
plots.chain_paths(model, runs | {"20 of 0.4": [0.4] * 20}, split.test)

# %% [markdown]
# ## Guides and the truth
#
# The model stays as it is. Amortized guides are fitted to it; a chain may also start at one of
# them, `init=`, instead of at the prior. An encoder settles on one island, and so does a chain
# that starts there. Chains from the prior visit all, by the size of the country around each.

# %%
model.requires_grad_(False)
guides = {}
for name, Guide in {"Normal": Normal, "Flow": Flow}.items():
    guides[name] = Guide(MLP(64, 256), latent_dim=2)
    fit(SVI(model, guides[name], partial(Adam, lr=1e-3), Trace_ELBO()), split.train, epochs=EPOCHS)
refined = Langevin(model, step_size=0.2, init=guides["Normal"])
plots.posterior_draws(model, guides | {"Langevin": guide, "Normal + 20": refined}, split.test)

# %% [markdown]
# ## The verdict
#
# Trained without a density, `guide` has no weights, and `compare` would refuse it in words. With
# one, the chain is judged as any guide is, its step chosen by its bound. The model's evidence is
# one number, and only who misses part of the posterior, as large `k_bad` may show, finds less of
# it. "bridge" anneals from prior to posterior, asks no encoder, and may find most.

# %%
grid = (0.05, 0.1, 0.2, 0.3, 0.4)
for density, steps in {"step": 20, "bridge": 50}.items():
    judge = Langevin(model, steps, density=density)
    found = search_step_size(model, judge, split.train[:50], grid)
    judge.step_sizes.fill_(found.best)
    guides[f'"{density}", s = {found.best}'] = judge
compare(guides, model, split.test[:30]).round(3)[["elbo", "evidence", "k_bad", "ess"]]

# %% [markdown]
# ## A gold posterior in ArviZ
#
# Accept or refuse each step, for long enough, and the chains sample the posterior itself. Here
# R-hat and ESS mean something: four chains per datum, started at the prior, must meet. Where they
# do, R-hat is 1.00 and these draws are the yardstick. Where islands keep them apart it is far
# above, the ranks fan out, and only a bridge, or more chains, can weigh one island against
# another.

# %%
import arviz as az

tree = from_langevin(model, split.test[:3], kernel="hmc", leapfrog=5, draws=400, warmup=200)
az.summary(tree, var_names=["z"])

# %%
az.plot_rank(tree, var_names=["z"], coords={"data": 0})
