"""Model, guide and objective put together: what to train, with the numbers that it is known by."""

from ppvae.recipes.bounds import betavae, flow_vae, iwae, mixture_vae, vae
from ppvae.recipes.epanechnikov import evae
from ppvae.recipes.gamix import gamix
from ppvae.recipes.infovae import aae, infovae, mmdvae
from ppvae.recipes.pairs import pair
from ppvae.recipes.poisson import poisson
from ppvae.recipes.swaps import FIVE_GUIDES, Entry, five_guides

__all__ = [
    "FIVE_GUIDES",
    "RECIPES",
    "Entry",
    "aae",
    "betavae",
    "evae",
    "five_guides",
    "flow_vae",
    "gamix",
    "infovae",
    "iwae",
    "mixture_vae",
    "mmdvae",
    "pair",
    "poisson",
    "vae",
]

RECIPES = {
    recipe.__name__: recipe
    for recipe in (
        *(vae, iwae, betavae, flow_vae, mixture_vae, evae, gamix, infovae, mmdvae, aae),
        poisson,
    )
}
