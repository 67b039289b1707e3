"""The values of a MODEL's weights as files hold them, whatever they are stored in, merged ones included.

`state_dict()` is not asked: layers that keep their weights packed, such as those of GGUF files, give empty tensors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import comfy.lora
import torch
from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor

from ..attention.references.weight_samples import GroupSamples, WeightSamples

VALUES = 16
"""Values sampled of each matrix."""
LEVELS = 16
"""Noise levels sampled of the schedule."""
MATRICES: Mapping[str, Sequence[str]] = {
    "attn1": ("attn1.to_q", "attn1.to_v"),
    "attn2": ("attn2.to_k", "attn2.to_out.0"),
    "ff": ("ff.net.2",),
}
"""What is sampled in each block of the UNet, each from another of its transformers, and compared as a group."""
BLOCKS = 8
"""Blocks that are sampled of each list of blocks in a network that is no UNet, evenly apart."""
TRANSFORMER = re.compile(r"((?P<block>.+)\.transformer_blocks|(?P<layers>transformer_layers))\.(?P<number>\d+)$")
"""Of a UNet, or of a masked transformer."""


def sample_weights(model: Any) -> WeightSamples:
    """Samples of the weights of a MODEL, with other checkpoints merged into it but without any LoRA."""
    levels = model.get_model_object("model_sampling").sigmas.float().cpu()
    places = torch.linspace(0, len(levels) - 1, LEVELS).round().long()
    schedule = tuple(float(f"{level:.6g}") for level in levels[places].tolist())
    groups = {name: _group(model, matrices) for name, matrices in _groups(model.model.diffusion_model)}
    return WeightSamples(groups, schedule)


def is_merged(model: Any) -> bool:
    """Whether another checkpoint is merged into the MODEL."""
    return any(map(_is_merge, (patch for patches in model.patches.values() for patch in patches)))


def _groups(network: Any) -> Iterator[tuple[str, list[str]]]:
    """The groups of matrices to sample, by name, from all over the network."""
    if hasattr(network, "output_blocks") or hasattr(network, "transformer_layers"):
        return _groups_of_transformers(network)
    return _groups_of_blocks(network)


def _groups_of_blocks(network: Any) -> Iterator[tuple[str, list[str]]]:
    """The first and the last matrix of some blocks, in every list of blocks that a diffusion transformer has."""
    for stack, blocks in network.named_children():
        if not isinstance(blocks, torch.nn.ModuleList):
            continue
        for place in range(min(BLOCKS, len(blocks))):
            block = f"{stack}.{place * len(blocks) // min(BLOCKS, len(blocks))}"
            layers = [name for name, layer in network.get_submodule(block).named_modules() if _is_linear(layer)]
            if layers:
                yield block, [f"{block}.{layer}" for layer in dict.fromkeys((layers[0], layers[-1]))]


def _is_linear(layer: Any) -> bool:
    return hasattr(layer, "weight") and hasattr(layer, "in_features") and hasattr(layer, "out_features")


def _groups_of_transformers(unet: Any) -> Iterator[tuple[str, list[str]]]:
    """Some matrices in every block of a UNet that has transformers; those of a masked transformer count as one."""
    depths: dict[tuple[str, str], int] = {}
    for name, _ in unet.named_modules():
        found = TRANSFORMER.match(name)
        if found:
            place = found["block"] or found["layers"], found[1]
            depths[place] = max(depths.get(place, 0), int(found["number"]) + 1)
    count = sum(map(len, MATRICES.values()))
    for (block, transformers), depth in depths.items():
        number = 0
        for group, layers in MATRICES.items():
            matrices: list[str] = []
            for layer in layers:
                matrices.append(f"{transformers}.{number * depth // count}.{layer}")
                number += 1
            yield f"{block} {group}", matrices


def _group(model: Any, layers: Sequence[str]) -> GroupSamples:
    shapes: list[tuple[int, int]] = []
    values: list[Tensor] = []
    roundings = [0.0]
    for name in layers:
        layer = model.model.get_submodule(f"diffusion_model.{name}")
        shapes.append((layer.out_features, layer.in_features))
        stored = _stored(model, f"diffusion_model.{name}.weight", layer)
        weight = _values(layer, stored, shapes[-1])
        if weight is None:
            continue
        sampled = _sampled(_merged(model, f"diffusion_model.{name}.weight", weight))
        values.append(sampled)
        roundings.append(_rounding(stored, weight, sampled))
    whole = torch.cat(values).half() if len(values) == len(layers) else None
    return GroupSamples(tuple(shapes), whole, max(roundings))


def _stored(model: Any, key: str, layer: Any) -> Any:
    """A weight as it lies there, before ComfyUI patched it."""
    kept = model.backup.get(key)
    hooked = model.hook_backup.get(key)
    return kept.weight if kept is not None else hooked[0] if hooked is not None else layer.weight


def _values(layer: Any, stored: Any, shape: tuple[int, int]) -> Tensor | None:
    """The numbers that a weight stands for, or None where the layer cannot say."""
    if not isinstance(stored, Tensor) or stored.device.type == "meta":
        return None
    convert, unpack = getattr(layer, "convert_weight", None), getattr(layer, "get_weight", None)
    if callable(convert):
        stored = convert(stored)
    elif callable(unpack):
        stored = _unpacked(unpack, stored)
    known = isinstance(stored, Tensor) and stored.is_floating_point() and tuple(stored.shape) == shape
    return stored if known else None


def _unpacked(unpack: Any, stored: Any) -> Any:
    """The weight of a GGUF layer, which unpacks it together with the patches that lie on the tensor."""
    patches = getattr(stored, "patches", None)
    try:
        if patches:
            stored.patches = []
        return unpack(stored, torch.float32)
    finally:
        if patches:
            stored.patches = patches


def _merged(model: Any, key: str, weight: Tensor) -> Tensor:
    """The weight with other checkpoints merged into it, as ComfyUI does, and nothing else."""
    patches = _merges(model.patches.get(key, ()))
    if not patches:
        return weight
    before = {key: [(weight, None)]}
    return comfy.lora.calculate_weight(patches, weight.to(torch.float32, copy=True), key, original_weights=before)


def _merges(patches: Sequence[Any]) -> list[Any]:
    """Those patches that merge another checkpoint, without the LoRAs on that one."""
    found: list[Any] = []
    for strength, what, *rest in filter(_is_merge, patches):
        # ComfyUI writes another model's weight as a list: the weight, then the patches on it.
        found.append((strength, [what[0], *_merges(what[1:])] if isinstance(what, list) else what, *rest))
    return found


def _is_merge(patch: Any) -> bool:
    """Whether a weight patch brings weights of another checkpoint, rather than a change that a LoRA may be."""
    strength, what, kept, *_ = patch
    if isinstance(what, WeightAdapterBase):
        return False
    if isinstance(what, list):
        return strength != 0.0 or kept != 1.0
    kind, held = what if len(what) == 2 else ("diff", what)
    # A change of attention's strength has no weight of its own; a LoRA leaves the model's as it is.
    return kind in ("set", "model_as_lora") or (kept != 1.0 and held[0] is not None)


def _sampled(weight: Tensor) -> Tensor:
    """Values from all over a matrix, by a stride that no width of a layer divides."""
    places = torch.arange(1, VALUES + 1) * 2654435761 % weight.numel()
    return weight.detach().flatten()[places.to(weight.device)].float().cpu()


def _rounding(stored: Tensor, weight: Tensor, values: Tensor) -> float:
    """The relative error that a weight's storage brings, from the bits it has for each value."""
    if type(stored.data) is Tensor and stored.is_floating_point() and stored.element_size() == 1:
        limits = torch.finfo(stored.dtype)
        # Below the smallest normal number the steps grow no finer: small weights lose more.
        steps = limits.eps * 2 ** values.abs().clamp_min(limits.smallest_normal).log2().floor()
        return (steps.norm() / math.sqrt(12) / values.norm().clamp_min(1e-12)).item()
    bits = 8 * stored.nbytes / weight.numel()
    return 0.0 if bits >= 16 else 2 ** (1 - bits)
