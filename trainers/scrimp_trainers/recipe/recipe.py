"""The recipe: everything that fixes one training run except its data and its seed.

A recipe is frozen and refuses what it does not know, so a typing mistake is found before anything starts.
`load` reads a preset by name or a YAML file; dotted paths (`optimizer.lr`) name its fields in spaces.
"""

import importlib.resources
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import ModelWrapValidatorHandler, ValidationError, model_validator

from scrimp_trainers.common import parts, yaml_files
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.common.files import expand_home
from scrimp_trainers.recipe.diffusion import EDM, AnyDiffusion
from scrimp_trainers.recipe.networks import AnyNetwork, UNet
from scrimp_trainers.recipe.own_technique import AnyTechnique, NoTechnique
from scrimp_trainers.recipe.samplers import AnySampler, Heun
from scrimp_trainers.recipe.sections import CAPTIONS, EMA, OWN, Conditioning, FilePath, Optimizer, Section, Training
from scrimp_trainers.recipe.techniques import (
    MAFP,
    OOD,
    Ambient,
    AnyCodec,
    Autoencoder,
    Coreset,
    Masking,
    Patches,
    Reweighting,
    Sparsity,
)

PRESETS = importlib.resources.files("scrimp_trainers.recipe") / "presets"


class Recipe(Section):
    """One training run, except its data and its seed."""

    about: str = ""
    """What the recipe is and where its numbers come from."""
    parts: tuple[FilePath, ...] = ()
    """Python files with a user's own parts."""
    diffusion: AnyDiffusion = EDM()
    """The diffusion process."""
    network: AnyNetwork = UNet()
    """The denoising network."""
    conditioning: Conditioning = Conditioning()
    """What the network is conditioned on."""
    optimizer: Optimizer = Optimizer()
    """The optimizer."""
    ema: EMA = EMA()
    """The average of the weights."""
    training: Training = Training()
    """Length, batches, arithmetic."""
    sampler: AnySampler = Heun()
    """The sampler."""
    codec: AnyCodec = Autoencoder()
    """Diffusion in the latents of a frozen autoencoder."""
    mafp: MAFP = MAFP()
    """Augmentation with small fixed probabilities."""
    patches: Patches = Patches()
    """Training on parts of images."""
    masking: Masking = Masking()
    """A second pass of each step on a part of the tokens."""
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
    technique: AnyTechnique = NoTechnique()
    """A user's own technique."""

    @model_validator(mode="after")
    def _fits_together(self) -> "Recipe":
        self._check_needs()
        most = self.diffusion.most_steps
        if most is not None and self.sampler.steps > most:
            raise ValueError(f"sampler.steps: {self.sampler.steps} exceeds the chain's {most}")
        if CAPTIONS in self.network.offers and not self.conditioning.text:
            raise ValueError(f"network.kind: {self.network.kind!r} takes captions; name conditioning.text")
        if self.sparsity.on and not self.network.is_trained_whole:
            raise ValueError(
                "sparsity masks the weights that network.lora_rank leaves as they are; turn one of them off"
            )
        if self.sampler.guidance != 1 and not self._can_be_guided:
            raise ValueError(
                "sampler.guidance needs conditioning.classes or text, and a conditioning.label_drop above 0"
            )
        if self.sampler.guidance_power is not None and "a chain of steps" not in self.diffusion.offers:
            raise ValueError("sampler.guidance_power goes by the steps of a chain; use diffusion.kind ddpm or iddpm")
        if "learned variances" in self.diffusion.offers:
            self._check_weights_of_hybrid_loss()
        return self

    @model_validator(mode="wrap")  # the last validator, so that it also sees what the one above refuses
    @classmethod
    def _explained(cls, values: Any, handler: "ModelWrapValidatorHandler[Recipe]") -> "Recipe":
        try:
            return handler(values)
        except ValidationError as error:
            raise UserError(explain(error)) from None

    @classmethod
    def load(cls, name: str | Path) -> "Recipe":
        """Load a preset by name, or a recipe from a YAML file; `UserError` says what is wrong with it."""
        return load(name)

    def _check_needs(self) -> None:
        """Refuse a section that needs what no other one offers."""
        sections = {name: section for name, section in self if isinstance(section, Section)}
        offered = frozenset[str]().union(*(section.offers for section in sections.values()))
        for name, section in sections.items():
            for need in sorted(section.needs - offered):
                kind = getattr(section, "kind", None)
                who = f"{name}.kind: {kind!r}" if kind else name
                remedy = "" if kind else f", or turn {name} off"
                raise ValueError(f"{who} needs {need}; use {' or '.join(_offering(need))}{remedy}")

    def _check_weights_of_hybrid_loss(self) -> None:
        """Refuse what weighs a squared error: iddpm's loss has another term, which would be weighed with it."""
        weights = {
            "ambient.sigma_n": self.ambient.on,
            "training.min_snr_gamma": self.training.min_snr_gamma is not None,
        }
        for name in (name for name, is_on in weights.items() if is_on):
            raise ValueError(f"{name} weighs a squared error, which the loss of diffusion.kind iddpm is not; use ddpm")

    @property
    def _can_be_guided(self) -> bool:
        """Whether the network also learns without a condition, or has learnt it before."""
        conditioning = self.conditioning
        knows_none = bool(conditioning.label_drop) or getattr(self.network, "pretrained", None) is not None
        return knows_none and bool(conditioning.classes or conditioning.text)

    @property
    def nfe(self) -> int:
        """Network evaluations that one image costs."""
        return self.sampler.evaluations * (1 if self.sampler.guidance == 1 else 2)

    def replace(self, values: dict[str, Any]) -> "Recipe":
        """Return the recipe with these fields set, validated anew.

        A field is named by its dotted path (`optimizer.lr: 0.002`), or inside its section (`optimizer: {lr: 0.002}`),
        which leaves the section's other fields as they are. A section of another `kind` has other fields: those that
        both have stay, and the others take their defaults.

        Raises
        ------
        UserError
            If a path does not exist, is set twice, or a value is not allowed.
        """
        tree = self.model_dump()
        fields = flattened(values)
        for name in UNIONS:
            kind = fields.get(f"{name}.kind")
            if isinstance(kind, str) and (parts.is_own(kind) or kind in _kinds(name)):
                known = _section(name, kind).model_fields
                tree[name] = {leaf: value for leaf, value in tree[name].items() if leaf in known}
        for path, value in fields.items():
            section, _, leaf = path.rpartition(".")
            is_own = section in PARTS and parts.is_own(str(fields.get(f"{section}.kind", tree[section]["kind"])))
            if path not in PATHS and not is_own:
                raise UserError(f"{path}: a recipe has no such field; `scrimp recipes --schema` lists them")
            node = tree[section] if section else tree
            node[leaf] = value
        return parse(tree, "recipe")

    def to_yaml(self) -> str:
        """Return the whole recipe as YAML that `load` reads back unchanged."""
        return yaml_files.to_yaml(self.model_dump(mode="json"))

    @property
    def fields_at_default(self) -> frozenset[str]:
        """The dotted paths of the fields that have their default values."""
        whole = flattened(self.model_dump(mode="json"))
        chosen = flattened(self.model_dump(mode="json", exclude_defaults=True))
        return frozenset(whole.keys() - chosen.keys())


def flattened(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of fields by dotted path, where a section may stand as a mapping.

    Raises
    ------
    UserError
        If a field is set twice, once inside its section and once by its path.
    """
    flat: dict[str, Any] = {}
    for path, value in values.items():
        is_section = path in Recipe.model_fields and isinstance(value, Mapping)
        leaves = {f"{path}.{name}": leaf for name, leaf in value.items()} if is_section else {path: value}
        for leaf, given in leaves.items():
            if leaf in flat:
                raise UserError(f"{leaf}: is set twice, inside its section and by its path")
            flat[leaf] = given
    return flat


def sections_of(name: str) -> list[type[Section]]:
    """Return the sections that may stand in a field of a recipe: several where it is a union by `kind`."""
    return _sections(Recipe.model_fields[name].annotation)


def _sections(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, Section) and not _is_open(annotation) else []
    return [section for part in get_args(annotation) for section in _sections(part)]


def _is_open(annotation: Any) -> bool:
    """Whether a union has a member without a kind of its own: the base of a user's own parts."""
    if isinstance(annotation, type):
        kind = getattr(annotation, "model_fields", {}).get("kind")
        return kind is not None and kind.is_required()
    return any(map(_is_open, get_args(annotation)))


def _paths() -> frozenset[str]:
    """Return the dotted paths of all fields that a recipe can have."""
    paths = set()
    for name in Recipe.model_fields:
        paths |= {f"{name}.{leaf}" for section in sections_of(name) for leaf in section.model_fields} or {name}
    return frozenset(paths)


def _section(name: str, kind: str) -> type[Section]:
    """Return the section of a kind that may stand in a field of a recipe."""
    if parts.is_own(kind):
        return parts.own(kind)
    return next(section for section in sections_of(name) if kind in _kinds_of(section))


def _kinds(name: str) -> list[str]:
    """Return the kinds of sections that may stand in a field of a recipe."""
    return [kind for section in sections_of(name) for kind in _kinds_of(section)]


def _kinds_of(section: type[Section]) -> list[str]:
    """Return the kinds that a section may have; none for one without a kind."""
    return list(get_args(section.model_fields["kind"].annotation)) if "kind" in section.model_fields else []


def _offering(need: str) -> list[str]:
    """Name the kinds of sections that offer what another section needs."""
    return [
        f"{name}.kind {section.model_fields['kind'].default}"
        for name in UNIONS
        for section in sections_of(name)
        if need in section.offers
    ]


UNIONS = tuple(name for name in Recipe.model_fields if _kinds(name))
"""Fields whose section has a `kind`."""
PARTS = tuple(name for name, field in Recipe.model_fields.items() if _is_open(field.annotation))
"""Those whose kind names a part: each has a section and a file of its own, and may be a user's."""
PATHS = _paths()


def whole(path: str) -> tuple[bool, int]:
    """Return whether a field takes whole numbers, and of what it wants multiples."""
    name, _, leaf = path.partition(".")
    fields = [section.model_fields[leaf] for section in sections_of(name) if leaf in section.model_fields]
    if not fields:
        return False, 1  # no section, or one of a user's own parts
    field = fields[0]
    types = {field.annotation, *get_args(field.annotation)}
    types |= {get_args(part)[0] for part in get_args(field.annotation) if get_origin(part) is Annotated}
    limits = [
        limit
        for part in [field, *get_args(field.annotation)]
        for limit in (*getattr(part, "metadata", ()), *getattr(part, "__metadata__", ()))
    ]
    multiple = next((limit.multiple_of for limit in limits if hasattr(limit, "multiple_of")), 1)
    return int in types and float not in types and get_origin(field.annotation) is not tuple, int(multiple)


def check_field(recipe: Recipe, path: str, value: Any) -> None:
    """Refuse a value that its own field does not allow, whatever other fields are.

    Raises
    ------
    UserError
        Names the value and what is allowed.
    """
    section, _, leaf = path.partition(".")
    if section in PARTS and leaf == "kind":
        if not parts.is_own(str(value)) and value not in _kinds(section):
            raise UserError(f"{path}: {_no_such_kind(section, value)}")
        _section(section, value)
        return
    kind = type(getattr(recipe, section))
    if not leaf or leaf not in kind.model_fields:
        return
    try:
        kind.__pydantic_validator__.validate_assignment(kind.model_construct(), leaf, value)
    except ValidationError as error:
        raise UserError(f"{section}.{explain(error)}") from None


def parse(tree: Any, where: str) -> Recipe:
    """Validate a tree of plain values. `where` names its source in the error message."""
    try:
        return Recipe.model_validate(tree)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def explain(error: ValidationError) -> str:
    """Say in one line which fields were refused, with what value, and what is allowed."""
    faults = []
    for fault in error.errors():
        if fault["loc"] and fault["loc"][-1] == "constrained-str":
            continue  # the name of an own part was another option; the fault beside it lists Scrimp's names
        path = ".".join(_without_kind(fault["loc"]))
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "union_tag_invalid":
            faults.append(f"{path}.kind: {_no_such_kind(path, fault.get('ctx', {})['tag'])}")
            continue
        given = "" if isinstance(fault["input"], dict) else f", not {fault['input']!r}"
        faults.append(f"{path}: {message}{given}" if path else message)
    return "; ".join(faults)


def _no_such_kind(name: str, kind: Any) -> str:
    """Say that no section of this kind may stand in a field of a recipe, and which may."""
    return f"there is no {kind!r}; use {', '.join(_kinds(name))}, or a part of your own such as my_parts:MyPart"


def _without_kind(location: tuple[int | str, ...]) -> list[str]:
    """Return where a fault is, without what pydantic adds to say which member of a union it means."""
    names = [str(name) for name in location if not str(name).startswith(("literal[", "constrained-"))]
    if len(names) > 1 and names[0] in UNIONS and names[1] in [*_kinds(names[0]), OWN]:
        del names[1]
    return names


def presets() -> list[str]:
    """Names of the presets that come with Scrimp."""
    return sorted(entry.name.removesuffix(".yaml") for entry in PRESETS.iterdir() if entry.name.endswith(".yaml"))


def load(name: str | Path) -> Recipe:
    """Load a preset by name, or a recipe that the user names from a YAML file, with the files of own parts it lists.

    Raises
    ------
    UserError
        If there is neither, or the file is not a valid recipe.
    """
    where = f"recipe {name}"
    if str(name) in presets():
        return parse(yaml_files.parse_yaml((PRESETS / f"{name}.yaml").read_text(), where) or {}, where)
    file = expand_home(name)
    if not file.is_file():
        raise UserError(f"recipe {name!s}: no such preset or file; presets are {', '.join(presets())}")
    tree = with_own_parts(yaml_files.read_yaml(file, where) or {}, file.parent, where)
    return parse(tree, where)


def read(file: Path) -> Recipe:
    """Read a recipe that Scrimp wrote. Unlike `load`, which is for what a user names, it loads no file of own parts."""
    where = f"recipe {file}"
    return parse(yaml_files.read_yaml(file, where) or {}, where)


def with_own_parts(tree: Any, folder: Path, where: str) -> Any:
    """Load the files that a user's recipe or space lists under `parts`, and return it with their absolute paths.

    `folder` is what relative paths start from.

    Raises
    ------
    UserError
        If one cannot be loaded.
    """
    if not isinstance(tree, dict) or not isinstance(tree.get("parts"), list | tuple):
        return tree
    files = [folder.absolute() / expand_home(str(name)) for name in tree["parts"]]
    try:
        parts.load_files(files)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return tree | {"parts": [str(file) for file in files]}


OF_REFERENCES = ("codec", "masking")
"""The techniques that a reference and its proxy may have: what they are trained on and how, the same for both."""


def reference_recipe(settings: Reweighting) -> Recipe:
    """Return the recipe by which reference and proxy are trained: class-conditional, in latents, or not, as it says.

    Raises
    ------
    UserError
        If it cannot be loaded, or has a technique other than `OF_REFERENCES`.
    """
    recipe = load(settings.recipe)
    techniques = [name for name in Recipe.model_fields if getattr(getattr(recipe, name), "on", False)]
    techniques = [name for name in techniques if name not in OF_REFERENCES]
    if techniques:
        raise UserError(
            f"reweighting.recipe {settings.recipe}: has {', '.join(techniques)}; reference and proxy are trained "
            "without such techniques, name a recipe without them"
        )
    if recipe.conditioning.text:
        raise UserError(f"reweighting.recipe {settings.recipe}: takes captions; name one that takes classes or none")
    if recipe.training.select == "best":
        raise UserError(
            f"reweighting.recipe {settings.recipe}: training.select is best, but reference and proxy are not scored; "
            "set it to last"
        )
    return recipe.replace({"about": "", "training.kimg": settings.kimg, "ema.snapshots": 0})
