"""A step's memory, counted without computing: against closed forms, real tensors, and torch's own tracker."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from techniques_small import TRANSFORMER
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from trainers_small import small, small_state

from scrimp_trainers.conditioning.conditions import NOTHING, Conditions
from scrimp_trainers.networks.denoiser import Denoiser
from scrimp_trainers.recipe.recipe import Recipe, load
from scrimp_trainers.training import counted_memory, memory
from scrimp_trainers.training.counted_memory import BATCHES
from scrimp_trainers.training.state import build_network

WIDTH = 64
DEPTH = 5


class Stack(Denoiser):
    """Linear layers, each followed by a ReLU."""

    shape = torch.Size((1, 8, 8))
    classes = 0

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH))

    def forward(self, images: Tensor, levels: Tensor, conditions: Conditions = NOTHING) -> Tensor:
        x = images.flatten(1)
        for layer in self.layers:
            x = layer(x).relu()
        return x


def built(recipe: Recipe, size: int = 8, channels: int = 1) -> Denoiser:
    with torch.device("meta"):
        return build_network(recipe, size, channels, classes=0, seed=0)


def test_a_linear_stack_takes_what_its_formula_says():
    counted = counted_memory.count(Recipe(), Stack())
    # Of each image its level, itself, each layer's output after the ReLU, and of the loss the squares.
    assert counted.image == 4 * (1 + WIDTH * (1 + DEPTH + 1))
    # Weights, average, gradient and two moments; and a sum.
    weights = DEPTH * (WIDTH * WIDTH + WIDTH)
    assert counted.constant == 4 * (5 * weights + 1)


NETWORKS: dict[str, dict[str, Any]] = {
    "unet": {"network.channels": 16, "network.attention": [4], "network.dropout": 0.1},
    "dit": {"network.kind": "dit", "network.channels": 16, "network.layers": 2, "network.heads": 2},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_an_image_takes_what_backward_finds_saved_of_it(name):
    recipe = small().replace(NETWORKS[name])
    network = small_state(recipe).network
    weights = {weight.data_ptr() for weight in network.parameters()}

    def saved_bytes(images: int) -> int:
        sizes = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept.append(tensor)  # so that no address is used twice
            if storage.data_ptr() not in weights:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            counted_memory.summed_loss(recipe, network, network, images, torch.device("cpu"))
        return sum(sizes.values())

    fewer, more = map(saved_bytes, BATCHES)
    saved = (more - fewer) / (BATCHES[1] - BATCHES[0])
    # What is held besides for a moment: an operation's input and its result.
    assert saved <= counted_memory.count(recipe, network).image <= 1.1 * saved


def test_backward_takes_no_more_than_forward_has_kept():
    recipe = small(network__channels=16)
    network = built(recipe)
    peaks = []
    for images in BATCHES:
        with FakeTensorMode(allow_non_fake_inputs=True):
            real: Any = network.to_empty(device="cpu")
            tracker = MemTracker()
            tracker.track_external(real)
            with tracker:
                counted_memory.summed_loss(recipe, real, real, images, torch.device("cpu")).backward()
        peaks.append(tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"])
        network = built(recipe)
    image, _ = counted_memory.split_peaks(peaks)
    assert counted_memory.count(recipe, network).image == pytest.approx(image, rel=0.02)


def test_masked_training_keeps_the_activations_of_its_second_pass_too():
    plain = small().replace(TRANSFORMER)
    half = plain.replace({"masking.ratio": 0.5})
    network = built(half)
    alone, both = (counted_memory.count(recipe, network).image for recipe in (plain, half))
    # The interpolater shows the decoder all tokens again.
    assert 1.4 * alone < both < 2.1 * alone


def test_half_precision_keeps_half_of_what_is_not_a_norms_and_a_copy_of_the_weights():
    single = small(network__channels=16)
    half = single.replace({"training.precision": "bf16"})
    network = built(single)
    before, after = (counted_memory.count(recipe, network) for recipe in (single, half))
    assert 0.5 * before.image < after.image < before.image
    weights = sum(weight.numel() for weight in network.parameters())
    assert before.constant < after.constant <= before.constant + 2 * weights


def test_two_more_averages_take_as_much_as_the_weights_each():
    network = built(small())
    plain, kept = (counted_memory.count(small(ema__snapshots=count), network).constant for count in (0, 8))
    assert kept - plain == 2 * 4 * sum(weight.numel() for weight in network.parameters())


def test_masks_take_as_much_as_the_weights_that_they_mask_and_sums_of_gradients_as_much_again():
    dense = small()
    network = built(dense)
    masked = sum(w.numel() for w in counted_memory.sparsity.maskable(dense.sparsity, network).values())
    sparse = dense.replace({"sparsity.method": "rigl"})
    summing = sparse.replace({"sparsity.accumulate": 3})
    constants = [counted_memory.count(recipe, network).constant for recipe in (dense, sparse, summing)]
    assert constants[1] - constants[0] == 4 * masked
    assert constants[2] - constants[1] == 4 * masked


def test_a_recurrent_network_takes_more_the_more_points_there_are():
    recipe = load("chirodiff-vmnist").replace({"network.width": 24})
    few, many = (counted_memory.count(recipe, built(recipe, points, 3)) for points in (20, 40))
    assert many.image == pytest.approx(2 * few.image, rel=0.1)
    assert many.constant == few.constant
    # Each further point is two operations in each of three layers and two directions.
    assert many.operations - few.operations == 20 * 2 * 3 * 2


@pytest.fixture
def with_a_gpu(monkeypatch) -> Callable[[int], list[tuple[int, bool]]]:
    """A GPU of 24 GiB on which a pass takes 1,000 bytes and 10 for each image, if there is room for it."""
    tried: list[tuple[int, bool]] = []

    def peak(recipe: Any, network: Any, images: int, device: Any) -> int:
        tried.append((images, torch.backends.cudnn.benchmark))
        if images > room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return 1000 + 10 * images

    room = 0

    def make(images: int) -> list[tuple[int, bool]]:
        nonlocal room
        room = images
        return tried

    monkeypatch.setattr(memory, "_peak", peak)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (20 * 2**30, 24 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 3 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _: 1.0)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    return make


def test_memory_is_measured_with_batches_of_4_and_8_and_without_trying_algorithms(with_a_gpu):
    tried = with_a_gpu(8)
    state = small_state(small())
    measured = memory.measure_memory(small(), state, torch.device("cuda"))
    assert tried == [(4, False), (8, False)]
    assert torch.backends.cudnn.benchmark
    moments = 2 * 4 * sum(weight.numel() for weight in state.network.parameters())
    assert (measured.constant, measured.image) == (1000 + moments, 10)
    assert (measured.total, measured.others) == (24 * 2**30, 2**30)


def test_where_eight_images_do_not_fit_memory_is_counted(with_a_gpu):
    with_a_gpu(4)
    state = small_state(small())
    found = memory.measure_memory(small(), state, torch.device("cuda"))
    counted = counted_memory.count(small(), state.network)
    assert (found.constant, found.image) == (counted.constant, counted.image)
    assert torch.backends.cudnn.benchmark
