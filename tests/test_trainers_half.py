"""Under bf16 a network is sampled from a copy of its weights in half precision, and draws what it would without."""

import pytest
import torch
from networks_small import CAPTION, NETWORKS
from torch import nn
from trainers_small import CPU, small, small_state

from scrimp_trainers import sampling
from scrimp_trainers.common.device import autocast
from scrimp_trainers.conditioning.conditions import Conditions
from scrimp_trainers.metrics.score import Scorer
from scrimp_trainers.networks.half import with_half_weights
from scrimp_trainers.recipe.scoring import Scoring
from scrimp_trainers.training.state import initial_state


def awake(network):
    """Give a network weights as if it had been trained, so that its output matters."""
    generator = torch.Generator().manual_seed(5)
    for parameter in network.parameters():
        parameter.data.normal_(std=0.1, generator=generator)
    return network


@torch.no_grad()
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_copy_gives_bit_for_bit_what_autocast_makes_of_the_weights(kind):
    channels, size = (3, 40) if kind == "gru" else (1, 8)
    state = initial_state(NETWORKS[kind], image_size=size, channels=channels, classes=10, seed=0, device=CPU)
    network = awake(state.ema)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    copied = with_half_weights(network, torch.bfloat16)

    inputs = torch.randn(4, *network.shape), torch.arange(1, 5)
    conditions = Conditions(text=torch.randn(4, *CAPTION)) if network.text else network.example(4)
    with autocast("bf16", CPU):
        expected = network(*inputs, conditions)
        from_copy = copied(*inputs, conditions)
    assert expected.std() > 1e-3
    assert from_copy.dtype == expected.dtype
    assert torch.equal(from_copy, expected)

    products = [module for module in copied.modules() if type(module) in (nn.Linear, nn.Conv2d)]
    assert products
    assert {weight.dtype for module in products for weight in module.parameters()} == {torch.bfloat16}
    after = network.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize(("precision", "copies"), [("fp32", 0), ("tf32", 0), ("bf16", 1), ("fp16", 0)])
def test_weights_are_copied_once_for_all_samples_and_not_where_they_stay_in_float32(precision, copies, monkeypatch):
    """A processor computes fp16 as fp32."""
    made = []
    monkeypatch.setattr(sampling, "with_half_weights", lambda network, _: made.append(network) or network)
    recipe = small(sampler__steps=2, training__precision=precision)
    list(sampling.generate(small_state(recipe).ema, recipe, 6, seed=0, batch_size=2))
    assert len(made) == copies


def test_scores_with_the_copy_are_those_without(scored_digits, monkeypatch):
    recipe = small(sampler__steps=4, training__precision="bf16")
    network = awake(small_state(recipe).ema)
    scorer = Scorer(scored_digits, Scoring(extractor="classifier", samples=40), "cpu")

    def scores():
        values = scorer.score(sampling.generate(network, recipe, 40, seed=0)).values
        return {name: value for name, value in values.items() if isinstance(value, float)}

    with_copy = scores()
    assert with_copy
    monkeypatch.setattr(sampling, "with_half_weights", lambda network, _: network)
    assert scores() == pytest.approx(with_copy, rel=1e-3)
