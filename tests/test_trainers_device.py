import resource

import pytest
import torch
from torch import nn
from trainers_small import random_batches, small, small_state

from scrimp_trainers.common import device
from scrimp_trainers.common.device import autocast, select_device
from scrimp_trainers.metrics.features import FeatureExtractor
from scrimp_trainers.sampling import generate
from scrimp_trainers.training.loop import train


def test_memory_that_a_step_frees_on_the_cpu_is_kept_for_the_next_step():
    assert select_device("cpu") == torch.device("cpu")
    network = nn.Sequential(nn.Conv2d(1, 32, 1), nn.SiLU(), nn.Conv2d(32, 1, 1))
    images = torch.randn(100, 1, 64, 64)  # activations of 52 MB, 12,800 pages

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        network(images).square().mean().backward()
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    assert min(faults() for _ in range(6)) < 1000


TF32 = {"fp32": (False, False), "tf32": (True, True), "bf16": (True, True), "fp16": (True, True)}
"""Whether a GPU may use TF32 in convolutions, and in matrix products, in each precision."""


def flags():
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("precision", TF32)
def test_the_products_of_a_step_are_what_the_precision_says(precision):
    recipe = small(training__precision=precision, training__batch_size=8)
    state = small_state(recipe)
    forward, backward = [], []
    for layer in state.network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda *_: forward.append(flags()))
            layer.register_full_backward_hook(lambda *_: backward.append(flags()))

    before = flags()
    next(train(recipe, state, random_batches(8), device=torch.device("cpu")))
    assert set(forward) == set(backward) == {TF32[precision]}
    assert flags() == before


@pytest.mark.parametrize("precision", TF32)
def test_the_products_of_sampling_are_what_the_precision_says(precision):
    recipe = small(training__precision=precision, sampler__steps=1)
    network = small_state(recipe).ema
    seen = []
    network.register_forward_hook(lambda *_: seen.append(flags()))

    before = flags()
    list(generate(network, recipe, 2, seed=0))
    assert set(seen) == {TF32[precision]}
    assert flags() == before


def test_features_are_computed_in_true_float32_whatever_surrounds_them():
    seen = []

    class Network(nn.Module):
        def forward(self, images):
            seen.append(flags())
            return (images.float().flatten(1),)

    extractor = FeatureExtractor("classifier", "", "", Network(), False, torch.device("cpu"), Network())
    with autocast("tf32", torch.device("cpu")):
        extractor.features(torch.zeros(2, 1, 4, 4, dtype=torch.uint8))
    assert seen == [(False, False)]


@pytest.mark.parametrize(("precision", "dtype"), [("tf32", torch.float32), ("bf16", torch.bfloat16)])
def test_what_a_precision_makes_of_products_on_a_cpu(precision, dtype):
    with autocast(precision, torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


@pytest.fixture
def shared_gpu(monkeypatch):
    """A GPU of 24 GiB of which 20 are free and this process has reserved 3; how much it may take is noted."""
    fraction = [1.0]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (20 * 2**30, 24 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 3 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _: fraction[0])
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda value, _: fraction.__setitem__(0, value))
    monkeypatch.setattr(device, "_gpu_share", 1)
    return torch.device("cuda")


def test_a_process_that_has_a_gpu_alone_may_take_all_that_is_free(shared_gpu):
    assert device.memory_left(shared_gpu) == (20 * 2**30, 24 * 2**30)
    assert device.devices_held() == 1


def test_half_a_gpu_is_half_of_its_memory_with_the_context_and_half_a_device_hour_an_hour(shared_gpu):
    device.take_share(0.5, shared_gpu)
    left, most = device.memory_left(shared_gpu)
    assert most == pytest.approx((12 - 1) * 2**30, abs=1)
    assert left == pytest.approx((12 - 1 - 3) * 2**30, abs=1)
    assert device.devices_held() == 0.5
