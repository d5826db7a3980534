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
# # One model, five guides
#
# **Claim.** The guide is a part that can be swapped, and the swap shows: in the bound, in whether
# its weights can be trusted, and in the model that is learned with it.
#
# A variational autoencoder has a generative half, the *model*
#
# $$p_\theta(x, z) = \mathcal N(z; 0, I)\,
#   \prod_i \mathrm{Bernoulli}\bigl(x_i; \sigma(f_\theta(z))_i\bigr),$$
#
# and an inferential half, the *guide* $q_\phi(z \mid x)$. Training raises the evidence lower bound
#
# $$\mathbb E_{q_\phi(z \mid x)}\bigl[\ln p_\theta(x, z) - \ln q_\phi(z \mid x)\bigr]
#   = \ln p_\theta(x) - \mathrm{KL}\bigl(q_\phi(z \mid x)\,\|\,p_\theta(z \mid x)\bigr).$$
#
# The gap is the guide's: a richer family closes more of it. One number per datum and draw judges
# any pair, the log weight $\ln w = \ln p_\theta(x, z) - \ln q_\phi(z \mid x)$. Its mean is the
# ELBO, its log-mean-exp an estimate of $\ln p_\theta(x)$, and the tail of its distribution, Pareto
# $\hat k$, says whether either can be believed.

# %%
import os
from functools import partial

import pyro
from pyro.infer import Trace_ELBO
from torch.optim import Adam

from ppvae import SVI, compare, fit, from_pyro_svi, plots
from ppvae.data import digits
from ppvae.guides import Flow, FullRank, GaussianMixture, Normal
from ppvae.models import VAE
from ppvae.networks import MLP
from ppvae.objectives import IWELBO

EPOCHS = 2 if os.environ.get("PPVAE_SMOKE") else 200  # the tests run every cell, but briefly
split = digits()

# %% [markdown]
# The loop below names a guide and a loss, and nothing else changes: same decoder, same seed, same
# order of the data. `GaussianMixture` takes four components by default.

# %%
swaps = {
    "normal": (Normal, Trace_ELBO()),
    "full rank": (FullRank, Trace_ELBO()),
    "mixture": (GaussianMixture, Trace_ELBO()),
    "flow": (Flow, Trace_ELBO()),
    "normal, IW-16": (Normal, IWELBO(16)),
}
pairs, histories = {}, {}
for name, (Guide, loss) in swaps.items():
    pyro.set_rng_seed(0)
    model, guide = VAE(MLP(8, 256, 64), latent_dim=8), Guide(MLP(64, 256), latent_dim=8)
    svi = SVI(model, guide, partial(Adam, lr=1e-3), loss)
    histories[name] = fit(svi, split.train, epochs=EPOCHS, validation=split.test)
    pairs[name] = model, guide

# %% [markdown]
# ## The verdict
#
# `elbo` and `evidence` are in nats per datum. The difference is the guide's gap, less what the
# estimate still misses: where `k_bad` is large, the evidence of those data cannot be trusted.

# %%
compare(pairs, None, split.test).round(3)

# %%
plots.training_curves(histories)

# %% [markdown]
# The importance-weighted bound does not want a good $q$, only good *weights*: its ELBO is the
# worst of the five while its evidence is the best. Judge it by the second number.

# %%
plots.latent_map(
    {name: guide for name, (_, guide) in pairs.items()}, split.test, split.test_labels
)

# %% [markdown]
# ## One trained model, other guides
#
# Above, each guide taught a model of its own. Now the first model stays as it is, and other guides
# are fitted to it afterwards. The evidence is the model's alone: it must come out the same whoever
# weighs. What differs is the bound, and how far its weights can be trusted.

# %%
model = pairs["normal"][0].requires_grad_(False)
guides = {"normal": pairs["normal"][1]}
for name, Guide in {"full rank": FullRank, "mixture": GaussianMixture, "flow": Flow}.items():
    guides[name] = Guide(MLP(64, 256), latent_dim=8)
    fit(SVI(model, guides[name], partial(Adam, lr=1e-3), Trace_ELBO()), split.train, epochs=EPOCHS)
compare(guides, model, split.test).round(3)

# %% [markdown]
# ## Their posteriors in ArviZ
#
# `from_pyro_svi` turns a pair and a few data into a tree that ArviZ reads. The draws are
# independent, so R-hat and ESS are perfect whatever the fit: they say nothing of a guide. How
# guides of one model differ on one datum does.

# %%
import arviz as az

trees = {name: from_pyro_svi(model, guide, split.test[:4]) for name, guide in guides.items()}
az.plot_forest(trees, var_names=["z"], coords={"data": 0}, combined=True)
