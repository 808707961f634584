"""With channels last, as on a GPU, training, its files and what is exported are what they are without."""

from itertools import islice

import pytest
import torch
from safetensors.torch import load_file
from trainers_small import CPU, random_batches, small, small_state

from scrimp_trainers.networks import unet
from scrimp_trainers.training import checkpoint, snapshots, state
from scrimp_trainers.training.loop import finish_gradients, train

RECIPE = small(
    training__kimg=0.08,
    optimizer__eps=1.0,  # steps in proportion to gradients: rounding stays small
    ema__snapshots=2,
    sparsity__method="rigl",
    sparsity__interval=3,
    sparsity__accumulate=2,
)


@pytest.fixture
def channels_last(monkeypatch):
    """Lay networks out on a processor as on a GPU."""
    monkeypatch.setattr(state, "lay_out", lambda network, _: network.to(memory_format=torch.channels_last))


def trained(steps, of=None, start=0):
    """Take some steps; return the state."""
    of = of or small_state(RECIPE)
    for _ in islice(train(RECIPE, of, random_batches(8, start=start), device=CPU), steps):
        pass
    return of


def kept(of):
    """Return all tensors of a state, as a checkpoint has them."""
    files = checkpoint.copy_content(of, {}, {}).files
    return {f"{file}/{name}": tensor for file, tensors in files.items() for name, tensor in tensors.items()}


def strides(tensors):
    return [tensor.stride() for tensor in tensors]


def test_a_training_that_is_resumed_is_bit_for_bit_the_whole_one(channels_last, tmp_path):
    whole = trained(10)
    checkpoint.write(tmp_path / "kept", checkpoint.copy_content(trained(6), {}, {}))
    resumed = small_state(RECIPE)
    checkpoint.load(tmp_path / "kept", resumed, {})
    trained(4, resumed, start=6)

    expected = kept(whole)
    after_resume = kept(resumed)
    assert expected.keys() == after_resume.keys()
    assert all(torch.equal(tensor, after_resume[name]) for name, tensor in expected.items())

    weights = list(resumed.network.parameters())
    assert any(not weight.is_contiguous() for weight in weights)
    assert strides(resumed.ema.parameters()) == strides(weights)
    assert strides(resumed.optimizer.state[weight]["exp_avg"] for weight in weights) == strides(weights)
    assert resumed.masks is not None
    assert strides(resumed.masks.masks.values()) == strides(resumed.masks.weights.values())


def test_a_training_is_that_with_channels_first(monkeypatch, tmp_path):
    first = trained(10)
    monkeypatch.setattr(state, "lay_out", lambda network, _: network.to(memory_format=torch.channels_last))
    last = trained(10)
    expected = kept(first)
    channels_last = kept(last)
    assert {name: tensor.shape for name, tensor in expected.items()} == {
        name: t.shape for name, t in channels_last.items()
    }
    for name, tensor in expected.items():
        torch.testing.assert_close(channels_last[name], tensor, rtol=1e-3, atol=1e-6)

    assert last.power is not None
    snapshots.write(tmp_path, last.power, 80)
    (file,) = (tmp_path / snapshots.FOLDER).iterdir()
    assert {name: tensor.shape for name, tensor in load_file(file).items()} == {
        name: tensor.shape for name, tensor in last.power.tensors().items()
    }


def test_what_is_exported_is_read_back(channels_last, tmp_path):
    network = trained(2).ema
    network.save(tmp_path / "unet")
    loaded = unet.load(tmp_path).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in network.state_dict().items())


def test_gradients_are_finished_in_any_layout():
    values = torch.randn(4, 3, 2, 2)
    values[0, 1, 0, 1] = torch.nan
    parameters = [torch.nn.Parameter(values.to(memory_format=torch.channels_last)), torch.nn.Parameter(values)]
    for parameter in parameters:
        parameter.grad = values.to(memory_format=torch.channels_last)
    finish_gradients(parameters, 1, 0.5)
    for parameter in parameters:
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, values.nan_to_num(0.0) * 0.5)
