"""Constraints on costs that are known before a sweep: made absolute, or refused with the cheapest recipe's cost."""

import pytest
from test_trainers_fit import manifest

from scrimp_platform.report import formatting
from scrimp_platform.search import feasibility
from scrimp_spaces import space as spaces
from scrimp_spaces.constraints import Bound
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.recipe import recipe as recipes
from scrimp_trainers.recipe.recipe import Recipe
from scrimp_trainers.training import expected_cost

TREE = {
    "recipe": "tiny-edm",
    "search": {
        "network.channels": {"choice": [16, 24, 32]},
        "sparsity.method": {"choice": ["dense", "static"]},
        "sparsity.level": {"uniform": [0.1, 0.6], "when": {"sparsity.method": ["static"]}},
        "optimizer.lr": {"loguniform": [1e-4, 1e-2]},
    },
    "objectives": {"fd_classifier": "minimize"},
    "scoring": {"extractor": "classifier"},
    "budget": {"rungs_kimg": [5]},
}


def read_sections(monkeypatch, compute):
    """Return the sections of any recipe that a computation reads."""
    names = set(Recipe.model_fields)
    sections = set()
    read = Recipe.__getattribute__

    def noted(recipe, name):
        if name in names:
            sections.add(name)
        return read(recipe, name)

    with monkeypatch.context() as patch:
        patch.setattr(Recipe, "__getattribute__", noted)
        compute()
    return sections


def make(**constraints):
    return spaces.parse_space(TREE | {"constraints": constraints}, "space")


@pytest.mark.parametrize("size", [8, 16, 32])
def test_a_ratio_is_that_of_the_base_recipe_on_this_dataset(size):
    facts = manifest(size)
    space = make(train_flops={"max_ratio": 0.9})
    base = expected_cost.expected_costs(space.base(), facts, space.scoring.samples)
    assert base is not None
    bound = feasibility.resolve(space, facts).constraints["train_flops"]
    assert bound.max == pytest.approx(0.9 * base["train_flops"])
    assert formatting.bound(bound) == f"at most {bound.max:.4g} (0.9 of the base recipe's)"


@pytest.mark.parametrize("size", [8, 32])
def test_some_recipes_of_scrimp_small_keep_its_constraint_and_the_base_does_not(size):
    facts = manifest(size, [str(label) for label in range(10)])
    space = feasibility.resolve(spaces.load_space("scrimp-small"), facts)
    bound = space.constraints["train_flops"]
    base = expected_cost.expected_costs(space.base(), facts, 1000)
    sparse = expected_cost.expected_costs(
        space.base().replace({"sparsity.method": "static", "sparsity.level": 0.8}), facts, 1000
    )
    assert base
    assert sparse
    assert bound.excess(sparse["train_flops"]) < 0 < bound.excess(base["train_flops"])


def test_a_constraint_that_no_recipe_keeps_is_refused_with_the_cheapest():
    facts = manifest(8)
    space = make(train_flops={"max": 1e6})
    cheapest = space.base().replace({"network.channels": 16, "sparsity.method": "static", "sparsity.level": 0.6})
    costs = expected_cost.expected_costs(cheapest, facts, space.scoring.samples)
    assert costs is not None
    with pytest.raises(UserError) as caught:
        feasibility.resolve(space, facts)
    text = str(caught.value)
    assert text.startswith("constraints.train_flops: no recipe of this space keeps at most 1e+06 on dataset made; ")
    assert f"the least is {costs['train_flops']:.4g}, with network.channels 16" in text
    assert "sparsity.level 0.600" in text
    just = {"max": costs["train_flops"] * 1.001}
    assert feasibility.resolve(make(train_flops=just), facts).constraints["train_flops"] == Bound(**just)


def test_a_constraint_that_only_masking_keeps_is_kept():
    facts = manifest(8)
    search = {"masking.ratio": {"uniform": [0.1, 0.7]}}
    masked = spaces.parse_space({**TREE, "recipe": "tiny-mdt", "search": search}, "space")
    least, most = (
        expected_cost.expected_costs(masked.base().replace({"masking.ratio": ratio}), facts, 100)
        for ratio in (0.7, 0.1)
    )
    assert least
    assert most
    assert least["train_flops"] < most["train_flops"]
    limit = {"max": least["train_flops"] * 1.001}
    tree = {**TREE, "recipe": "tiny-mdt", "search": search, "constraints": {"train_flops": limit}}
    assert feasibility.resolve(spaces.parse_space(tree, "space"), facts).constraints["train_flops"] == Bound(**limit)


@pytest.mark.parametrize(
    ("preset", "values"),
    [
        ("tiny-edm", {"sparsity.method": "static", "sparsity.level": 0.5, "mafp.p1": 0.1}),
        ("tiny-edm", {"patches.sizes": [0.5], "patches.real_p": 0.5}),
        ("tiny-mdt", {}),
    ],
)
def test_the_cheapest_recipe_is_looked_for_in_every_section_of_which_costs_are_made(preset, values, monkeypatch):
    recipe = recipes.load(preset).replace(values)
    sections_read = read_sections(monkeypatch, lambda: expected_cost.expected_costs(recipe, manifest(8), 100))
    assert sections_read
    assert sections_read <= set(feasibility.COST_SECTIONS)


def test_a_lower_limit_that_no_recipe_reaches_is_refused():
    with pytest.raises(UserError, match="the most is"):
        feasibility.resolve(make(parameters={"min": 1e9}), manifest(8))


def test_a_ratio_of_what_is_measured_is_refused():
    with pytest.raises(UserError, match="a ratio needs one of parameters"):
        feasibility.resolve(make(memorized_fraction={"max_ratio": 0.5}), manifest(8))


def test_what_is_expected_is_what_a_repeat_reports(digits_dataset, tmp_path):
    from scrimp_trainers.run import train_repeat

    changes = {"sparsity.method": "static", "training.kimg": 0.2, "network.channels": 16}
    recipe = make(parameters={"min": 1}).base().replace(changes)
    line = list(train_repeat(recipe, digits_dataset, tmp_path / "run", 1, rungs_kimg=[]))[-1]
    costs = expected_cost.expected_costs(recipe, digits_dataset.manifest, 64)
    assert costs is not None
    assert costs.keys() == set(feasibility.EXPECTED_COSTS)
    for name in costs:
        assert costs[name] == pytest.approx(line.value(name), rel=1e-6), name
