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
# # Spikes have a price
#
# **Claim.** Where the latent counts spikes, the KL is a price per spike, and a linear VAE becomes
# sparse coding: most counts are 0, and yet nearly all units are used, where Normal and Laplace
# latents leave most of theirs idle.
#
# The model draws counts, at a rate $r_k$ of each unit, and decodes them linearly,
#
# $$p(x, z) = \prod_k \mathrm{Poisson}(z_k; r_k)\;\mathcal N\bigl(x; \Phi z, \tfrac12 I\bigr).$$
#
# The guide multiplies these rates by gains that it reads off the datum, $\lambda_k = r_k
# e^{\delta_k(x)}$. The KL is
#
# $$\mathrm{KL}\bigl(q(z \mid x)\,\|\,p(z)\bigr) = \sum_k r_k\, f\bigl(e^{\delta_k}\bigr),
#   \qquad f(y) = 1 - y + y \ln y.$$
#
# A unit that stays at its rate is free, one that is silenced costs $r_k$, and one that fires far
# above its rate about $\lambda_k \ln(\lambda_k / r_k)$: this stands where sparse coding has its L1
# norm. Since a Poisson's variance is its mean, a matrix as decoder needs no draws:
#
# $$\mathbb E_q\,|x - \Phi z|^2 = |x - \Phi \lambda|^2 + \sum_k \lambda_k |\Phi_k|^2.$$
#
# The last term is what counting costs. `LinearELBO` is this loss, for any guide with a mean and a
# variance.

# %%
import os
from functools import partial

import arviz as az
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import nn
from torch.optim import Adamax

from ppvae import SVI, compare, fit, from_pyro_svi, plots
from ppvae.arviz import count_groups
from ppvae.data import digits, photographs
from ppvae.diagnostics import kl_per_dimension, paper_units, ppca_bound
from ppvae.guides import Laplace, Normal, Poisson
from ppvae.likelihoods import Normal as FixedScale
from ppvae.models import VAE, PoissonVAE
from ppvae.networks import MLP, Flat, bounded_exp
from ppvae.objectives import BetaELBO, LinearELBO, warmup
from ppvae.recipes import poisson

EPOCHS = 2 if os.environ.get("PPVAE_SMOKE") else 200  # the tests run every cell, but briefly
UNITS = 128
train, test = (patches.flatten(1) for patches in photographs(size=8))  # whitened, |x|^2 = 63

# %% [markdown]
# Encoder and decoder are matrices; only the family of the latent changes, twice as many units as
# pixels. $\beta$ rises to 1 over the first half of training: before spikes cost anything, units
# have found something to say.

# %%
laplace = dist.Laplace(torch.zeros(UNITS), torch.ones(UNITS)).to_event(1)
linear, rows = {}, {}
for name in ("Poisson", "Normal", "Laplace"):
    pyro.set_rng_seed(0)
    decoder = nn.Linear(UNITS, 64, bias=False)
    if name == "Poisson":
        model = PoissonVAE(decoder, UNITS)
        guide = Poisson(Flat(64), model)
    else:
        prior = laplace if name == "Laplace" else None
        model = VAE(decoder, UNITS, FixedScale(0.5**0.5), prior)
        guide = {"Normal": Normal, "Laplace": Laplace}[name](Flat(64), UNITS, scale=bounded_exp)
    loss = LinearELBO(warmup(EPOCHS * len(train) // 256, 1e-4))  # half the steps, of 128 each
    fit(SVI(model, guide, partial(Adamax, lr=0.01), loss, clip_norm=500.0), train, epochs=EPOCHS)
    linear[name] = model, guide
kl = {name: kl_per_dimension(*pair, test) for name, pair in linear.items()}
model, guide = linear["Poisson"]

# %% [markdown]
# ## The dictionary
#
# The columns of $\Phi$ of the Poisson VAE, the unit that spends most nats first: edges and
# gratings of a place, an orientation and a width, as sparse coding finds them.

# %%
plots.dictionary(model.decoder.weight, order=kl["Poisson"], columns=16)

# %% [markdown]
# ## Who is used
#
# The KL of each unit, on held-out patches. A Normal latent can be turned without a change, so that
# it needs no more units than there are directions worth their price: those whose variance is above
# that of the noise, 1/2. A count cannot be negative, nor turned.

# %%
plots.kl_per_dimension(kl)

# %% [markdown]
# The price of it: the negative ELBO, in the paper's units ($|x - \Phi z|^2$ and KL, without the
# constant), next to what probabilistic PCA reaches, the optimum of the Normal family. To count is
# to be noisy: on the bound alone, the Poisson VAE loses.

# %%
for name, pair in linear.items():
    nelbo = paper_units(LinearELBO().loss(*pair, test) / len(test), 64)
    rows[name] = {"nelbo": nelbo, "kl": kl[name].sum(), "units": (kl[name] > 0.01).sum()}
rows["pPCA"] = vars(ppca_bound(train, test))
pd.DataFrame(rows, ["nelbo", "kl", "units"]).T.astype(float).round(2)

# %% [markdown]
# ## How often units fire
#
# The rates that the prior has learned, one per unit, and the guide's on held-out patches, one per
# patch and unit, on both sides of it.

# %%
rates = poutine.trace(guide).get_trace(test).nodes["z"]["fn"].mean
plots.rate_histograms({"prior": model.log_rate.exp(), "guide": rates})

# %% [markdown]
# The counts that the guide draws (black) and those that the prior predicts (blue), on a scale of
# square roots. Most are 0. Where black goes on and blue has ended, patches excite units more than
# a Poisson of one rate ever would: what a better prior could learn.

# %%
tree = from_pyro_svi(model, guide, test[:200], draws=100)
az.plot_ppc_rootogram(count_groups(tree), backend="matplotlib")

# %% [markdown]
# ## Where the decoder is no matrix
#
# Then counts must be drawn, and their gradient needs them relaxed: an arrival at $t$ counts
# $g((1 - t)/T)$ instead of 0 or 1. As $T$ falls, the variance comes near that of counts, and the
# gradient becomes noisy. The cubic kernel keeps the mean exact, and with it the KL, which the
# sigmoid does not.

# %%
plots.relaxation()

# %% [markdown]
# So train hot, and end cold: the recipe's callbacks lower $T$ from 1 to 0.05 and raise $\beta$.
# Evaluation, `compare` included, is always of counts, $T = 0$: a bound, with weights. On digits,
# next to a Normal latent of the same size, counts are behind here, too, and tell less.

# %%
split = digits()
networks = {"latent_dim": 16, "hidden": (256,), "likelihood": "bernoulli"}
spikes = poisson(64, anneal_epochs=EPOCHS // 2, learning_rate=0.01, device="cpu", **networks)
model, guide = VAE(MLP(16, 256, 64), 16), Normal(MLP(64, 256), 16)
normal = SVI(model, guide, partial(Adamax, lr=0.002), BetaELBO())
for svi in (spikes, normal):
    fit(svi, split.train, epochs=EPOCHS)
pairs = {"Poisson": (spikes.model, spikes.guide), "Normal": (model, guide)}
compare(pairs, None, split.test).round(3)

# %%
plots.reconstructions(pairs, split.test)
