"""The networks that measure, made of the user's weights and put on ComfyUI's device by its memory management."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
import comfy.model_patcher
import torch
from torch import Tensor, nn

from ...metrics.cfsd import CFSD, CHUNK_BYTES
from ...metrics.inception import SIDE, Inception
from ...metrics.lpips import LPIPS
from ..files import UnreadableFile
from .published import HEADS_OF_OLD, LPIPS_HEADS, art_inception_part, inception_part, lpips_parts, vgg19_part
from .weights import find_weights

COLOUR_BYTES = 12
"""Of one pixel in float32."""
SAME = 1e-3
"""How far two sums of the same weights may lie apart, relatively, when one was kept in half precision."""


@dataclass(eq=False)
class Network:
    """A network that measures pictures, on the device of ComfyUI's choice while it does."""

    module: nn.Module
    bytes_per_pixel: int
    """What its features take for each pixel that it is shown at once, float32; a fifth more than was measured."""
    fixed_pixels: int = 0
    """How many pixels it sees of every picture, whatever its size; 0 where it sees the picture as it is."""
    bytes_besides: int = 0
    """What it takes whatever the picture."""
    patcher: Any = field(init=False)

    def __post_init__(self) -> None:
        # Not CoreModelPatcher, which streams weights only into layers of ComfyUI's own.
        self.patcher = comfy.model_patcher.ModelPatcher(
            self.module,
            load_device=comfy.model_management.get_torch_device(),
            offload_device=comfy.model_management.unet_offload_device(),
        )

    def __call__(self, *pictures: Tensor, measure: Callable[..., Tensor] | None = None) -> Tensor:
        """What the network, or a `measure` of it, makes of pictures (1, height, width, 3) in [0, 1]; on the CPU."""
        # At each picture, since the next may be larger, and another network may have pushed this one out.
        comfy.model_management.load_models_gpu([self.patcher], memory_required=self.memory_for(*pictures))
        device = self.patcher.load_device
        seen = [picture.movedim(-1, 1).to(device, torch.float32) for picture in pictures]
        with exact_convolutions():
            return (measure or self.module)(*seen).cpu()

    def memory_for(self, *pictures: Tensor) -> int:
        """The bytes that pictures (1, height, width, 3) take on their way through, besides the weights."""
        shown = sum(picture.shape[1] * picture.shape[2] for picture in pictures)
        seen = self.fixed_pixels or shown
        return seen * self.bytes_per_pixel + shown * COLOUR_BYTES + self.bytes_besides


def lpips_network(name: str) -> Network:
    """LPIPS by the network `alex`, `vgg` or `squeeze`. Raises UnreadableFile if its weights are not there."""
    per_pixel = {"alex": 80, "vgg": 1050, "squeeze": 290}[name]
    weights = find_weights(*lpips_parts(name))
    if abs(float(weights["lin2.model.1.weight"].sum()) / HEADS_OF_OLD[name] - 1) < SAME:
        raise UnreadableFile(
            f"The heads of LPIPS {name} that were found are those of version 0.0, whose numbers compare with nobody's. "
            f"Put {name}.pth from {LPIPS_HEADS} in their place."
        )
    return Network(LPIPS.from_state(weights, name), per_pixel)


def fid_network() -> Network:
    """The Inception of FID. Raises UnreadableFile if its weights are not there."""
    return Network(Inception.for_fid(find_weights(inception_part())), 240, fixed_pixels=SIDE * SIDE)


def art_fid_network() -> Network:
    """The Inception of ArtFID. Raises UnreadableFile if its weights are not there."""
    return Network(Inception.for_art_fid(find_weights(art_inception_part())), 200)


def cfsd_network() -> Network:
    """VGG-19 for CFSD. Raises UnreadableFile if its weights are not there."""
    return Network(CFSD.from_state(find_weights(vgg19_part())), 1060, bytes_besides=5 * CHUNK_BYTES)


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """Convolutions in full float32: PyTorch's default on recent GPUs keeps three digits of each factor."""
    flags = torch.backends.cudnn
    with flags.flags(
        enabled=flags.enabled, benchmark=flags.benchmark, deterministic=flags.deterministic, allow_tf32=False
    ):
        yield
