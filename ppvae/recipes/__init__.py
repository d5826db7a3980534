"""Model, guide and objective put together: what to train, with the numbers that it is known by."""

from ppvae.recipes.bounds import betavae, flow_vae, iwae, mixture_vae, vae
from ppvae.recipes.pairs import pair
from ppvae.recipes.swaps import FIVE_GUIDES, Entry, five_guides

__all__ = [
    "FIVE_GUIDES",
    "RECIPES",
    "Entry",
    "betavae",
    "five_guides",
    "flow_vae",
    "iwae",
    "mixture_vae",
    "pair",
    "vae",
]

RECIPES = {recipe.__name__: recipe for recipe in (vae, iwae, betavae, flow_vae, mixture_vae)}
