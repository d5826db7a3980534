"""What every tutorial of Pyro's is taken through: check, train, weigh, compare, show."""

import re
from functools import partial

import torch
from pyro.infer import ELBO
from torch.optim import Adam

from ppvae import (
    SVI,
    PairError,
    WeightlessError,
    check_pair,
    compare,
    fit,
    from_pyro_svi,
    log_weights,
)
from ppvae.diagnostics import evidence
from ppvae.protocols import leaves


def trained(model, guide, data, loss, *, epochs, lr=0.02, **kwargs):
    """Check a pair on its data, train it by `fit`, and return the history."""
    first = data[0] if isinstance(data, list) else data
    check_pair(model, guide, first, loss=None if isinstance(loss, ELBO) else loss)
    svi = SVI(model, guide, partial(Adam, lr=lr), loss)
    return fit(svi, data, epochs=epochs, progress=False, **kwargs)


def size_of(batch):
    """Return the number of data."""
    return len(next(iter(leaves(batch).values())))


def judged(model, guide, batch, exact, *, draws=1000, slack=0.0):
    """Assert that weights, the table and the tree all say the exact evidence of all data.

    Returns the estimate and the tree.
    """
    exact, size = float(exact), size_of(batch)
    log_w = log_weights(model, guide, batch, draws)
    said = evidence(log_w)
    error = 5 * float(said.standard_error.norm()) + float(said.standard_error.square().sum())
    assert abs(float(said.log_evidence.sum()) - exact) < error + slack + 1e-3, (said, exact)
    row = compare({"guide": guide}, model, batch, num_particles=draws).loc["guide"]
    assert abs(row["evidence"] * size - exact) < 1.5 * error + slack + 1e-3, (row, exact)
    assert row["elbo"] * size < exact + error + slack + 1e-3, (row, exact)
    tree = from_pyro_svi(model, guide, batch, draws=max(100, draws // 4))
    shown = torch.as_tensor(tree["sample_stats/log_weight"].values[0])
    shown = evidence(shown.reshape(len(shown), -1))
    assert abs(float(shown.log_evidence.sum()) - exact) < 4 * error + 2 * slack + 1e-3
    return said, tree


def right_or_refused(say, exact):
    """Assert that a number is right to 0.3 nats, or refused in words that name plate or site."""
    try:
        said = float(say())
    except (PairError, WeightlessError, ValueError) as error:
        assert re.search("plate|site|subsample", str(error)), error
    else:
        assert abs(said - float(exact)) < 0.3, (said, exact)
