"""A space: a base recipe, the ranges to search, objectives and constraints, the budget.

Ranges name recipe fields by dotted path. A path that does not exist, a range that leaves what the field allows, or
two ranges whose ends contradict each other are refused when the space is loaded.
"""

import importlib.resources
import itertools
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ModelWrapValidatorHandler, ValidationError, model_validator

from scrimp_trainers.common import yaml_files
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.metrics.names import require_objectives
from scrimp_trainers.recipe import recipe as recipes
from scrimp_trainers.recipe.recipe import Recipe, explain
from scrimp_trainers.recipe.scoring import Scoring
from scrimp_trainers.recipe.sections import Count, FilePath, OwnPart, Positive, Section

SPACES = importlib.resources.files("scrimp_spaces")
Bounds = tuple[float, float]
Whole = int  # `Range.int` hides the type's own name
WholeBounds = tuple[Whole, Whole]
EXAMPLES = 33
"""Values of a range that are tried on the field before a sweep."""


class Range(Section):
    """The values of one field: exactly one of the kinds, and the condition under which it is searched."""

    uniform: Bounds | None = None
    """Any number between the two bounds."""
    loguniform: Bounds | None = None
    """Any number between the two bounds, evenly over orders of magnitude."""
    int: WholeBounds | None = None
    """Any whole number between the two bounds, both included. What is searched of a field of whole numbers is one of
    these, also where the space says `uniform` or `loguniform`."""
    log: bool = False
    """Whole numbers evenly over orders of magnitude."""
    step: Annotated[Whole, Field(ge=1)] = 1
    """Only multiples of this, as the field asks for."""
    choice: Annotated[list[Any], Field(min_length=2)] | None = None
    """One of these values."""
    when: dict[str, list[Any]] = {}
    """Search the field only where these other searched fields have one of these values."""
    paper: str | None = None
    """The value in the paper that the field is from, for whoever reads the space."""

    @model_validator(mode="after")
    def _one_kind(self) -> "Range":
        kinds = [kind for kind in ("uniform", "loguniform", "int", "choice") if getattr(self, kind) is not None]
        if len(kinds) != 1:
            raise ValueError(f"a range is one of uniform, loguniform, int, choice; this one has {kinds or 'none'}")
        bounds = self.uniform or self.loguniform or self.int
        if bounds and not bounds[0] < bounds[1]:
            raise ValueError(f"the lower bound {bounds[0]} is not below the upper {bounds[1]}")
        if self.loguniform and self.loguniform[0] <= 0:
            raise ValueError(f"loguniform needs bounds above 0, not {self.loguniform[0]}")
        if self.log and (not self.int or self.int[0] < 1):
            raise ValueError("log needs an int range of numbers above 0")
        if self.int and any(bound % self.step for bound in self.int):
            raise ValueError(f"the bounds {list(self.int)} are no multiples of {self.step}")
        return self

    def draw(self, chance: random.Random) -> Any:
        """Return a random value of the range."""
        if self.choice:
            return chance.choice(self.choice)
        if self.int:
            low, high = self.int
            return chance.randrange(low, high + 1, self.step)
        return chance.uniform(*(self.uniform or self.loguniform or (0.0, 0.0)))

    def extremes(self) -> list[Any]:
        """Return the values that the field must accept for the whole range to be valid."""
        return list(self.choice or self.uniform or self.loguniform or self.int or ())

    def allows(self, value: Any) -> bool:
        """Whether a value lies in the range."""
        if self.choice:
            return value in self.choice
        low, high = self.uniform or self.loguniform or self.int or (0, 0)
        if self.int and (not isinstance(value, Whole) or value % self.step):
            return False
        return isinstance(value, (float, Whole)) and low <= value <= high

    def examples(self) -> list[Any]:
        """Return values from all over the range: all of them where they are few, else as many as show what it holds."""
        if self.choice:
            return list(self.choice)
        if self.int:
            numbers = range(self.int[0], self.int[1] + 1, self.step)
            return list(numbers) if len(numbers) <= EXAMPLES else [numbers[i] for i in _spread(len(numbers))]
        low, high = self.uniform or self.loguniform or (0.0, 0.0)
        shares = [i / (EXAMPLES - 1) for i in range(EXAMPLES)]
        if self.loguniform:
            return [low, *(low * (high / low) ** share for share in shares[1:-1]), high]
        return [low, *(low + (high - low) * share for share in shares[1:-1]), high]


class Bound(Section):
    """A limit that a trial must keep to be eligible."""

    max: float | None = None
    """Largest value allowed."""
    min: float | None = None
    """Smallest value allowed."""
    max_ratio: Positive | None = None
    """Largest value allowed, as a multiple of what the base recipe costs on the sweep's dataset; the plan turns it into
    `max`."""
    min_ratio: Positive | None = None
    """Smallest value allowed, likewise."""

    @model_validator(mode="after")
    def _not_empty(self) -> "Bound":
        if all(value is None for value in (self.max, self.min, self.max_ratio, self.min_ratio)):
            raise ValueError("a constraint needs max, min, max_ratio or min_ratio")
        return self

    @property
    def relative(self) -> bool:
        """Whether a limit is a multiple of what the base recipe costs."""
        return self.max_ratio is not None or self.min_ratio is not None

    def resolved(self, cost: float) -> "Bound":
        """Return the bound with its ratios as limits, given the base recipe's cost."""
        limits = {"max": self.max_ratio, "min": self.min_ratio}
        return self.model_copy(update={side: ratio * cost for side, ratio in limits.items() if ratio is not None})

    def excess(self, value: float) -> float:
        """By which share of the limit a value breaks it; 0 or less where it is kept. A limit of 0 counts as 1."""
        above = float("-inf")
        below = float("-inf")
        if self.max is not None:
            above = (value - self.max) / (abs(self.max) or 1.0)
        if self.min is not None:
            below = (self.min - value) / (abs(self.min) or 1.0)
        return max(above, below)


def _share(value: Any) -> Any:
    """Read a percentage, `0.5%`, as the share that it is."""
    if isinstance(value, str) and value.endswith("%"):
        return float(value.removesuffix("%")) / 100
    return value


class Budget(Section):
    """How much a sweep may try and spend; it ends at whichever limit comes first."""

    trials: Count | None = 20
    """Recipes to propose; null: as many as `max_gpu_hours` allows."""
    rungs_kimg: Annotated[tuple[Positive, ...], Field(min_length=1)] = (250.0, 1000.0, 4000.0)
    """Marks, in thousands of images, at which a repeat is scored; the last is the length of the training."""
    rung_shares: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)] | None = None
    """In place of `rungs_kimg`: the marks as shares of `training.kimg` of the recipe with its `override`. From them
    `rungs_kimg` follows when the space is loaded."""
    reduction: Annotated[float, Field(ge=1)] = 3.0
    """Successive halving: of the trials at a rung, the best 1/reduction go on; 1 stops none."""
    leaders: Count = 3
    """Trials that enter the race."""
    repeats: Count = 5
    """Seeds that a trial of the race gets at most: the one by which the search chose it, and fresh ones for its mean.
    Of arms all are fresh."""
    retries: Annotated[int, Field(ge=0)] = 2
    """Further attempts at a repeat that failed through no fault of its recipe."""
    patience_minutes: Positive = 30.0
    """Time without progress after which a repeat is taken to hang: its process is ended, and it is tried again."""
    max_gpu_hours: Positive | None = None
    """Device-hours of training and scoring (of CPU workers where there is no GPU)."""
    race_share: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Share of `max_gpu_hours` that is kept for the race."""
    until_gain: Annotated[float, BeforeValidator(_share), Field(gt=0, lt=1)] | None = None
    """The search ends once ten more trials are expected to improve the best score by less than this share of it, such
    as `0.5%`."""
    max_hours: Positive | None = None
    """Hours on the clock, for each run of the sweep's command."""

    @model_validator(mode="before")
    @classmethod
    def _rungs_or_shares(cls, tree: Any) -> Any:
        if isinstance(tree, dict) and "rungs_kimg" in tree and tree.get("rung_shares") is not None:
            raise ValueError("rungs are in kimg or shares of the training, so set rungs_kimg or rung_shares, not both")
        return tree

    @model_validator(mode="after")
    def _shares_rise(self) -> "Budget":
        if any(low >= high for low, high in itertools.pairwise(self.rung_shares or ())):
            raise ValueError(f"rung_shares must rise, not {list(self.rung_shares or ())}")
        return self

    @model_validator(mode="after")
    def _rungs_rise(self) -> "Budget":
        if any(low >= high for low, high in itertools.pairwise(self.rungs_kimg)):
            raise ValueError(f"rungs_kimg must rise, not {list(self.rungs_kimg)}")
        return self

    @model_validator(mode="after")
    def _ends(self) -> "Budget":
        if self.trials is None and self.max_gpu_hours is None:
            raise ValueError("without a number of trials, the budget needs max_gpu_hours")
        return self


class Space(Section):
    """What a sweep searches, by what it judges, and what it may spend."""

    about: str = ""
    """What the space is for."""
    recipe: str
    """The preset, or the path of the recipe, that every trial starts from."""
    override: dict[str, Any] = {}
    """Fields of that recipe with another value in this space."""
    search: dict[str, Range] = {}
    """Recipe fields to search, by dotted path."""
    arms: dict[str, dict[str, Any]] = {}
    """In place of a search: the recipes to compare, by name, as values of fields; what an arm leaves out is as in
    `recipe`. No arm is stopped, and each gets all repeats."""
    parts: tuple[FilePath, ...] = ()
    """Python files with a user's own parts, which recipes of the space, `scoring.also` and `proposals` may name."""
    proposals: Literal["curves", "tpe", "gp", "random", "qmc"] | OwnPart = "curves"
    """Who proposes the recipes of a search: a Gaussian process over whole learning curves, which also says who
    continues and takes one objective; Optuna's TPE, the default where there are several; Optuna's Gaussian process;
    chance; a Sobol sequence."""
    objectives: Annotated[dict[str, Literal["minimize", "maximize"]], Field(min_length=1)]
    """Scores to optimise; several make a Pareto front."""
    constraints: dict[str, Bound] = {}
    """Scores that must keep a limit."""
    prefer: Literal["cheapest", "best"] = "cheapest"
    """Which of the trials that the race cannot tell apart is recommended: the cheapest of those whose means are within
    2% of the best, or the one with the best mean."""
    scoring: Scoring
    """How a repeat is scored at a rung."""
    budget: Budget = Budget()
    """Trials, rungs, repeats, hours."""

    @model_validator(mode="after")
    def _not_empty(self) -> "Space":
        if not (self.search or self.arms):
            raise ValueError("a space needs fields to search, or arms to compare")
        return self

    @model_validator(mode="before")
    @classmethod
    def _several_objectives(cls, tree: Any) -> Any:
        if isinstance(tree, dict) and isinstance(tree.get("objectives"), dict) and len(tree["objectives"]) > 1:
            return {"proposals": "tpe"} | tree
        return tree

    @model_validator(mode="after")
    def _curves_of_one_objective(self) -> "Space":
        if self.proposals == "curves" and len(self.objectives) > 1:
            raise ValueError("proposals: curves models one objective, this space has several; take tpe")
        return self

    @model_validator(mode="after")
    def _gain_of_curves(self) -> "Space":
        if self.budget.until_gain is not None and (self.proposals != "curves" or self.arms):
            raise ValueError("budget.until_gain: only proposals: curves, with one objective, can tell what is to gain")
        return self

    @model_validator(mode="wrap")  # the last validator, so that it also sees what the one above refuses
    @classmethod
    def _explained(cls, values: Any, handler: "ModelWrapValidatorHandler[Space]") -> "Space":
        try:
            return handler(values)
        except ValidationError as error:
            raise UserError(explain(error)) from None

    @classmethod
    def load(cls, name: str | Path) -> "Space":
        """Load a space by name or from a YAML file; `UserError` says what is wrong with it."""
        return load_space(name)

    @classmethod
    def of(cls, **fields: Any) -> "Space":
        """Make a space of plain values, as its YAML has them; `UserError` says what is wrong with them."""
        return parse_space(recipes.with_own_parts(fields, Path(), "space"), "space")

    def base(self) -> Recipe:
        """Return the recipe that every trial starts from, as long as the last rung."""
        base = recipes.load(self.recipe).replace(self.override)
        own_files = {file.name: file for file in (*base.parts, *self.parts)}
        return base.replace({"training.kimg": self.budget.rungs_kimg[-1], "parts": list(own_files.values())})

    def active(self, values: dict[str, Any]) -> list[str]:
        """Return the searched fields whose conditions hold, given the values chosen so far."""
        return [
            path
            for path, span in self.search.items()
            if all(values.get(other) in allowed for other, allowed in span.when.items())
        ]

    def draw(self, chance: random.Random) -> dict[str, Any]:
        """Return random values of the searched fields whose conditions hold."""
        values: dict[str, Any] = {}
        for path, span in self.search.items():
            if path in self.active(values):
                values[path] = span.draw(chance)
        return values

    def example_with(self, path: str) -> Recipe:
        """Return a recipe in which a searched field is proposed: its conditions hold, and those of their fields.

        A field of another `kind` than the base recipe's exists only there.
        """
        values: dict[str, Any] = {}
        pending = [path]
        while pending:
            for other, allowed in self.search[pending.pop()].when.items():
                if other not in values:
                    values[other] = allowed[0]
                    pending.append(other)
        return self.base().replace(values)

    def corners(self) -> Iterator[dict[str, Any]]:
        """Yield a whole proposal for every two ends of ranges that may be proposed together.

        The other fields have the base recipe's value where their range and the conditions of the two allow it.
        """
        base = self.base()
        usual: dict[str, list[Any]] = {}
        for path, span in self.search.items():
            candidates = [*_values_of(base, path), span.extremes()[0]]
            usual[path] = [value for value in candidates if span.allows(value)]
        ends = [{path: value} for path, span in self.search.items() for value in span.extremes()]
        for one, other in itertools.combinations_with_replacement(ends, 2):
            if one.keys() != other.keys() or one == other:
                options = usual | self._options(one | other)
                values: dict[str, Any] = {}
                for path in self.search:
                    if options[path] and path in self.active(values):
                        values[path] = options[path][0]
                if values.keys() >= (one | other).keys():
                    yield values

    def _options(self, values: dict[str, Any]) -> dict[str, list[Any]]:
        """Return these values, and which ones their conditions, and the conditions of those, leave to other fields."""
        options, left = {path: [value] for path, value in values.items()}, list(values)
        while left:
            for other, allowed in self.search[left.pop()].when.items():
                if other not in options:
                    left.append(other)
                options[other] = [value for value in options.get(other, allowed) if value in allowed]
        return options

    def to_yaml(self) -> str:
        """Return the whole space as YAML that `load_space` reads back unchanged."""
        return yaml_files.to_yaml(self.model_dump(mode="json", exclude_defaults=True))


def names() -> list[str]:
    """Names of the spaces that come with Scrimp."""
    return sorted(entry.name.removesuffix(".yaml") for entry in SPACES.iterdir() if entry.name.endswith(".yaml"))


def space_yaml(name: str) -> str:
    """Return the YAML of a space that comes with Scrimp, or of a file.

    Raises
    ------
    UserError
        If there is neither.
    """
    if name in names():
        return (SPACES / f"{name}.yaml").read_text()
    if Path(name).expanduser().is_file():
        return Path(name).expanduser().read_text()
    raise UserError(f"space {name!s}: no such space or file; spaces are {', '.join(names())}")


def load_space(name: str | Path) -> Space:
    """Load a space by name or from a YAML file, and check every range against the recipe.

    Raises
    ------
    UserError
        If there is no such space, or something in it is not allowed.
    """
    file = Path(name).expanduser()
    if str(name) not in names() and file.is_file():
        tree = recipes.with_own_parts(yaml_files.read_yaml(file, f"space {name}"), file.parent, f"space {name}")
        return parse_space(tree, f"space {name}")
    return parse_space(yaml_files.parse_yaml(space_yaml(str(name)), f"space {name}"), f"space {name}")


def parse_space(tree: Any, where: str) -> Space:
    """Validate a tree of plain values, and each range against the recipe's fields; `where` names its source."""
    try:
        space = _of_shares(Space.model_validate(tree))
        require_objectives([*space.objectives, *space.constraints], space.scoring)
        _refuse_selection(space)
        if space.arms:
            return _of_arms(space)
        for path, span in space.search.items():
            _check_conditions(space, path, span)
        space = _of_whole_numbers(space)
        for path, span in space.search.items():
            _check_values(space, path, span)
        _check_corners(space)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return space


def value_of(recipe: Recipe, path: str) -> Any:
    """Return the value of the field at this dotted path, as YAML has it.

    Raises
    ------
    UserError
        If a recipe has no such field.
    """
    node: Any = recipe.model_dump(mode="json")
    for name in path.split("."):
        if not isinstance(node, dict) or name not in node:
            raise UserError(f"{path}: a recipe has no such field; `scrimp recipes --schema` lists them")
        node = node[name]
    return node


def _values_of(recipe: Recipe, path: str) -> list[Any]:
    """Return the value of a field in a list, or an empty list where this recipe has no such field."""
    try:
        return [value_of(recipe, path)]
    except UserError:
        return []


def _of_shares(space: Space) -> Space:
    """Return the space with rungs in kimg where it states them as shares of the recipe's whole training."""
    shares = space.budget.rung_shares
    if shares is None:
        return space
    whole = recipes.load(space.recipe).replace(space.override).training.kimg
    rungs = [round(share * whole, 3) for share in shares]
    budget = space.budget.model_dump() | {"rung_shares": None, "rungs_kimg": rungs}
    try:
        return space.model_copy(update={"budget": Budget.model_validate(budget)})
    except ValidationError as error:
        raise UserError(f"budget: {explain(error)}") from None


def _refuse_selection(space: Space) -> None:
    """Refuse recipes that choose their model by its score: the verdict would take optimistic scores for plain ones."""
    chosen = [space.base().training.select]
    if "training.select" in space.search:
        chosen += space.search["training.select"].extremes()
    chosen += [recipes.flattened(arm).get("training.select") for arm in space.arms.values()]
    if "best" in chosen:
        raise UserError(
            "training.select: best is not for a sweep, since a score by which a model was chosen is optimistic; take "
            "last, and train the recommended recipe with best by `scrimp train`"
        )


def _of_arms(space: Space) -> Space:
    """Give each arm a value of every field that any of them sets, and the space the search and budget that follow."""
    base = space.base()
    given = {}
    for name, arm in space.arms.items():
        try:
            given[name] = recipes.flattened(arm)
            base.replace(arm)
        except UserError as error:
            raise UserError(f"arms.{name}: {error}") from None
    default = {path: value_of(base, path) for arm in given.values() for path in arm}
    arms = {name: default | arm for name, arm in given.items()}
    if any(one == other for one, other in itertools.combinations(arms.values(), 2)):
        raise UserError("arms: two of them are the same")
    search = {}
    for path in default:
        values = [arm[path] for arm in arms.values()]
        distinct = [value for i, value in enumerate(values) if value not in values[:i]]
        if len(distinct) == 1:
            raise UserError(f"arms: {path} is the same in all of them; set it in override")
        search[path] = Range(choice=distinct)
    if space.search not in ({}, search):
        raise UserError("a space has either search or arms")
    budget = space.budget.model_copy(update={"trials": len(arms), "leaders": len(arms), "reduction": 1.0})
    return space.model_copy(update={"arms": arms, "search": search, "budget": budget})


def _of_whole_numbers(space: Space) -> Space:
    """Search the fields of whole numbers in whole numbers, in the steps that the field asks for."""
    search = {}
    for path, span in space.search.items():
        bounds = span.uniform or span.loguniform or span.int
        value_of(space.example_with(path), path)  # refuses a path that does not exist
        is_whole, multiple = recipes.whole(path)
        if not bounds or not is_whole:
            search[path] = span
            continue
        step = math.lcm(span.step, multiple)
        odd = [bound for bound in bounds if bound % step]
        if odd:
            what = "a whole number" if step == 1 else f"a multiple of {step}"
            raise UserError(f"search.{path}: takes {what}, so the bound {odd[0]:g} is never reached; choose another")
        whole = {"int": (int(bounds[0]), int(bounds[1])), "log": span.log or bool(span.loguniform), "step": step}
        search[path] = span.model_copy(update={"uniform": None, "loguniform": None, **whole})
    return space.model_copy(update={"search": search})


def _check_values(space: Space, path: str, span: Range) -> None:
    """Refuse a range within which a field allows some values and not others."""
    recipe = space.example_with(path)
    for value in [*span.extremes(), *span.examples()]:
        try:
            recipes.check_field(recipe, path, value)
        except UserError as error:
            raise UserError(f"search.{path}: {value!r} may be proposed, but {error}") from None


def _check_conditions(space: Space, path: str, span: Range) -> None:
    earlier = list(itertools.takewhile(lambda other: other != path, space.search))
    for other in span.when:
        if other not in earlier:
            raise UserError(f"search.{path}.when: {other} must be searched before {path}")
        for value in span.when[other]:
            if not space.search[other].allows(value):
                raise UserError(f"search.{path}.when: {other} is never {value!r}")


def _check_corners(space: Space) -> None:
    base = space.base()
    for values in space.corners():
        try:
            base.replace(values)
        except UserError as error:
            changed = {path: value for path, value in values.items() if [value] != _values_of(base, path)}
            given = ", ".join(f"{path} {value}" for path, value in changed.items())
            raise UserError(f"search: {given} may be proposed, but {error}") from None


def _spread(count: int) -> list[int]:
    """Return positions from the first to the last of so many, evenly."""
    return sorted({round(i * (count - 1) / (EXAMPLES - 1)) for i in range(EXAMPLES)})
