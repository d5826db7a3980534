"""The former place of `ppvae.training.batches`, for code that imports from here."""

from ppvae.training.batches import Batches, resolve_device

__all__ = ["Batches", "resolve_device"]
