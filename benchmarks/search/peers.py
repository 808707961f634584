"""Scrimp's peers as methods of the simulator, each through its own classes.

All recommend the recipe with the best score at the highest rung that any repeat has reached, of those that keep the
constraints; of several objectives, the Pareto front there. They train each recipe once. Halving gets the rungs as steps
1, 3, 9, so that each lets a third continue, as in the searched spaces.
"""

import logging
import math
import random
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from benchmarks.search.curves import OBJECTIVE, Surface, Values, excess
from benchmarks.search.simulate import Decision, Statement, Task
from scrimp_platform.search import stats
from scrimp_spaces.ranges import Range
from scrimp_spaces.space import Space


@dataclass(frozen=True)
class Measured:
    """What a repeat has shown at a rung; `excess` is by how much it breaks the constraints."""

    excess: float
    score: float
    seed: int
    values: Values
    numbers: Mapping[str, float]
    """The score and all others by name."""


class Peer:
    """What the peers share: each recipe is trained once, and the best score is recommended."""

    plain = False
    """Whether it takes one objective and no constraints, as it is set up here."""

    def __init__(self, surface: Surface, seed: int) -> None:
        self.space = surface.space
        if self.plain and (self.space.constraints or len(self.space.objectives) > 1):
            raise NotImplementedError("takes one objective and no constraints, as it is set up here")
        self.seed = seed
        self.started = 0
        rungs = self.space.budget.rungs_kimg
        self.steps = {kimg: round(self.space.budget.reduction) ** i for i, kimg in enumerate(rungs)}
        self._measured: dict[float, list[Measured]] = {kimg: [] for kimg in rungs}

    def propose(self) -> Task | None:
        """Return a repeat of a new recipe while the budget has trials left."""
        if self.started >= (self.space.budget.trials or math.inf):
            return None
        key, values = self.suggest()
        self.started += 1
        return Task(key, values, self.task_seed(key))

    def report(self, task: Task, kimg: float, score: float, hours: float, **others: float) -> Decision:
        """Keep the numbers, and ask the peer whether the repeat continues."""
        del hours
        numbers = {OBJECTIVE: score, **others}
        self._measured[kimg].append(Measured(excess(self.space, numbers), score, task.seed, task.values, numbers))
        return "continue" if self.continues(task, kimg, score, numbers) else "stop"

    def recommend(self) -> Values | None:
        """Return the recipe with the best score at the highest rung reached; if all break constraints, the nearest."""
        measured = self._highest()
        return min(measured, key=lambda one: (one.excess, one.score, one.seed)).values if measured else None

    def front(self) -> list[Values]:
        """Return the recipes at the highest rung reached that no other dominates there."""
        measured = self._highest()
        fronts = stats.fronts([one.numbers for one in measured], self.space.objectives)
        return [one.values for one, front in zip(measured, fronts, strict=True) if front == 0]

    def _highest(self) -> list[Measured]:
        """Return what was measured at the highest rung that any repeat has reached."""
        return next((measured for measured in reversed(self._measured.values()) if measured), [])

    def statement(self) -> Statement | None:
        """Say nothing: none of them gives an interval."""
        return None

    def task_seed(self, key: Any) -> int:
        """Return the seed of a repeat: another for each."""
        return self.started

    def suggest(self) -> tuple[Any, Values]:
        """Return a new recipe, and under which key it is known."""
        raise NotImplementedError

    def continues(self, task: Task, kimg: float, score: float, numbers: Mapping[str, float]) -> bool:
        """Take a score, and all numbers by name; return whether the repeat continues."""
        return True

    def end(self, task: Task, failure: str) -> None:
        """Take that a repeat has ended by itself."""


class Random(Peer):
    """Draws every recipe by chance, and trains it to the end."""

    def __init__(self, surface: Surface, seed: int) -> None:
        super().__init__(surface, seed)
        self._chance = random.Random(seed)

    def suggest(self) -> tuple[Any, Values]:
        """Draw a recipe."""
        values: dict[str, Any] = {}
        for path, span in self.space.search.items():
            if path in self.space.active(values):
                values[path] = self._draw(span)
        return self.started, values

    def _draw(self, span: Range) -> Any:
        if span.choice:
            return self._chance.choice(span.choice)
        low, high = span.uniform or span.loguniform or span.int or (0, 1)
        if span.int and not span.log:
            return self._chance.randrange(int(low), int(high) + span.step, span.step)
        share = self._chance.random()
        value = low * (high / low) ** share if span.loguniform or span.log else low + share * (high - low)
        return round(value / span.step) * span.step if span.int else value


class Optuna(Peer):
    """A sampler of Optuna, with a pruner or without."""

    def __init__(self, surface: Surface, seed: int, sampler: str, pruned: bool = False) -> None:
        super().__init__(surface, seed)
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)  # GPSampler warns at every trial of a conditional space
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self._failed = optuna.trial.TrialState.FAIL
        self._pruned = optuna.trial.TrialState.PRUNED
        if pruned and len(self.space.objectives) > 1:
            raise NotImplementedError("Optuna prunes no trials of several objectives")
        self._is_pruned = pruned
        halving = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
        self._study = optuna.create_study(
            directions=list(self.space.objectives.values()),
            sampler=getattr(optuna.samplers, sampler)(seed=seed),
            pruner=halving if pruned else optuna.pruners.NopPruner(),
        )

    def suggest(self) -> tuple[Any, Values]:
        """Ask the study."""
        trial = self._study.ask()
        return trial, define(self.space, trial)

    def continues(self, task: Task, kimg: float, score: float, numbers: Mapping[str, float]) -> bool:
        """Report a rung to the pruner, and the last one to the study: the objectives and the excesses."""
        trial = task.key
        if len(self.space.objectives) == 1:  # Optuna prunes no trials of several objectives
            trial.report(score, self.steps[kimg])
        if kimg == self.space.budget.rungs_kimg[-1]:
            for name, bound in self.space.constraints.items():
                assert bound.max is not None, "the surfaces have upper limits alone"
                trial.set_constraint(name, numbers[name] - bound.max)  # as Optuna's pages show it
            self._study.tell(trial, [numbers[name] for name in self.space.objectives])
            return True
        if self._is_pruned and trial.should_prune():
            self._study.tell(trial, state=self._pruned)
            return False
        return True

    def end(self, task: Task, failure: str) -> None:
        """Tell the study of a failure."""
        if failure:
            self._study.tell(task.key, state=self._failed)


def define(space: Space, trial: Any) -> dict[str, Any]:
    """Ask an Optuna trial for a value of each field whose condition holds."""
    values: dict[str, Any] = {}
    for path, span in space.search.items():
        if path not in space.active(values):
            continue
        if span.choice:
            values[path] = trial.suggest_categorical(path, span.choice)
        elif span.int:
            low, high = span.int
            steps = trial.suggest_int(path, low // span.step, high // span.step, log=span.log)
            values[path] = steps * span.step
        else:
            low, high = span.uniform or span.loguniform or (0, 1)
            values[path] = trial.suggest_float(path, low, high, log=span.loguniform is not None)
    return values


class Ray(Peer):
    """Ray Tune's OptunaSearch under its ASHA scheduler."""

    plain = True

    def __init__(self, surface: Surface, seed: int) -> None:
        super().__init__(surface, seed)
        from ray.tune.schedulers import ASHAScheduler, TrialScheduler
        from ray.tune.search.optuna import OptunaSearch

        last = max(self.steps.values())
        self._stop = TrialScheduler.STOP
        self._searcher = OptunaSearch(lambda trial: _discard(define(self.space, trial)), "score", "min", seed=seed)
        self._scheduler = ASHAScheduler(
            time_attr="step", metric="score", mode="min", max_t=last, grace_period=1, reduction_factor=3
        )

    def suggest(self) -> tuple[Any, Values]:
        """Ask the searcher."""
        trial = SimpleNamespace(trial_id=f"{self.started}")
        self._searcher.suggest(trial.trial_id)
        self._scheduler.on_trial_add(None, trial)  # pyright: ignore[reportArgumentType]
        return trial, in_steps(self.space, self._searcher._ot_trials[trial.trial_id].params)

    def continues(self, task: Task, kimg: float, score: float, numbers: Mapping[str, float]) -> bool:
        """Report a rung to both; what is stopped counts as complete, as it does in Tune."""
        trial = task.key
        result = {"score": score, "step": self.steps[kimg], "training_iteration": self.steps[kimg]}
        decision = self._scheduler.on_trial_result(None, trial, result)  # pyright: ignore[reportArgumentType]
        self._searcher.on_trial_result(trial.trial_id, result)
        if decision == self._stop or kimg == self.space.budget.rungs_kimg[-1]:
            self._scheduler.on_trial_complete(None, trial, result)  # pyright: ignore[reportArgumentType]
            self._searcher.on_trial_complete(trial.trial_id, result)
        return decision != self._stop

    def end(self, task: Task, failure: str) -> None:
        """Tell both of a failure."""
        if failure:
            self._scheduler.on_trial_remove(None, task.key)  # pyright: ignore[reportArgumentType]
            self._searcher.on_trial_complete(task.key.trial_id, error=True)


class SyneTune(Peer):
    """A scheduler of Syne Tune. It knows no conditions: it proposes every field, and what has no effect is dropped."""

    plain = True

    def __init__(self, surface: Surface, seed: int, scheduler: str) -> None:
        super().__init__(surface, seed)
        logging.getLogger("syne_tune").setLevel(logging.ERROR)
        from syne_tune import __version__ as version  # pyright: ignore[reportMissingImports]
        from syne_tune.optimizer import baselines  # pyright: ignore[reportMissingImports]

        if not hasattr(baselines, scheduler):
            raise ImportError(f"Syne Tune {version} has no {scheduler}")
        self._scheduler = getattr(baselines, scheduler)(
            self._config_space(),
            metric="score",
            time_attr="step",
            max_t=max(self.steps.values()),
            grace_period=1,
            reduction_factor=3,
            random_seed=seed,
        )

    def _config_space(self) -> dict[str, Any]:
        from syne_tune import config_space  # pyright: ignore[reportMissingImports]

        domains: dict[str, Any] = {}
        for path, span in self.space.search.items():
            if span.choice:
                domains[path] = config_space.choice(span.choice)
            elif span.int:
                kind = config_space.lograndint if span.log else config_space.randint
                domains[path] = kind(*(bound // span.step for bound in span.int))
            else:
                kind = config_space.loguniform if span.loguniform else config_space.uniform
                domains[path] = kind(*(span.loguniform or span.uniform or ()))
        return domains

    def suggest(self) -> tuple[Any, Values]:
        """Ask the scheduler."""
        from syne_tune.backend.trial_status import Trial  # pyright: ignore[reportMissingImports]

        config = self._scheduler.suggest().config
        trial = Trial(self.started, config, None)
        self._scheduler.on_trial_add(trial)
        return trial, in_steps(self.space, config)

    def continues(self, task: Task, kimg: float, score: float, numbers: Mapping[str, float]) -> bool:
        """Report a rung."""
        result = {"score": score, "step": self.steps[kimg]}
        goes_on = self._scheduler.on_trial_result(task.key, result) == "CONTINUE"
        if not goes_on:
            self._scheduler.on_trial_remove(task.key)
        return goes_on

    def end(self, task: Task, failure: str) -> None:
        """Report a failure."""
        if failure:
            self._scheduler.on_trial_error(task.key)


class Smac(Peer):
    """SMAC3 for hyperparameters: a random forest, and an intensifier that gives good recipes up to three seeds."""

    plain = True

    def __init__(self, surface: Surface, seed: int) -> None:
        super().__init__(surface, seed)
        import smac  # pyright: ignore[reportMissingImports]
        from smac.runhistory import StatusType, TrialValue  # pyright: ignore[reportMissingImports]

        self._folder = tempfile.TemporaryDirectory()
        self._value = TrialValue
        self._crashed = StatusType.CRASHED
        scenario = smac.Scenario(
            self._configuration_space(seed),
            output_directory=self._folder.name,
            deterministic=False,
            n_trials=self.space.budget.trials,
            seed=seed,
        )
        self._facade = smac.HyperparameterOptimizationFacade(scenario, _not_called, overwrite=True, logging_level=False)

    def _configuration_space(self, seed: int) -> Any:
        import ConfigSpace  # pyright: ignore[reportMissingImports]

        space = ConfigSpace.ConfigurationSpace(seed=seed)
        for path, span in self.space.search.items():
            if span.choice:
                space.add(ConfigSpace.Categorical(path, span.choice))
            elif span.int:
                low, high = span.int
                space.add(ConfigSpace.Integer(path, (low // span.step, high // span.step), log=span.log))
            else:
                bounds = span.loguniform or span.uniform or (0, 1)
                space.add(ConfigSpace.Float(path, bounds, log=span.loguniform is not None))

        for path, span in self.space.search.items():
            conditions = [ConfigSpace.InCondition(space[path], space[on], values) for on, values in span.when.items()]
            if len(conditions) == 1:
                space.add(conditions[0])
            elif conditions:
                space.add(ConfigSpace.AndConjunction(*conditions))
        return space

    def suggest(self) -> tuple[Any, Values]:
        """Ask the facade."""
        info = self._facade.ask()
        return info, in_steps(self.space, dict(info.config))

    def task_seed(self, key: Any) -> int:
        """Return the seed that SMAC has chosen."""
        return key.seed

    def continues(self, task: Task, kimg: float, score: float, numbers: Mapping[str, float]) -> bool:
        """Tell the facade the last score."""
        if kimg == self.space.budget.rungs_kimg[-1]:
            self._facade.tell(task.key, self._value(cost=score), save=False)
        return True

    def end(self, task: Task, failure: str) -> None:
        """Tell the facade of a failure."""
        if failure:  # a cost that is not finite would end SMAC's forest
            scores = [one.score for at_rung in self._measured.values() for one in at_rung]
            value = self._value(cost=2 * max(scores, default=1.0), status=self._crashed)
            self._facade.tell(task.key, value, save=False)

    def recommend(self) -> Values | None:
        """Return SMAC's incumbent."""
        incumbents = self._facade.intensifier.get_incumbents()
        return in_steps(self.space, dict(incumbents[0])) if incumbents else None


def in_steps(space: Space, config: Values) -> dict[str, Any]:
    """Return the values of a configuration: those whose conditions hold, steps of whole numbers as numbers."""
    values: dict[str, Any] = {}
    for path, span in space.search.items():
        if path in space.active(values):
            value = config[path]
            if span.choice:
                values[path] = next(option for option in span.choice if option == value)
            else:
                values[path] = int(value) * span.step if span.int else float(value)
    return values


def _discard(values: Values) -> None:
    """Return nothing, as Ray wants it of a function that has asked for its values."""
    del values


def _not_called(config: Any, seed: int) -> float:
    """Stand for the training, which the simulator does."""
    raise NotImplementedError
