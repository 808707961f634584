"""ChiroDiff's network: a bidirectional GRU along the points of a drawing (Das et al. 2023).

It sees each point's position and the step that leads there, whichever of the two x is: the other follows from it. The
class of a drawing, which ChiroDiff does not take, enters beside the time.
"""

import math
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from scrimp_trainers.codecs.strokes import steps
from scrimp_trainers.conditioning.conditions import NOTHING, Conditions
from scrimp_trainers.data.batch import to_device
from scrimp_trainers.networks.denoiser import Denoiser
from scrimp_trainers.recipe import networks
from scrimp_trainers.recipe.techniques import StrokeForm

TIME_SCALE = 4.0
"""Standard deviation of the random frequencies, in turns over the whole chain."""


CODE = """class Network(nn.Module):
    def __init__(self, size, width, layers, time_features, timesteps, form, classes):
        super().__init__()
        self.timesteps = timesteps
        condition_size = 2 * time_features if classes else time_features
        self.gru = nn.GRU(5 + condition_size, width, layers, batch_first=True, bidirectional=True)
        self.hidden = nn.Linear(2 * width, width)
        self.output = nn.Linear(width + condition_size, 3)
        self.class_embedding = nn.Embedding(classes + 1, time_features) if classes else None
        self.register_buffer("frequencies", torch.zeros(time_features // 2))
        self.register_buffer("lengths", torch.zeros(size + 1, dtype=torch.int64))

    def forward(self, x, t, lengths, labels=None):
        angles = 2 * torch.pi * self.frequencies * t / self.timesteps
        condition = torch.cat([angles.sin(), angles.cos()]).expand(len(x), -1)
        if labels is not None:
            condition = torch.cat([condition, self.class_embedding(labels)], -1)
        condition = condition[:, None].expand(-1, x.shape[-1], -1)
        step = {step}
        points = torch.cat([{position}, step], 1).transpose(1, 2)
        seen = torch.cat([points, condition], -1)
        packed = pack_padded_sequence(seen, lengths.cpu(), batch_first=True, enforce_sorted=False)
        hidden = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=x.shape[-1])[0]
        return self.output(torch.cat([self.hidden(hidden), condition], -1)).transpose(1, 2)


network = Network(**json.loads((folder / "network" / "config.json").read_text()))
network.load_state_dict(load_file(folder / "network" / "diffusion_pytorch_model.safetensors"))
"""
"""What a model card says of the network: the same, without Scrimp."""


class GRUDenoiser(Denoiser):
    """Three numbers a point in and out, x and the noise in it: [B, 3, points].

    Parameters
    ----------
    size
        Most points of a drawing.
    width, layers
        Of the GRU: numbers a direction, and layers.
    time_features
        Sines and cosines that say the step of the chain, in even number.
    timesteps
        Length of the chain.
    form
        Whether x holds positions or the steps between them.
    classes
        Number of classes that it takes, each as as many numbers as a step; 0 for none.
    """

    frequencies: Tensor

    def __init__(
        self,
        *,
        size: int,
        width: int,
        layers: int,
        time_features: int,
        timesteps: int,
        form: StrokeForm,
        classes: int = 0,
    ) -> None:
        super().__init__()
        self.config = {
            "size": size,
            "width": width,
            "layers": layers,
            "time_features": time_features,
            "timesteps": timesteps,
            "form": form,
            "classes": classes,
        }
        self.shape = torch.Size((3, size))
        self.classes = classes
        self.timesteps = timesteps
        self.form = form
        condition_size = 2 * time_features if classes else time_features
        self.gru = nn.GRU(5 + condition_size, width, layers, batch_first=True, bidirectional=True)
        self.hidden = nn.Linear(2 * width, width)
        self.output = nn.Linear(width + condition_size, 3)
        self.class_embedding = nn.Embedding(classes + 1, time_features) if classes else None
        self.register_buffer("frequencies", TIME_SCALE * torch.randn(time_features // 2))
        self.register_buffer("lengths", torch.zeros(size + 1, dtype=torch.int64))

    def forward(self, images: Tensor, levels: Tensor, conditions: Conditions = NOTHING) -> Tensor:
        """Return the noise in x [B, 3, n] at steps t [B] of the chain. What stands at padding does not matter.

        Labels that are not given are hidden. The conditions' lengths say what is padding; without them nothing is.
        """
        condition = (
            self._condition(levels, conditions.labels).to(images.dtype)[:, None].expand(-1, images.shape[-1], -1)
        )
        if self.form == "delta":
            seen = torch.cat([images[:, :2].cumsum(-1), images], 1)
        else:
            seen = torch.cat([images[:, :2], steps(images)], 1)

        hidden = self._along(torch.cat([seen.transpose(1, 2), condition], -1), conditions.lengths)
        return self.output(torch.cat([self.hidden(hidden), condition], -1)).transpose(1, 2)

    def call(self, images: str, labels: str | None) -> str:
        """Return the code that asks the network in `code`."""
        return f"network({images}, t, lengths{f', {labels}' if labels else ''})"

    @property
    def code(self) -> str:
        """Return the network in torch alone, and how it is read."""
        position = "x[:, :2].cumsum(-1)" if self.form == "delta" else "x[:, :2]"
        step = "x"
        if self.form == "absolute":
            step = "torch.cat([torch.diff(x[:, :2], dim=-1, prepend=torch.zeros_like(x[:, :2, :1])), x[:, 2:]], 1)"
        return CODE.format(position=position, step=step)

    def _condition(self, t: Tensor, labels: Tensor | None) -> Tensor:
        """Return the condition of each drawing: the step and, of classes, the label."""
        time = self._time(t)
        if self.class_embedding is None:
            return time
        if labels is None:
            labels = torch.full((len(t),), self.classes, device=t.device)
        return torch.cat([time, self.class_embedding(labels)], -1)

    def _time(self, t: Tensor) -> Tensor:
        """Return the features [B, time_features] of steps of the chain."""
        angles = 2 * math.pi * self.frequencies * (t.float() / self.timesteps)[:, None]
        return torch.cat([angles.sin(), angles.cos()], -1)

    def _along(self, points: Tensor, lengths: np.ndarray | None) -> Tensor:
        """Run the GRU over points [B, n, d], each drawing as if it were alone: the way back begins at its end."""
        if lengths is None:
            return self.gru(points)[0]
        if points.device.type == "cpu":
            return self._along_turned(points, torch.from_numpy(lengths))
        return self._along_packed(points, lengths)

    def _along_packed(self, points: Tensor, lengths: np.ndarray) -> Tensor:
        """Do so on a device, which is not waited for: what packing needs to know is known on the host.

        `pack_padded_sequence` would wait, for the order in which it sorts drawings.
        """
        count, size, _ = points.shape
        places, drawings_at = packing(lengths, size)
        there = to_device(places, points.device)

        packed = points.flatten(0, 1).index_select(0, there)
        hidden = cast(PackedSequence, self.gru(PackedSequence(packed, torch.tensor(drawings_at)))[0]).data
        padded = hidden.new_zeros(count * size, hidden.shape[-1]).index_copy(0, there, hidden)
        return padded.unflatten(0, (count, size))

    def _along_turned(self, points: Tensor, lengths: Tensor) -> Tensor:
        """Do the same without packing, whose backward pass on a processor takes ten times as long.

        Each layer's way back is a way forth along drawings that are turned around within their lengths.
        """
        longest = int(lengths.max())
        place = torch.arange(longest)
        there = place < lengths[:, None]
        turned = torch.where(there, lengths[:, None] - 1 - place, place)[..., None]

        hidden = points[:, :longest].masked_fill(~there[..., None], 0)
        for layer in range(self.gru.num_layers):
            forth = self._one_way(hidden, f"l{layer}")
            back = self._one_way(hidden.gather(1, turned.expand_as(hidden)), f"l{layer}_reverse")
            hidden = torch.cat([forth, back.gather(1, turned.expand_as(back))], -1)
        return nn.functional.pad(hidden, (0, 0, 0, points.shape[1] - longest))

    def _one_way(self, points: Tensor, layer: str) -> Tensor:
        """Run one layer of the GRU in one direction, from a state of zeros."""
        weights: list[Tensor] = [
            self.gru.get_parameter(f"{name}_{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        ]
        state = points.new_zeros(1, len(points), self.gru.hidden_size)
        return torch.gru(points, state, weights, True, 1, 0.0, False, False, True)[0]


def packing(lengths: np.ndarray, size: int) -> tuple[np.ndarray, list[int]]:
    """Return how drawings of these lengths, int64 [B], are packed: all of their points number 0, then number 1, ...

    Returns
    -------
    tuple
        The place of each packed point among all points [B * size], the longest drawing first; and how many drawings
        have a point of each number.
    """
    by_length = np.argsort(-lengths, kind="stable")
    is_there = np.arange(lengths.max())[:, None] < lengths[by_length]
    numbers, positions = np.nonzero(is_there)
    return by_length[positions] * size + numbers, is_there.sum(1).tolist()


def build(
    section: networks.GRU,
    *,
    image_size: int,
    channels: int,
    classes: int = 0,
    augment_labels: int = 0,
    coordinates: bool = False,
    timesteps: int,
    form: StrokeForm,
) -> GRUDenoiser:
    """Make a new network for drawings of at most `image_size` points. The weights are from torch's global generator.

    Raises
    ------
    ValueError
        If it is to take what its section does not offer.
    """
    if channels != 3 or augment_labels or coordinates:
        raise ValueError("a GRU takes points of three numbers, and neither augmentation labels nor coordinates")
    return GRUDenoiser(
        size=image_size,
        width=section.width,
        layers=section.layers,
        time_features=section.time_features,
        timesteps=timesteps,
        form=form,
        classes=classes,
    )


def load(folder: Path) -> GRUDenoiser:
    """Read the network of an exported model; raises as `Denoiser.from_folder` does."""
    return GRUDenoiser.from_folder(folder)
