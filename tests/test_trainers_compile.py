"""A compiled network is one graph, in training and in sampling. torch records the graphs here, but compiles none."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from networks_small import CAPTION, NETWORKS
from torch import Tensor
from trainers_small import random_batches, small, small_state

from scrimp_trainers import sampling
from scrimp_trainers.conditioning.conditions import Conditions
from scrimp_trainers.networks import dropout
from scrimp_trainers.networks.compiling import compiled
from scrimp_trainers.training.loop import train
from scrimp_trainers.training.state import initial_state

CPU = torch.device("cpu")


@pytest.fixture
def graphs(monkeypatch) -> Iterator[list[Any]]:
    """Collect the graphs that are to be compiled, instead of compiling them. A second graph in a pass is an error."""
    found: list[Any] = []

    def collect(graph: Any, _: object) -> Any:
        found.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=collect, fullgraph=True))
    yield found
    torch._dynamo.reset()


def trained(**values: Any) -> Tensor:
    recipe = small(training__batch_size=6, **values)
    state = small_state(recipe, classes=10)
    for _ in train(recipe, state, random_batches(6), device=CPU):
        pass
    return torch.nn.utils.parameters_to_vector(state.network.parameters())


@pytest.mark.parametrize("kind", [kind for kind in NETWORKS if kind != "gru"])
def test_a_pass_of_a_network_is_one_graph(kind, graphs):
    state = initial_state(NETWORKS[kind], image_size=8, channels=1, classes=10, seed=0, device=CPU)
    conditions = Conditions(text=torch.zeros(4, *CAPTION)) if state.network.text else state.network.example(4)
    network = compiled(state.network.train())
    with dropout.of_step(state.network, rows=4, first=0, seed=0):
        out = network(torch.zeros(4, 1, 8, 8), torch.ones(4), conditions)
    out.square().mean().backward()
    assert len(graphs) == 1


@pytest.mark.parametrize(
    "recipe", [small(network__dropout=0.1), NETWORKS["dit"].replace({"network.dropout": 0.1})], ids=["unet", "dit"]
)
def test_dropout_breaks_no_graph_also_not_in_a_part_of_a_step(recipe, graphs):
    network = small_state(recipe, classes=10).network.train()
    dropping = [module for module in network.modules() if isinstance(module, dropout.Dropout) and module.p > 0]
    assert dropping
    with dropout.of_step(network, rows=8, first=4, seed=0):
        explained = torch._dynamo.explain(network)(torch.zeros(4, 1, 8, 8), torch.ones(4))
    assert explained.graph_break_count == 0
    assert explained.graph_count == 1


@pytest.mark.slow
def test_a_step_in_parts_needs_one_more_graph_for_all_sizes_and_places(graphs):
    """Parts of 2, 2, 2 images begin at 0, 2, 4; parts of 4 and 2 differ in size, too."""
    trained(training__compile=True, training__kimg=0.012, training__microbatch=2, network__dropout=0.1)
    assert len(graphs) <= 2
    trained(training__compile=True, training__kimg=0.012, training__microbatch=4, network__dropout=0.1)
    assert len(graphs) <= 4


@pytest.mark.slow
def test_patches_need_two_more_graphs_for_all_their_sizes(graphs):
    """Whole images have no coordinates, and so a graph of their own."""
    recipe = small(training__batch_size=6, training__kimg=0.12, training__compile=True, network__attention=[]).replace(
        {"patches.sizes": [0.25, 0.5, 0.75], "patches.shares": [1, 1, 1], "patches.real_p": 0.25}
    )
    state = initial_state(recipe, image_size=16, channels=1, classes=0, seed=0, device=CPU)
    larger = (replace(batch, values=batch.values.repeat(1, 1, 2, 2)) for batch in random_batches(6))
    for _ in train(recipe, state, larger, device=CPU):
        pass
    assert len(graphs) <= 3


def test_samples_are_those_of_the_network_and_a_last_smaller_batch_needs_one_more_graph(graphs, monkeypatch):
    recipe = small(sampler__steps=2, training__compile=True)
    network = small_state(recipe).ema
    expected = torch.cat(list(sampling.generate(network, recipe, 8, seed=0, batch_size=5)))
    assert not graphs

    monkeypatch.setattr(sampling, "COMPILED_FROM", 8)
    drawn = torch.cat(list(sampling.generate(network, recipe, 8, seed=0, batch_size=5)))
    assert torch.equal(drawn, expected)
    assert len(graphs) <= 2


def test_a_compiled_training_is_that_of_the_network(graphs):
    plain = trained(training__kimg=0.018)
    torch.testing.assert_close(trained(training__kimg=0.018, training__compile=True), plain)
    assert len(graphs) == 1


def test_compiled_dropout_drops_the_share_asked_for_and_of_each_image_the_same(graphs):
    images = torch.ones(6, 20_000)
    network: Any = torch.compile(dropout.Dropout(0.3).train())

    def dropped(part: slice) -> Tensor:
        with dropout.of_step(network, rows=6, first=part.start, seed=3):
            return network(images[part])

    whole = dropped(slice(0, 6))
    assert torch.equal(torch.cat([dropped(slice(0, 2)), dropped(slice(2, 6))]), whole)
    torch.testing.assert_close(whole.mean().item(), 1.0, rtol=0, atol=0.01)
    torch.testing.assert_close((whole == 0).double().mean().item(), 0.3, rtol=0, atol=0.01)
