"""The output of `scrimp spaces NAME --on 2x24GB`."""

import math

from scrimp_platform.cli import plan_view, terminal
from scrimp_platform.report.formatting import number
from scrimp_platform.search.forecast import Forecast, Hours
from scrimp_trainers.common.gpus import FP32_SHARE, TENSOR_SHARE
from scrimp_trainers.training.load import EXTRACTOR_S, LAUNCH_S, LINK_BYTES


def show_forecast(forecast: Forecast) -> None:
    """Print what a sweep would take on a machine that is not here, and what that assumes."""
    machine = forecast.machine
    work = forecast.work
    gpus = machine.gpus
    searching = _gpu_hours(forecast.search, forecast.references)
    rows = {
        "machine": f"{gpus} GPU{'s' if gpus > 1 else ''} of {machine.gpu.memory} GB for each repeat",
        "data": plan_view.describe_items(forecast.manifest),
        "memory": _memory(forecast),
        "microbatch": _microbatch(forecast),
        "repeats": _repeats(forecast),
        "search": f"{work.trials} trials: {searching}{_of(forecast.search_limit)}",
        "race": f"at most {work.race_repeats} repeats: {_gpu_hours(forecast.race)}{_of(forecast.race_limit)}",
        "disk": f"at most {forecast.bytes / 2**30:,.1f} GiB",
        "assumes": _assumptions(forecast),
    }
    terminal.show_list(rows)
    for fault in forecast.faults:
        terminal.say(f"EXCEEDS  {fault}")


def _memory(forecast: Forecast) -> str:
    step = forecast.step
    memory = step.memory
    images = step.bytes - memory.others - memory.constant
    return (
        f"{_gib(step.bytes)} of {_gib(memory.total)} GiB: {_gib(memory.constant)} weights, average, gradients, "
        f"moments; {_gib(images)} activations; {_gib(memory.others)} CUDA, scores, data"
    )


def _microbatch(forecast: Forecast) -> str:
    step = forecast.step
    return f"{step.microbatch} of a GPU's {step.images} images at once; {step.fit:,} would fit"


def _repeats(forecast: Forecast) -> str:
    repeat = forecast.repeat
    gpus = forecast.machine.gpus
    hours = repeat.total / gpus
    return (
        f"{number(1 / hours)} an hour: {number(hours)} h each, {number(repeat.training / gpus)} of training and "
        f"{number(repeat.scoring / gpus)} of scoring"
    )


def _gpu_hours(hours: Hours, references: float = 0.0) -> str:
    parts = {"training": hours.training, "scoring": hours.scoring}
    if references:
        parts["references"] = references
    texts = [f"{_hours(value)} {name}" for name, value in parts.items()]
    return f"{_hours(hours.total + references)} GPU-hours ({', '.join(texts)})"


def _hours(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else number(value)


def _of(limit: float) -> str:
    return f", of {limit:,.0f}" if math.isfinite(limit) else ""


def _assumptions(forecast: Forecast) -> str:
    gpu = forecast.machine.gpu
    rate = gpu.rate(forecast.precision) / 1e12
    share = f"{FP32_SHARE:.0%} of its peak"
    if forecast.precision != "fp32":
        share = f"{TENSOR_SHARE:.0%} of its tensor cores' peak"
    return (
        f"{gpu.name} at {rate:.1f} TFLOP/s in {forecast.precision}, {share}; {LAUNCH_S * 1e6:.0f} us to launch an "
        f"operation; {LINK_BYTES / 1e9:.0f} GB/s between GPUs; {EXTRACTOR_S * 1e3:.0f} ms to see a sample; in every "
        "trial the costliest recipe. Nothing is measured: `scrimp sweep --dry-run` measures, on the machine"
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f}"
