"""What a recipe costs on a dataset, computed without training: parameters and floating-point operations."""

from dataclasses import replace

import torch
from torch import nn

from scrimp_trainers.common import parts
from scrimp_trainers.data.manifest import Manifest
from scrimp_trainers.data.modalities.modality import modality_of
from scrimp_trainers.metrics import cost
from scrimp_trainers.networks.denoiser import Denoiser
from scrimp_trainers.recipe.recipe import Recipe
from scrimp_trainers.techniques import masking, patches, sparsity
from scrimp_trainers.techniques.sparsity import LayerRow
from scrimp_trainers.training.state import build_network, count_steps


def network_flops(
    recipe: Recipe, network: Denoiser, mean_length: float | None = None
) -> tuple[int, int, list[LayerRow]]:
    """Return the FLOPs of a forward pass on one whole image, without and with masks, and the table of masked layers.

    A network for items of several lengths does the same at each of their points, and skips padding: there it is the
    FLOPs of an item of `mean_length`, by default of the longest.
    """
    conditions = network.example(1)
    shape = network.shape
    points = 1.0
    if network.lengths is not None:
        shape = (*shape[:-1], 1)
        points = mean_length or network.shape[-1]
    inputs = (torch.zeros(1, *shape), torch.zeros(1), conditions)
    dense = round(cost.forward_flops(network, *inputs) * points)
    if not recipe.sparsity.on:
        return dense, dense, []

    layers = {name: round(flops * points) for name, flops in cost.layer_flops(network, *inputs).items()}
    sparse = cost.sparse_flops(dense, layers, sparsity.densities(recipe.sparsity, network))
    return dense, sparse, sparsity.layer_table(recipe.sparsity, network, layers)


def step_flops(recipe: Recipe, network: Denoiser, dense: int, sparse: int) -> tuple[int, int]:
    """Return the FLOPs of all forward passes on one image in a training step, without and with masks.

    Masked training has a second pass, here with the mean share of the tokens hidden.

    Parameters
    ----------
    dense, sparse
        FLOPs of a forward pass on one whole image, from `network_flops`.
    """
    if not recipe.masking.on:
        return dense, sparse

    count = masking.count_kept(network.tokens, masking.mean_share(recipe.masking))
    conditions = replace(network.example(1), kept=torch.arange(count)[None])
    inputs = (torch.zeros(1, *network.shape), torch.zeros(1), conditions)
    masked_dense = masked_sparse = cost.forward_flops(network, *inputs)
    if recipe.sparsity.on:
        densities = sparsity.densities(recipe.sparsity, network)
        masked_sparse = cost.sparse_flops(masked_dense, cost.layer_flops(network, *inputs), densities)
    return dense + masked_dense, sparse + masked_sparse


def train_flops(recipe: Recipe, network: Denoiser, dense: int, sparse: int, steps: int) -> float:
    """Return the FLOPs of the first `steps` of training, given those of `step_flops`."""
    flops = cost.training_flops(
        recipe.sparsity,
        dense,
        sparse,
        steps=steps,
        total_steps=count_steps(recipe.training),
        batch_size=recipe.training.batch_size,
    )
    return flops * patches.mean_area(recipe.patches, network.shape[-1])


def expected_costs(recipe: Recipe, manifest: Manifest, samples: int) -> dict[str, float] | None:
    """Return parameters and FLOPs of a whole training and `samples` samples, by the names of their scores.

    None if the codec is not available locally.

    No memory is allocated: the network is on the meta device.
    """
    shape = parts.module("codecs", recipe.codec.part).shape(recipe.codec, modality_of(manifest).shape)
    if shape is None:
        return None
    with torch.device("meta"):
        network = build_network(recipe, shape[-1], shape[0], len(manifest.classes or []), seed=0)

    dense, sparse, _ = network_flops(recipe, network, manifest.mean_length)
    parameters = cost.parameters(network)
    return {
        "parameters": float(parameters),
        "nonzero_parameters": float(parameters - _masked_weights(recipe, network)),
        "train_flops": train_flops(
            recipe, network, *step_flops(recipe, network, dense, sparse), count_steps(recipe.training)
        ),
        "sample_flops": float(recipe.nfe) * sparse * samples,
    }


def _masked_weights(recipe: Recipe, network: nn.Module) -> int:
    """Return how many weights are masked."""
    if not recipe.sparsity.on:
        return 0

    sizes = {name: weight.numel() for name, weight in sparsity.maskable(recipe.sparsity, network).items()}
    densities = sparsity.densities(recipe.sparsity, network)
    return round(sum(size * (1 - densities[name]) for name, size in sizes.items()))
