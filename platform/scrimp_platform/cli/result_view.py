"""The result of a sweep, printed in the terminal."""

from collections.abc import Sequence

from scrimp_platform import recommended
from scrimp_platform.cli import plan_view, terminal
from scrimp_platform.cli.terminal import say
from scrimp_platform.report import leaderboard
from scrimp_platform.search import gain
from scrimp_platform.store import SweepFolder
from scrimp_spaces.space import Space


def show_result(folder: SweepFolder, rows: Sequence[leaderboard.TrialRow], space: Space, reason: str) -> None:
    """Print the leaderboard, the verdict and the paths of the results."""
    _show_leaderboard(rows, space)
    outlook = gain.of_more_trials([row.trial for row in rows], space, folder)
    if outlook:
        say(f"{outlook.text()}.\n")
    if reason != "complete":
        say(f"Not complete: {reason}. Run the same command again to resume.")
    say(f"report       {folder.report}")
    say(f"leaderboard  {folder.leaderboard}")
    if folder.best_recipe.exists():
        say(f"best recipe  {folder.best_recipe}")
    model = recommended.repeat_of(folder, rows, space)
    if model and model.files.model.exists():
        say(f"its model    {model.files.model}")
        say(f"sample it    {recommended.sample_command(folder)}")
        say(f"train on     {recommended.longer_command(folder, model, space)}")


def show_ranking(folder: SweepFolder, rows: Sequence[leaderboard.TrialRow], space: Space) -> None:
    """Print the leaderboard for other objectives and constraints than the sweep's own."""
    _show_leaderboard(rows, space)
    goals = plan_view.describe_goals(space)
    goal_texts = [goals[name] for name in ("objective", "constraint") if name in goals]
    say(f"ranked by    {', '.join(goal_texts)}")
    say("The sweep's own goals decided which trials were stopped and which got fresh seeds.")
    best = leaderboard.best(rows)
    if best:
        say(f"recipe       {folder.repeat(best.number, 0).recipe}")


def _show_leaderboard(rows: Sequence[leaderboard.TrialRow], space: Space) -> None:
    table = leaderboard.table(rows, space, terminal.console.width)
    verdict = leaderboard.verdict(rows, space)
    terminal.console.print("", table, verdict, "", sep="\n")
