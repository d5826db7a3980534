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
# # Codes that fill the prior
#
# **Claim.** To hold the codes of all data to the prior costs what the penalty's noise costs: the
# same weight that wipes the codes out when the penalty is sampled leaves most of what they tell
# when it is computed in closed form.
#
# Averaged over the data, the KL of the ELBO has two parts,
#
# $$\mathbb E_x\,\mathrm{KL}\bigl(q(z \mid x)\,\|\,p(z)\bigr)
#   = I_q(x; z) + \mathrm{KL}\bigl(q(z)\,\|\,p(z)\bigr), \qquad q(z) = \mathbb E_x\,q(z \mid x).$$
#
# The first is what a code tells of its datum; the second is how far all codes together, the
# *aggregate posterior*, lie from where samples are drawn. InfoVAE weighs them apart, with a
# divergence $D$ that can be estimated in the place of the second:
#
# $$-\mathbb E \ln p(x \mid z)
#   + (1 - \alpha)\,\mathbb E\,\mathrm{KL}\bigl(q(z \mid x)\,\|\,p(z)\bigr)
#   + (\alpha + \lambda - 1)\,D\bigl(q(z), p(z)\bigr).$$
#
# $(\alpha, \lambda) = (0, 1)$ is the ELBO, $\alpha = 1$ with a critic the adversarial autoencoder.
# Where $\alpha + \lambda < 1$, $D$ would be *maximized*: `InfoELBO` refuses. Here $D$ is the
# squared maximum mean discrepancy with the kernel $k(z, y) = \exp(-|z - y|^2 / 2 d)$,
#
# $$D = \mathbb E\,k(z, z') - 2\,\mathbb E\,k(z, y) + \mathbb E\,k(y, y'),
#   \qquad z, z' \sim q(z),\; y, y' \sim p(z).$$
#
# `mmd` takes one draw per datum and as many of the prior. A Normal guide needs neither: all three
# expectations are Gaussian integrals of its means and variances. `mmd_gaussian` is what `mmd`
# estimates, for the same batch and in expectation over its draws. Both leave out the pairs of a
# datum with itself: else narrow posteriors would be paid for, by up to $\lambda / N$ nats.

# %%
import os
from functools import partial

import pyro
import torch
from pyro import poutine
from torch.nn.utils import parameters_to_vector
from torch.optim import Adam

from ppvae import SVI, compare, fit, plots
from ppvae.data import digits
from ppvae.diagnostics import aggregate_posterior
from ppvae.divergences import mmd, mmd_gaussian
from ppvae.guides import Normal
from ppvae.models import VAE
from ppvae.networks import MLP
from ppvae.objectives import BetaELBO, InfoELBO

EPOCHS = 2 if os.environ.get("PPVAE_SMOKE") else 150  # the tests run every cell, but briefly
split = digits()
closed_form = partial(mmd_gaussian, estimator="u")
losses = {
    "ELBO": BetaELBO(),
    "sampled MMD": InfoELBO(alpha=0.0, lam=1000.0, divergence=mmd),
    "closed form": InfoELBO(alpha=0.0, lam=1000.0, divergence=closed_form),
}
pairs = {}
for name, loss in losses.items():
    pyro.set_rng_seed(0)
    model, guide = VAE(MLP(5, 256, 64), latent_dim=5), Normal(MLP(64, 256), latent_dim=5)
    fit(SVI(model, guide, partial(Adam, lr=1e-3), loss), split.train, epochs=EPOCHS)
    pairs[name] = model, guide

# %% [markdown]
# ## The noise is the price
#
# Both penalties have the same expectation. But at $\lambda = 1000$ the gradient of the sampled one
# is mostly noise, from which only wide posteriors are safe, and they tell nothing. What noise the
# closed form has is the batch's. Left: the gradient of $1000\,D$ by the guide's parameters, at the
# pair of the closed form, over batches of 128 digits. Right: test digits, with $\ln\det$ of the
# covariance of their codes, which is 0 for the prior.

# %%
model, guide = pairs["closed form"]
noise, cost = {}, {}
for name in ("sampled MMD", "closed form"):
    gradients = []
    for rows in torch.randint(len(split.train), (200, 128)):
        q, p = poutine.trace(guide).get_trace(split.train[rows]).nodes["z"], model.prior()
        d = mmd(q["value"], p.sample((128,))) if "MMD" in name else closed_form(q["fn"], p)
        slopes = torch.autograd.grad(1000 * d, list(guide.parameters()))
        gradients.append(parameters_to_vector(slopes))
    gradients = torch.stack(gradients)
    variance = gradients.var(0).sum()
    mean = gradients.mean(0).square().sum() - variance / len(gradients)  # less the mean's noise
    noise[name] = float(mean.clamp(min=0).sqrt()), float(variance.sqrt())
aggregates = {n: aggregate_posterior(*pair, split.test) for n, pair in pairs.items()}
for name, loss in losses.items():
    loss.loss(*pairs[name], split.test)
    spread = aggregates[name].draws["z"].T.cov().logdet()
    cost[name] = -float(loss.record["log_likelihood"]), float(spread)
plots.penalty_noise(noise, cost)

# %% [markdown]
# ## Where the codes are
#
# Gray is the prior, from which samples are drawn. The title is an estimate of
# $\mathrm{KL}(q(z)\,\|\,p(z))$ on test digits: both penalties lower it. One of them has nothing
# left to hold.

# %%
plots.aggregate_posterior(aggregates, model, split.test)

# %% [markdown]
# ## The verdict
#
# The objective plays no part in it: evidence and Pareto $\hat k$ come from the log weights of
# model and guide alone. `mutual_information` is $I_q(x; z)$, in nats.

# %%
compare(pairs, None, split.test).round(3)
