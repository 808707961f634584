"""Every network at its smallest, in a recipe that trains it."""

from drawings_small import recipe_of
from techniques_small import TRANSFORMER
from techniques_worker import CAPTIONED_NETWORK
from trainers_small import small

from scrimp_trainers.recipe.recipe import Recipe

CAPTION = (7, 64)
"""Tokens of a caption, and numbers of a token."""
CAPTIONED = {"network.text_width": CAPTION[1], "conditioning.text": "captions"}
NETWORKS: dict[str, Recipe] = {
    "unet": small(network__dropout=0.1, conditioning__classes=True, conditioning__label_drop=0.2),
    "mdt": small("tiny-ddpm").replace(TRANSFORMER | {"conditioning.classes": True}),
    "dit": small("tiny-ddpm").replace({"network.kind": "dit", "network.channels": 16, "network.heads": 2}),
    "gru": recipe_of(conditioning__classes=True, conditioning__label_drop=0.2),
    "unet2d_condition": small("tiny-ddpm").replace(CAPTIONED_NETWORK | CAPTIONED),
}
