"""The three files of a masked transformer: what opens, what is refused and in which words, and ComfyUI around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.utils
import latent_preview
import pytest
import torch
from comfy.cli_args import LatentPreviewMethod, args
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import nodes
from semblance.attention.functional.masked_tokens import one_hot
from semblance.host.binding.model import map_unet
from semblance.host.files import UnreadableFile
from semblance.host.masked.loading import MaskedFiles, MaskedParts, load_masked
from semblance.host.masked.sampler import MaskSchedule, masked_sampler
from semblance.tests.support.amused import CODEBOOK, PIXELS, TRANSFORMER, Amused
from semblance.tests.support.amused_runs import NEGATIVE, POSITIVE, sampled
from semblance.tests.support.frozen_cases import furthest
from semblance.tests.tiny_models import make_unet, make_vae

from .conftest import Pair

Change = Callable[[dict[str, Tensor]], Any]


@pytest.mark.parametrize("text", ["a star on the left", "", "many words " * 30])
def test_conditioning_equals_transformers(pair: Pair, text: str) -> None:
    amused, parts = pair
    tokens = parts.clip.tokenize(text)
    ids = torch.tensor([[token for token, _ in tokens["l"][0]]])
    ((context, extra),) = parts.clip.encode_from_tokens_scheduled(tokens)
    network = deepcopy(amused.text).half().float()  # ComfyUI keeps text encoders in half precision
    with torch.no_grad():
        official_text = network(ids, output_hidden_states=True)
    assert furthest(context[:, :77], official_text.hidden_states[-2]) <= 1e-5
    assert furthest(extra["pooled_output"], official_text.text_embeds) <= 1e-5


def test_an_empty_latent_image_becomes_masked_tokens_of_the_same_picture(pair: Pair) -> None:
    (latent,) = nodes.EmptyLatentImage().generate(width=40, height=24, batch_size=2)
    ratio = latent["downscale_ratio_spacial"]
    made = comfy.sample.fix_empty_latent_channels(pair[1].model, latent["samples"], ratio)
    assert made.shape == (2, CODEBOOK, 24 // PIXELS, 40 // PIXELS) and not made.any()


def test_pictures_in_tiles_are_tokens_too(pair: Pair) -> None:
    vae = pair[1].vae
    picture = torch.rand(1, 96, 64, 3)
    with torch.inference_mode():  # as the nodes run
        whole, tiled = vae.encode(picture), vae.encode_tiled(picture, tile_x=64, tile_y=64, overlap=16)
        decoded, other = vae.decode(whole), vae.decode(torch.roll(whole, 1, dims=1))
        in_tiles = vae.decode_tiled(whole, tile_x=16, tile_y=16, overlap=4)
    assert tiled.shape == whole.shape == (1, CODEBOOK, 24, 16)
    assert torch.equal(tiled.sum(dim=1), torch.ones(1, 24, 16))
    assert (tiled * whole).sum() > 0.8 * 24 * 16
    # Tiles have norms of their own, so they are near the whole and not equal to it.
    assert (in_tiles - decoded).abs().mean() < (other - decoded).abs().mean() / 4


def test_the_preview_shows_the_colours_of_the_tokens(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.Auto)
    model, vae = pair[1].model, pair[1].vae
    previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
    latent = one_hot(torch.full((1, 4, 4), 7), CODEBOOK)
    shown = previewer.decode_latent_to_preview(latent)
    colour = vae.decode(one_hot(torch.full((1, 2, 2), 7), CODEBOOK)).mean(dim=(0, 1, 2))
    assert shown.size == (4, 4)
    assert all(abs(a / 255 - float(b)) < 0.02 for a, b in zip(shown.getpixel((1, 1)), colour, strict=True))


def test_the_model_is_loaded_anew_for_a_clone_of_its_own(pair: Pair) -> None:
    parts = pair[1]
    clone = parts.model.clone(force_deepcopy=True)
    assert clone.model is not parts.model.model
    same = MaskedParts(clone, parts.clip, parts.vae)
    schedule = MaskSchedule(3, (2.0, 0.0))
    assert torch.equal(sampled(same, 4.0, schedule, 3), sampled(parts, 4.0, schedule, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_other_types_of_weights(tmp_path: Path, dtype: torch.dtype) -> None:
    files = Amused.of("512").files(tmp_path)
    parts = load_masked(MaskedFiles(files["diffusion_models"], files["vae"], files["text_encoders"], dtype))
    assert parts.model.model_dtype() == dtype
    made = sampled(parts, 4.0, MaskSchedule(3, (2.0, 0.0)), 3)
    assert torch.equal(made.sum(dim=1), torch.ones(2, 8, 4))


def test_the_memory_of_a_picture_is_told(pair: Pair) -> None:
    model = pair[1].model.model
    one, two = (model.memory_required([rows, CODEBOOK, 16, 16]) for rows in (1, 2))
    assert two == 2 * one > CODEBOOK * 16 * 16 * 4


# What is refused


def refused(action: Callable[[], Any], kind: type[Exception] = ValueError) -> str:
    with pytest.raises(kind) as fault:
        action()
    return str(fault.value)


FOREIGN: Mapping[str, tuple[Callable[[], dict[str, Tensor]], str]] = {
    "UNet": (lambda: make_unet("sd15").model.diffusion_model.state_dict(), "is a UNet"),
    "VAE": (lambda: make_vae().first_stage_model.state_dict(), "is a VAE without a codebook"),
    "LoRA": (lambda: {"unet.down.lora_A.weight": torch.ones(2, 2)}, "is a LoRA"),
    "nothing known": (lambda: {"a": torch.ones(2)}, "is a file of another kind"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_file_is_called_by_its_name(tmp_path: Path, kind: str) -> None:
    make, found = FOREIGN[kind]
    files = Amused.of("256").files(tmp_path)
    save_file(
        {name: tensor.detach().clone().contiguous() for name, tensor in make().items()}, tmp_path / "x.safetensors"
    )
    fitting = MaskedFiles(tmp_path / "x.safetensors", files["vae"], files["text_encoders"])
    message = refused(lambda: load_masked(fitting), UnreadableFile)
    assert f"'x.safetensors' {found}, where the transformer of aMUSEd is expected. Choose transformer/" in message
    assert "(1.2 GB)" in message and "openrail++" in message and "models/diffusion_models" in message


def test_parts_in_each_others_place_are_called_by_their_names(tmp_path: Path) -> None:
    files = Amused.of("256").files(tmp_path)
    vq, text, transformer = files["vae"], files["text_encoders"], files["diffusion_models"]
    assert "is the VQ model of aMUSEd, where the transformer" in refused(lambda: load_masked(MaskedFiles(vq, vq, text)))
    assert "is a CLIP text encoder, where the VQ model of aMUSEd" in refused(
        lambda: load_masked(MaskedFiles(transformer, text, text))
    )
    assert "is the transformer of aMUSEd, where a CLIP text encoder" in refused(
        lambda: load_masked(MaskedFiles(transformer, vq, transformer))
    )


def smaller_codebook(weights: dict[str, Tensor]) -> None:
    weights["quantize.embedding.weight"] = weights["quantize.embedding.weight"][:-2].clone()


def without(name: str) -> Change:
    return lambda weights: weights.pop(name)


def reshaped(name: str) -> Change:
    return lambda weights: weights.update({name: weights[name][:-1].clone()})


UNFIT: Mapping[str, tuple[str, Change, str]] = {
    "codebooks": ("vae", smaller_codebook, "predicts 20 tokens, but the codebook of 'vqvae.safetensors' has 18"),
    "projection": ("text_encoders", reshaped("text_projection.weight"), "reads text of 32 channels with a pooled text"),
    "half a transformer": (
        "diffusion_models",
        without("transformer_layers.1.attn2.to_k.weight"),
        "has no tensor 'transformer_layers.1.attn2.to_k.weight', so it is not whole",
    ),
    "a strange tensor": (
        "diffusion_models",
        reshaped("transformer_layers.1.attn2.to_k.weight"),
        "has a tensor 'transformer_layers.1.attn2.to_k.weight' of the shape (47, 48), where",
    ),
    "half a VQ model": ("vae", without("decoder.conv_out.bias"), "has no tensor 'decoder.conv_out.bias'"),
    "a VQ model with more": (
        "vae",
        lambda weights: weights.update({"quantize.extra": torch.ones(2)}),
        "has a tensor 'quantize.extra', which a network of its other tensors does not read",
    ),
    "half a text encoder": ("text_encoders", without("text_model.final_layer_norm.weight"), "is not whole"),
    "a text encoder without a tensor of a layer": (
        "text_encoders",
        without("text_model.encoder.layers.1.mlp.fc2.weight"),
        "has no tensor 'text_model.encoder.layers.1.mlp.fc2.weight', so it is not whole",
    ),
    "a text encoder without words": (
        "text_encoders",
        without("text_model.embeddings.token_embedding.weight"),
        "has no tensor 'text_model.embeddings.token_embedding.weight', so it is not whole",
    ),
}


@pytest.mark.parametrize("case", UNFIT)
def test_parts_that_do_not_fit_are_refused(tmp_path: Path, case: str) -> None:
    place, change, message = UNFIT[case]
    files = Amused.of("256").files(tmp_path)
    weights = load_file(files[place])
    change(weights)
    with safe_open(files[place], "pt") as file:
        metadata = file.metadata()
    save_file(weights, files[place], metadata)
    parts = MaskedFiles(files["diffusion_models"], files["vae"], files["text_encoders"])
    assert message in refused(lambda: load_masked(parts), UnreadableFile)


def guider_of(model: Any, positive: Any = None) -> comfy.samplers.CFGGuider:
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive or POSITIVE.conditioning, NEGATIVE.conditioning)
    return guider


LATENT = torch.zeros(1, CODEBOOK, 4, 4)
SCHEDULE = MaskSchedule(3, (2.0, 0.0))


def sample(model: Any, sigmas: Tensor, latent: Tensor = LATENT, sampler: Any = None, positive: Any = None) -> Tensor:
    sampler = sampler or masked_sampler(SCHEDULE)
    return guider_of(model, positive).sample(latent, latent, sampler, sigmas, disable_pbar=True, seed=1)


def test_other_samplers_are_refused(pair: Pair) -> None:
    model = pair[1].model
    with pytest.raises(ValueError, match="cannot be sampled by 'euler'. Use Masked Sampler with SamplerCustomAdvanced"):
        latent = {"samples": LATENT}
        nodes.common_ksampler(model, 1, 3, 4.0, "euler", "simple", POSITIVE.conditioning, NEGATIVE.conditioning, latent)


def test_foreign_sigmas_are_refused(pair: Pair) -> None:
    rising, high = torch.tensor([0.0, 0.5, 1.0]), torch.tensor([14.6, 3.0, 0.0])
    for sigmas in (rising, high):
        assert "its own are shares of masked tokens" in refused(lambda s=sigmas: sample(pair[1].model, s))


def test_the_scheduler_of_comfyui_serves_as_well(pair: Pair) -> None:
    model = pair[1].model
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 3)
    assert furthest(sigmas, SCHEDULE.sigmas()) < 0.01
    assert torch.equal(sample(model, sigmas).sum(dim=1), torch.ones(1, 4, 4))


def test_latents_that_are_no_tokens_are_refused(pair: Pair) -> None:
    latent = torch.full_like(LATENT, 0.5)
    assert refused(lambda: sample(pair[1].model, SCHEDULE.sigmas(), latent)).startswith("This latent is not made of")


def test_a_prompt_of_another_clip_is_refused(pair: Pair) -> None:
    foreign = [[torch.zeros(1, 77, 768), {"pooled_output": torch.zeros(1, 768)}]]
    message = refused(lambda: sample(pair[1].model, SCHEDULE.sigmas(), positive=foreign))
    assert "this conditioning has 768 and 768. Encode the prompts with the CLIP of Load Masked" in message


def test_the_sampling_of_other_models_is_refused(pair: Pair) -> None:
    (changed,) = ModelSamplingSD3().patch(pair[1].model, 3.0)
    assert "Bypass the ModelSampling node" in refused(lambda: sample(changed, SCHEDULE.sigmas()))


def test_methods_of_the_unet_refuse_it_by_name(pair: Pair) -> None:
    assert "This model is a masked transformer (aMUSEd)" in refused(lambda: map_unet(pair[1].model))


# Two samplers


def test_a_run_that_is_cut_in_two_ends_with_every_token(pair: Pair) -> None:
    model, sigmas = pair[1].model, SCHEDULE.sigmas()
    half = sample(model, sigmas[:2])
    masked = int((half.sum(dim=1) == 0).sum())
    assert masked == int(16 * sigmas[1])
    whole = sample(model, sigmas[1:], half)
    assert torch.equal(whole.sum(dim=1), torch.ones(1, 4, 4))
    assert torch.equal(whole * half, half)


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_the_decoder_of_muse_finds_every_token(pair: Pair, cfg: float) -> None:
    made = sampled(pair[1], cfg, MaskSchedule(6, (4.5, 0.0), "MUSE"), 6)
    assert torch.equal(made.sum(dim=1), torch.ones(2, 8, 4))


# What other nodes do


def test_guidance_and_its_hooks_see_logits_as_they_are(pair: Pair) -> None:
    model = pair[1].model.clone()
    seen: list[dict[str, Any]] = []
    model.set_model_sampler_post_cfg_function(lambda told: (seen.append(told), told["denoised"])[1])
    sample(model, SCHEDULE.sigmas())
    first = seen[0]
    sides = first["cond_denoised"], first["uncond_denoised"]
    assert torch.allclose(first["denoised"], sides[1] + (sides[0] - sides[1]) * 1.0, atol=1e-5)
    amused = pair[0]
    micro = torch.tensor([[16, 16, 0, 0, 6]])
    with torch.no_grad():
        masked = torch.full((1, 4, 4), CODEBOOK + 3)
        expected = amused.transformer(masked, POSITIVE.context, POSITIVE.pooled, micro)
    assert furthest(sides[0], expected) <= 1e-4


def test_a_lora_by_comfyuis_names_acts(pair: Pair) -> None:
    model = pair[1].model
    name, width = "diffusion_model.transformer_layers.2.ff.net.2", TRANSFORMER["intermediate_size"]
    generator = torch.Generator().manual_seed(1)
    down, up = torch.randn(2, width, generator=generator), torch.randn(48, 2, generator=generator)
    lora = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
    changed, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
    assert len(changed.patches) == 1
    latent = torch.zeros(2, CODEBOOK, 8, 4)
    guiders = [guider_of(each) for each in (model, changed)]
    sigmas, sampler = SCHEDULE.sigmas(), masked_sampler(SCHEDULE)
    pictures = [guider.sample(latent, latent, sampler, sigmas, disable_pbar=True, seed=1) for guider in guiders]
    assert not torch.equal(*pictures)
    again = guider_of(model).sample(latent, latent, sampler, sigmas, disable_pbar=True, seed=1)
    assert torch.equal(again, pictures[0])


def test_an_interrupt_stops_it(pair: Pair) -> None:
    steps: list[int] = []

    def stopping(step: int, *_: Any) -> None:
        steps.append(step)
        comfy.model_management.interrupt_current_processing()

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        guider_of(pair[1].model).sample(
            LATENT, LATENT, masked_sampler(SCHEDULE), SCHEDULE.sigmas(), callback=stopping, disable_pbar=True, seed=1
        )
    assert steps == [0]
