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

from pydantic import Field, ModelWrapValidatorHandler, ValidationError, model_validator

from scrimp_spaces.budget import Budget
from scrimp_spaces.constraints import Bound
from scrimp_spaces.ranges import Range
from scrimp_trainers.common import yaml_files
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.common.files import expand_home
from scrimp_trainers.metrics.names import require_objectives
from scrimp_trainers.recipe import recipe as recipes
from scrimp_trainers.recipe.recipe import Recipe, explain
from scrimp_trainers.recipe.scoring import Scoring
from scrimp_trainers.recipe.sections import Count, FileName, FilePath, OwnPart, Section

SPACES = importlib.resources.files("scrimp_spaces")


class MadeFor(Section):
    """The dataset that a space is made for, for a plan without one."""

    size: Count
    """Side of the images in pixels, or the most points of a drawing."""
    channels: Literal[1, 3] = 3
    """1 for grey images."""
    items: Count
    """Training items."""
    reference: Count | None = None
    """Items that samples are compared with; none if these are the training items."""
    classes: Annotated[int, Field(ge=0)] = 0
    """Number of classes."""


class Space(Section):
    """What a sweep searches, by what it judges, and what it may spend."""

    about: str = ""
    """What the space is for."""
    made_for: MadeFor | None = None
    """The dataset that it is made for: what `scrimp spaces NAME --on` reckons with where no other is named."""
    recipe: FileName
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

    @model_validator(mode="after")
    def _no_more_at_rungs(self) -> "Space":
        fewer = self.budget.rung_samples
        if fewer is not None and fewer > self.scoring.samples:
            raise ValueError(
                f"budget.rung_samples {fewer}: is more than scoring.samples {self.scoring.samples}, which the last "
                "rung scores; set it lower, or leave it out"
            )
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

    def samples_at(self, kimg: float) -> int:
        """Return how many samples are scored at a rung."""
        fewer = self.budget.rung_samples
        return self.scoring.samples if fewer is None or kimg >= self.budget.rungs_kimg[-1] else fewer

    def is_scored_in_full(self, kimg: float) -> bool:
        """Whether as many samples are scored at a rung as at the last one, so that their scores may be compared."""
        return self.samples_at(kimg) == self.scoring.samples

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
            if one.keys() == other.keys() and one != other:
                continue  # two ends of one range
            pair = one | other
            options = usual | self._options(pair)
            values: dict[str, Any] = {}
            for path in self.search:
                if options[path] and path in self.active(values):
                    values[path] = options[path][0]
            if values.keys() >= pair.keys():  # else their conditions exclude each other
                yield values

    def _options(self, values: dict[str, Any]) -> dict[str, list[Any]]:
        """Return these values, and which ones their conditions, and the conditions of those, leave to other fields."""
        options = {path: [value] for path, value in values.items()}
        pending = list(values)
        while pending:
            for other, allowed in self.search[pending.pop()].when.items():
                if other not in options:
                    pending.append(other)
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
    file = expand_home(name)
    if file.is_file():
        return file.read_text()
    raise UserError(f"space {name!s}: no such space or file; spaces are {', '.join(names())}")


def load_space(name: str | Path) -> Space:
    """Load a space by name or from a YAML file, and check every range against the recipe.

    Raises
    ------
    UserError
        If there is no such space, or something in it is not allowed.
    """
    file = expand_home(name)
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
        space = _of_whole_numbers(space)  # each field exists under its conditions, which have been checked
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
            return _unwritten_value(recipe, path)
        node = node[name]
    return node


def _unwritten_value(recipe: Recipe, path: str) -> Any:
    """Return the value of a field that YAML leaves out where it has its default; raises as `value_of` does."""
    name, _, leaf = path.partition(".")
    section = getattr(recipe, name, None)
    if leaf not in getattr(type(section), "model_fields", {}):
        raise UserError(f"{path}: a recipe has no such field; `scrimp recipes --schema` lists them")
    return getattr(section, leaf)


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

    # What an arm leaves out it has from the base recipe.
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

    # Every arm is trained to the end and enters the race.
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
