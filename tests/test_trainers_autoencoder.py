"""Which autoencoders a codec takes, and what it says of those that it does not."""

import json
import shutil

import pytest
from autoencoders_small import settings_of
from trainers_small import CPU

from scrimp_trainers.codecs.autoencoder import open_codec
from scrimp_trainers.codecs.autoencoder_files import WEIGHTS, latent_shape
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.recipe.techniques import Autoencoder


def test_an_autoencoder_that_is_not_there_is_named_with_what_to_put_where(tmp_path):
    with pytest.raises(UserError, match=r"codec.decoder /no/such: no such folder; .*config.json and .*safetensors"):
        open_codec(Autoencoder(kind="kl", decoder="/no/such"), CPU, 3)
    with pytest.raises(UserError, match=r"has no config.json; name a folder"):
        open_codec(Autoencoder(kind="kl", decoder=str(tmp_path)), CPU, 3)


def test_without_a_network_the_line_says_what_the_hub_said(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def download(*names: str, **options: bool) -> str:
        raise LocalEntryNotFoundError("no connection\nand more")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(UserError, match=r"codec.decoder stabilityai/sd-vae-ft-ema: .*hub \(no connection\); name a"):
        open_codec(Autoencoder(kind="kl"), CPU, 3)


def test_an_autoencoder_of_another_kind_is_refused(autoencoders):
    settings = settings_of(autoencoders, "kl").model_copy(update={"kind": "tiny"})
    with pytest.raises(UserError, match=r"holds the class AutoencoderKL, but codec.kind 'tiny' needs AutoencoderTiny"):
        open_codec(settings, CPU, 3)


def test_planning_refuses_a_folder_that_is_not_there():
    with pytest.raises(UserError, match=r"codec.encoder /no/such: no such folder"):
        latent_shape(Autoencoder(kind="vq", encoder="/no/such"), 256)


def test_damaged_weights_are_refused(autoencoders, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(autoencoders / "kl", tmp_path / "kl")
    settings = settings_of(tmp_path, "kl")
    tensors = load_file(folder / WEIGHTS)
    save_file({name: value for name, value in tensors.items() if "conv_in" not in name}, folder / WEIGHTS)
    with pytest.raises(UserError, match=r"lacks .*conv_in"):
        open_codec(settings, CPU, 3)
    (folder / WEIGHTS).write_bytes((autoencoders / "kl" / WEIGHTS).read_bytes()[:5000])
    with pytest.raises(UserError, match=r"cannot be loaded"):
        open_codec(settings, CPU, 3)


DAMAGED = {
    "cut short": "{",
    "a list": "[]",
    "nothing": "null",
    "nested without end": "[" * 100_000,
    "no levels": {"block_out_channels": []},
    "levels that are none": {"block_out_channels": 8},
    "no channels": {"latent_channels": 0},
    "channels that are a word": {"latent_channels": "four"},
    "a shift that is a list": {"shift_factor": [0]},
    "no blocks": {"down_block_types": []},
    "blocks that there are not": {"down_block_types": ["Nothing"] * 4},
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_config_is_refused_in_a_line(damage, autoencoders, tmp_path):
    folder = shutil.copytree(autoencoders / "kl", tmp_path / "kl")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(damage if isinstance(damage, str) else json.dumps(config | damage))
    with pytest.raises(UserError, match=r"^codec\.decoder .*/kl: ") as caught:
        open_codec(settings_of(tmp_path, "kl"), CPU, 3)
    assert "\n" not in str(caught.value)


def test_an_encoder_and_a_decoder_that_do_not_belong_together_are_refused(autoencoders):
    settings = settings_of(autoencoders, "kl")
    fits = open_codec(settings.model_copy(update={"encoder": str(autoencoders / "other")}), CPU, 3)
    assert fits.encoder is not fits.decoder
    with pytest.raises(UserError, match=r"three: its latents are not those of codec.decoder"):
        open_codec(settings.model_copy(update={"encoder": str(autoencoders / "three")}), CPU, 3).encoder  # noqa: B018
