"""The recipe: everything that fixes one training run except its data and its seed.

A recipe is frozen and refuses what it does not know, so a typing mistake is found before anything starts.
`load` reads a preset by name or a YAML file; dotted paths (`optimizer.lr`) name its fields in spaces.
"""

import importlib.resources
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError, model_validator

from scrimp_trainers.errors import UserError
from scrimp_trainers.sections import DDPM, EDM, EMA, Conditioning, Network, Optimizer, Sampler, Section, Training
from scrimp_trainers.techniques.settings import (
    MAFP,
    OOD,
    Ambient,
    Codec,
    Coreset,
    Patches,
    Reweighting,
    Sparsity,
)

PRESETS = importlib.resources.files("scrimp_trainers") / "presets"


class Recipe(Section):
    """One training run, except its data and its seed."""

    about: str = ""
    """What the recipe is and where its numbers come from."""
    diffusion: Annotated[EDM | DDPM, Field(discriminator="kind")] = EDM()
    """The diffusion process."""
    network: Network = Network()
    """The denoising network."""
    conditioning: Conditioning = Conditioning()
    """What the network is told besides the noisy image."""
    optimizer: Optimizer = Optimizer()
    """The optimizer."""
    ema: EMA = EMA()
    """The average of the weights."""
    training: Training = Training()
    """Length, batches, arithmetic."""
    sampler: Sampler = Sampler()
    """The sampler."""
    codec: Codec = Codec()
    """Diffusion in the latents of a frozen autoencoder."""
    mafp: MAFP = MAFP()
    """Augmentation with small fixed probabilities."""
    patches: Patches = Patches()
    """Training on parts of images."""
    ood: OOD = OOD()
    """Repulsion from images that are out of the distribution."""
    ambient: Ambient = Ambient()
    """Noisy images alone at high noise, against memorisation."""
    sparsity: Sparsity = Sparsity()
    """A network that is sparse from the first step."""
    coreset: Coreset = Coreset()
    """Training on a part of the images, chosen by score."""
    reweighting: Reweighting = Reweighting()
    """Weights for the classes."""

    @model_validator(mode="after")
    def _fits_together(self) -> "Recipe":
        samplers = {"edm": ("heun",), "ddpm": ("ancestral", "ddim")}[self.diffusion.kind]
        if self.sampler.kind not in samplers:
            raise ValueError(
                f"sampler.kind: {self.sampler.kind!r} cannot sample {self.diffusion.kind!r}; "
                f"use {' or '.join(samplers)}"
            )
        if isinstance(self.diffusion, DDPM) and self.sampler.steps > self.diffusion.timesteps:
            raise ValueError(f"sampler.steps: {self.sampler.steps} exceeds the chain's {self.diffusion.timesteps}")
        if self.ood.on and isinstance(self.diffusion, DDPM):
            raise ValueError("ood: its weight is that of EDM's loss; use diffusion.kind edm or ood.weight 0")
        if self.sampler.guidance != 1 and not (self.conditioning.classes and self.conditioning.label_drop):
            raise ValueError("sampler.guidance needs conditioning.classes and a conditioning.label_drop above 0")
        return self

    @property
    def nfe(self) -> int:
        """Network evaluations that one image costs."""
        evaluations = 2 * self.sampler.steps - 1 if self.sampler.kind == "heun" else self.sampler.steps
        return evaluations * (1 if self.sampler.guidance == 1 else 2)

    def replace(self, values: dict[str, Any]) -> "Recipe":
        """Return the recipe with the fields at these dotted paths set, validated anew.

        Raises
        ------
        UserError
            If a path does not exist or a value is not allowed.
        """
        tree = self.model_dump()
        for path, value in values.items():
            *parents, leaf = path.split(".")
            node = tree
            for name in parents:
                node = node.get(name) if isinstance(node, dict) else None
            if not isinstance(node, dict) or leaf not in node:
                raise UserError(f"{path}: a recipe has no such field; `scrimp recipes --schema` lists them")
            node[leaf] = value
        return parse(tree, "recipe")

    def to_yaml(self) -> str:
        """Return the whole recipe as YAML that `load` reads back unchanged."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


def parse(tree: Any, where: str) -> Recipe:
    """Validate a tree of plain values. `where` names its source in the error message."""
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{where}: {explain(error)}") from None


def explain(error: ValidationError) -> str:
    """Say in one line which fields were refused, with what value, and what is allowed."""
    faults = []
    for fault in error.errors():
        path = ".".join(str(part) for part in fault["loc"])
        message = fault["msg"].removeprefix("Value error, ")
        given = "" if isinstance(fault["input"], dict) else f", not {fault['input']!r}"
        faults.append(f"{path}: {message}{given}" if path else message)
    return "; ".join(faults)


def presets() -> list[str]:
    """Names of the presets that come with Scrimp."""
    return sorted(entry.name.removesuffix(".yaml") for entry in PRESETS.iterdir() if entry.name.endswith(".yaml"))


def load(name: str | Path) -> Recipe:
    """Load a preset by name, or a recipe from a YAML file.

    Raises
    ------
    UserError
        If there is neither, or the file is not a valid recipe.
    """
    if str(name) in presets():
        text = (PRESETS / f"{name}.yaml").read_text()
    elif Path(name).is_file():
        text = Path(name).read_text()
    else:
        raise UserError(f"recipe {name!s}: no such preset or file; presets are {', '.join(presets())}")
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"recipe {name}: not YAML: {' '.join(str(error).split())}") from None
    return parse(tree or {}, f"recipe {name}")
