"""The section of a user's own technique, of which a recipe has at most one."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import SerializeAsAny, Tag

from scrimp_trainers.recipe.sections import OWN, Section, by_kind, own_section

if TYPE_CHECKING:  # recipes are free of torch
    from torch import Generator, Tensor


class Technique(Section):
    """A technique that acts inside the training step. A user's own extends it, and has one of the two methods."""

    kind: Any
    """Which technique."""

    @property
    def on(self) -> bool:
        """Whether there is one."""
        return True

    def augment(self, images: "Tensor", generator: "Generator") -> "Tensor":
        """Change this rank's clean images [b, ...] of a step, before noise is added.

        Draw from the generator alone: it is seeded by the step and the rank, so a resumed training repeats the draws.
        """
        return images

    def term(
        self, process: Any, estimate: "Tensor", noisy: "Tensor", clean: "Tensor", levels: "Tensor"
    ) -> "Tensor | None":
        """Return what is added to each image's loss [b]; None for nothing.

        `process.clean(estimate, noisy, levels)` is what the network makes of the clean images.
        """
        return None


class NoTechnique(Technique):
    """None."""

    kind: Literal["none"] = "none"
    """Which technique."""

    @property
    def on(self) -> bool:
        """There is none."""
        return False


AnyTechnique = Annotated[
    Annotated[NoTechnique, Tag("none")] | Annotated[SerializeAsAny[Technique], own_section(Technique), Tag(OWN)],
    by_kind("none"),
]
