"""The part of SigLIP (arXiv:2303.15343) that makes one embedding of a picture. ComfyUI's encoder leaves it out."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

PREFIX = "vision_model.head."
PROBE = f"{PREFIX}probe"


class PoolingHead(nn.Module):
    """A learned query attends to the patch states; then two layers beside a shortcut. Names are those of the files."""

    def __init__(self, width: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.empty(1, 1, width))
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.layernorm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], heads: int) -> PoolingHead:
        """The head of a SigLIP file, in float32. Raises KeyError or RuntimeError if its tensors are not all there."""
        own = {name.removeprefix(PREFIX): tensor.float() for name, tensor in tensors.items() if name.startswith(PREFIX)}
        head = cls(own["probe"].shape[-1], own["mlp.fc1.weight"].shape[0], heads)
        head.load_state_dict(own)
        return head.eval().requires_grad_(False)

    def forward(self, states: Tensor) -> Tensor:
        """(crops, patches, width), normalised as the encoder gives them, -> (crops, width)"""
        found: Tensor = self.attention(self.probe.expand(len(states), -1, -1), states, states, need_weights=False)[0]
        hidden = nn.functional.gelu(self.mlp["fc1"](self.layernorm(found)), approximate="tanh")
        return (found + self.mlp["fc2"](hidden))[:, 0]
