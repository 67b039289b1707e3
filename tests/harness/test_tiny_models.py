"""The tiny models are what they stand for: real topology, real loaders, real samplers."""

from __future__ import annotations

from pathlib import Path

import comfy.sd
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

import nodes
from semblance.tests.support.frozen_cases import load_reference
from semblance.tests.support.oracles import oracle_clip_vision, oracle_unet
from semblance.tests.support.speeds import one_family
from semblance.tests.tiny_models import (
    CLIP_KINDS,
    CONTEXT_WIDTH,
    POOLED_WIDTH,
    VISION_KINDS,
    Family,
    adapter_state_dict,
    diffusers_unet,
    empty_latent,
    ksampler,
    make_clip,
    make_clip_vision,
    make_conditioning,
    make_controlnet,
    make_unet,
    make_vae,
    random_latent,
    register_tiny_supported_models,
    sampler_custom,
    with_lora,
    write_checkpoint,
    write_clip_vision,
)
from semblance.tests.tiny_models.encoders import TEXT_WIDTH, VISION_WIDTH

FAMILIES: tuple[Family, ...] = ("sd15", "sdxl")
both_families = one_family()


def relative_error(result: Tensor, expected: Tensor) -> float:
    return ((result - expected).norm() / expected.norm()).item()


def sampled(kind: Family, model: ModelPatcher) -> Tensor:
    return ksampler(model, make_conditioning(kind, seed=1), make_conditioning(kind, seed=2), empty_latent(2), steps=2)


def encoded(clip: comfy.sd.CLIP, text: str) -> Tensor:
    context, _ = clip.encode_from_tokens(clip.tokenize(text), return_pooled=True)
    return context


@both_families
def test_unet_samples_the_same_twice_through_the_real_sampler(kind: Family) -> None:
    first, second = (sampled(kind, make_unet(kind, seed=3)) for _ in range(2))
    assert torch.isfinite(first).all() and first.std() > 0.1
    assert torch.equal(first, second)


@both_families
def test_unet_follows_a_ladder_of_ones_own(kind: Family) -> None:
    text = make_conditioning(kind, rows=2)
    sigmas = torch.tensor([5.0, 1.0, 0.0])
    result = sampler_custom(make_unet(kind), text, text, random_latent(2), sigmas)
    assert result.shape == (2, 4, 16, 16) and torch.isfinite(result).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_unet_keeps_the_asked_dtype(dtype: torch.dtype) -> None:
    model = make_unet("sd15", dtype=dtype)
    assert {parameter.dtype for parameter in model.model.diffusion_model.parameters()} == {dtype}
    assert torch.isfinite(sampled("sd15", model)).all()


def test_velocity_prediction_is_another_model() -> None:
    assert not torch.equal(sampled("sd15", make_unet("sd15")), sampled("sd15", make_unet("sd15", v_prediction=True)))


@both_families
def test_unet_can_be_copied_deeply(kind: Family) -> None:
    model = make_unet(kind, seed=5)
    copy = model.clone(force_deepcopy=True)
    assert copy.model is not model.model
    assert torch.equal(sampled(kind, copy), sampled(kind, model))


@both_families
def test_unet_equals_diffusers(kind: Family) -> None:
    model = make_unet(kind, seed=11).model
    generator = torch.Generator().manual_seed(5)
    latent = torch.randn((2, 4, 16, 16), generator=generator)
    context = torch.randn((2, 77, CONTEXT_WIDTH[kind]), generator=generator)
    pooled = torch.randn((2, POOLED_WIDTH), generator=generator)
    timesteps = torch.tensor([981.0, 341.0])
    vector, added = None, None
    if kind == "sdxl":
        vector = model.encode_adm(pooled_output=pooled, height=128, width=96, crop_h=8, crop_w=4)
        added = {"text_embeds": pooled, "time_ids": torch.tensor([[128.0, 96.0, 8.0, 4.0, 128.0, 96.0]] * 2)}
    with torch.no_grad():
        ours = model.diffusion_model(latent, timesteps, context=context, y=vector, transformer_options={})
        theirs = diffusers_unet(kind, model.diffusion_model)(latent, timesteps, context, added_cond_kwargs=added).sample
    assert relative_error(ours, theirs) <= 1e-5


@both_families
def test_oracle_unet_reproduces_the_frozen_plain_output(kind: Family) -> None:
    case, metadata = load_reference(f"ip_adapter_{kind}")
    unet = oracle_unet(kind).model.diffusion_model
    timesteps = torch.full((len(case["in.latent_vp"]),), float(metadata["timestep"]))
    with torch.no_grad():
        result = unet(case["in.latent_vp"], timesteps, case["in.context"], y=case.get("in.adm_y"))
    assert (result - case["out.none"]).abs().max() <= 1e-4


def test_oracle_clip_vision_reproduces_the_frozen_embeddings() -> None:
    case, _ = load_reference("ip_adapter_sd15")
    with torch.no_grad():
        _, penultimate, embeds, _ = oracle_clip_vision().model(case["in.pixel_values"], intermediate_output=-2)
    assert (embeds - case["mid.image_embeds"]).abs().max() <= 1e-5
    assert (penultimate - case["mid.hidden_states_m2"]).abs().max() <= 1e-5


@pytest.mark.parametrize("kind", CLIP_KINDS)
def test_clip_reads_a_prompt(kind: str) -> None:
    clip = make_clip(kind)
    [[context, extras]] = clip.encode_from_tokens_scheduled(clip.tokenize("a (red:1.2) cat"))
    width = {"sd15": TEXT_WIDTH["l"], "sdxl": CONTEXT_WIDTH["sdxl"], "sd2": TEXT_WIDTH["h"]}[kind]
    assert context.shape == (1, 77, width) and torch.isfinite(context).all()
    assert extras["pooled_output"].shape == (1, {"sdxl": POOLED_WIDTH}.get(kind, width))


@pytest.mark.parametrize("kind", VISION_KINDS)
def test_clip_vision_reads_a_picture(kind: str) -> None:
    output = make_clip_vision(kind).encode_image(torch.rand((2, 70, 90, 3)))
    assert output["image_embeds"].shape == (2, TEXT_WIDTH[kind])
    assert output["penultimate_hidden_states"].shape == (2, 17, VISION_WIDTH[kind])
    assert torch.isfinite(output["image_embeds"]).all()


def test_vae_goes_there_and_back() -> None:
    vae = make_vae()
    latent = vae.encode(torch.rand((1, 64, 48, 3)))
    picture = vae.decode(latent)
    assert latent.shape == (1, 4, 8, 6) and picture.shape == (1, 64, 48, 3)
    assert torch.isfinite(picture).all()


@both_families
def test_stock_loaders_open_tiny_files(kind: Family, tmp_path: Path) -> None:
    register_tiny_supported_models()
    path = write_checkpoint(kind, tmp_path / "tiny.safetensors", seed=3)
    model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(path))
    assert torch.equal(sampled(kind, model), sampled(kind, make_unet(kind, seed=3)))
    # Loaded text encoders are kept in half precision.
    assert relative_error(encoded(clip, "a cat"), encoded(make_clip(kind, seed=3), "a cat")) < 0.01
    assert vae.decode(torch.zeros((1, 4, 8, 8))).shape == (1, 64, 64, 3)


def test_stock_clip_vision_loader_opens_a_tiny_file(tmp_path: Path) -> None:
    register_tiny_supported_models()
    path = write_clip_vision("g", tmp_path / "tiny.safetensors", seed=3)
    picture = torch.rand((1, 56, 56, 3))
    loaded = comfy.clip_vision.load(str(path)).encode_image(picture)["image_embeds"]
    assert torch.equal(loaded, make_clip_vision("g", seed=3).encode_image(picture)["image_embeds"])


@both_families
@pytest.mark.parametrize("variant", ["base", "plus"])
def test_adapters_are_laid_out_like_the_reference_ones(kind: Family, variant: str) -> None:
    published, _ = load_reference(f"ip_adapter_{kind}.adapter_{variant}")
    _, metadata = load_reference(f"unet_{kind}")
    ours = adapter_state_dict(
        kind, variant, clip_width={"base": 24, "plus": 32}[variant], unet_config=metadata["comfy_unet_config"]
    )
    assert {name: tensor.shape for name, tensor in ours.items()} == {
        name: tensor.shape for name, tensor in published.items()
    }


def test_full_face_adapter_has_the_published_names() -> None:
    names = {name for name in adapter_state_dict("sd15", "full-face") if name.startswith("image_proj.")}
    assert names == {f"image_proj.proj.{layer}.{part}" for layer in (0, 2, 3) for part in ("weight", "bias")}


@both_families
def test_controlnet_changes_the_picture(kind: Family) -> None:
    model, text = make_unet(kind), make_conditioning(kind)
    control = make_controlnet(kind)
    guided, _ = nodes.ControlNetApplyAdvanced().apply_controlnet(
        text, text, control, torch.rand((1, 128, 128, 3)), 1.0, 0.0, 1.0
    )
    plain, changed = (ksampler(model, positive, text, empty_latent()) for positive in (text, guided))
    assert 0.001 < relative_error(changed, plain) < 2.0


@both_families
def test_lora_changes_the_picture_and_leaves_the_model_it_was_given(kind: Family) -> None:
    model = make_unet(kind)
    plain = sampled(kind, model)
    changed = sampled(kind, with_lora(model))
    assert 0.001 < relative_error(changed, plain) < 2.0
    assert torch.equal(sampled(kind, model), plain)
