"""Graphs as a person builds them, node by node, on tiny models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from semblance.host.files import DEMO_MODELS
from semblance.host.instantstyle.adapter import LoadedAdapter
from semblance.host.instantstyle.encoding import EncodedStyle
from semblance.nodes.instantstyle import InstantStyle
from semblance.nodes.load import LoadAdapter
from semblance.nodes.reference import EncodeReference
from semblance.tests.tiny_models import adapter_state_dict, empty_latent, ksampler, make_conditioning

Family = str
COME_WITH_THE_PACK = sorted(path.name for path in (DEMO_MODELS / "ipadapter").glob("*.safetensors"))
"""The adapters that Load IP-Adapter offers on every machine."""


def run(node: Any, *values: Any, **named: Any) -> Any:
    """The NodeOutput of `node`, called as ComfyUI calls it."""
    return node.PREPARE_CLASS_CLONE({"hidden_inputs": {}}).execute(*values, **named)


def load_adapter(models: Path, kind: Family = "sd15", variant: str = "base", **options: Any) -> LoadedAdapter:
    """A tiny adapter from a file in `models`, through its node."""
    name = f"{kind} {variant}.safetensors"
    save_file(adapter_state_dict(kind, variant, **options), models / "ipadapter" / name)
    return run(LoadAdapter, name)[0]


def picture(seed: int = 0, height: int = 56, width: int = 56, images: int = 1) -> Tensor:
    """An IMAGE whose pixels are 8-bit levels, as those of a file are."""
    noise = torch.rand((images, height, width, 3), generator=torch.Generator().manual_seed(seed))
    return (noise * 255).round() / 255


def encode(adapter: LoadedAdapter, encoder: Any, *pictures: Tensor, **settings: Any) -> EncodedStyle:
    """The REFERENCE of Encode Style Reference with `pictures` on its sockets."""
    return encode_and_show(adapter, encoder, *pictures, **settings)[0]


def encode_and_show(adapter: LoadedAdapter, encoder: Any, *pictures: Tensor, **settings: Any) -> Any:
    """Both outputs of Encode Style Reference."""
    sockets = {f"picture{place}": image for place, image in enumerate(pictures)}
    settings = {"combine": "concatenate", "fit": "crop"} | settings
    return run(EncodeReference, adapter, encoder, sockets, **settings)


def styled(model: Any, style: EncodedStyle, **settings: Any) -> Any:
    """MODEL with InstantStyle on it."""
    settings = {"blocks": {"blocks": "all"}, "strength": 1.0, "start": 0.0, "end": 1.0} | settings
    return run(InstantStyle, model, style, **({"curve": {"curve": "constant"}} | settings))[0]


def sampled(model: Any, kind: Family = "sd15", images: int = 1, **settings: Any) -> Tensor:
    """What KSampler makes of MODEL in two steps."""
    positive, negative = make_conditioning(kind, seed=1), make_conditioning(kind, seed=2)
    return ksampler(model, positive, negative, empty_latent(images), **({"steps": 2} | settings))


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())
