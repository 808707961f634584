"""A machine that is not here, as `--on 2x24GB` names it."""

import re
from dataclasses import dataclass

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.common.gpus import CARDS, GPU

MOST_GPUS = 16
"""Of one machine; more are a typing mistake."""


@dataclass(frozen=True)
class Machine:
    """A node with some GPUs of a kind."""

    gpus: int
    gpu: GPU


def parse_machine(text: str) -> Machine:
    """Read `2x24GB`: how many GPUs, and the memory of each.

    Raises
    ------
    UserError
        If it is no such text, or no known GPU has this memory.
    """
    match = re.fullmatch(r"(\d+)x(\d+)GB", text, re.IGNORECASE)
    if not match:
        raise UserError(f"--on {text}: write GPUs and the memory of each, such as 2x24GB")
    gpus, memory = map(int, match.groups())
    if not 1 <= gpus <= MOST_GPUS:
        raise UserError(f"--on {text}: a machine has 1 to {MOST_GPUS} GPUs")
    if memory not in CARDS:
        sizes = ", ".join(map(str, CARDS))
        raise UserError(f"--on {text}: the speed of a GPU with {memory} GB is not known; take {sizes} GB")
    return Machine(gpus, CARDS[memory])
