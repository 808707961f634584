"""What a recipe asks of GPUs that are not here: counted memory and FLOPs, and times that follow from stated speeds."""

from typing import Any

import pytest
import torch
from test_trainers_fit import manifest
from torch.utils.flop_counter import FlopCounterMode
from trainers_small import small

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.common.gpus import GPU
from scrimp_trainers.data.manifest import RESIDENT
from scrimp_trainers.recipe.recipe import load as load_recipe
from scrimp_trainers.recipe.scoring import Scoring
from scrimp_trainers.training import load
from scrimp_trainers.training.counted_memory import Counted
from scrimp_trainers.training.load import LATENTS, Load

CARD = GPU("a card", memory=24, fp32=25.0, tf32=50.0, half=100.0)
"""10 TFLOP/s in fp32 and in TF32, 20 in half precision."""


def made_load(**values: Any) -> Load:
    fields: dict[str, Any] = {
        "counted": Counted(constant=2**30, image=2**20, operations=0),
        "side": 8,
        "weights": 1000,
        "trained": 0,
        "forward_flops": 1e9,
        "step_flops": 2e9,
        "decoder_flops": 0.0,
    }
    return Load(**fields | values)


def test_a_step_is_three_passes_at_the_rate_of_the_card():
    recipe = small(training__batch_size=100)
    # 1,000 images of 3 x 2 GFLOP each at 10 TFLOP/s, half of them on each of two GPUs.
    assert load.seconds_per_kimg(made_load(), recipe, CARD, 1, 100) == pytest.approx(0.6)
    assert load.seconds_per_kimg(made_load(), recipe, CARD, 2, 50) == pytest.approx(0.3)
    half = recipe.replace({"training.precision": "bf16"})
    assert load.seconds_per_kimg(made_load(), half, CARD, 1, 100) == pytest.approx(0.3)


def test_two_gpus_exchange_all_gradients_once_a_step():
    recipe = small(training__batch_size=100)
    asked = made_load(trained=25_000_000)
    # 100 MB at 10 GB/s, in each of the ten steps of 1,000 images.
    alone = load.seconds_per_kimg(asked, recipe, CARD, 1, 100)
    together = load.seconds_per_kimg(asked, recipe, CARD, 2, 50)
    assert together - alone / 2 == pytest.approx(10 * 0.01)


def test_a_small_network_is_as_slow_as_its_operations_are_launched():
    recipe = small(training__batch_size=100)
    asked = made_load(counted=Counted(0, 1, operations=10_000), step_flops=1.0)
    # Three times 10,000 operations of 5 us, in each of ten steps, and once for each part of a step.
    assert load.seconds_per_kimg(asked, recipe, CARD, 1, 100) == pytest.approx(10 * 0.15)
    assert load.seconds_per_kimg(asked, recipe, CARD, 1, 25) == pytest.approx(4 * 10 * 0.15)


def test_patches_cost_their_area():
    whole = small(training__batch_size=100, patches__coordinates=True)
    parts = whole.replace({"patches.real_p": 0.0, "patches.sizes": [0.5]})
    seconds = [load.seconds_per_kimg(made_load(), recipe, CARD, 1, 100) for recipe in (whole, parts)]
    assert seconds[1] == pytest.approx(seconds[0] / 4)


def test_a_score_is_drawing_decoding_and_looking_at_its_samples():
    recipe = small(sampler__steps=18)
    scoring = Scoring.model_validate({"extractor": "inception", "samples": 1000})
    drawing = 1000 * 35 * 1e9 / 10e12  # 35 evaluations of 1 GFLOP for each
    looking = 1000 * 0.002
    assert load.seconds_per_score(made_load(), recipe, scoring, CARD, 1) == pytest.approx(drawing + looking)
    assert load.seconds_per_score(made_load(), recipe, scoring, CARD, 2) == pytest.approx((drawing + looking) / 2)
    latent = made_load(decoder_flops=1e10)
    assert load.seconds_per_score(latent, recipe, scoring, CARD, 1) == pytest.approx(drawing + looking + 1.0)


def test_of_a_gpu_the_scores_and_the_items_leave_training_the_rest():
    facts = manifest(8)
    scoring = Scoring.model_validate({"extractor": "inception"})
    memory = load.gpu_memory(made_load(), small(), facts, scoring, CARD)
    assert memory.total == 24 * 2**30
    # CUDA's, 26 million weights, 2,048 features of each of 9 images, and these, of 64 bytes each.
    assert memory.others == 2**30 + 4 * (26_000_000 + 9 * 2048) + 9 * 64
    two = Scoring.model_validate([{"extractor": "inception"}, {"extractor": "vitg14"}])
    assert load.gpu_memory(made_load(), small(), facts, two, CARD).others > memory.others + 4 * 1_136_000_000

    count = RESIDENT // 64 + 1  # too many to be kept: they are streamed
    many = facts.model_copy(update={"splits": {"train": facts.splits["train"].model_copy(update={"count": count})}})
    assert load.gpu_memory(made_load(), small(), many, scoring, CARD).others == 2**30 + 4 * (26_000_000 + count * 2048)


def test_files_are_two_checkpoints_and_a_model():
    # Of each weight in fp32: twice itself, its average, two moments; and itself in the model.
    assert made_load(trained=1000).bytes == 1000 * 4 * (2 * 4 + 1)
    assert made_load(trained=1000, snapshots=8).bytes == 1000 * 4 * (2 * 6 + 1 + 8)


@pytest.mark.parametrize(("kind", "size", "shape"), [("kl", 256, (4, 32, 32)), ("vq", 256, (3, 64, 64))])
def test_an_autoencoder_that_is_not_here_is_taken_to_be_as_published(kind, size, shape):
    recipe = small(codec__kind=kind, codec__encoder="/nowhere", codec__decoder="/nowhere")
    assert load.x_shape(recipe, manifest(size)) == shape
    with pytest.raises(UserError, match="12 pixels are not a multiple of"):
        load.x_shape(recipe.replace({"codec.kind": "kl"}), manifest(12))


def test_decoders_cost_what_diffusers_own_do():
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
    from diffusers.models.autoencoders.vq_model import VQModel

    def blocks(*widths: int) -> dict[str, Any]:
        down, up = ("DownEncoderBlock2D",) * len(widths), ("UpDecoderBlock2D",) * len(widths)
        shape = {"down_block_types": down, "up_block_types": up, "block_out_channels": widths}
        return shape | {"layers_per_block": 2}

    with torch.device("meta"):
        networks: dict[str, Any] = {
            "kl": AutoencoderKL(**blocks(128, 256, 512, 512), latent_channels=4),
            "tiny": AutoencoderTiny(),
            "vq": VQModel(**blocks(128, 256, 512), latent_channels=3, num_vq_embeddings=8192),
        }
    for kind, network in networks.items():
        published = LATENTS[kind]
        x = torch.zeros(1, published.channels, 256 // published.factor, 256 // published.factor, device="meta")
        options = {"force_not_quantize": True} if kind == "vq" else {}
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter:
            assert network.decode(x, **options).sample.shape[-1] == 256
        assert published.decoder_flops == pytest.approx(counter.get_total_flops() / 256**2, rel=0.01)
        assert published.weights == sum(weight.numel() for weight in network.parameters())


def test_stable_diffusion_that_is_not_here_has_its_published_size(tmp_path):
    recipe = load_recipe("sd-ambient").replace({"network.pretrained": str(tmp_path / "absent")})
    network = load.with_published_network(recipe)
    from scrimp_trainers.training.state import build_network

    with torch.device("meta"):
        built = build_network(network, 32, 4, classes=0, seed=0)
    assert sum(weight.numel() for weight in built.parameters()) == 865_910_724
    lora = recipe.replace({"network.lora_rank": 4})
    with pytest.raises(UserError, match="is not on this machine, and lora_rank needs it"):
        load.with_published_network(lora)
