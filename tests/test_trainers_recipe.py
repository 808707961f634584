"""Recipes: every preset loads, and a mistake is refused with its field, its value and what is allowed."""

import pytest
import yaml

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.recipe import recipe as recipes
from scrimp_trainers.recipe.recipe import Recipe


@pytest.mark.parametrize("name", recipes.presets())
def test_a_preset_loads_and_survives_a_round_trip(name):
    recipe = recipes.load(name)
    assert recipe.about
    assert recipes.parse(yaml.safe_load(recipe.to_yaml()), name) == recipe


def test_a_recipe_file_is_read_back_unchanged(tmp_path):
    path = tmp_path / "mine.yaml"
    recipe = Recipe().replace({"optimizer.lr": 3e-4, "network.attention": [8, 4]})
    path.write_text(recipe.to_yaml())
    assert recipes.load(path) == recipe


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"optimizer.lr": -1}, "optimizer.lr: Input should be greater than 0, not -1"),
        ({"optimizer.lr": "fast"}, "optimizer.lr: Input should be a valid number"),
        ({"optimizer.rate": 1}, "optimizer.rate: a recipe has no such field"),
        ({"lr": 1}, "lr: a recipe has no such field"),
        ({"optimizer.lr.x": 1}, "optimizer.lr.x: a recipe has no such field"),
        ({"network.channels": 12}, "network.channels: Input should be a multiple of 8, not 12"),
        ({"sampler.kind": "ancestral"}, "sampler.kind: 'ancestral' needs a chain of steps; use diffusion.kind ddpm"),
        ({"codec.kind": "vqgan"}, "codec.kind: there is no 'vqgan'; use none, kl, tiny, vq, strokes, or a part of"),
        ({"network.kind": "vit"}, "network.kind: there is no 'vit'; use unet, dit, "),
        ({"sampler.guidance": 2.0}, "sampler.guidance needs conditioning.classes"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused(values, complaint):
    with pytest.raises(UserError) as caught:
        Recipe().replace(values)
    assert complaint in str(caught.value)


def test_a_ddpm_cannot_take_more_steps_than_its_chain_has():
    with pytest.raises(UserError, match="1001 exceeds the chain's 1000"):
        recipes.load("ddpm").replace({"sampler.steps": 1001})


def test_a_misspelt_field_in_a_file_is_refused(tmp_path):
    (tmp_path / "mine.yaml").write_text("optimiser: {lr: 1}\n")
    with pytest.raises(UserError, match="optimiser: Extra inputs are not permitted"):
        recipes.load(tmp_path / "mine.yaml")


@pytest.mark.parametrize("text", ["{", "- 1", "just words"])
def test_a_file_that_is_no_recipe_is_refused(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=r"mine\.yaml"):
        recipes.load(tmp_path / "mine.yaml")


@pytest.mark.parametrize("preset", ["tiny-edm", "tiny-mdt", "chirodiff-quickdraw", "prune-reweight-cifar10"])
def test_no_number_of_a_recipe_is_nan_or_infinite(preset):
    recipe = recipes.load(preset)
    values = recipes.flattened(recipe.model_dump(mode="json"))
    numbers = [path for path, value in values.items() if type(value) in (int, float)]
    assert len(numbers) > 30
    for path in numbers:
        for value in (float("nan"), float("inf"), float("-inf")):
            if (path, value) == ("sampler.s_max", float("inf")):  # EDM's own value for churn at all levels
                continue
            with pytest.raises(UserError, match=path.replace(".", r"\.")):
                recipe.replace({path: value})


@pytest.mark.parametrize(("steps", "nfe"), [(18, 35), (40, 79), (256, 511)])
def test_heun_evaluates_the_network_twice_a_step_but_once_in_the_last(steps, nfe):
    assert Recipe().replace({"sampler.steps": steps}).nfe == nfe


def test_a_recipe_tells_the_fields_that_have_their_defaults():
    recipe = recipes.load("tiny-edm").replace({"mafp.p1": 0.1, "optimizer.lr": 0.0123})
    at_default = recipe.fields_at_default
    assert {"mafp.p2", "ambient.sigma_n"} <= at_default
    assert not {"mafp.p1", "optimizer.lr"} & at_default
    assert at_default < recipes.flattened(recipe.model_dump(mode="json")).keys()
