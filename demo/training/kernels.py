"""A UNet of SDXL's topology whose kernels are cut, so that only self-attention carries anything from place to place.

In a small UNet convolutions reach everywhere: its self-attention has nothing to do, and what shares keys shows nothing.
Here kernels keep their centre tap alone, but for three things. The steps down between levels take each token's own
four latents. The finest level on the way up sees its neighbours in what comes from below; the noisy latents themselves
join in its last block, with those next to each: without these, what is fine was lost where little noise is left. And a
few *place channels* of every level keep whole kernels: nothing of the picture comes into them, so that they hold the
code of places that the borders give, and no more.

What is cut is stored as zeros in a 3 x 3 kernel: the host's own class opens the weights as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

PLACE_CHANNELS = 16  # the last of every level: whole groups of every normalisation
Reach = Literal["own", "step", "neighbours"]
_TAPS: dict[Reach, tuple[slice, slice]] = {
    "own": (slice(1, 2), slice(1, 2)),
    "step": (slice(1, 3), slice(1, 3)),  # with a stride of two: the four below a token
    "neighbours": (slice(0, 3), slice(0, 3)),
}


class Cut(nn.Module):
    """A convolution or linear layer of which only `kept` is there; its weights have the host's names and shapes."""

    def __init__(self, layer: Any, kept: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(layer.weight.detach().clone()), nn.Parameter(layer.bias.detach().clone())
        self.register_buffer("kept", kept, persistent=False)
        self.kept: Tensor

    def forward(self, seen: Tensor) -> Tensor:
        weight = self.weight * self.kept
        apply = functional.linear if weight.ndim == 2 else functional.conv2d
        return apply(seen, weight, self.bias)


class CutKernel(Cut):
    """A 3 x 3 convolution; one that keeps centre taps but in the place channels is computed as what it is."""

    def __init__(self, layer: Any, kept: Tensor, places: Tensor) -> None:
        super().__init__(layer, kept)
        self.stride = layer.stride[0]
        self.pointwise = bool(kept[:-PLACE_CHANNELS].sum() == kept[:-PLACE_CHANNELS, :, 1, 1].sum())
        self.register_buffer("places", places, persistent=False)  # the inputs that place channels see
        self.register_buffer("around", 1 - _tap("own", self.weight), persistent=False)
        self.places: Tensor
        self.around: Tensor

    def forward(self, seen: Tensor) -> Tensor:
        weight = self.weight * self.kept
        if not self.pointwise:
            return functional.conv2d(seen, weight, self.bias, self.stride, padding=1)
        drawn = functional.conv2d(seen, weight[:, :, 1:2, 1:2], self.bias, self.stride)
        if not len(self.places):
            return drawn
        around = (weight * self.around)[-PLACE_CHANNELS:, self.places]
        code = functional.conv2d(seen[:, self.places], around, None, self.stride, padding=1)
        return torch.cat([drawn[:, :-PLACE_CHANNELS], drawn[:, -PLACE_CHANNELS:] + code], dim=1)


@dataclass(eq=False)
class Places:
    """The place channels of a UNet. While `held`, no training moves them."""

    held: bool = False
    layers: list[Cut] = field(default_factory=list[Cut])

    def hold(self, parameter: Tensor, channels: Tensor) -> None:
        """Lets no gradient through to these rows of `parameter` while the channels are held."""
        moves = torch.ones_like(parameter)
        moves[channels] = 0
        parameter.register_hook(lambda gradient: gradient * moves.to(gradient) if self.held else gradient)


def cut_kernels(unet: Any) -> Places:
    """Cuts the kernels of the host's UNet of SDXL's topology, in place; to be done before it is trained."""
    from comfy.ldm.modules.attention import SpatialTransformer

    places = Places()
    entry = unet.input_blocks[0][0]
    kept = _tap("own", entry.weight)
    kept[-PLACE_CHANNELS:] = 0
    places.layers.append(_put(unet.input_blocks[0], 0, CutKernel(entry, kept, torch.tensor([], dtype=torch.long))))
    for block in (*unet.input_blocks[1:], unet.middle_block):
        for layer in block:
            _cut_layer(layer, places)
    for number in range(len(unet.output_blocks)):
        skip = unet.input_blocks[len(unet.input_blocks) - 1 - number]
        _cut_way_up(unet, number, _width_after(skip), places)
    unet.out[2] = CutKernel(unet.out[2], _tap("own", unet.out[2].weight), torch.tensor([], dtype=torch.long))
    for transformer in [module for module in unet.modules() if isinstance(module, SpatialTransformer)]:
        kept = torch.ones_like(transformer.proj_out.weight)
        kept[-PLACE_CHANNELS:] = 0
        places.layers.append(_put(transformer, "proj_out", Cut(transformer.proj_out, kept)))
    for layer in places.layers:
        places.hold(layer.weight, _last(len(layer.weight)))
        places.hold(layer.bias, _last(len(layer.bias)))
    return places


def stock_weights(unet: Any) -> dict[str, Tensor]:
    """The weights as the host's own class takes them: zeros where kernels are cut."""
    weights = dict(unet.state_dict())
    for name, module in unet.named_modules():
        if isinstance(module, Cut):
            weights[f"{name}.weight"] = (module.weight * module.kept).detach()
    return weights


def _cut_layer(layer: Any, places: Places) -> None:
    """Cuts a layer of the way down or of the middle."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, ResBlock

    if isinstance(layer, ResBlock):
        _cut_block(layer, [layer.channels], "own", "own", places)
    elif isinstance(layer, Downsample):
        places.layers.append(_put(layer, "op", _kernel(layer.op, [layer.channels], "step")))


def _cut_way_up(unet: Any, number: int, skip: int, places: Places) -> None:
    """Cuts an output block, whose inputs end with `skip` channels of the way down."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock, Upsample

    last = len(unet.output_blocks) - 1
    finest = number > last - 3
    for layer in unet.output_blocks[number]:
        if isinstance(layer, ResBlock):
            parts = [layer.channels - skip, skip]
            second: Reach = "neighbours" if number == last - 2 else "own"
            _cut_block(layer, parts, "neighbours" if finest else "own", second, places)
            if finest and number < last:
                _drop_skip(layer, parts[0])
        elif isinstance(layer, Upsample):
            places.layers.append(_put(layer, "conv", _kernel(layer.conv, [layer.channels], "own")))


def _cut_block(block: Any, parts: Sequence[int], first: Reach, second: Reach, places: Places) -> None:
    width = block.out_channels
    places.layers.append(_put(block.in_layers, 2, _kernel(block.in_layers[2], parts, first)))
    with torch.no_grad():  # silent for the picture, not for the code of places
        block.out_layers[3].weight[-PLACE_CHANNELS:, -PLACE_CHANNELS:].normal_(std=(9 * PLACE_CHANNELS) ** -0.5)
    places.layers.append(_put(block.out_layers, 3, _kernel(block.out_layers[3], [width], second)))
    kept = torch.ones_like(block.emb_layers[1].weight)
    kept[-PLACE_CHANNELS:] = 0
    places.layers.append(_put(block.emb_layers, 1, Cut(block.emb_layers[1], kept)))
    if not isinstance(block.skip_connection, nn.Identity):
        places.layers.append(_put(block, "skip_connection", _pointwise(block.skip_connection, parts)))
    for norm, inputs in ((block.in_layers[0], parts), (block.out_layers[0], [width])):
        for parameter in (norm.weight, norm.bias):
            places.hold(parameter, _place_inputs(inputs))


def _drop_skip(block: Any, below: int) -> None:
    """Leaves of the block's inputs what comes from `below`."""
    block.in_layers[2].kept[:, below:] = 0
    block.skip_connection.kept[:, below:] = 0


def _kernel(layer: Any, parts: Sequence[int], reach: Reach) -> CutKernel:
    """A convolution whose inputs are `parts` side by side, each with its place channels at its end."""
    kept, places = _tap(reach, layer.weight), _place_inputs(parts)
    kept[-PLACE_CHANNELS:] = 0
    kept[-PLACE_CHANNELS:, places] = 1
    return _awake(CutKernel(layer, kept, places))


def _awake(kernel: CutKernel) -> CutKernel:
    """Fresh weights are as small as nine taps ask for: one tap alone takes three times as much."""
    if kernel.pointwise:
        with torch.no_grad():
            kernel.weight[:-PLACE_CHANNELS] *= 3
    return kernel


def _pointwise(layer: Any, parts: Sequence[int]) -> Cut:
    kept = torch.ones_like(layer.weight)
    kept[-PLACE_CHANNELS:] = 0
    kept[-PLACE_CHANNELS:, _place_inputs(parts)] = 1
    return Cut(layer, kept)


def _tap(reach: Reach, weight: Tensor) -> Tensor:
    taps = torch.zeros_like(weight)
    taps[(slice(None), slice(None), *_TAPS[reach])] = 1
    return taps


def _place_inputs(parts: Sequence[int]) -> Tensor:
    """The place channels of inputs that are `parts` side by side."""
    ends = torch.tensor(list(parts)).cumsum(0).tolist()
    return torch.cat([torch.arange(end - PLACE_CHANNELS, end) for end in ends])


def _last(width: int) -> Tensor:
    return torch.arange(width - PLACE_CHANNELS, width)


def _width_after(block: Any) -> int:
    """The channels that an input block gives."""
    for layer in reversed(list(block)):
        width = getattr(layer, "out_channels", None)
        if width is not None:
            return width
    return len(block[0].bias)


def _put(holder: Any, name: str | int, layer: Any) -> Any:
    if isinstance(name, int):
        holder[name] = layer
    else:
        setattr(holder, name, layer)
    return layer
