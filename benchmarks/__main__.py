"""`python -m benchmarks [NAME]...`: Scrimp beside its peers; without names, all of it."""

import shlex
import sys

import click


@click.command()
@click.argument(
    "names",
    nargs=-1,
    type=click.Choice(["training", "strokes", "scoring", "startup", "techniques", "latents", "scale", "large_sweep"]),
)
@click.option("--device", default="cpu", type=click.Choice(["cpu", "cuda"]), help="Where to train and score.")
@click.option("--threads", default=2, help="CPU threads of each side.")
@click.option("--rounds", default=7, help="Rounds; a ratio is the median of theirs.")
def main(names: tuple[str, ...], device: str, threads: int, rounds: int) -> None:
    """Measure Scrimp beside its peers, both in one run."""
    from benchmarks import large_sweep, latents, scale, scoring, startup, strokes, techniques, training
    from benchmarks.measure import console, machine

    console.print(f"python -m benchmarks {shlex.join(sys.argv[1:])}\n{machine(threads)}\n")
    for part in (training, strokes, scoring, startup, techniques, latents, scale, large_sweep):
        if not names or part.__name__.removeprefix("benchmarks.") in names:
            part.main(device, threads, rounds)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
