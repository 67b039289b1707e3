"""Tiny things that attach to a tiny UNet: IP-Adapters in their published layouts, a ControlNet, a LoRA."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import comfy.cldm.cldm
import comfy.controlnet
import comfy.ops
import comfy.sd
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .encoders import TEXT_WIDTH, VISION_WIDTH
from .files import register_tiny_supported_models
from .unets import SUPPORTED, UNET_CONFIGS, Family
from .weights import seed_weights, seeded_state_dict, seeded_tensor

AdapterVariant = Literal["base", "plus", "full-face"]

PERCEIVER_DEPTH = 4
PERCEIVER_INNER = 2 * 64  # heads of 64, as published


def adapter_state_dict(
    kind: Family,
    variant: AdapterVariant = "base",
    *,
    tokens: int | None = None,
    clip_width: int | None = None,
    seed: int = 0,
    unet_config: dict[str, Any] | None = None,
) -> dict[str, Tensor]:
    """An IP-Adapter as a flat safetensors file holds it: image_proj.* and ip_adapter.{odd}.to_k_ip.weight.

    `clip_width` is the width of what the variant reads from the image encoder; left out, it is that of the encoder
    the published file is made for (bigG for SDXL base, else H). `tokens` are 4 for base and 16 for plus when left
    out; full-face makes one of every patch token.
    """
    config = unet_config or UNET_CONFIGS[kind]
    context_width = config["context_dim"]
    projector = {
        "base": lambda: linear_projector(
            clip_width or TEXT_WIDTH["g" if kind == "sdxl" else "h"], tokens or 4, context_width
        ),
        "plus": lambda: perceiver_projector(clip_width or VISION_WIDTH["h"], tokens or 16, context_width),
        "full-face": lambda: patch_projector(clip_width or VISION_WIDTH["h"], context_width),
    }[variant]()
    shapes = {f"image_proj.{name}": shape for name, shape in projector.items()}
    for order, width in enumerate(cross_attention_widths(config)):
        for name in ("to_k_ip", "to_v_ip"):
            shapes[f"ip_adapter.{2 * order + 1}.{name}.weight"] = (width, context_width)
    return seeded_state_dict(shapes, seed)


def nested(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """A flat file as the published `.bin` files nest it."""
    parts: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    return parts


def linear_projector(clip_width: int, tokens: int, context_width: int) -> dict[str, tuple[int, ...]]:
    """Base: one linear layer makes all tokens of one embedding."""
    return {"proj.weight": (tokens * context_width, clip_width), "proj.bias": (tokens * context_width,)} | norm(
        "norm", context_width
    )


def perceiver_projector(clip_width: int, tokens: int, context_width: int) -> dict[str, tuple[int, ...]]:
    """Plus: learned latents look at the patch tokens, four times."""
    width = context_width
    shapes = {"latents": (1, tokens, width)} | linear("proj_in", clip_width, width)
    for layer in range(PERCEIVER_DEPTH):
        attention, feed_forward = f"layers.{layer}.0", f"layers.{layer}.1"
        shapes |= norm(f"{attention}.norm1", width) | norm(f"{attention}.norm2", width)
        shapes[f"{attention}.to_q.weight"] = (PERCEIVER_INNER, width)
        shapes[f"{attention}.to_kv.weight"] = (2 * PERCEIVER_INNER, width)
        shapes[f"{attention}.to_out.weight"] = (width, PERCEIVER_INNER)
        shapes |= norm(f"{feed_forward}.0", width)
        shapes[f"{feed_forward}.1.weight"] = (4 * width, width)
        shapes[f"{feed_forward}.3.weight"] = (width, 4 * width)
    return shapes | linear("proj_out", width, context_width) | norm("norm_out", context_width)


def patch_projector(clip_width: int, context_width: int) -> dict[str, tuple[int, ...]]:
    """Full-face: every patch token through two layers."""
    hidden = linear("proj.0", clip_width, clip_width) | linear("proj.2", clip_width, context_width)
    return hidden | norm("proj.3", context_width)


def linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def cross_attention_widths(unet_config: dict[str, Any]) -> list[int]:
    """Width of every cross-attention in the order adapter files number them: diffusers' down, up, mid."""
    names = [name for name in comfy.utils.unet_to_diffusers(unet_config) if name.endswith("attn2.to_k.weight")]
    return [diffusers_width(name, unet_config) for name in sorted(names, key=adapter_order)]


def adapter_order(name: str) -> tuple[int, list[int]]:
    part = ("down", "up", "mid").index(name.split("_")[0])
    return part, [int(number) for number in re.findall(r"\.(\d+)", name)]


def diffusers_width(name: str, unet_config: dict[str, Any]) -> int:
    multipliers = unet_config["channel_mult"]
    part, _, rest = name.partition("_block")
    levels = {"down": multipliers, "up": multipliers[::-1], "mid": multipliers[-1:]}[part]
    level = int(re.findall(r"\d+", rest)[0]) if part != "mid" else 0
    return unet_config["model_channels"] * levels[level]


def controlnet_state_dict(kind: Family, seed: int = 0, strength: float = 0.3) -> dict[str, Tensor]:
    """A ControlNet as its files hold it; its last layers, zero before training, are `strength` strong."""
    config = SUPPORTED[kind](UNET_CONFIGS[kind]).unet_config
    config = {name: value for name, value in config.items() if name not in ("out_channels", "transformer_depth_output")}
    network = comfy.cldm.cldm.ControlNet(
        **config, hint_channels=3, dtype=torch.float32, operations=comfy.ops.disable_weight_init
    )
    seed_weights(network, seed)
    last_layers = ("zero_convs.", "middle_block_out.")
    weights = network.state_dict()
    return {name: weight * strength if name.startswith(last_layers) else weight for name, weight in weights.items()}


def make_controlnet(kind: Family, seed: int = 0, strength: float = 0.3) -> comfy.controlnet.ControlNet:
    """A CONTROL_NET, through the host's own reader of such files."""
    register_tiny_supported_models()
    return comfy.controlnet.load_controlnet_state_dict(controlnet_state_dict(kind, seed, strength))


def lora_state_dict(model: ModelPatcher, seed: int = 0, rank: int = 2, strength: float = 0.3) -> dict[str, Tensor]:
    """A LoRA over every attention projection of `model`, whose changes are about `strength` of the weights."""
    lora: dict[str, Tensor] = {}
    for name, weight in model.model.diffusion_model.named_parameters():
        if re.search(r"attn[12]\.to_(q|k|v|out\.0)\.weight$", name):
            layer = f"diffusion_model.{name.removesuffix('.weight')}"
            up, down = (weight.shape[0], rank), (rank, weight.shape[1])
            lora[f"{layer}.lora_up.weight"] = strength * seeded_tensor(f"{layer}.up", up, seed)
            lora[f"{layer}.lora_down.weight"] = seeded_tensor(f"{layer}.down", down, seed)
    return lora


def with_lora(model: ModelPatcher, seed: int = 0, strength: float = 1.0) -> ModelPatcher:
    """`model` with a tiny LoRA on it, as LoraLoaderModelOnly returns it."""
    patched, _ = comfy.sd.load_lora_for_models(model, None, lora_state_dict(model, seed), strength, 0.0)
    assert patched is not None
    return patched
