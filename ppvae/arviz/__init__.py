"""From Pyro to ArviZ: a trained pair, a finished MCMC, or chains, as one `xarray.DataTree`."""

from ppvae.arviz.counts import count_groups
from ppvae.arviz.langevin import from_langevin
from ppvae.arviz.mcmc import from_pyro
from ppvae.arviz.svi import from_pyro_svi

__all__ = ["count_groups", "from_langevin", "from_pyro", "from_pyro_svi"]
