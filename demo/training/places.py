"""The code of places: sines and cosines of both coordinates, which the place channels of a cut UNet are taught first.

Attention can then ask for what lies at a distance from the first step on. Learnt beside everything else, the code was
not there after 700 steps, nor was attention in use; taught, it takes 260 steps of a batch of one.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .kernels import PLACE_CHANNELS, Places


def place_code(side: int) -> Tensor:
    """The code (PLACE_CHANNELS, side, side), each channel of mean 0 and deviation 1."""
    at = (torch.arange(side) + 0.5) / side
    waves = []
    for turns in range(1, PLACE_CHANNELS // 4 + 1):
        across = math.pi * turns * at
        waves += [across.cos(), (across / 2).sin() if turns == 1 else across.sin()]
    channels = [plane for wave in waves for plane in (wave[None].expand(side, side), wave[:, None].expand(side, side))]
    code = torch.stack(channels)
    return (code - code.mean(dim=(1, 2), keepdim=True)) / code.std(dim=(1, 2), keepdim=True)


def teach_places(unet: Any, places: Places, side: int, steps: int = 260, rate: float = 4e-3) -> float:
    """Teaches the place channels the code and holds them; returns their mean squared error, about 0.01.

    `side` is that of the latents in training. The code of other sizes is what the borders make of it.
    """
    seen: dict[Any, Tensor] = {}

    def keep(block: Any, _: Any, features: Tensor) -> None:
        seen[block] = features[:, -PLACE_CHANNELS:]

    hooks = [block.register_forward_hook(keep) for block in _coded_blocks(unet)]
    optimizer = torch.optim.Adam(unet.parameters(), rate)
    error = torch.zeros(())
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / 50) * (1 - step / steps)
        _run_on_nothing(unet, side)
        error = torch.stack([(code - place_code(code.shape[-1]).to(code)).pow(2).mean() for code in seen.values()])
        optimizer.zero_grad(set_to_none=True)
        error.sum().backward()
        optimizer.step()
    for hook in hooks:
        hook.remove()
    optimizer.zero_grad(set_to_none=True)
    places.held = True
    return float(error.detach().mean())


def _coded_blocks(unet: Any) -> list[Any]:
    """The blocks whose place channels are to hold the code: all behind the first step down, but for the last."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock

    blocks = [block[0] for block in (*unet.input_blocks[4:], *unet.output_blocks[:-1])]
    return [block for block in (*blocks, unet.middle_block[-1]) if isinstance(block, ResBlock)]


def _run_on_nothing(unet: Any, side: int) -> None:
    device = unet.out[2].weight.device
    context = torch.zeros((1, 1, unet_context_width(unet)), device=device)
    vector = torch.zeros((1, unet.label_emb[0][0].in_features), device=device)
    unet(
        torch.zeros((1, 4, side, side), device=device), torch.tensor([500.0], device=device), context=context, y=vector
    )


def unet_context_width(unet: Any) -> int:
    """The width of the text that the UNet's cross-attentions read."""
    return unet.middle_block[1].transformer_blocks[0].attn2.to_k.in_features
