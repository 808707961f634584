"""Every preset, technique and network takes a step on a made-up GPU: devices and types agree, and nothing waits."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from fake_cuda import ASKS_DEVICE, CUDA, MixedTypes, Watch, backward, made_up
from networks_small import CAPTION, NETWORKS
from techniques_small import NAMES, with_techniques
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorDeviceMismatchError
from torch.nn.functional import linear
from torch.nn.utils.rnn import PackedSequence
from trainers_small import small, small_state

from scrimp_trainers import networks
from scrimp_trainers.codecs import pixels, strokes
from scrimp_trainers.codecs.autoencoder import AutoencoderCodec
from scrimp_trainers.codecs.autoencoder_files import KINDS
from scrimp_trainers.conditioning.text import Texts
from scrimp_trainers.data.batch import Batch
from scrimp_trainers.diffusion.edm import EDMProcess
from scrimp_trainers.networks.unet import UNetDenoiser
from scrimp_trainers.precompute import dro
from scrimp_trainers.recipe import recipe as recipes
from scrimp_trainers.recipe.recipe import Recipe
from scrimp_trainers.recipe.sections import Training
from scrimp_trainers.training import loop
from scrimp_trainers.training.inputs import Prepared
from scrimp_trainers.training.loop import train
from scrimp_trainers.training.state import initial_state

PRECISIONS = get_args(Training.model_fields["precision"].annotation)
SIZE = 32
"""Side of images and latents, and points of a drawing."""
BATCH = 8
CLASSES = 10


def quarter(recipe: Recipe) -> Recipe:
    """Return the recipe with a network of a quarter of the width, and with one block where it has several alike."""
    section: Any = recipe.network
    narrow: dict[str, Any]
    if section.kind == "gru":
        narrow = {"network.width": section.width // 4}
    else:
        narrow = {"network.channels": section.channels // 4}

    if section.kind == "unet":
        narrow |= {"network.head_channels": section.head_channels and section.head_channels // 4, "network.blocks": 1}
    elif section.kind == "unet2d_condition":
        narrow |= {"network.pretrained": None, "network.text_width": CAPTION[1], "network.blocks": 1}
    elif section.kind == "mdt":
        narrow |= {"network.layers": 4, "network.decoder_layers": 2}
    return recipe.replace(narrow | {"sampler.guidance": 1.0})


def outline(recipe: Recipe) -> Any:
    """Return what decides which operations make up a step: of numbers, but for the network's, whether they are 0."""

    def simplified(value: Any) -> Any:
        if isinstance(value, dict):
            return tuple((name, simplified(each)) for name, each in value.items())
        if isinstance(value, list | tuple):
            return tuple(map(simplified, value))
        return bool(value) if isinstance(value, int | float) else value

    left_out = {"about": True, "parts": True, "sampler": True, "coreset": True, "training": {"flip"}}
    sections = recipe.model_dump(mode="json", exclude=left_out)
    return repr(sections.pop("network")), simplified(sections)


def codec_of(section: Any) -> Any:
    """Return the codec, an autoencoder without the network that decodes."""
    if section.kind == "strokes":
        return strokes.build(section, (), CUDA)
    if section.kind == "none":
        return pixels.PIXEL_CODEC
    decoder: Any = None
    channels = KINDS[section.kind].channels
    return AutoencoderCodec(section, decoder, channels, 4, 0.5, 0.0, 3, CUDA)


def batches(recipe: Recipe, codec: Any) -> Iterator[Batch]:
    """Give batches of what the codec encodes, on the device."""
    values = torch.zeros(BATCH, 3, SIZE, SIZE, dtype=torch.uint8, device=CUDA)
    mask = None
    lengths = None
    if recipe.codec.kind == "strokes":
        values = torch.zeros(BATCH, 3, SIZE, device=CUDA)
        mask = torch.ones(BATCH, 1, SIZE, dtype=torch.bool, device=CUDA)
        lengths = np.arange(BATCH) + 1
    elif recipe.codec.on:
        moments = codec.channels * (2 if KINDS[recipe.codec.kind].draws else 1)
        values = torch.zeros(BATCH, moments, SIZE, SIZE, device=CUDA)

    labels = torch.zeros(BATCH, dtype=torch.long, device=CUDA)
    while True:
        yield Batch(values, labels, labels, labels.bool(), mask, lengths)


def prepared_for(recipe: Recipe, codec: Any) -> Prepared:
    """Return what techniques and captions need, on the device."""
    conditioner = None
    if recipe.conditioning.text:
        embeddings = torch.zeros(2, *CAPTION, dtype=torch.half, device=CUDA)
        rows = torch.zeros(BATCH, dtype=torch.long, device=CUDA)
        conditioner = Texts(embeddings, rows, ["a digit"], None)  # type: ignore[arg-type]
    keys = torch.zeros(BATCH, dtype=torch.long, device=CUDA) if recipe.ambient.on else None
    weights = torch.ones(CLASSES, device=CUDA) if recipe.reweighting.on else None
    return Prepared(codec=codec, conditioner=conditioner, noise_keys=keys, loss_weights=weights)


def acting(recipe: Recipe) -> Recipe:
    """Return the recipe with what it does in some steps done in each: patches, and masks that move in every second."""
    always: dict[str, Any] = {"training.batch_size": BATCH}
    if recipe.patches.on:
        always |= {"patches.real_p": 0.0}
    if recipe.sparsity.on:
        always |= {"sparsity.interval": 1, "sparsity.accumulate": 1}
    return recipe.replace(always)


def take_steps(recipe: Recipe) -> None:
    """Take a step on the made-up device, and where masks move also the next one, which changes them."""
    recipe = acting(recipe)
    with made_up():
        codec = codec_of(recipe.codec)
        channels = getattr(codec, "channels", 3)
        state = initial_state(recipe, image_size=SIZE, channels=channels, classes=CLASSES, seed=0, device=CUDA)
        drawn = batches(recipe, codec)
        prepared = prepared_for(recipe, codec)
        with Watch():
            if recipe.reweighting.on:
                weights = dro.uniform_state(CLASSES, CUDA)
                proxy = dro.train_steps(recipe, state, drawn, weights, None, recipe.reweighting, CUDA, prepared)
                next(proxy)
            steps = train(recipe, state, drawn, prepared, device=CUDA)
            step = next(steps)
            if recipe.sparsity.moves:
                step = next(steps)
    assert step.loss.device == CUDA
    for weight in state.network.parameters():
        assert weight.device == CUDA
        assert weight.dtype == torch.float32
        moments = state.optimizer.state[weight].values()
        assert all(moment.stride() == weight.stride() for moment in moments if moment.shape == weight.shape)


@pytest.fixture
def without_kernels(monkeypatch):
    """Let products with all of its weights stand for a GRU: its own kernels are launched on no made-up device."""

    def run(layers: nn.GRU, points: PackedSequence) -> tuple[PackedSequence, None]:
        weights = dict(layers.named_parameters())
        hidden = points.data
        for layer in range(layers.num_layers):
            ways = []
            for way in (f"l{layer}", f"l{layer}_reverse"):
                gates = linear(hidden, weights[f"weight_ih_{way}"], weights[f"bias_ih_{way}"])
                state = gates.chunk(3, -1)[0]
                ways.append(linear(state, weights[f"weight_hh_{way}"], weights[f"bias_hh_{way}"]).chunk(3, -1)[0])
            hidden = torch.cat(ways, -1)
        return PackedSequence(hidden, points.batch_sizes), None

    monkeypatch.setattr(nn.GRU, "forward", run)


@pytest.fixture(scope="module")
def seen() -> set[Any]:
    """Outlines of recipes that have taken a step."""
    return set()


@pytest.mark.parametrize("name", recipes.presets())
def test_a_preset_steps_on_a_gpu(name, seen, without_kernels):
    """In its own half precision, or else in bf16. Of presets that differ in numbers alone, one takes the step."""
    recipe = quarter(recipes.load(name))
    if recipe.training.precision == "fp32":
        recipe = recipe.replace({"training.precision": "bf16"})
    if outline(recipe) not in seen:
        seen.add(outline(recipe))
        take_steps(recipe)


def test_every_network_is_looked_at():
    files = Path(networks.__file__).parent.glob("*.py")
    assert {file.stem for file in files if "\ndef build(" in file.read_text()} == set(NETWORKS)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_network_steps_on_a_gpu_in_every_precision(kind, precision, without_kernels):
    take_steps(NETWORKS[kind].replace({"training.precision": precision}))


OF_UNET = tuple(name for name in NAMES if name != "masking")
OF_MDT = tuple(name for name in NAMES if name not in ("mafp", "patches"))


@pytest.mark.parametrize("name", NAMES)
def test_a_technique_steps_on_a_gpu(name, tmp_path_factory):
    take_steps(with_techniques((name,), tmp_path_factory.getbasetemp(), training__precision="bf16"))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("names", [OF_UNET, OF_MDT], ids=["unet", "mdt"])
def test_all_techniques_together_step_on_a_gpu_in_every_precision(names, precision, tmp_path_factory):
    take_steps(with_techniques(names, tmp_path_factory.getbasetemp(), training__precision=precision))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", NETWORKS)
def test_convolutions_lie_in_memory_as_tensor_cores_want_them(kind, precision):
    with made_up():
        recipe = NETWORKS[kind].replace({"training.precision": precision})
        state = initial_state(recipe, image_size=SIZE, channels=3, classes=CLASSES, seed=0, device=CUDA)
        last = "unet" in kind and precision != "fp32"
        layout = torch.channels_last if last else torch.contiguous_format
        for network in (state.network, state.ema):
            weights = [weight for weight in network.parameters() if weight.ndim == 4]
            assert all(weight.is_contiguous(memory_format=layout) for weight in weights)
            assert weights or kind == "gru"


LOSSES = EDMProcess.losses


def asks_for_a_number(process, estimate, *truth):
    assert estimate.mean().item() > -1000
    return LOSSES(process, estimate, *truth)


def branches_on_a_number(process, estimate, *truth):
    return LOSSES(process, estimate if estimate.sum() > 0 else -estimate, *truth)


def picks_rows(process, estimate, *truth):
    values = LOSSES(process, estimate, *truth)
    return values[values > 0].sum().expand(len(values))


def copies_to_the_host(process, estimate, *truth):
    return LOSSES(process, estimate, *truth).cpu().to(CUDA)


def copies_from_the_host(process, estimate, *truth):
    return LOSSES(process, estimate, *truth) * torch.tensor([2.0]).to(CUDA)


def weighs_on_the_host(process, estimate, *truth):
    return LOSSES(process, estimate, *truth) * torch.ones(len(estimate))


def multiplies_types(process, estimate, *truth):
    return LOSSES(process, estimate, *truth) @ torch.ones(len(estimate), len(estimate), dtype=torch.half, device=CUDA)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (asks_for_a_number, ASKS_DEVICE),
        (branches_on_a_number, ASKS_DEVICE),
        (picks_rows, ASKS_DEVICE),
        (copies_to_the_host, ASKS_DEVICE),
        (copies_from_the_host, ASKS_DEVICE),
        (weighs_on_the_host, FakeTensorDeviceMismatchError),
        (multiplies_types, (MixedTypes, RuntimeError)),
    ],
)
def test_a_fault_in_a_step_is_found(fault, error, monkeypatch):
    monkeypatch.setattr(EDMProcess, "losses", fault)
    with pytest.raises(error):
        take_steps(small())


def test_weights_of_another_type_than_their_images_are_found(monkeypatch):
    forward = UNetDenoiser.forward
    monkeypatch.setattr(loop, "autocast", lambda *_: nullcontext())
    monkeypatch.setattr(UNetDenoiser, "forward", lambda network, images, *rest: forward(network, images.half(), *rest))
    with pytest.raises(RuntimeError, match="should be the same"):
        take_steps(small())


def test_gradients_of_the_made_up_device_are_those_of_torch():
    """On true tensors, of a network that adds, broadcasts, splits and shares weights."""
    images = torch.randn(4, 1, 8, 8)
    gradients = []
    for propagate in (Tensor.backward, backward):
        state = small_state(small(network__dropout=0.0), classes=0)
        propagate(state.network(images, torch.ones(4)).square().mean())
        gradients.append([weight.grad for weight in state.network.parameters()])
    torch.testing.assert_close(*gradients)
