"""The counts of a latent, or of data, as ArviZ's rootogram takes them."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from xarray import DataArray, DataTree

__all__ = ["count_groups"]

SAMPLES = ("chain", "draw")


def count_groups(tree: "DataTree", site: str = "z") -> "DataTree":
    """Return the counts of a site, found and expected, for `az.plot_ppc_rootogram`.

    Of a latent: those of the first posterior draw of each datum, under draws of the prior. Where
    the prior fits the aggregate posterior, the points lie within the intervals. Of data: those
    observed, under the posterior predictive draws. The axes of data and units become one, `count`,
    since the rootogram takes no other: select units before, if they are not alike.

    Args:
        tree: From `from_pyro_svi`.
        site: A latent or observed site of counts.

    Returns:
        The groups posterior_predictive, of dims (chain, draw, count), and observed_data, (count,),
        as integers.

    Raises:
        KeyError: If there is no such site.
        ValueError: If its values are not counts, as those of a relaxed draw.

    Example:
        >>> from ppvae.arviz import from_pyro_svi
        >>> from ppvae.guides import Categorical
        >>> from ppvae.models import VAE
        >>> from ppvae.networks import MLP
        >>> prior = dist.OneHotCategorical(logits=torch.zeros(3), validate_args=False)
        >>> model, guide = VAE(MLP(3, 8), 3, prior=prior), Categorical(MLP(8, 16), latent_dim=3)
        >>> tree = from_pyro_svi(model, guide, torch.ones(5, 8), draws=4)
        >>> dict(count_groups(tree)["posterior_predictive/z"].sizes)
        {'chain': 1, 'draw': 4, 'count': 15}
    """
    from xarray import Dataset, DataTree

    if "observed_data" in tree and site in tree["observed_data"]:
        found, expected = tree["observed_data"][site], tree["posterior_predictive"][site]
    elif "posterior" in tree and site in tree["posterior"]:
        found = tree["posterior"][site].isel(chain=0, draw=0, drop=True)
        expected = tree["prior"][site]
    else:
        known = [*tree["posterior"].data_vars, *tree["observed_data"].data_vars]
        raise KeyError(f"there is no site {site!r} in the tree; there are {known}")
    return DataTree.from_dict(
        {
            "posterior_predictive": Dataset({site: _counts(expected, site)}),
            "observed_data": Dataset({site: _counts(found, site)}),
        }
    )


def _counts(values: "DataArray", site: str) -> "DataArray":
    numbers = values.values
    whole = np.rint(numbers)
    if not (np.array_equal(numbers, whole) and (whole >= 0).all()):
        raise ValueError(
            f"site {site!r} holds other numbers than counts: of a relaxed guide convert the pair "
            "in evaluation mode, as from_pyro_svi does by itself"
        )
    from xarray import DataArray

    samples = [dim for dim in SAMPLES if dim in values.dims]
    shape = [*(values.sizes[dim] for dim in samples), -1]
    flat = whole.astype(np.int64).reshape(shape)  # samples come first in every tree of ours
    return DataArray(flat, dims=[*samples, "count"], name=site)
