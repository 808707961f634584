"""The curve model of a running sweep: how good each trial will be, and whether more trials are worth their cost."""

from collections.abc import Callable, Mapping, Sequence

from scrimp_platform.search import curves, gain
from scrimp_platform.search.order import Rank
from scrimp_platform.search.prior import Prior
from scrimp_platform.search.records import Trial
from scrimp_platform.search.warm_start import WarmStart
from scrimp_spaces.space import Space


class Learner:
    """The curve model of one sweep, fitted again as scores come in; it is not used where it does not propose.

    Parameters
    ----------
    space : Space
        What is searched, and by whom.
    warm_start : WarmStart
        The earlier sweeps that a prior comes from.
    say : Callable
        Called with one line when more trials are expected to gain too little.
    """

    def __init__(self, space: Space, warm_start: WarmStart, say: Callable[[str], None]) -> None:
        self._space = space
        self._warm_start = warm_start
        self._say = say
        self._prior: Prior | None = None
        self._curves: curves.Curves | None = None
        self._looked_ahead: curves.Curves | None = None
        self._gain: gain.Gain | None = None

    def change_limits(self, space: Space) -> None:
        """Judge from now on by another budget."""
        self._space = space

    def learned(self, proposed: Sequence[Trial]) -> curves.Curves | None:
        """Return the model, fitted to all proposals so far; None where it does not propose."""
        if self._space.proposals == "curves" and not self._space.arms:
            self._prior = self._prior or Prior(self._space, self._warm_start.sweeps)
            self._curves = curves.learn(proposed, self._space, self._curves, self._prior)
        return self._curves

    def ranks(self, proposed: Sequence[Trial]) -> Mapping[int, Rank] | None:
        """Return how good it expects each trial to be, by number; None while it has nothing to go by."""
        learned = self.learned(proposed)
        return learned.ranks if learned else None

    def gains_too_little(self, proposed: Sequence[Trial], trials: Sequence[Trial]) -> bool:
        """Whether more trials are expected to gain less than the budget asks for, and enough for a race are trained."""
        least = self._space.budget.until_gain
        complete = sum(trial.status == "complete" for trial in trials)
        if least is None or complete < self._space.budget.leaders:
            return False

        learned = self.learned(proposed)
        if learned and learned is not self._looked_ahead:
            before = self._gain
            self._looked_ahead = learned
            self._gain = gain.expected_gain(learned)
            if self._gain and self._gain.share < least and (before is None or before.share >= least):
                self._say(f"ending the search: {self._gain.text()}")
        return self._gain is not None and self._gain.share < least
