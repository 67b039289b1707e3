"""What Reference Style and the methods for UNets refuse on transformers, and how they say so."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from torch import Tensor, nn

from semblance.host.binding.model import map_model, map_transformer, map_unet
from semblance.host.identity import stamp_of
from semblance.host.ip_adapter.applying import check_adapter
from semblance.tests.support.reference_styles import picture, sampled, styled
from semblance.tests.support.studio import Studio
from semblance.tests.support.transformers import HUNYUAN_DIT, TRANSFORMERS, TransformerFamily

NAMES = {
    "flux": "Flux",
    "flux2": r"Flux\.2",
    "chroma": "Chroma",
    "qwen_image": "Qwen-Image",
    "krea2": "Krea 2",
    "z_image": "Z-Image",
    "lumina2": "Lumina 2",
    "anima": "Anima",
    "cosmos2": "Cosmos 2",
    "wan": "Wan",
    "sd35": r"SD 3\.5",
}


@cache
def tiny(family: TransformerFamily) -> ModelPatcher:
    return family.model()


def test_methods_for_unets_name_the_family_and_what_there_is_for_it(family: TransformerFamily, sd15: Studio) -> None:
    """InstantStyle and ConsiStory ask for the map of a UNet, StyleDrop for the map of any."""
    told = f"{NAMES[family.name]} transformer.* acts on the UNet of SD 1.5 or SDXL.*Reference Style"
    for method in METHODS:
        with pytest.raises(ValueError, match=told):
            method(tiny(family), sd15)


METHODS: tuple[Callable[[Any, Studio], Any], ...] = (
    lambda model, studio: map_unet(model),
    lambda model, studio: check_adapter(studio.adapters["base"], model),
    lambda model, studio: map_model(model),
)


def test_a_family_that_no_patch_can_reach_is_named() -> None:
    model = HUNYUAN_DIT.model()
    with pytest.raises(ValueError, match="HunyuanDiT, whose attention ComfyUI lets no node reach"):
        map_transformer(model)
    for other in (map_unet, stamp_of):
        with pytest.raises(ValueError, match="HunyuanDiT, whose attention ComfyUI lets no node reach"):
            other(model)


class OwnFlux(nn.Module):
    """As packs with kernels of their own put it in place of the host's: it never asks for an attention of ours."""

    def __init__(self, around: nn.Module) -> None:
        super().__init__()
        self.around = around


def test_a_transformer_of_another_packs_own_is_not_taken_for_the_hosts() -> None:
    model = TRANSFORMERS["flux"].model()
    model.model.diffusion_model = OwnFlux(model.model.diffusion_model)
    with pytest.raises(ValueError, match="is of a family that Semblance does not know.*Load a UNet"):
        map_transformer(model)


@pytest.mark.parametrize("ours_first", [True, False])
def test_a_model_whose_attention_never_comes_by_is_noticed_at_the_first_step(
    family: TransformerFamily, ours_first: bool
) -> None:
    def with_own_kernels(model: ModelPatcher) -> ModelPatcher:
        module, bypassed = model.model.diffusion_model, model.clone()

        def forward(*arguments: Any, transformer_options: Any = None, **named: Any) -> Tensor:
            came.append(1)
            own = [{**one, OVERRIDE: None} if isinstance(one, dict) and "sigmas" in one else one for one in arguments]
            if transformer_options is not None:
                named["transformer_options"] = {**transformer_options, OVERRIDE: None}
            for options in (*own, *named.values()):
                if isinstance(options, dict):
                    options.pop(OVERRIDE, None)
            return type(module).forward(module, *own, **named)

        bypassed.add_object_patch("diffusion_model.forward", forward)
        return bypassed

    came: list[int] = []
    steps: list[int] = []
    plain = tiny(family)
    model = with_own_kernels(styled(plain, picture(family))) if ours_first else with_style_on(family, with_own_kernels)
    with pytest.raises(ValueError, match=r"Reference Style.*no attention of the model came.*Bypass that node"):
        sampled(family, model, callback=lambda *_: steps.append(1))
    assert came and not steps
    idle = with_own_kernels(styled(plain, picture(family), strength=0.0))
    assert torch.isfinite(sampled(family, idle, steps=1)).all()


def with_style_on(family: TransformerFamily, change: Callable[[ModelPatcher], ModelPatcher]) -> ModelPatcher:
    return styled(change(tiny(family)), picture(family))


OVERRIDE = "optimized_attention_override"


@pytest.mark.parametrize(("node", "name"), [(EasyCacheNode, "EasyCache"), (LazyCacheNode, "LazyCache")])
def test_caches_that_skip_calls_are_refused_by_name_before_the_first_step(node: Any, name: str) -> None:
    family, steps = TRANSFORMERS["flux"], list[int]()
    model = styled(node.execute(tiny(family), 0.2, 0.15, 0.95, False)[0], picture(family))
    with pytest.raises(ValueError, match=f"{name} on the same model answers some steps.*Bypass it"):
        sampled(family, model, callback=lambda *_: steps.append(1))
    assert not steps


def test_a_reference_wider_than_the_places_of_sd35_is_refused_before_the_first_step() -> None:
    """The host's table of positions ends in an AssertionError."""
    family, steps = TRANSFORMERS["sd35"], list[int]()
    model = styled(tiny(family), picture(family, size=(120, 8)))
    with pytest.raises(ValueError, match=r"The reference is 8x120 latent pixels, and SD 3\.5 has places for 96x96"):
        sampled(family, model, callback=lambda *_: steps.append(1))
    assert not steps
    idle = styled(tiny(family), picture(family, size=(120, 8)), strength=0.0)
    assert torch.isfinite(sampled(family, idle, steps=1)).all()


@pytest.mark.parametrize(
    ("entry", "node"), [("time_dim_concat", "WanPhantomSubjectToVideo"), ("context_latents", "Bernini Conditioning")]
)
def test_pictures_that_wan_puts_among_the_frames_are_refused_by_the_name_of_their_conditioning(
    entry: str, node: str
) -> None:
    family, steps = TRANSFORMERS["wan"], list[int]()
    latent = family.latent(seed=3)["samples"]
    positive = family.conditioning(**{entry: [latent] if entry == "context_latents" else latent})
    model = styled(tiny(family), picture(family))
    with pytest.raises(ValueError, match=f"holds {entry}, pictures that Wan puts among the frames.*bypass {node}"):
        sampled(family, model, positive=positive, callback=lambda *_: steps.append(1))
    assert not steps


def test_a_reference_of_another_familys_latents_is_refused_before_the_first_step() -> None:
    """Of Flux 16 channels, of Flux.2 128."""
    model = styled(tiny(TRANSFORMERS["flux"]), picture(TRANSFORMERS["flux2"]))
    with pytest.raises(ValueError, match="a latent of 128 channels, and the sampler works on 16"):
        sampled(TRANSFORMERS["flux"], model)
