"""The flow transformer: the host's own Flux at a small width, and its arithmetic written out for training.

The host's forward adds in place, which cannot be trained through. This one gives the same numbers from the same weights
(tests/demo/test_flow.py), and as one plain function it compiles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .networks import EMBED_WIDTH, LATENT_CHANNELS, fresh_weights, zero_

HEAD_WIDTH = 32
FLOW_CONFIG: dict[str, Any] = {
    "image_model": "flux",
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "vec_in_dim": EMBED_WIDTH,
    "context_in_dim": EMBED_WIDTH,
    "hidden_size": 160,
    "num_heads": 5,
    "mlp_ratio": 3.0,
    "depth": 2,
    "depth_single_blocks": 4,
    "axes_dim": [8, 12, 12],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": False,
    "txt_ids_dims": [],
}


def build_flow() -> Any:
    """The host's Flux, with silent residual branches to start from."""
    import comfy.ops
    from comfy.ldm.flux.model import Flux

    network = fresh_weights(Flux(**FLOW_CONFIG, dtype=torch.float32, operations=comfy.ops.disable_weight_init))
    modulations = [*_modulations(network.double_blocks, network.single_blocks), network.final_layer.adaLN_modulation[1]]
    for layer in [*modulations, network.final_layer.linear]:
        zero_(layer)
    for module in network.modules():
        if isinstance(module, nn.RMSNorm):
            nn.init.ones_(module.weight)
    return network


def velocity(network: Any, latents: Tensor, times: Tensor, context: Tensor, pooled: Tensor) -> Tensor:
    """What the host's Flux predicts: noise less picture.

    `latents` (rows, 4, height, width) at `times` (rows,) from 0, the picture, to 1, noise; `context` (rows, tokens,
    EMBED_WIDTH) and `pooled` (rows, EMBED_WIDTH) of the captions.
    """
    return velocity_and_states(network, latents, times, context, pooled)[0]


def velocity_and_states(
    network: Any, latents: Tensor, times: Tensor, context: Tensor, pooled: Tensor
) -> tuple[Tensor, Tensor]:
    """As `velocity`, and the picture's tokens behind the first single block: (rows, patches, hidden_size)."""
    rows, _, height, width = latents.shape
    image, text = network.img_in(_to_patches(latents)), network.txt_in(context)
    vector = _embed(network.time_in, _time_waves(times)) + _embed(network.vector_in, pooled)
    vector = functional.silu(vector)[:, None]
    turn = _rotation(text.shape[1], height // 2, width // 2).to(latents)
    for block in network.double_blocks:
        image, text = _double(block, image, text, vector, turn)
    joined = torch.cat([text, image], dim=1)
    states = joined
    for number, block in enumerate(network.single_blocks):
        joined = _single(block, joined, vector, turn)
        states = joined if number == 0 else states
    shift, scale = network.final_layer.adaLN_modulation[1](vector).chunk(2, dim=-1)
    out = network.final_layer.linear(_modulated(joined[:, text.shape[1] :], shift, scale))
    return _to_latents(out, rows, height, width), states[:, text.shape[1] :]


def _double(block: Any, image: Tensor, text: Tensor, vector: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
    streams = ((text, block.txt_mod, block.txt_attn), (image, block.img_mod, block.img_attn))
    parts = [modulation.lin(vector).chunk(6, dim=-1) for _, modulation, _ in streams]
    heads = [
        _normed_heads(attention.qkv(_modulated(states, shift, scale)), attention.norm)
        for (states, _, attention), (shift, scale, *_) in zip(streams, parts, strict=True)
    ]
    query, key, value = (torch.cat(pair, dim=2) for pair in zip(*heads, strict=True))
    attended = _attend(query, key, value, turn).split([text.shape[1], image.shape[1]], dim=1)
    mlps = (block.txt_mlp, block.img_mlp)
    text, image = (
        _feed(states + gate * attention.proj(seen), mlp, *rest)
        for (states, _, attention), (_, _, gate, *rest), seen, mlp in zip(streams, parts, attended, mlps, strict=True)
    )
    return image, text


def _feed(states: Tensor, mlp: Any, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
    return states + gate * mlp(_modulated(states, shift, scale))


def _single(block: Any, states: Tensor, vector: Tensor, turn: Tensor) -> Tensor:
    shift, scale, gate = block.modulation.lin(vector).chunk(3, dim=-1)
    width = states.shape[2]
    packed, fed = block.linear1(_modulated(states, shift, scale)).split([3 * width, block.mlp_hidden_dim], dim=2)
    attended = _attend(*_normed_heads(packed, block.norm), turn)
    return states + gate * block.linear2(torch.cat([attended, block.mlp_act(fed)], dim=2))


def _modulated(states: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return functional.layer_norm(states, states.shape[-1:], eps=1e-6) * (1 + scale) + shift


def _normed_heads(packed: Tensor, norm: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys, values side by side (rows, tokens, 3 x width) -> each (rows, heads, tokens, HEAD_WIDTH)."""
    query, key, value = packed.unflatten(2, (3, -1, HEAD_WIDTH)).permute(2, 0, 3, 1, 4)
    return _rms(query, norm.query_norm.weight), _rms(key, norm.key_norm.weight), value


def _rms(states: Tensor, weight: Tensor) -> Tensor:
    return states * (states.pow(2).mean(dim=-1, keepdim=True) + torch.finfo(states.dtype).eps).rsqrt() * weight


def _attend(query: Tensor, key: Tensor, value: Tensor, turn: Tensor) -> Tensor:
    """Written out: on a CPU torch's fused attention takes far longer to go back through a few dozen tokens."""
    scores = (_turned(query, turn) * HEAD_WIDTH**-0.5) @ _turned(key, turn).transpose(2, 3)
    return (scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)


def _turned(states: Tensor, turn: Tensor) -> Tensor:
    """The rotary embedding: each pair of neighbouring numbers turned by the token's angles; `turn` has cos and sin."""
    cos, sin = turn
    left, right = states.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([left * cos - right * sin, left * sin + right * cos], dim=-1).flatten(-2)


def _rotation(text: int, rows: int, columns: int) -> Tensor:
    """Cosines and sines (2, tokens, HEAD_WIDTH / 2): text at no place, image tokens by row and column."""
    places = torch.zeros(text + rows * columns, 3)
    places[text:, 1:] = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float()
    axes: Sequence[int] = FLOW_CONFIG["axes_dim"]
    angles = [
        places[:, axis, None] * FLOW_CONFIG["theta"] ** (-torch.arange(0, width, 2) / width)
        for axis, width in enumerate(axes)
    ]
    turn = torch.cat(angles, dim=1)
    return torch.stack([turn.cos(), turn.sin()])


def _time_waves(times: Tensor) -> Tensor:
    frequencies = torch.exp(-math.log(10000) * torch.arange(128, device=times.device) / 128)
    waves = 1000 * times[:, None] * frequencies
    return torch.cat([waves.cos(), waves.sin()], dim=1)


def _embed(embedder: Any, given: Tensor) -> Tensor:
    return embedder.out_layer(functional.silu(embedder.in_layer(given)))


def _to_patches(latents: Tensor) -> Tensor:
    """(rows, channels, height, width) -> (rows, patches, channels x 4)."""
    return functional.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)


def _to_latents(patches: Tensor, rows: int, height: int, width: int) -> Tensor:
    return functional.pixel_shuffle(patches.transpose(1, 2).reshape(rows, -1, height // 2, width // 2), 2)


def _modulations(double: Any, single: Any) -> list[nn.Module]:
    both = [modulation.lin for block in double for modulation in (block.img_mod, block.txt_mod)]
    return both + [block.modulation.lin for block in single]
