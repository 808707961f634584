"""The code that samples an exported model without Scrimp: for the model's card, and as its `sample.py`."""

import importlib
import inspect
import textwrap
from pathlib import Path

from scrimp_trainers.codecs import autoencoder_files
from scrimp_trainers.codecs.autoencoder_files import AutoencoderFiles
from scrimp_trainers.codecs.codec import Decoding
from scrimp_trainers.common import parts
from scrimp_trainers.data.manifest import Manifest
from scrimp_trainers.data.modalities.modality import modality_of
from scrimp_trainers.diffusion.samplers.exported import Exported
from scrimp_trainers.networks.denoiser import Denoiser
from scrimp_trainers.recipe.diffusion import Chain
from scrimp_trainers.recipe.recipe import Recipe
from scrimp_trainers.recipe.techniques import Autoencoder

STABLE_DIFFUSION = "StableDiffusionPipeline"
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
CAPTIONED = {
    "argument": ", captions=()",
    "documented": " and captions, which are taken in turn",
    "chosen": "    captions = captions or CAPTIONS\n",
    "passed": ", captions",
    "parameter": ", captions",
}
"""What the script of a model that draws by captions has more."""
UNCAPTIONED = dict.fromkeys(CAPTIONED, "")


def script(network: Denoiser, recipe: Recipe, manifest: Manifest) -> str:
    """Return the text of `sample.py`; empty if no code without Scrimp draws what Scrimp does."""
    exported = exported_sampler(recipe)
    decoding = decoding_of(recipe, manifest)
    if not exported or exported.caveat or not decoding or not guidance_is_plain(network, recipe):
        return ""
    if stable_diffusion_vae(network, recipe):
        return _stable_diffusion_script(network, recipe, manifest, exported)
    if network.text or not (network.library_class or network.code):
        return ""

    imports, loading, drawing = code(network, recipe, exported, decoding, "numbers")
    parts_on_device = [network.folder, *(["vae"] if decoding.loading else [])]
    placing = "".join(f"{part}.to(device).eval()\n" for part in parts_on_device)
    source = ""
    if decoding.module:
        source = inspect.getsource(importlib.import_module(decoding.module)).partition('"""\n\n')[2] + "\n\n"
    result = "return images.permute(0, 2, 3, 1).cpu().numpy()\n"
    return SCRIPT.format(
        imports=imports.replace("import torch\n", "import numpy as np\nimport torch\n", 1),
        loading=f"\n\n{source}{loading}{placing}",
        drawing=textwrap.indent(drawing + decoding.pictures + result, " " * 4),
        **UNCAPTIONED,
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
    if not exported or exported.caveat or recipe.sampler.guidance < 1 or not guidance_is_plain(network, recipe):
        return None
    if recipe.codec.kind != "kl":
        return None
    files = autoencoder_files.find(recipe.codec, "decoder")
    return None if files.shift else files


def guidance_is_plain(network: Denoiser, recipe: Recipe) -> bool:
    """Whether guidance has one scale, for all steps and channels; or no effect, without a condition."""
    sampler = recipe.sampler
    if sampler.guidance == 1 or not (network.classes or network.text):
        return True
    channels = sampler.guidance_channels or network.shape[0]
    return sampler.guidance_power is None and channels >= network.shape[0]


def stable_diffusion_code(network: Denoiser, recipe: Recipe, exported: Exported) -> str:
    """Return the code of the card of such a model, run in the model's folder."""
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
        drawing=textwrap.indent(drawing, " " * 4),
        **CAPTIONED,
    )


def code(
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
    if not labels or guidance == 1 or not guidance_is_plain(network, recipe):
        return output

    indent = "\n" + " " * (8 if "        {output}" in exported.loop else 4)
    hidden = f"hidden = {network.call(network_input, f'torch.full_like({labels}, {network.classes})')}{cut}"
    if network.variances and exported.takes_variances:
        guided = f"output[:, :{channels}] = torch.lerp(hidden, output, {guidance:g})[:, :{channels}]"
    else:
        guided = f"output = torch.lerp(hidden, output, {guidance:g})"
    return indent.join([output, hidden, guided])
