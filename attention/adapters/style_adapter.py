"""A style adapter: the few weights that StyleDrop (arXiv:2306.00983) learns from one picture beside a frozen model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..references.trajectory import ModelStamp

AdapterForm = Literal["bottleneck", "lora"]
FORMS: tuple[AdapterForm, ...] = get_args(AdapterForm)


@dataclass(frozen=True, eq=False)
class TuningState:
    """What a tuning needs, beside the adapter, to go on as if it had never stopped.

    Draws are not kept: each step makes its own from the seed and its number.
    """

    step: int
    """Steps done."""
    seed: int
    first_moments: Mapping[str, Tensor]
    second_moments: Mapping[str, Tensor]
    """AdamW's, by the adapter's tensor names, float32 on the CPU."""


@dataclass(frozen=True, eq=False)
class StyleAdapter:
    """A tuned style, in one of two forms. All tensors are float32 on the CPU.

    *bottleneck*: for each attention a module `<site>` such as `output.4.0.self` (block, depth, kind).
    *lora*: for each linear layer a module with the name of its weight in ComfyUI's model without `.weight`, such as
    `diffusion_model.output_blocks.4.1.transformer_blocks.0.attn1.to_q`; its scale is 1.
    """

    form: AdapterForm
    tensors: Mapping[str, Tensor]
    """`<module>.down` (width, channels in) and `<module>.up` (channels out, width)."""
    stamp: ModelStamp
    """The model that it was tuned on, as `host.identity.subject_stamp` reads it."""
    content_words: str = ""
    style_words: str = ""
    """The two halves of the caption, of which the second belongs into prompts."""
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """How it was tuned, as JSON holds it: for people, and for going on in the same way."""
    state: TuningState | None = None
    thumbnail: Tensor | None = None  # (height, width, 3) uint8, the first picture

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(f"its form is '{self.form}'; known are {' and '.join(FORMS)}")
        if not self.tensors:
            raise ValueError("it holds no tensors")
        for module in self.modules:
            down, up = self.tensors.get(f"{module}.down"), self.tensors.get(f"{module}.up")
            if down is None or up is None or down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1]:
                raise ValueError(f"its tensors of '{module}' do not form a pair of down and up")
            if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
                raise ValueError(f"its tensors of '{module}' hold values that are not numbers (NaN or infinite)")

    @property
    def modules(self) -> tuple[str, ...]:
        """The names of the modules, in the order of the tensors."""
        return tuple(dict.fromkeys(name.rpartition(".")[0] for name in self.tensors))

    @property
    def width(self) -> int:
        """Channels between down and up: the bottleneck's width, the LoRA's rank."""
        return next(iter(self.tensors.values())).shape[0]

    @property
    def parameters(self) -> int:
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())

    def __repr__(self) -> str:
        return f"StyleAdapter({self.form} of {self.width} at {len(self.modules)} layers of {self.stamp.family})"
