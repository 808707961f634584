"""The process that a recipe names."""

from scrimp_trainers.diffusion.process import Process
from scrimp_trainers.recipe.sections import DDPM, EDM


def process_of(settings: EDM | DDPM) -> Process:
    """Return the module for these settings."""
    from scrimp_trainers.diffusion import ddpm, edm  # they import this module's types

    return edm if isinstance(settings, EDM) else ddpm
