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
# # A run survives
#
# **Claim.** A run that is interrupted and resumed ends where it would have ended, bit for bit.
#
# A *recipe* is a function from the number of features to a model, a guide and a loss, with the
# numbers of a paper for defaults: the same functions that `ppvae train` takes from the command
# line. With `checkpoint=` training keeps its best and its last epoch in a folder, each as one
# moment: weights, optimizer, schedules, random streams, and the order of the data.

# %%
import os
import tempfile
from pathlib import Path

import pyro
import torch

from ppvae import fit, plots, recipes
from ppvae.data import digits

EPOCHS = 4 if os.environ.get("PPVAE_SMOKE") else 40
split, place = digits(validation_share=0.1), Path(tempfile.mkdtemp())


def run(folder, epochs):
    pyro.set_rng_seed(0)
    svi = recipes.betavae(64, beta=1.0, warmup_steps=200, hidden=(128,), learning_rate=1e-3)
    options = {"validation": split.validation, "checkpoint": place / folder, "resume": True}
    return svi, fit(svi, split.train, epochs=epochs, **options)


# %% [markdown]
# The first run goes through. The second stops half way, and everything about it is forgotten but
# its folder; the third goes on from there.

# %%
whole, history = run("whole", EPOCHS)
run("parts", EPOCHS // 2)
torch.manual_seed(123)  # what else happened in the meantime does not matter
resumed, _ = run("parts", EPOCHS)

pairs = zip(whole.guide.parameters(), resumed.guide.parameters(), strict=True)
all(torch.equal(a, b) for a, b in pairs)

# %%
sorted(path.name for path in (place / "parts").iterdir())

# %%
plots.training_curves({"whole": history})
