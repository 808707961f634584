"""A claim: what a paper says, the arms that would show it, and what would count as shown, all stated in advance."""

import importlib.resources
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from scrimp_trainers.common import parts, yaml_files
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.metrics.names import require_objectives
from scrimp_trainers.recipe import recipe as recipes
from scrimp_trainers.recipe.recipe import Recipe, explain
from scrimp_trainers.recipe.scoring import Extractor, Scoring
from scrimp_trainers.recipe.sections import Count, NonNegative, Positive, Section

FILES = importlib.resources.files("benchmarks.claims")
TECHNIQUES = Path(__file__).with_name("weighting.py")
FIRST = ("prune-score", "ld-mafp", "ambient-copies")
"""The claims that are run before all others."""
FEWEST = 3
"""Seeds of an arm."""
NEAR = 0.02
"""Share by which a rung may miss the one that a comparison's `at` asks for."""
SHARES = ("pixel_copied", "memorized", "precision", "recall")
"""Beginnings of the names of scores that are shares of samples, and may be 0: their effects are differences."""
SHARE_SOURCES = Literal["digits", "cifar10", "cifar10-16", "vmnist", "kanji"]

Paper = Literal["ld-diffusion", "ambient", "sparse-to-sparse", "prune-reweight"]
Share = Annotated[float, Field(gt=0, le=1)]
BudgetName = Annotated[str, Field(pattern=r"^(cpu|gpu)(-[a-z0-9]+)?$")]
ArmName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")]


class Data(Section):
    """Which items an experiment trains on."""

    source: SHARE_SOURCES
    """scikit-learn's digits; or, from the folder that SCRIMP_DATA_DIR names, CIFAR-10, 4,000 of its images at 16x16,
    MNIST's digits as pen strokes, or kanji as pen strokes."""
    limit: Count | None = None
    """Training items to keep."""
    full_reference: bool = False
    """Whether scores compare with the whole source, and not with the items trained on."""
    halves: bool = False
    """Whether the dataset's classifier, by which coresets are chosen, is trained on half of the training images, and
    the extractor `features:OtherHalf`, which scores, on the other half with another seed."""

    @property
    def whole(self) -> "Data":
        """All items of the source."""
        return Data(source=self.source)

    @property
    def name(self) -> str:
        """Name of the dataset's folder."""
        flags = {"full-reference": self.full_reference, "halves": self.halves}
        many = [f"{self.limit}-items"] if self.limit else []
        return "-".join([self.source, *many, *(name for name, value in flags.items() if value)])


class Budget(Section):
    """How the arms are trained on one kind of machine. Its name in the claim begins with that kind: cpu or gpu."""

    data: Data
    """The items."""
    recipe: str
    """The preset that every arm starts from."""
    override: dict[str, Any] = {}
    """Fields of it with another value in all arms."""
    rungs_kimg: Annotated[tuple[Positive, ...], Field(min_length=2)]
    """When an arm is scored, up to the length of its training."""
    seeds: Annotated[int, Field(ge=FEWEST)]
    """Seeds of an arm."""
    seeds_by_arm: dict[ArmName, Annotated[int, Field(ge=FEWEST)]] = {}
    """Arms with another number of seeds."""
    arms: tuple[ArmName, ...] | None = None
    """The arms that are trained; none means all."""
    samples: Count = 1000
    """Items that one score takes."""
    minutes: Positive | None = None
    """What an arm with one seed takes of one core; none: not known. `python -m benchmarks.claims time` has measured
    `cpu` of prune-score, ld-mafp and sparse-sketches; the others are estimated from these and recorded curves."""

    @model_validator(mode="after")
    def _rungs_rise(self) -> "Budget":
        if list(self.rungs_kimg) != sorted(set(self.rungs_kimg)):
            raise ValueError("rungs_kimg must rise")
        return self


class Criterion(Section):
    """What must be true of the baseline at a rung for the claim to be in its regime there."""

    arm: ArmName
    """The baseline."""
    score: str
    """The score."""
    at_least: Positive | None = None
    """Its mean over seeds is at least this: the baseline shows what the claim is about, such as copying."""
    settled: Positive | None = None
    """Its mean differs from that at the rung before by at most this share: the curve is converged."""

    @model_validator(mode="after")
    def _one_kind(self) -> "Criterion":
        if (self.at_least is None) == (self.settled is None):
            raise ValueError("a criterion is either at_least or settled")
        return self


class Comparison(Section):
    """One arm's score against another's, and the side on which it is expected."""

    score: str
    """The score."""
    arm: ArmName
    """The arm of which something is claimed."""
    against: ArmName
    """The arm that it is compared with."""
    expect: Literal["lower", "higher", "no higher", "no lower"]
    """Where the arm's mean is expected; `no higher` and `no lower` allow for the margin."""
    margin: NonNegative = 0.0
    """By how much `no higher` and `no lower` may be missed: a share of the other mean, or, of scores that are shares
    themselves, a difference."""
    at: Share = 1.0
    """Share of the training after which the arm is scored."""
    against_at: Share = 1.0
    """The same of the other arm."""

    @model_validator(mode="after")
    def _margin_fits(self) -> "Comparison":
        if (self.margin > 0) != self.expect.startswith("no "):
            raise ValueError("`no higher` and `no lower` need a margin above 0, `lower` and `higher` take none")
        return self

    @property
    def scale(self) -> Literal["ratio", "difference"]:
        """How an effect is stated: as a ratio, estimated from logarithms, or of shares as a difference."""
        return "difference" if self.score.startswith(SHARES) else "ratio"

    @property
    def arms(self) -> tuple[str, str]:
        """Both arms."""
        return self.arm, self.against


class Control(Comparison):
    """A comparison that could refute the mechanism: where it does not hold, the effect has another cause."""

    shows: str
    """What holds if it does, as a clause."""


class Power(Section):
    """From what the number of seeds follows."""

    effect: Positive
    """The effect to be found: a ratio's excess over 1, or a difference of shares."""
    why: str = ""
    """Why it is not 0.1."""
    pilot: str | None = None
    """The experiment of `docs/claims/pilot.json` whose deviation over seeds is taken; none: there is no pilot."""
    score: str | None = None
    """The pilot's score; none: that of the primary comparison."""
    arms: tuple[str, ...] = ()
    """The pilot's arms; none: all of them."""


class Claim(Section):
    """One claim of a paper. It has arms of its own, or those of another claim's experiment, or a reason for none."""

    name: str
    """Its file's name."""
    paper: Paper
    """Who claims it."""
    plain: str
    """What is claimed, in words that anyone understands."""
    claim: str
    """What is claimed, in one sentence."""
    figure: str = "not known"
    """The paper's own figure."""
    note: str = ""
    """In what the experiment differs from the paper's."""
    not_run: str = ""
    """Why there is no experiment."""
    experiment: str | None = None
    """Another claim, whose arms and budgets this one reads its result from."""
    extractors: Annotated[tuple[Extractor, ...], Field(min_length=1)] = ("classifier",)
    """In whose features samples are scored."""
    features: str = ""
    """With which features images are chosen, and with which others samples are scored."""
    arms: dict[ArmName, dict[str, Any]] = {}
    """Recipes to compare, by name: fields by dotted path, with the value that they have in this arm alone."""
    lengths: dict[ArmName, Positive] = {}
    """Arms that are trained for longer, by what factor; their rungs are later by it."""
    regime: list[Criterion] = []
    """What must hold at the last rung; otherwise the claim is out of its regime, and undecided."""
    primary: Comparison | None = None
    """The one comparison that decides."""
    controls: list[Control] = []
    """What must hold besides for the mechanism to be shown."""
    secondary: list[Comparison] = []
    """What is shown beside it and has no part in the verdict."""
    power: Power | None = None
    """From what the number of seeds follows."""
    budgets: dict[BudgetName, Budget] = {}
    """How the arms are trained, by kind of machine."""

    @model_validator(mode="after")
    def _one_kind(self) -> "Claim":
        ways = (bool(self.arms and self.budgets), bool(self.experiment), bool(self.not_run))
        if sum(ways) != 1:
            raise ValueError("a claim has either arms with budgets, or an experiment, or a reason in not_run")
        if not self.not_run and not (self.primary and self.regime and self.power):
            raise ValueError("a claim has a primary comparison, a regime and power, unless it is not run")
        return self

    @property
    def comparisons(self) -> list[Comparison]:
        """All of them, the primary first."""
        return [*([self.primary] if self.primary else []), *self.controls, *self.secondary]


def order(claims: Sequence[Claim]) -> list[Claim]:
    """Return claims in the order in which they are run: the most important first."""
    return sorted(claims, key=lambda claim: (claim.name not in FIRST, _place(claim.name), claim.name))


def _place(name: str) -> int:
    return FIRST.index(name) if name in FIRST else 0


def names() -> list[str]:
    """Names of the claims."""
    return sorted(file.name.removesuffix(".yaml") for file in FILES.iterdir() if file.name.endswith(".yaml"))


@cache
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
    """Validate a tree of plain values, and that what it compares is trained and scored."""
    try:
        claim = Claim.model_validate({"name": name, **tree})
    except ValidationError as error:
        raise UserError(f"claim {name}: {explain(error)}") from None
    if claim.not_run:
        return claim

    own = owner(claim)
    named = (
        needed_arms(claim) | own.lengths.keys() | {arm for each in own.budgets.values() for arm in each.seeds_by_arm}
    )
    missing = named - own.arms.keys()
    if missing:
        raise UserError(f"claim {name}: no arm {', '.join(sorted(missing))}; arms are {', '.join(own.arms)}")
    if not budgets_of(claim):
        raise UserError(f"claim {name}: no budget trains all its arms")

    scores = [*claim.comparisons, *claim.regime]
    first, *further = (Scoring(extractor=extractor) for extractor in own.extractors)
    require_objectives((each.score for each in scores), first.model_copy(update={"further": tuple(further)}))
    for budget in budgets_of(claim).values():
        for each in claim.comparisons:
            rung_at(budget, each.at, name)
            rung_at(budget, each.against_at, name)
    return claim


def owner(claim: Claim) -> Claim:
    """Return the claim whose arms this one reads: itself, or the one that `experiment` names."""
    return load(claim.experiment) if claim.experiment else claim


def needed_arms(claim: Claim) -> set[str]:
    """Return the arms without which there is no verdict on a claim."""
    arms = {arm for each in claim.comparisons for arm in each.arms}
    return arms | {each.arm for each in claim.regime}


def arms_of(claim: Claim, budget: Budget) -> list[str]:
    """Return the arms that a budget of this experiment trains."""
    return [arm for arm in claim.arms if budget.arms is None or arm in budget.arms]


def budgets_of(claim: Claim) -> dict[str, Budget]:
    """Return the budgets that train what a claim's verdict needs, by name."""
    own = owner(claim)
    deciding = {arm for each in [claim.primary, *claim.controls] if each for arm in each.arms}
    deciding |= {each.arm for each in claim.regime}
    return {name: each for name, each in own.budgets.items() if deciding <= set(arms_of(own, each))}


def seeds_of(budget: Budget, arm: str) -> int:
    """Return how many seeds an arm is trained with."""
    return budget.seeds_by_arm.get(arm, budget.seeds)


def rung_at(budget: Budget, share: float, name: str = "") -> float:
    """Return the rung after this share of the training.

    Raises
    ------
    UserError
        If there is none.
    """
    wanted = share * budget.rungs_kimg[-1]
    nearest = min(budget.rungs_kimg, key=lambda rung: abs(rung - wanted))
    if abs(nearest - wanted) > NEAR * wanted:
        raise UserError(f"claim {name}: nothing is scored at {share:g} of the training; add {wanted:g} to rungs_kimg")
    return nearest


def recipe(claim: Claim, budget: Budget, arm: str) -> Recipe:
    """Return the recipe of an arm."""
    parts.load_files([TECHNIQUES])
    length = budget.rungs_kimg[-1] * claim.lengths.get(arm, 1.0)
    base = recipes.load(budget.recipe).replace(budget.override)
    return base.replace({**claim.arms[arm], "training.kimg": length})


def design(claim: Claim, budget: Budget, arm: str) -> dict[str, Any]:
    """Return all that an arm's record depends on, as plain values: a record of another design does not count."""
    return {
        "data": budget.data.model_dump(mode="json", exclude_defaults=True),
        "recipe": budget.recipe,
        "override": budget.override,
        "arm": claim.arms[arm],
        "rungs_kimg": list(budget.rungs_kimg),
        "length": claim.lengths.get(arm, 1.0),
        "extractors": list(claim.extractors),
        "samples": budget.samples,
    }


def runnable() -> Iterator[tuple[Claim, str, Budget]]:
    """Yield every claim that can be decided with every budget of it, the most important first."""
    for claim in order([load(name) for name in names()]):
        for name, budget in budgets_of(claim).items() if not claim.not_run else ():
            yield claim, name, budget


def device_of(budget: str) -> str:
    """Return the kind of machine of a budget: cpu or gpu."""
    return re.split("-", budget)[0]
