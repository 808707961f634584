"""The card of an exported model, and the code that samples the model without Scrimp."""

import importlib
import inspect
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scrimp_trainers.codecs import autoencoder_files
from scrimp_trainers.codecs.autoencoder_files import AutoencoderFiles
from scrimp_trainers.codecs.codec import Decoding
from scrimp_trainers.common import parts
from scrimp_trainers.common.metrics_log import SELECTED
from scrimp_trainers.data.manifest import Manifest
from scrimp_trainers.data.modalities.modality import modality_of
from scrimp_trainers.diffusion.samplers.exported import Exported
from scrimp_trainers.networks.denoiser import Denoiser
from scrimp_trainers.recipe.diffusion import Chain
from scrimp_trainers.recipe.recipe import Recipe
from scrimp_trainers.recipe.techniques import Autoencoder

CARD = "README.md"
STABLE_DIFFUSION = "StableDiffusionPipeline"
HERE = 'folder = Path(".")\nn = 16\n'
"""Where the card's code finds the model, and how many images it draws."""
NUMBERS = "torch.arange(n)"
"""The numbers of the images in the card's code, by which they have classes in turn."""
TEXT_CODE = """from transformers import CLIPTextModel, CLIPTokenizer

tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
encoder = CLIPTextModel.from_pretrained(folder / "text_encoder")
captions = ["a caption"] * n
length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
tokens = tokenizer(captions, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
with torch.no_grad():
    text = encoder(tokens.input_ids).last_hidden_state
"""
"""Makes embeddings of captions."""
OWN_IMPORTS = """import json
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
"""
"""What the code of a network that diffusers does not have imports."""

SCRIPT = '''"""Draws images from the model in this folder, as Scrimp does, but without it: `sample(16)`."""

{imports}
folder = Path(__file__).resolve().parent
device = "cuda" if torch.cuda.is_available() else "cpu"
BATCH = 64  # images that are drawn at once
{loading}

def sample(n=16, seed=0{argument}):
    """Return n images, uint8 [n, height, width, channels]; the same for the same seed and n{documented}."""
{chosen}    with torch.random.fork_rng(range(torch.cuda.device_count())), torch.device(device):
        torch.manual_seed(seed)
        drawn = [draw(numbers{passed}) for numbers in torch.arange(n).split(BATCH)]
    return np.concatenate(drawn)


def draw(numbers{parameter}):
    """Return the images with these numbers."""
    n = len(numbers)
{drawing}'''


def write_card(folder: Path, network: Denoiser, recipe: Recipe, manifest: Manifest, scores: Mapping[str, Any]) -> None:
    """Write the card into the folder of a model; and `sample.py`, if code without Scrimp draws what Scrimp does."""
    (folder / CARD).write_text(card(network, recipe, manifest, scores))
    script = sampling_script(network, recipe, manifest)
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

{_use(network, recipe, decoding_of(recipe, manifest))}

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


def sampling_script(network: Denoiser, recipe: Recipe, manifest: Manifest) -> str:
    """Return the text of `sample.py`; empty if no code without Scrimp draws what Scrimp does."""
    exported = exported_sampler(recipe)
    decoding = decoding_of(recipe, manifest)
    if not exported or exported.caveat or not decoding or not _guidance_is_plain(network, recipe):
        return ""
    if stable_diffusion_vae(network, recipe):
        return _stable_diffusion_script(network, recipe, manifest, exported)
    if network.text or not (network.library_class or network.code):
        return ""

    imports, loading, drawing = _code(network, recipe, exported, decoding, "numbers")
    parts_on_device = [network.folder, *(["vae"] if decoding.loading else [])]
    placing = "".join(f"{part}.to(device).eval()\n" for part in parts_on_device)
    source = ""
    if decoding.module:
        source = inspect.getsource(importlib.import_module(decoding.module)).partition('"""\n\n')[2] + "\n\n"
    result = "return images.permute(0, 2, 3, 1).cpu().numpy()\n"
    return SCRIPT.format(
        imports=imports.replace("import torch\n", "import numpy as np\nimport torch\n", 1),
        loading=f"\n\n{source}{loading}{placing}",
        argument="",
        documented="",
        chosen="",
        passed="",
        parameter="",
        drawing=textwrap.indent(drawing + decoding.pictures + result, " " * 4),
    )


def exported_sampler(recipe: Recipe) -> Exported | None:
    """Return how diffusers samples as the recipe does; None for a user's own process, or a sampler without `export`."""
    process = parts.build("diffusion", recipe.diffusion)
    sampler = parts.module("diffusion.samplers", recipe.sampler.kind)
    if parts.is_own(recipe.diffusion.kind) or not hasattr(sampler, "export"):
        return None
    return sampler.export(process, recipe.sampler, clip=recipe.codec.bounded)


def decoding_of(recipe: Recipe, manifest: Manifest) -> Decoding | None:
    """Return how diffusers alone decodes; None for a codec without `decoding`."""
    part = parts.module("codecs", recipe.codec.part)
    return part.decoding(recipe.codec, modality_of(manifest).shape) if hasattr(part, "decoding") else None


def stable_diffusion_vae(network: Denoiser, recipe: Recipe) -> AutoencoderFiles | None:
    """Return the autoencoder of a model that Stable Diffusion's pipeline samples as the recipe does; None of others.

    The pipeline knows no shift of latents, and of guidance only one scale of at least 1 for all steps and channels.
    """
    if not (network.text and isinstance(recipe.codec, Autoencoder) and isinstance(recipe.diffusion, Chain)):
        return None
    exported = exported_sampler(recipe)
    if not exported or exported.caveat or recipe.sampler.guidance < 1 or not _guidance_is_plain(network, recipe):
        return None
    if recipe.codec.kind != "kl":
        return None
    files = autoencoder_files.find(recipe.codec, "decoder")
    return None if files.shift else files


def by(shape: Sequence[int]) -> str:
    """Write a shape in words."""
    return " x ".join(str(side) for side in shape)


def _guidance_is_plain(network: Denoiser, recipe: Recipe) -> bool:
    """Whether guidance has one scale, for all steps and channels; or no effect, without a condition."""
    sampler = recipe.sampler
    if sampler.guidance == 1 or not (network.classes or network.text):
        return True
    channels = sampler.guidance_channels or network.shape[0]
    return sampler.guidance_power is None and channels >= network.shape[0]


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
    exported = exported_sampler(recipe)
    if not exported or not decoding or not (network.library_class or network.code):
        files = ", ".join(f'"{file.name}"' for file in recipe.parts)
        own = f"scrimp.load_parts({files})\n" if files else ""
        return f"With Scrimp:\n\n```python\nimport scrimp\n\n{own}images = scrimp.load_model('.').sample(16)\n```"

    if stable_diffusion_vae(network, recipe):
        code = _stable_diffusion_code(network, recipe, exported)
        return f"With diffusers alone, in this folder:\n\n```python\n{code}```"

    note = exported.caveat or "the recipe's steps"
    imports, loading, drawing = _code(network, recipe, exported, decoding, NUMBERS)
    if not _guidance_is_plain(network, recipe) or (network.text and recipe.sampler.guidance != 1):
        note += f", without the recipe's guidance of {recipe.sampler.guidance:g}"
    libraries = "torch, and the scheduler of diffusers," if network.code else "diffusers alone,"
    code = f"{imports}\n{HERE}{loading}{drawing}"
    return f"With {libraries} in this folder; {note}:\n\n```python\n{code}```"


def _stable_diffusion_code(network: Denoiser, recipe: Recipe, exported: Exported) -> str:
    loading = _stable_diffusion_loading(network, exported, '"."', '"scheduler"')
    return f"""{loading}caption = "a caption"
image = pipeline(
    caption, num_inference_steps={exported.steps}, guidance_scale={recipe.sampler.guidance:g}{exported.arguments}
).images[0]
"""


def _stable_diffusion_loading(network: Denoiser, exported: Exported, folder: str, scheduler_folder: str) -> str:
    """Return the code that opens the pipeline, given that of the folders of the model and of its scheduler."""
    scheduler = type(exported.scheduler).__name__
    if not network.base:
        return f"""from diffusers import {STABLE_DIFFUSION}

pipeline = {STABLE_DIFFUSION}.from_pretrained({folder}, use_safetensors=True)
"""
    base = str(Path(network.base).resolve()) if Path(network.base).is_dir() else network.base
    return f"""from diffusers import {scheduler}, {STABLE_DIFFUSION}

pipeline = {STABLE_DIFFUSION}.from_pretrained({base!r}, use_safetensors=True)
pipeline.scheduler = {scheduler}.from_pretrained({scheduler_folder})
pipeline.load_lora_weights({folder})
"""


def _stable_diffusion_script(network: Denoiser, recipe: Recipe, manifest: Manifest, exported: Exported) -> str:
    loading = _stable_diffusion_loading(network, exported, "folder", 'folder / "scheduler"')
    imports, _, pipeline = loading.partition("\n\n")
    to_grey = ".mean(3, keepdims=True)" if manifest.channels == 1 else ""
    drawing = f"""images = pipeline(
    [captions[number % len(captions)] for number in numbers.tolist()],
    num_inference_steps={exported.steps},
    guidance_scale={recipe.sampler.guidance:g},
    output_type="np"{exported.arguments},
).images
return np.round(255 * images{to_grey}).astype(np.uint8)
"""
    placing = "pipeline.to(device).set_progress_bar_config(disable=True)\n"
    captions = 'CAPTIONS = json.loads((folder / "captions.json").read_text())  # some that it was trained on\n'
    return SCRIPT.format(
        imports=f"import json\nfrom pathlib import Path\n\nimport numpy as np\nimport torch\n{imports}\n",
        loading=f"{captions}{pipeline}{placing}",
        argument=", captions=()",
        documented=" and captions, which are taken in turn",
        chosen="    captions = captions or CAPTIONS\n",
        passed=", captions",
        parameter=", captions",
        drawing=textwrap.indent(drawing, " " * 4),
    )


def _code(
    network: Denoiser, recipe: Recipe, exported: Exported, decoding: Decoding, numbers: str
) -> tuple[str, str, str]:
    """Return the code that samples without Scrimp: what it imports, loads, and does; tests run it.

    It uses the names `folder` and `n`; `numbers` is the code of the images' numbers.
    """
    scheduler = type(exported.scheduler).__name__
    network_input = exported.network_input
    conditions = ""
    labels = None
    if network.classes:
        labels = "labels"
        conditions += f"labels = {numbers} % {network.classes}\n"
    if network.lengths is not None:
        conditions += "lengths = torch.multinomial(network.lengths.double(), n, replacement=True)\n"
    if network.text:
        conditions += TEXT_CODE
    if network.coordinates:
        conditions += (
            f"line = torch.linspace(-1, 1, {network.shape[1]})\n"
            "frame = torch.stack(torch.meshgrid(line, line, indexing='xy')).expand(n, -1, -1, -1)\n"
        )
        network_input = f"torch.cat([{network_input}, frame], 1)"

    imports = (
        f"from pathlib import Path\n\nimport torch\nfrom diffusers import {decoding.imports}{scheduler}, "
        f"{network.library_class}\n"
    )
    where = f'folder / "{network.folder}", use_safetensors=True'
    loading = f"{network.folder} = {network.library_class}.from_pretrained({where})\n"
    if network.code:
        imports = f"from pathlib import Path\n\nimport torch\nfrom diffusers import {decoding.imports}{scheduler}\n"
        imports += OWN_IMPORTS
        loading = f"\n\n{network.code}"
    loading += f'scheduler = {scheduler}.from_pretrained(folder / "scheduler")\n{decoding.loading}'
    shape = ", ".join(str(side) for side in network.shape)
    output = _output_code(network, recipe, exported, network_input, labels)
    loop = exported.loop.format(shape=shape, output=output, arguments=exported.arguments)
    steps = f"scheduler.set_timesteps({exported.steps})\n"
    return imports, loading, f"{steps}{conditions}{loop}{exported.result}{decoding.lines}{decoding.result}"


def _output_code(network: Denoiser, recipe: Recipe, exported: Exported, network_input: str, labels: str | None) -> str:
    """Return the code that sets `output` to the network's, with guidance by classes."""
    channels = network.shape[0]
    cut = f"[:, :{channels}]" if network.variances and not exported.takes_variances else ""
    output = f"output = {network.call(network_input, labels)}{cut}"
    guidance = recipe.sampler.guidance
    if not labels or guidance == 1 or not _guidance_is_plain(network, recipe):
        return output

    indent = "\n" + " " * (8 if "        {output}" in exported.loop else 4)
    hidden = f"hidden = {network.call(network_input, f'torch.full_like({labels}, {network.classes})')}{cut}"
    if network.variances and exported.takes_variances:
        guided = f"output[:, :{channels}] = torch.lerp(hidden, output, {guidance:g})[:, :{channels}]"
    else:
        guided = f"output = torch.lerp(hidden, output, {guidance:g})"
    return indent.join([output, hidden, guided])


def _format_score(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
