"""A dataset that a recipe cannot be trained on is refused before anything starts, in one line that says what to do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrimp_trainers import fit
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.manifest import Manifest, Split
from scrimp_trainers.recipe.recipe import Recipe


def manifest(size: int, classes: list[str] | None = ["a", "b"]) -> Manifest:  # noqa: B006
    return Manifest(
        name="made",
        content_hash="0" * 64,
        size=size,
        channels=1,
        classes=classes,
        splits={"train": Split(count=9, per_class=None, shards=[])},
        reference="train",
        classifier=None,
        provenance={},
    )


def recipe(levels: int = 2, **values: object) -> Recipe:
    changes = {name.replace("__", "."): value for name, value in values.items()}
    return Recipe().replace({"network.multipliers": [1] * levels, **changes})


@pytest.mark.parametrize(
    ("values", "size", "complaint"),
    [
        ({"levels": 4}, 28, "its size 28 is not a multiple of 8, as network.kind unet needs"),
        ({"levels": 3, "patches__real_p": 0.5}, 28, r"0\.75 of 28 pixels are 21, .* multiples of 4; .* 0\.714286$"),
        ({"patches__real_p": 0.5, "patches__sizes": [0.01]}, 32, r"0\.01 of 32 pixels are 0, .* nearest is 0\.0625$"),
        ({"levels": 1, "ood__weight": 1}, 5, "ood.weight: a jigsaw of four needs an even side, not 5"),
        (
            {"coreset__keep": 0.5, "coreset__features": "classifier"},
            8,
            "coreset.features: dataset made has no classifier",
        ),
    ],
)
def test_what_does_not_fit_is_refused(values, size, complaint):
    with pytest.raises(UserError, match=complaint):
        fit.check_fit(recipe(**values), manifest(size))


@pytest.mark.parametrize("values", [{"conditioning__classes": True}, {"reweighting__method": "dro"}])
def test_classes_are_asked_for_only_where_there_are_some(values):
    with pytest.raises(UserError, match="made has no classes"):
        fit.check_fit(recipe(**values), manifest(8, classes=None))
    fit.check_fit(recipe(**values), manifest(8))


@pytest.mark.parametrize(
    "values", [{"patches__sizes": [0.3]}, {"ood__constant": 3}, {"coreset__features": "classifier"}]
)
def test_a_technique_that_is_off_asks_for_nothing(values):
    fit.check_fit(recipe(levels=1, **values), manifest(5))


@given(share=st.floats(0.001, 1), halvings=st.integers(0, 4), times=st.integers(1, 40))
def test_the_share_that_is_named_is_allowed(share, halvings, times):
    side = 2**halvings * times

    def check(size: float) -> None:
        fit.check_fit(recipe(halvings + 1, patches__real_p=0.5, patches__sizes=[size]), manifest(side))

    try:
        check(share)
    except UserError as error:
        check(float(str(error).rsplit(" ", 1)[1]))


def test_images_that_are_streamed_cannot_be_drawn_by_chance():
    """Said before the reference is trained, which takes hours."""
    large = manifest(1024).model_copy(update={"splits": {"train": Split(count=2049, per_class=None, shards=[])}})
    weighed = recipe(reweighting__method="dro", reweighting__recipe="tiny-edm", reweighting__enters="sampling")
    with pytest.raises(UserError, match=r"^reweighting.enters: dataset made is too large .*; use `loss`$"):
        fit.check_fit(weighed, large)
    fit.check_fit(weighed.replace({"reweighting.enters": "loss"}), large)
    fit.check_fit(weighed, manifest(1024))
