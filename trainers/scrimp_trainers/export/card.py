"""The card of an exported model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scrimp_trainers.codecs.codec import Decoding
from scrimp_trainers.common.metrics_log import SELECTED
from scrimp_trainers.data.manifest import Manifest
from scrimp_trainers.data.modalities.modality import modality_of
from scrimp_trainers.export import sampling_code
from scrimp_trainers.networks.denoiser import Denoiser
from scrimp_trainers.recipe.recipe import Recipe

CARD = "README.md"
HERE = 'folder = Path(".")\nn = 16\n'
"""Where the card's code finds the model, and how many images it draws."""
NUMBERS = "torch.arange(n)"
"""The numbers of the images in the card's code, by which they have classes in turn."""


def write_card(folder: Path, network: Denoiser, recipe: Recipe, manifest: Manifest, scores: Mapping[str, Any]) -> None:
    """Write the card into the folder of a model; and `sample.py`, if code without Scrimp draws what Scrimp does."""
    (folder / CARD).write_text(card(network, recipe, manifest, scores))
    script = sampling_code.script(network, recipe, manifest)
    if script:
        (folder / "sample.py").write_text(script)


def card(network: Denoiser, recipe: Recipe, manifest: Manifest, scores: Mapping[str, Any]) -> str:
    """Return the model card, a README.md; its head is what the Hugging Face hub reads."""
    rows = "\n".join(f"| {name} | {_format_score(value)} |" for name, value in scores.items())
    task = "text-to-image" if network.text else "unconditional-image-generation"
    return f"""---
library_name: diffusers
license: unknown
pipeline_tag: {task}
tags: [scrimp]
---
# {recipe.about or "A diffusion model"}

Trained by Scrimp; the weights are the exponential moving average of the training's.

- dataset: {manifest.name}, {manifest.splits["train"].count} {manifest.modality} of \
{by(modality_of(manifest).shape)}
- content hash: `{manifest.content_hash}`

## Use

{_use(network, recipe, sampling_code.decoding_of(recipe, manifest))}

## License

{_license(network)}

## Scores

{_selection(scores)}| score | value |
|---|---|
{rows}

## Recipe

```yaml
{recipe.to_yaml()}```
"""


def by(shape: Sequence[int]) -> str:
    """Write a shape in words."""
    return " x ".join(str(side) for side in shape)


def _license(network: Denoiser) -> str:
    """Say what is known of the model's licence."""
    text = "Nobody has stated one. Whoever publishes the weights names it, as the dataset allows: here and in the head"
    if network.base:
        text += f"; they are updates of {network.base}, whose licence applies as well"
    return f"{text}. The code in this folder is under Apache-2.0, as Scrimp is."


def _selection(scores: Mapping[str, Any]) -> str:
    """Say of a model that was chosen by its score that the score is optimistic; nothing of any other."""
    if SELECTED not in scores:
        return ""
    return (
        f"The model was {scores[SELECTED]}. A score by which a model was chosen is optimistic, and so is what goes "
        "with it. `scrimp evaluate` with another `--seed` than that of the training scores this model by samples that "
        "had no part in the choice.\n\n"
    )


def _use(network: Denoiser, recipe: Recipe, decoding: Decoding | None) -> str:
    """Say how to sample: with diffusers alone, or with Scrimp where diffusers has no class for a part."""
    exported = sampling_code.exported_sampler(recipe)
    if not exported or not decoding or not (network.library_class or network.code):
        files = ", ".join(f'"{file.name}"' for file in recipe.parts)
        own = f"scrimp.load_parts({files})\n" if files else ""
        return f"With Scrimp:\n\n```python\nimport scrimp\n\n{own}images = scrimp.load_model('.').sample(16)\n```"

    if sampling_code.stable_diffusion_vae(network, recipe):
        code = sampling_code.stable_diffusion_code(network, recipe, exported)
        return f"With diffusers alone, in this folder:\n\n```python\n{code}```"

    note = exported.caveat or "the recipe's steps"
    imports, loading, drawing = sampling_code.code(network, recipe, exported, decoding, NUMBERS)
    if not sampling_code.guidance_is_plain(network, recipe) or (network.text and recipe.sampler.guidance != 1):
        note += f", without the recipe's guidance of {recipe.sampler.guidance:g}"
    libraries = "torch, and the scheduler of diffusers," if network.code else "diffusers alone,"
    code = f"{imports}\n{HERE}{loading}{drawing}"
    return f"With {libraries} in this folder; {note}:\n\n```python\n{code}```"


def _format_score(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
