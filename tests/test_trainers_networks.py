import pytest
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_blocks import AttnDownBlock2D
from hypothesis import given, settings
from hypothesis import strategies as st

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.conditioning.conditions import Conditions
from scrimp_trainers.networks.unet import build, frame, load
from scrimp_trainers.recipe.networks import UNet

SMALL = UNet(channels=8, multipliers=(1, 2), blocks=1, attention=(4,))


def made(network=SMALL, *, awake=True, **options):
    """Build a network; `awake` gives it weights as if it had been trained, so that every input matters."""
    torch.manual_seed(0)
    unet = build(network, image_size=8, channels=1, **options).eval()
    if awake:
        for parameter in unet.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return unet


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 1, 8, 8, generator=generator), torch.tensor([-1.5, -0.3, 0.2, 1.1])


@torch.no_grad()
@pytest.mark.parametrize("classes", [0, 10])
def test_it_computes_what_the_diffusers_model_computes(inputs, classes):
    network = made(classes=classes, augment_labels=9)
    labels = torch.tensor([0, 3, 9, 10]) if classes else None
    expected = network.unet(*inputs, class_labels=labels).sample
    assert expected.std() > 0.01
    torch.testing.assert_close(network(*inputs, Conditions(labels)), expected, rtol=0, atol=0)
    zeros = torch.zeros(4, 9)
    torch.testing.assert_close(network(*inputs, Conditions(labels, zeros)), expected, rtol=0, atol=0)


@torch.no_grad()
def test_augment_labels_reach_their_own_image_alone(inputs):
    network = made(augment_labels=9)
    labels = torch.zeros(4, 9)
    labels[2, 5] = 0.7
    changed = (network(*inputs, Conditions(augment_labels=labels)) != network(*inputs)).flatten(1).any(1)
    assert changed.tolist() == [False, False, True, False]


@torch.no_grad()
def test_no_labels_means_hidden_labels(inputs):
    network = made(classes=10)
    hidden = torch.full((4,), 10)
    torch.testing.assert_close(network(*inputs), network(*inputs, Conditions(hidden)))
    assert not torch.allclose(network(*inputs), network(*inputs, Conditions(torch.zeros(4, dtype=torch.long))))


@torch.no_grad()
def test_coordinates_default_to_the_full_frame(inputs):
    network = made(coordinates=True)
    images, levels = inputs
    full = frame(images)
    assert full[0, :, 0, 0].tolist() == [-1, -1]
    assert full[0, :, 0, -1].tolist() == [1, -1]
    assert full[0, :, -1, 0].tolist() == [-1, 1]
    torch.testing.assert_close(network(images, levels), network(images, levels, Conditions(coordinates=full)))
    assert not torch.allclose(network(images, levels), network(images, levels, Conditions(coordinates=full / 2)))
    assert network(images[..., :4, :4], levels, Conditions(coordinates=full[..., :4, :4])).shape == (4, 1, 4, 4)


@torch.no_grad()
def test_a_new_network_gives_almost_nothing(inputs):
    """So the preconditioned denoiser starts at c_skip x, and every residual branch as the identity."""
    assert made(awake=False)(*inputs).abs().max() < 1e-3


def test_there_is_attention_at_the_resolutions_asked_for():
    network = UNet(channels=8, multipliers=(1, 1, 2), blocks=1, attention=(4, 16))
    unet = build(network, image_size=16, channels=3).unet
    assert [isinstance(block, AttnDownBlock2D) for block in unet.down_blocks] == [True, False, True]
    assert ["Attn" in type(block).__name__ for block in unet.up_blocks] == [True, False, True]


LIKE_EDM = UNet(
    channels=8,
    multipliers=(2, 2, 2),
    blocks=2,
    attention=(4,),
    decoder_attention="last",
    resampling="residual",
    embedding_multiplier=4,
)


def test_a_decoder_may_attend_after_the_last_residual_block_alone():
    """EDM's networks attend so: after every block of the encoder's level, once in the middle, once in the decoder."""
    unet = made(LIKE_EDM).unet
    attending = [name for name, module in unet.named_modules() if isinstance(module, Attention)]
    assert attending == [
        "down_blocks.1.attentions.0",
        "down_blocks.1.attentions.1",
        "up_blocks.1.attentions.2",
        "mid_block.attentions.0",
    ]


def test_resolutions_may_be_changed_inside_residual_blocks():
    unet = made(LIKE_EDM).unet
    changing = [
        name
        for name, module in unet.named_modules()
        if isinstance(module, ResnetBlock2D) and (module.down or module.up)
    ]
    assert changing == [f"down_blocks.{level}.downsamplers.0" for level in (0, 1)] + [
        f"up_blocks.{level}.upsamplers.0" for level in (0, 1)
    ]


def test_the_embedding_may_be_as_wide_as_the_base_of_the_channels_says():
    assert made(LIKE_EDM).unet.time_embedding.linear_2.out_features == 4 * 8
    assert (
        made(LIKE_EDM.model_copy(update={"embedding_multiplier": None})).unet.time_embedding.linear_2.out_features
        == 4 * 16
    )


@torch.no_grad()
def test_diffusers_reads_a_network_with_attention_after_last_blocks_alone(inputs, tmp_path):
    network = made(LIKE_EDM)
    network.save(tmp_path / "unet")
    theirs = UNet2DModel.from_pretrained(tmp_path / "unet")
    expected = theirs(*inputs).sample
    assert expected.std() > 0.01
    torch.testing.assert_close(network(*inputs), expected, rtol=1e-5, atol=1e-6)

    again = load(tmp_path).eval()
    assert again.state_dict().keys() == network.state_dict().keys()
    torch.testing.assert_close(again(*inputs), network(*inputs), rtol=0, atol=0)


@settings(max_examples=15)
@given(
    channels=st.integers(1, 9).map(lambda n: 8 * n),
    multipliers=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    blocks=st.integers(1, 2),
)
def test_any_width_and_depth_gives_an_image_of_the_same_shape(channels, multipliers, blocks):
    network = build(UNet(channels=channels, multipliers=tuple(multipliers), blocks=blocks), image_size=8, channels=3)
    assert network.shape == (3, 8, 8)
    with torch.no_grad():
        assert network(torch.randn(2, 3, 8, 8), torch.zeros(2)).shape == (2, 3, 8, 8)


def test_images_that_cannot_be_halved_so_often_are_refused():
    network = UNet(channels=8, multipliers=(1, 1, 1))
    with pytest.raises(UserError, match=r"network\.multipliers: 3 levels .* 10 pixels .* multiple of 4"):
        build(network, image_size=10, channels=1)


def test_heads_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(UserError, match=r"network\.head_channels: 12 does not divide"):
        made(UNet(channels=8, multipliers=(1, 2), head_channels=12))


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(8, 2), (32, 8), (64, 16), (128, 32), (136, 8), (144, 16), (160, 32), (192, 32), (224, 32), (256, 32)],
)
def test_norms_have_as_many_groups_as_divide_the_channels_and_in_narrow_networks_four_channels_each(channels, groups):
    with torch.device("meta"):
        network = build(UNet(channels=channels, multipliers=(1,), blocks=1, attention=()), image_size=8, channels=1)
    assert {module.num_groups for module in network.modules() if isinstance(module, torch.nn.GroupNorm)} == {groups}
