"""Masked training: "Masked Diffusion Transformer is a Strong Image Synthesizer" (Gao et al. 2023).

Besides the ordinary pass, each step has a second one, on the same noisy images, that sees a random part of their tokens
and estimates all. The loss is the sum of the two passes' losses.
"""

import random

import torch
from torch import Tensor

from scrimp_trainers.recipe.techniques import Masking


def draw_kept(
    settings: Masking, tokens: int, generator: torch.Generator, *, global_batch: int, rank_slice: slice, step_seed: int
) -> Tensor:
    """Draw which tokens of each image the second pass sees, for all ranks; return this rank's, int64 [b, kept].

    How many depends on `step_seed` alone. Which ones is drawn on the generator's device, and nothing waits for it.
    """
    share = settings.ratio + settings.spread * random.Random(step_seed).random()
    order = torch.rand(global_batch, tokens, generator=generator, device=generator.device)[rank_slice].argsort(1)
    return order[:, : count_kept(tokens, share)]


def count_kept(tokens: int, share: float) -> int:
    """Return how many tokens are left when a share of them is hidden: at least one."""
    return max(1, int(tokens * (1 - share)))


def mean_share(settings: Masking) -> float:
    """Return the mean share of the tokens that is hidden."""
    return settings.ratio + settings.spread / 2
