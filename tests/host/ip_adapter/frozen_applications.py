"""The frozen cases of ComfyUI_IPAdapter_plus: their inputs as ComfyUI has them, and one call of their networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from semblance.tests.support.old_nodes import FACTS, TENSORS, frozen_adapter, masks_of, pictures_of

__all__ = ["FACTS", "TENSORS", "adapter_of", "images", "masks", "predicted_noise"]
adapter_of, images, masks = frozen_adapter, pictures_of, masks_of


def predicted_noise(model: Any, kind: str) -> Tensor:
    """The network's output for both sides of the case's latents, unconditional rows first."""
    facts, case = FACTS["kinds"][kind], f"in.{kind}"
    sigma = model.model.model_sampling.sigmas[facts["timestep"]]
    latent = TENSORS[f"{case}.latent_vp"].repeat(2, 1, 1, 1)
    x = latent * (1 + sigma**2).sqrt()
    context = torch.cat([TENSORS[f"{case}.negative"], TENSORS[f"{case}.positive"]])
    extra: dict[str, Any] = {}
    if kind == "sdxl":
        pooled = torch.cat([TENSORS[f"{case}.negative_pooled"], TENSORS[f"{case}.positive_pooled"]])
        extra["y"] = model.model.encode_adm(pooled_output=pooled, **facts["size_conditioning"])
    options = {**model.model_options["transformer_options"], "cond_or_uncond": [1, 0]}
    with torch.no_grad():
        clean = model.model.apply_model(
            x, sigma.expand(len(x)), c_crossattn=context, transformer_options=options, **extra
        )
    return (x - clean) / sigma
