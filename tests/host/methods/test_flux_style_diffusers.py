"""XLabs' form equals diffusers, which has it too: the whole transformer with the same weights and the same adapter."""

from __future__ import annotations

from typing import Any

import comfy.utils
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from semblance.attention.adapters.checkpoint import flatten
from semblance.attention.adapters.flux_checkpoint import named_alike
from semblance.attention.engine.scope import Scope
from semblance.attention.references.style import StyleReference
from semblance.host.binding.model import add_patch
from semblance.host.instantstyle.adapter import manage_adapter
from semblance.host.instantstyle.applying import map_styled, style_patch
from semblance.host.instantstyle.encoding import EncodedStyle
from semblance.tests.support.studio import relative_error
from semblance.tests.support.transformers import TRANSFORMERS
from semblance.tests.tiny_models import flux_adapter_state_dict
from semblance.tests.tiny_models.adapters import nested

FLUX = TRANSFORMERS["flux"]
SIGMA, GUIDANCE, SCALE = 0.6, 4.0, 0.8


def of_diffusers(network: Any, tensors: dict[str, Tensor]) -> Any:
    """diffusers' Flux with a host's weights and, if there are tensors, an adapter from XLabs' file."""
    from diffusers import FluxTransformer2DModel

    params = network.params
    transformer = FluxTransformer2DModel(
        in_channels=64,
        num_layers=params.depth,
        num_single_layers=params.depth_single_blocks,
        attention_head_dim=params.hidden_size // params.num_heads,
        num_attention_heads=params.num_heads,
        joint_attention_dim=params.context_in_dim,
        pooled_projection_dim=params.vec_in_dim,
        guidance_embeds=True,
        axes_dims_rope=tuple(params.axes_dim),
    )
    config = {"depth": params.depth, "depth_single_blocks": params.depth_single_blocks}
    places = comfy.utils.flux_to_diffusers({**config, "hidden_size": params.hidden_size})
    own = network.state_dict()
    weights = {name: placed(own, places[name]) for name in transformer.state_dict()}
    transformer.load_state_dict(weights)
    if tensors:
        transformer._load_ip_adapter_weights(nested(named_alike(flatten(tensors))), low_cpu_mem_usage=False)
        for processor in transformer.attn_processors.values():
            if hasattr(processor, "scale"):
                processor.scale = [SCALE]
    return transformer.eval()


def placed(own: dict[str, Tensor], place: Any) -> Tensor:
    """A weight of diffusers by the place that ComfyUI has it in."""
    name, offset, change = (place, None, None) if isinstance(place, str) else (*place, None)[:3]
    tensor = own[name] if offset is None else own[name].narrow(*offset)
    return tensor if change is None else change(tensor)


def velocity(model: ModelPatcher, x: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
    """What the host's model predicts, through its own entrance."""
    options = model.model_options["transformer_options"]
    sigma = torch.tensor([SIGMA])
    extras = {"y": pooled, "guidance": torch.tensor([GUIDANCE])}
    denoised = model.model.apply_model(x, sigma, c_crossattn=text, transformer_options=options, **extras)
    return (x - denoised) / SIGMA


@torch.no_grad()
@pytest.mark.parametrize("with_adapter", [False, True])
def test_the_transformer_predicts_what_diffusers_predicts(with_adapter: bool) -> None:
    noise = torch.Generator().manual_seed(2)
    model = FLUX.model(mlp_ratio=4.0)
    tensors = flux_adapter_state_dict("XLabs") if with_adapter else {}
    transformer = of_diffusers(model.model.diffusion_model, tensors)
    x, text, pooled, seen = (
        torch.randn(size, generator=noise) for size in ((1, 16, 8, 6), (1, 7, 20), (1, 24), (1, 48))
    )
    if with_adapter:
        adapter = manage_adapter("xlabs", flatten(tensors))
        style = EncodedStyle(StyleReference((seen,), seen, (1.0,)), adapter, "")
        model_map = map_styled(model)
        scope = Scope(model_map.family.preset("all"))
        plain = velocity(model, x, text, pooled)
        model = add_patch(model, style_patch(style, model_map, scope, SCALE, "auto"))
        assert relative_error(velocity(model, x, text, pooled), plain) > 1e-2
    packed = x.unflatten(3, (3, 2)).unflatten(2, (4, 2)).permute(0, 2, 4, 1, 3, 5).reshape(1, 12, 64)
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(3.0), indexing="ij")
    places = torch.stack([torch.zeros(4, 3), rows, columns], dim=-1).reshape(12, 3)
    predicted = transformer(
        hidden_states=packed,
        encoder_hidden_states=text,
        pooled_projections=pooled,
        timestep=torch.tensor([SIGMA]),
        guidance=torch.tensor([GUIDANCE]),
        img_ids=places,
        txt_ids=torch.zeros(7, 3),
        joint_attention_kwargs={"ip_adapter_image_embeds": [seen[:, None]]} if with_adapter else {},
    ).sample
    expected = predicted.reshape(1, 4, 3, 16, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(x.shape)
    assert relative_error(velocity(model, x, text, pooled), expected) <= 1e-5
