"""The ordinary loss with ambient training's weight, as an own technique: a control of the claims about copying."""

from typing import TYPE_CHECKING, Any

from scrimp_trainers.recipe.own_technique import Technique
from scrimp_trainers.recipe.sections import Positive

if TYPE_CHECKING:
    from torch import Tensor


class DownWeighted(Technique):
    """Ambient training as released weighs an image's loss above sigma_n by a^2, a = 1 - sigma_n^2 / sigma^2.

    This weighs the ordinary loss, on the clean image, in the same way, and adds no noise to any image.
    """

    sigma_n: Positive = 0.5
    """The noise level from which on the loss is weighed."""

    def term(self, process: Any, estimate: "Tensor", noisy: "Tensor", clean: "Tensor", levels: "Tensor") -> "Tensor":
        """Return (a^2 - 1) times the ordinary losses [b], which the loop adds to them."""
        import torch

        from scrimp_trainers.diffusion.process import over_images, sigmas

        alpha, sigma = (over_images(scale, clean) for scale in process.scales(levels))
        noise = (noisy - alpha * clean) / sigma
        losses = process.losses(estimate, clean, noise, levels)

        level = sigmas(process, levels)
        a = 1 - (self.sigma_n / level).square()
        weight = torch.where(level >= self.sigma_n, a.square(), 1.0)
        return (weight - 1) * losses
