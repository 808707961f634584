"""A claim: what a paper says, the arms that would show it, and what would count as shown, all stated in advance."""

import importlib.resources
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from scrimp_spaces import space as spaces
from scrimp_spaces.space import Space
from scrimp_trainers.common import yaml_files
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.metrics.names import require_objectives
from scrimp_trainers.recipe.recipe import explain
from scrimp_trainers.recipe.scoring import Scoring
from scrimp_trainers.recipe.sections import Count, NonNegative, Positive, Section

FILES = importlib.resources.files("benchmarks.claims")
SEEDS = 3
"""Fewest repeats of an arm."""

Size = Literal["cpu", "gpu"]
Paper = Literal["ld-diffusion", "ambient", "sparse-to-sparse", "prune-reweight"]
Share = Annotated[float, Field(gt=0, le=1)]


class Data(Section):
    """Which images an experiment trains on."""

    source: Literal["digits", "cifar10"]
    """scikit-learn's digits, or CIFAR-10 from the folder that SCRIMP_DATA_DIR names."""
    size: Count | None = None
    """Height and width to resize to."""
    limit: Count | None = None
    """Training images to keep."""
    per_class: Count | None = None
    """Training images of each class to keep."""
    full_reference: bool = False
    """Whether scores compare with the whole source, and not with the images trained on."""

    @property
    def whole(self) -> "Data":
        """All images of the source, at this size."""
        return Data(source=self.source, size=self.size)

    @property
    def name(self) -> str:
        """Name of the dataset's folder."""
        parts = {"px": self.size, "images": self.limit, "a-class": self.per_class}
        ends = ["full-reference"] * self.full_reference
        return "-".join([self.source, *(f"{value}-{what}" for what, value in parts.items() if value), *ends])


class Experiment(Section):
    """How the arms of a claim are trained on one kind of machine."""

    data: Data
    """The images."""
    recipe: str
    """The preset that every arm starts from."""
    override: dict[str, Any] = {}
    """Fields of it with another value in all arms."""
    kimg: Positive
    """Length of each training."""
    repeats: Annotated[int, Field(ge=SEEDS)]
    """Seeds of every arm."""
    samples: Count = 1000
    """Images that one score takes."""


class Comparison(Section):
    """One arm's score against another's, and the side on which it is expected."""

    score: str
    """The score."""
    arm: str
    """The arm of which something is claimed."""
    against: str
    """The arm that it is compared with."""
    expect: Literal["lower", "higher", "no higher", "no lower"]
    """Where the arm's mean is expected; `no higher` and `no lower` allow for the margin."""
    margin: NonNegative = 0.0
    """Share of the other arm's mean by which `no higher` and `no lower` may be missed."""
    at: Share = 1.0
    """Share of the training after which the arm is scored; the other always at its end."""

    @model_validator(mode="after")
    def _margin_fits(self) -> "Comparison":
        if (self.margin > 0) != self.expect.startswith("no "):
            raise ValueError("`no higher` and `no lower` need a margin above 0, `lower` and `higher` take none")
        return self


class Claim(Section):
    """One claim of a paper. It has arms of its own, or those of another claim's experiment, or a reason for none."""

    name: str
    """Its file's name."""
    paper: Paper
    """Who claims it."""
    claim: str
    """What is claimed, in one sentence."""
    figure: str = "not known"
    """The paper's own figure."""
    note: str = ""
    """In what the experiment differs from the paper's."""
    not_run: str = ""
    """Why there is no experiment."""
    experiment: str | None = None
    """Another claim, whose arms and sizes this one reads its result from."""
    arms: dict[str, dict[str, Any]] = {}
    """Recipes to compare, by name: fields by dotted path, with the value that they have in this arm alone."""
    rungs: Annotated[tuple[Share, ...], Field(min_length=1)] = (1.0,)
    """Shares of the training after which there are scores."""
    comparisons: list[Comparison] = []
    """What must hold for the claim to be supported, all of it."""
    controls: list[Comparison] = []
    """What is shown beside it and has no part in the verdict."""
    sizes: dict[Size, Experiment] = {}
    """The experiment's data, length and seeds by kind of machine."""

    @model_validator(mode="after")
    def _one_kind(self) -> "Claim":
        ways = {"arms": bool(self.arms and self.sizes), "experiment": bool(self.experiment), "not_run": self.not_run}
        if sum(map(bool, ways.values())) != 1:
            raise ValueError("a claim has either arms with sizes, or an experiment, or a reason in not_run")
        if bool(self.comparisons) == bool(self.not_run):
            raise ValueError("a claim has comparisons, unless it is not run")
        return self

    def space(self, size: Size) -> Space:
        """Return the space of the claim's sweep."""
        experiment = self.sizes[size]
        tree = {
            "about": self.claim,
            "recipe": experiment.recipe,
            "override": experiment.override,
            "arms": self.arms,
            "objectives": {"fd_classifier": "minimize"},
            "scoring": {"extractor": "classifier", "samples": experiment.samples},
            "budget": {"rungs_kimg": [share * experiment.kimg for share in self.rungs], "repeats": experiment.repeats},
        }
        return spaces.parse_space(tree, f"claim {self.name}")


def names() -> list[str]:
    """Names of the claims."""
    return sorted(file.name.removesuffix(".yaml") for file in FILES.iterdir() if file.name.endswith(".yaml"))


def load(name: str) -> Claim:
    """Load a claim by name.

    Raises
    ------
    UserError
        If there is none of this name, or its file is not a valid claim.
    """
    if name not in names():
        raise UserError(f"claim {name}: there is none; claims are {', '.join(names())}")
    return parse(yaml_files.parse_yaml((FILES / f"{name}.yaml").read_text(), f"claim {name}"), name)


def parse(tree: Any, name: str) -> Claim:
    """Validate a tree of plain values, and that its comparisons name arms and scores that there are."""
    try:
        claim = Claim.model_validate({"name": name, **tree})
    except ValidationError as error:
        raise UserError(f"claim {name}: {explain(error)}") from None
    arms, rungs = owner(claim).arms, owner(claim).rungs
    for comparison in [*claim.comparisons, *claim.controls]:
        missing = {comparison.arm, comparison.against} - arms.keys()
        if missing:
            raise UserError(f"claim {name}: no arm {', '.join(sorted(missing))}; arms are {', '.join(arms)}")
        if comparison.at not in rungs:
            raise UserError(f"claim {name}: nothing is scored at {comparison.at:g} of the training; add it to rungs")
        require_objectives([comparison.score], Scoring(extractor="classifier"))
    return claim


def owner(claim: Claim) -> Claim:
    """Return the claim whose sweep this one reads: itself, or the one that `experiment` names."""
    return load(claim.experiment) if claim.experiment else claim
