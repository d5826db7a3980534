"""The former place of `ppvae.training.svi`, for code that imports from here."""

from ppvae.training.svi import SVI

__all__ = ["SVI"]
