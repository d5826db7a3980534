"""The former place of `ppvae.training.callbacks`, for code that imports from here."""

from ppvae.training.callbacks import anneal, bound_events, tensorboard

__all__ = [
    "anneal",
    "bound_events",
    "tensorboard",
]
