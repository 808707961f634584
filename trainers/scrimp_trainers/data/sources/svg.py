"""SVG files of pen strokes, such as KanjiVG's: a drawing a file, a stroke a path, sampled along its arcs.

Paths of moves, lines and Bezier curves are read; nothing else of SVG is, neither transformations nor styles.
"""

import re
from pathlib import PurePosixPath
from xml.etree import ElementTree  # its parser expands no external entities

import numpy as np

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.drawing import Drawing
from scrimp_trainers.data.sources.source import Source
from scrimp_trainers.data.tree import Tree

TOKENS = re.compile(r"[A-Za-z]|[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
NUMBERS = {"M": 2, "L": 2, "H": 1, "V": 1, "C": 6, "S": 4, "Q": 4, "T": 2, "Z": 0}
"""How many numbers each command takes at a time."""
CURVE_POINTS = 32
"""Points on a curve before it is resampled by length."""


def recognises(tree: Tree) -> bool:
    """Whether there are SVG files."""
    return any(name.endswith(".svg") for name in tree.names)


def read(tree: Tree) -> Source:
    """List the drawings. They have no classes."""
    names = [name for name in tree.names if name.endswith(".svg")]
    others = len(tree.names) - len(names)

    def load(number: int) -> Drawing:
        name = names[number]
        return strokes(tree.read(name), tree.where(name))

    return Source(
        "svg",
        count=len(names),
        load=load,
        where=lambda number: tree.where(names[number]),
        skipped=tree.skipped | ({"not an SVG file": others} if others else {}),
        notes=[f"paths of {PurePosixPath(names[0]).name} and others, sampled along their arcs"],
        modality="strokes",
    )


def strokes(data: bytes, where: str) -> Drawing:
    """Return the strokes of an SVG file, one for each stretch of a path without a move.

    Raises
    ------
    UserError
        If it is not XML, or has a command that is not read.
    """
    if b"<!ENTITY" in data:
        raise UserError(f"{where}: defines entities, which no drawing needs")
    try:
        root = ElementTree.fromstring(data)  # noqa: S314 (entities are refused above)
    except ElementTree.ParseError as error:
        raise UserError(f"{where}: not an SVG file ({error})") from None
    paths = [element.get("d", "") for element in root.iter() if element.tag.rpartition("}")[2] == "path"]
    return [line for path in paths for line in trace(path, where)]


def trace(path: str, where: str = "path") -> list[np.ndarray]:
    """Return the lines [n, 2] of a path's data: curves as points that are dense on them.

    Raises
    ------
    UserError
        If it has a command that is not read, or too few numbers.
    """
    lines: list[list[np.ndarray]] = []
    position = np.zeros(2)
    control = position  # the last curve's second handle, which a smooth one mirrors
    before = ""
    for command, numbers in _commands(path, where):
        kind = command.upper()
        origin = position if command.islower() else np.zeros(2)
        if kind == "M":
            position = control = origin + numbers
            lines.append([position[None]])
        elif not lines:
            raise UserError(f"{where}: its path begins with {command}, not with a move")
        elif kind == "Z":
            start = lines[-1][0][0]
            lines[-1].append(start[None])
            position = control = start
            lines.append([start[None]])
        else:
            handles = _handles(kind, numbers, origin, position, control, smooth=before in SMOOTH_AFTER.get(kind, ""))
            lines[-1].append(_curve(np.stack([position, *handles])))
            position = handles[-1]
            control = handles[-2] if len(handles) > 1 else position
        before = kind
    traced = [np.concatenate(line) for line in lines]
    return [line for line in traced if len(line) > 1]


SMOOTH_AFTER = {"S": "CS", "T": "QT"}
"""A smooth curve mirrors the handle of the curve before it if that is of one of these kinds."""


def _commands(path: str, where: str) -> list[tuple[str, np.ndarray]]:
    """Split a path's data into commands with the numbers of one step each."""
    commands: list[tuple[str, np.ndarray]] = []
    for match in re.finditer(r"([A-DF-Za-df-z])([^A-DF-Za-df-z]*)", path):  # e belongs to numbers
        command, text = str(match[1]), str(match[2])
        if command.upper() not in NUMBERS:
            raise UserError(f"{where}: its path has the command {command}, which is not read; convert it to curves")
        numbers = np.array([float(token) for token in TOKENS.findall(text)])
        width = NUMBERS[command.upper()]
        if width == 0:
            commands.append((command, numbers[:0]))
            continue
        if not len(numbers) or len(numbers) % width or not np.isfinite(numbers).all():
            raise UserError(f"{where}: {len(numbers)} numbers after {command} in its path; it takes {width} at a time")
        for step, values in enumerate(numbers.reshape(-1, width)):
            # Further pairs of numbers after a move are lines.
            is_line = step > 0 and command in "Mm"
            commands.append(({"M": "L", "m": "l"}[command] if is_line else command, values))
    return commands


def _handles(
    kind: str, numbers: np.ndarray, origin: np.ndarray, position: np.ndarray, control: np.ndarray, smooth: bool
) -> list[np.ndarray]:
    """Return the points after the first one that define a Bezier curve of degree 1, 2 or 3; its end is the last."""
    if kind == "H":
        return [np.array([origin[0] + numbers[0], position[1]])]
    if kind == "V":
        return [np.array([position[0], origin[1] + numbers[0]])]
    handles = list(origin + numbers.reshape(-1, 2))
    if kind in SMOOTH_AFTER:
        handles.insert(0, 2 * position - control if smooth else position)
    return handles


def _curve(handles: np.ndarray) -> np.ndarray:
    """Return points [n, 2] on a Bezier curve after its start, by de Casteljau's rule."""
    if len(handles) == 2:
        return handles[1:]
    t = np.linspace(0, 1, CURVE_POINTS + 1)[1:, None, None]
    points = np.broadcast_to(handles, (CURVE_POINTS, *handles.shape))
    while points.shape[1] > 1:
        points = (1 - t) * points[:, :-1] + t * points[:, 1:]
    return points[:, 0]
