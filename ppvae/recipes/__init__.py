"""Model, guide and objective put together: what to train, with the numbers that it is known by."""

from ppvae.data.split import Kind
from ppvae.recipes.bounds import betavae, flow_vae, iwae, mixture_vae, vae
from ppvae.recipes.epanechnikov import evae
from ppvae.recipes.gamix import gamix
from ppvae.recipes.infovae import aae, infovae, mmdvae
from ppvae.recipes.mmvm import mmvm
from ppvae.recipes.multimodal import (
    masked_attention,
    masked_sum,
    mmvae,
    mopoe,
    multimodal_pair,
    mvae,
)
from ppvae.recipes.pairs import pair
from ppvae.recipes.poisson import poisson
from ppvae.recipes.swaps import FIVE_GUIDES, Entry, five_guides
from ppvae.recipes.text import lstm_vae, released_steps, short_run_text

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
    "kind_of",
    "lstm_vae",
    "masked_attention",
    "masked_sum",
    "mixture_vae",
    "mmdvae",
    "mmvae",
    "mmvm",
    "mopoe",
    "multimodal_pair",
    "mvae",
    "pair",
    "poisson",
    "released_steps",
    "short_run_text",
    "vae",
]

RECIPES = {
    recipe.__name__: recipe
    for recipe in (
        *(vae, iwae, betavae, flow_vae, mixture_vae, evae, gamix, infovae, mmdvae, aae),
        *(poisson, short_run_text, lstm_vae),
        *(mvae, mmvae, mopoe, masked_sum, masked_attention, mmvm),
    )
}
SENTENCES = frozenset({"lstm_vae", "short_run_text"})  # the others take arrays
MODALITIES = frozenset({"mvae", "mmvae", "mopoe", "masked_sum", "masked_attention", "mmvm"})


def kind_of(recipe: str) -> Kind:
    """Return what data a recipe takes.

    Example:
        >>> kind_of("vae")
        'arrays'
    """
    if recipe in SENTENCES:
        return "sentences"
    return "modalities" if recipe in MODALITIES else "arrays"
