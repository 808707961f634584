"""DINOv2's vision transformer (Oquab et al. 2023), as far as its class token is a feature.

torch-fidelity's extractor fetches and runs the code of a GitHub repository for it. This is the same network under
the same names of weights, so that a weight file is all that is needed. Depth and width are read off the weights.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD = 64
"""Channels of an attention head in every published size."""


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, width // HEAD, HEAD).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.proj(x.reshape(batch, tokens, width))


class _MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _GatedMLP(nn.Module):
    """The giant's: SwiGLU, with two thirds of the width rounded up to a multiple of eight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = (4 * width * 2 // 3 + 7) // 8 * 8
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class _Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class _Block(nn.Module):
    def __init__(self, width: int, *, gated: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = _Attention(width)
        self.ls1 = _Scale(width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = _GatedMLP(width) if gated else _MLP(width)
        self.ls2 = _Scale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class VisionTransformer(nn.Module):
    """DINOv2 without registers; ViT-S, B and L, and, with `gated` feed-forward layers, ViT-g."""

    def __init__(self, width: int, depth: int, patch: int, positions: int, *, gated: bool = False) -> None:
        super().__init__()
        self.patch = patch
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))  # in the file, but of no use here
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, kernel_size=patch, stride=patch)})
        self.blocks = nn.ModuleList(_Block(width, gated=gated) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, images: Tensor) -> Tensor:
        """Map images [B, 3, H, W], sides multiples of the patch's, to the class token [B, width]."""
        patches = self.patch_embed["proj"](images)
        tokens = patches.flatten(2).transpose(1, 2) + self._positions(patches.shape[-2], patches.shape[-1])
        first = self.cls_token + self.pos_embed[:, :1]
        x = torch.cat([first.expand(len(images), -1, -1), tokens], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]

    def _positions(self, height: int, width: int) -> Tensor:
        table = self.pos_embed[:, 1:]
        side = round(table.shape[1] ** 0.5)
        if (height, width) == (side, side):
            return table
        grid = table.reshape(1, side, side, -1).permute(0, 3, 1, 2)
        # The tenth of a patch is the authors': the features of the published weights depend on it.
        scale = ((height + 0.1) / side, (width + 0.1) / side)
        return F.interpolate(grid, scale_factor=scale, mode="bicubic").flatten(2).transpose(1, 2)


def from_state(state: dict[str, Tensor]) -> VisionTransformer:
    """Build the network that these weights belong to.

    Raises
    ------
    KeyError, RuntimeError
        If they are not the weights of a DINOv2 network.
    """
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    gated = "blocks.0.mlp.w12.weight" in state
    network = VisionTransformer(width, depth, patch, state["pos_embed"].shape[1], gated=gated)
    network.load_state_dict(state)
    return network
