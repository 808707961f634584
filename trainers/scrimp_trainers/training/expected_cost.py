"""What a recipe costs on a dataset, known before anything is trained: parameters and floating-point operations."""

import torch
from torch import nn

from scrimp_trainers.codecs import pretrained
from scrimp_trainers.conditioning.conditions import NOTHING, Conditions
from scrimp_trainers.data.manifest import Manifest
from scrimp_trainers.metrics import cost
from scrimp_trainers.networks.denoiser import Denoiser
from scrimp_trainers.recipe.recipe import Recipe
from scrimp_trainers.techniques import patches, sparsity
from scrimp_trainers.techniques.sparsity import LayerRow
from scrimp_trainers.training.state import build_network, count_steps

COUNTED_SCORES = ("parameters", "nonzero_parameters", "train_flops", "sample_flops")
"""Scores that are counted and not measured."""


def network_flops(recipe: Recipe, network: Denoiser) -> tuple[int, int, list[LayerRow]]:
    """Count the FLOPs of a forward pass on one whole image, without masks and with them, and say where masks are."""
    conditions = Conditions(labels=torch.zeros(1, dtype=torch.long)) if network.classes else NOTHING
    inputs = torch.zeros(1, *network.shape), torch.zeros(1), conditions
    dense = cost.forward_flops(network, *inputs)
    if not recipe.sparsity.on:
        return dense, dense, []
    layers = cost.layer_flops(network, *inputs)
    sparse = cost.sparse_flops(dense, layers, sparsity.densities(recipe.sparsity, network))
    return dense, sparse, sparsity.layer_table(recipe.sparsity, network, layers)


def train_flops(recipe: Recipe, network: Denoiser, dense: int, sparse: int, steps: int) -> float:
    """Count the FLOPs of the first `steps` of the recipe's training, given those of forward passes."""
    spent = cost.training_flops(
        recipe.sparsity,
        dense,
        sparse,
        steps=steps,
        total_steps=count_steps(recipe.training),
        batch_size=recipe.training.batch_size,
    )
    return spent * patches.mean_area(recipe.patches, network.shape[-1])


def expected_costs(recipe: Recipe, manifest: Manifest, samples: int) -> dict[str, float] | None:
    """Return the scores in `KNOWN` of a whole training and `samples` samples; none if only the hub knows the latents.

    Nothing is allocated: the network lies on the meta device.
    """
    channels, side = manifest.channels, manifest.size
    if recipe.codec.on:
        shape = pretrained.latent_shape(recipe.codec, manifest.size)
        if shape is None:
            return None
        channels, side = shape
    with torch.device("meta"):
        network = build_network(recipe, side, channels, len(manifest.classes or []), 0)
    dense, sparse, _ = network_flops(recipe, network)
    return {
        "parameters": float(cost.parameters(network)),
        "nonzero_parameters": float(cost.parameters(network) - _masked(recipe, network)),
        "train_flops": train_flops(recipe, network, dense, sparse, count_steps(recipe.training)),
        "sample_flops": float(recipe.nfe) * sparse * samples,
    }


def _masked(recipe: Recipe, network: nn.Module) -> int:
    """Return how many weights are zero."""
    if not recipe.sparsity.on:
        return 0
    sizes = {name: weight.numel() for name, weight in sparsity.maskable(recipe.sparsity, network).items()}
    densities = sparsity.densities(recipe.sparsity, network)
    return round(sum(size * (1 - densities[name]) for name, size in sizes.items()))
