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
# # A mixture of Gaussians as posterior, read twice
#
# **Claim.** "A mixture of Gaussians as posterior" has two readings. Over the components of one
# datum it is a better guide, and the ELBO stays a bound. Over the population of data it is another
# objective, no bound: it keeps every coordinate of the latent awake, and pays for that in rate.
#
# **Per datum**, the guide `GaussianMixture`:
#
# $$q(z \mid x) = \sum_c \pi_c(x)\, \mathcal N(z; \mu_c(x), \operatorname{diag} v_c(x)).$$
#
# Its density is exact, so $\mathbb E_q[\ln p(x, z) - \ln q(z \mid x)] \le \ln p(x)$, as for any
# guide, and the gap is smaller where the true posterior has several modes.
#
# **Over the population** (GAMIX-VAE), each $q(z \mid x_n) = \mathcal N(\mu_n, \operatorname{diag}
# v_n)$ is one Normal, and a batch of them is the mixture. Its moments by coordinate $d$,
#
# $$m_d = \overline{\mu_{nd}}, \qquad V_d = \overline{(\mu_{nd} - m_d)^2}, \qquad
#   S_d = V_d + \overline{v_{nd}},$$
#
# are pulled to the prior's, and each variance only a little:
#
# $$\overline{-\ln p(x_n \mid z_n)} + \sum_d \mathrm{KL}\bigl(\mathcal N(m_d, S_d)\,\|\,
#   \mathcal N(0, 1)\bigr) + 0.2\ \overline{\textstyle\sum_d \tfrac12 (v_{nd} - 1 - \ln v_{nd})}.$$
#
# Against the ELBO, a precise code costs a fifth. What is left out is information: the mean KL
# exceeds the second term by $\sum_d \overline{\tfrac12 \ln (S_d / v_{nd})}$. The official code has
# $V$ in place of $S$ (`moments="means"`), which wants means of variance 1 *and* $v = 1$: no
# coordinate can die, and the aggregate is wider than the prior.

# %%
import os
from functools import partial

import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from torch import nn
from torch.optim import Adam

from ppvae import SVI, Batches, compare, fit, likelihoods, plots
from ppvae.data import digits
from ppvae.diagnostics import anomaly_auroc, component_usage, evidence, population_moments
from ppvae.guides import GaussianMixture, Normal
from ppvae.models import VAE
from ppvae.networks import MLP
from ppvae.objectives import IWELBO, MixtureELBO
from ppvae.weights import log_weights

SMOKE = bool(os.environ.get("PPVAE_SMOKE"))  # the tests run every cell, but briefly

# %% [markdown]
# ## One datum with four modes
#
# Of $x_j \sim \mathcal N(|z_j|, 0.5^2)$ the signs of $z$ cannot be told: at $x = (1.2, 1.2)$ the
# posterior has four modes. The model is fixed and so is $\ln p(x)$; only the guide's gap differs.

# %%
pyro.set_rng_seed(0)
toy, x = VAE(nn.LeakyReLU(-1.0), 2, likelihoods.Normal(0.5)), torch.full((128, 2), 1.2)
guides = {"normal": Normal(MLP(2, 32), 2), "mixture": GaussianMixture(MLP(2, 32), 2)}
for guide in guides.values():
    fit(SVI(toy, guide, partial(Adam, lr=1e-2), Trace_ELBO()), x, epochs=2 if SMOKE else 400)
compare(guides, toy, x[:16]).round(3)

# %% [markdown]
# ## Digits, by both readings
#
# Same networks, same seed, same data, digits without the nines. Two runs are of the first reading,
# two of the second.

# %%
split = digits()
train, nine = split.train[split.train_labels != 9], split.test_labels == 9
test, labels = split.test[~nine], split.test_labels[~nine]
swaps = {
    "ELBO": (Normal, Trace_ELBO()),
    "per datum": (GaussianMixture, Trace_ELBO()),
    "per datum, IW-16": (GaussianMixture, IWELBO(16)),
    "population, S": (Normal, MixtureELBO(0.2)),
    "population, V": (Normal, MixtureELBO(0.2, moments="means")),
}
pairs = {}
for name, (Guide, loss) in swaps.items():
    pyro.set_rng_seed(0)
    model, guide = VAE(MLP(32, 256, 64), latent_dim=32), Guide(MLP(64, 256), latent_dim=32)
    data = Batches(train, drop_last=True)  # the moments of a last batch of a few are poor
    fit(SVI(model, guide, partial(Adam, lr=1e-3), loss), data, epochs=2 if SMOKE else 200)
    pairs[name] = model, guide
compare(pairs, None, test).round(3)

# %% [markdown]
# The population's rate (`kl`) is some four times the ELBO's, and its ELBO is the worst: it was not
# trained for it. Its `evidence` is not to be trusted, `k_bad` says: only a few of a thousand draws
# have weight. Per datum the mixture gains nothing over the Normal guide, as these posteriors have
# no modes worth finding; the importance-weighted bound gains in evidence.
#
# ## Coordinates
#
# The ELBO lets coordinates die: their means do not move with $x$, $V_d = 0$. Over the population
# none dies. $S_d$ says whether the prior's draws are like codes: 1 is the prior. With $S$ in the
# objective it comes out near 1.2, the limit for a linear model; with $V$ well above.

# %%
moments = {name: population_moments(guide, train) for name, (_, guide) in pairs.items()}
plots.population_variances(moments)

# %% [markdown]
# ## Draws
#
# Under each name the decoder's images of $z \sim \mathcal N(0, I)$, and below those of
# $z \sim \mathcal N(m, \operatorname{diag} S)$, which has the aggregate posterior's moments. That
# moments agree does not make the laws agree: where every coordinate is awake, most of the prior's
# volume holds no code, and draws show it.

# %%
models = {}
for name in ("ELBO", "population, S", "population, V"):
    (model, _), m, s = pairs[name], moments[name].mean, moments[name].total_variance.sqrt()
    models[f"{name}: N(0, I)"] = model
    models[f"{name}: N(m, S)"] = VAE(model.decoder, 32, prior=dist.Normal(m, s).to_event(1))
plots.prior_samples(models, test)

# %% [markdown]
# ## Anomalies
#
# The nines were held out. Does the evidence, by 200 weights per datum, tell them from the other
# test digits? A coin has 0.5; the error is that of choosing the test digits.

# %%
aurocs = {}
for name, (model, guide) in pairs.items():
    scores = evidence(log_weights(model, guide, split.test, 200)).log_evidence
    aurocs[name] = str(anomaly_auroc(scores[~nine], scores[nine]))
pd.Series(aurocs, name="AUROC")

# %% [markdown]
# ## Components
#
# The first reading's own question: does a datum use its components, and do they mean anything?
# The entropy of the weights says how many a datum uses, that of the responsibilities how far they
# overlap; both are in nats, `ln 4 = 1.39` at most. Of the label they tell nothing here.

# %%
mixtures = {name: pairs[name][1] for name in ("per datum", "per datum, IW-16")}
pd.DataFrame({n: vars(component_usage(g, test, labels)) for n, g in mixtures.items()}).T

# %%
plots.latent_map({name: guide for name, (_, guide) in pairs.items()}, test, labels)
