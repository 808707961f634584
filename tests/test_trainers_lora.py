"""LoRA: updates of a pretrained network's attention, which alone are trained, averaged, kept and exported."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_trainers_text import fine_tuned, recipe_of, session, trained

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.conditioning.conditions import Conditions
from scrimp_trainers.data.dataset import Dataset
from scrimp_trainers.export import load_model
from scrimp_trainers.metrics.cost import forward_flops
from scrimp_trainers.recipe.recipe import Recipe
from scrimp_trainers.training.session import Session


def with_updates(folder: Path, **values: object) -> Recipe:
    return fine_tuned(folder, network__lora_rank=2, optimizer__lr=1e-2, optimizer__warmup_kimg=0, **values)


def is_update(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


@pytest.fixture(scope="module")
def updated(captioned_digits: Dataset, stand_in: Path, tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A training of ten steps, exported."""
    made = trained(with_updates(stand_in), captioned_digits, tmp_path_factory.mktemp("lora") / "run")
    made.save("last")
    made.export(made.metrics_row(0.08))
    return made


def test_the_updates_alone_are_trained_and_averaged(updated: Session, captioned_digits: Dataset, stand_in: Path):
    begun = session(with_updates(stand_in), captioned_digits, Path("unused"))
    for before, after in ((begun.state.network, updated.state.network), (begun.state.ema, updated.state.ema)):
        now = after.state_dict()
        moved = {name for name, tensor in before.state_dict().items() if not torch.equal(tensor, now[name])}
        assert moved == {name for name in now if is_update(name)}
    assert {
        name.split(".lora_")[0].rsplit(".transformer_blocks.")[-1] for name in updated.state.network.kept_state()
    } == {
        f"0.{attention}.{layer}" for attention in ("attn1", "attn2") for layer in ("to_q", "to_k", "to_v", "to_out.0")
    }
    counted = {name for name, weight in updated.state.network.named_parameters() if weight.requires_grad}
    assert counted == {name for name in updated.state.network.state_dict() if is_update(name)}


def test_a_checkpoint_holds_the_updates_alone(updated: Session):
    folder = updated.folder / "checkpoint" / "last"
    for name in ("network", "ema"):
        assert all(map(is_update, load_file(folder / f"{name}.safetensors")))
    assert all(map(is_update, load_file(folder / "optimizer.safetensors")))


def test_an_interrupted_training_ends_with_the_same_bits(
    updated: Session, captioned_digits: Dataset, stand_in: Path, tmp_path: Path
):
    trained(with_updates(stand_in), captioned_digits, tmp_path / "run", images=40).save("last")
    resumed = trained(with_updates(stand_in), captioned_digits, tmp_path / "run")
    for name, tensor in updated.state.ema.state_dict().items():
        assert torch.equal(tensor, resumed.state.ema.state_dict()[name]), name


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(2, 4, 4, 4, generator=generator),
        torch.tensor([3, 700]),
        torch.randn(2, 5, 32, generator=generator),
    )


def test_diffusers_loads_the_updates(updated: Session, stand_in: Path):
    """By the lines of the model's card, up to the drawing of an image."""
    card = (updated.folder / "model" / "README.md").read_text()
    found: Any = re.search("```python\n(.*?)caption =", card, re.DOTALL)
    assert f"StableDiffusionPipeline.from_pretrained('{stand_in}', use_safetensors=True)" in found[1]
    lines: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(updated.folder / "model")
        exec(found[1], lines)  # noqa: S102

    x, times, text = inputs()
    with torch.no_grad():
        theirs = lines["pipeline"].unet(x, times, encoder_hidden_states=text).sample
        ours = updated.state.ema(x, times, Conditions(text=text))
        plain: Any = session_free(stand_in)(x, times, encoder_hidden_states=text).sample
    torch.testing.assert_close(theirs, ours)
    assert (ours - plain).abs().max() > 1e-3


def session_free(stand_in: Path) -> Any:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(stand_in / "unet")


def test_a_model_is_read_back_with_its_base(updated: Session):
    folder = updated.folder / "model"
    assert not (folder / "vae").exists()
    assert not (folder / "text_encoder").exists()
    network, recipe = load_model(folder, "cpu")
    assert recipe == updated.recipe
    x, times, text = inputs()
    with torch.no_grad():
        ours = updated.state.ema(x, times, Conditions(text=text))
        torch.testing.assert_close(network(x, times, Conditions(text=text)), ours, rtol=0, atol=0)
    assert forward_flops(network, x[:1], times[:1].float(), network.example(1)) > 0


def test_what_makes_no_sense_with_updates_is_refused(stand_in: Path):
    with pytest.raises(UserError, match="lora_rank updates the network that pretrained names"):
        recipe_of(stand_in, network__lora_rank=2)
    with pytest.raises(UserError, match=r"sparsity masks the weights that network.lora_rank leaves as they are"):
        with_updates(stand_in, sparsity__method="static")
