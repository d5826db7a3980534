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
# # Unity by diversity
#
# **Claim.** A prior that mixes the posteriors of all modalities ties them by its *pairwise* form
# only: the KL itself ends at $\ln M$, pulls no more, and leaves autoencoders that share nothing.
#
# A VAE per modality, each with a latent $z_m$ of its own, has as its prior what all of them say:
#
# $$q(z \mid x) = \prod_m q_m(z_m \mid x_m), \qquad
#   h(z \mid x) = \frac 1 M \sum_k q_k(z \mid x_k), \qquad
#   \mathcal E = \sum_m \mathbb E \ln p_m(x_m \mid z_m) - \sum_m \mathrm{KL}(q_m\,\|\,h).$$
#
# The last sum is $M$ times the Jensen-Shannon divergence of the posteriors: 0 if they agree,
# wherever that is, and $M \ln M$ at most. What published code minimizes is its upper bound
#
# $$\mathrm{KL}(q_m\,\|\,h) \;\le\; \frac 1 M \sum_k \mathrm{KL}(q_m\,\|\,q_k),$$
#
# which has no end. Below, two Normals at a distance $d$: beyond some four standard deviations the
# KL to their mixture has no slope left, and in many dimensions posteriors start out further apart.
# Hershey and Olsen's tighter bound, "variational", ends where the KL does.

# %%
import os

import pandas as pd
import pyro

from ppvae import fit, plots
from ppvae.data import digits
from ppvae.diagnostics import coherence, latent_classification, linear_classifier
from ppvae.recipes.mmvm import mmvm

plots.kl_to_mixture()

# %% [markdown]
# ## Two halves of a digit
#
# The upper and the lower half of scikit-learn's digits, as two modalities. From one the other can
# be guessed, if the latents mean the same. Four models differ in their prior alone: $N(0, I)$, and
# $h$ with each form of the KL.

# %%
EPOCHS = 2 if os.environ.get("PPVAE_SMOKE") else 60  # the tests run every cell, but briefly
split = digits(binarize=False)
train, test = ({"top": x[:, :32], "bottom": x[:, 32:]} for x in (split.train, split.test))
judges = {name: linear_classifier(x, split.train_labels) for name, x in train.items()}
pairs, shared, rows = {}, {}, {}
for kl in ("independent", "mc", "variational", "pairwise"):
    pyro.set_rng_seed(0)
    sizes = {"hidden": (64, 64), "scale": 0.2, "learning_rate": 3e-3}
    svi = mmvm({"top": 32, "bottom": 32}, kl=kl, latent_dim=8, **sizes)
    fit(svi, train, epochs=EPOCHS, progress=False)
    model, guide = pairs[kl] = svi.model.cpu(), svi.guide.cpu()
    shared[kl] = coherence(model, guide, test, split.test_labels, judges)
    read = latent_classification(guide, train, split.train_labels, test, split.test_labels)
    svi.loss.loss(model, guide, test)
    rows[kl] = {
        "ln p(x|z)": float(svi.loss.record["log_likelihood"]),
        "KL": float(svi.loss.record["kl"]),
        "half from itself": shared[kl].diagonal,
        "from the other": shared[kl].off_diagonal,
        "codes: top": read["top"],
        "codes: bottom": read["bottom"],
    }

# %% [markdown]
# ## The better autoencoder is the worse model
#
# On test digits, nats per datum. Under "mc" and "variational" the KL is paid in full,
# $2 \ln 2 = 1.39$, and then costs nothing more: reconstructions are the best of all, and what one
# half says of the other is chance, a tenth, or little more. The pairwise form pays in
# reconstructions for what it shares. So show both; and none of these numbers is an ELBO, except
# those of independent VAEs: the prior has seen the data, and `evidence` refuses.

# %%
pd.DataFrame(rows).T.round(3)

# %%
images = {"top": (1, 4, 8), "bottom": (1, 4, 8)}
plots.cross_generation(*pairs["mc"], test, images=images, coherence=shared["mc"])

# %%
plots.cross_generation(*pairs["pairwise"], test, images=images, coherence=shared["pairwise"])
