"""The former place of `ppvae.training.lagging`, for code that imports from here."""

from ppvae.training.lagging import LaggingSVI

__all__ = ["LaggingSVI"]
