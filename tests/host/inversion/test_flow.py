"""Inversion of flow models on the real sampler: it comes back, what it costs, and what it cannot serve is refused."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete, ModelSamplingFlux, ModelSamplingSD3
from torch import Tensor

from semblance.attention.functional.inversion import MIDPOINT
from semblance.attention.references.trajectory import OffLadder
from semblance.host.binding.model import map_model
from semblance.host.binding.noise_schedule import is_flow
from semblance.host.conditioning import Text, shown_text, text_for
from semblance.host.identity import INVERT_AGAIN, check_model, stamp_of
from semblance.host.inversion.ddim import invert as invert_by_ddim
from semblance.host.inversion.edit_friendly import draw_noises, invert_edit_friendly
from semblance.host.inversion.flow import StateSampler, flow_levels, flow_sampler
from semblance.host.inversion.report import reconstruction_error
from semblance.host.inversion.runs import SamplerCall, falling_levels, sample_without_noise
from semblance.host.inversion.solver import invert, sample_back
from semblance.host.latents import adain_latent, picture_latents
from semblance.tests.support.speeds import FLOW_NAMES, slow_but
from semblance.tests.support.studio import record_calls, relative_error
from semblance.tests.support.transformers import TRANSFORMERS, TransformerFamily
from semblance.tests.tiny_models import make_clip, make_unet, sampler_custom

FLUX, QWEN = TRANSFORMERS["flux"], TRANSFORMERS["qwen_image"]
LOUD = 2.7
"""What makes noise as loud as Flux's VAE gives a picture."""


@pytest.fixture(scope="module")
def flux() -> ModelPatcher:
    return FLUX.model()


def words(family: TransformerFamily = FLUX, rows: int = 1, guidance: float = 1.0) -> Text:
    return Text(family.conditioning(rows=rows, seed=1), family.conditioning(rows=rows, seed=2), guidance)


def pictures(family: TransformerFamily = FLUX, images: int = 1, size: tuple[int, int] = (8, 8)) -> Tensor:
    return picture_latents(family.latent(images, *size, seed=5)) * LOUD


def error_of_the_way_back(model: ModelPatcher, steps: int) -> float:
    made = invert(model, pictures(), steps, MIDPOINT, words()).trajectory
    return reconstruction_error(model, made, sample_back(model, made, words()))


def error_of_euler(model: ModelPatcher, steps: int) -> float:
    def walk(call: SamplerCall, x: Tensor, levels: list[float]) -> Tensor:
        for sigma, target in pairwise(levels):
            level = max(sigma, 1e-3)
            x = x + (x - call.denoise(x, level)) / level * (target - sigma)
        return x

    rising = flow_levels(model, steps)
    noise = sample_without_noise(model, pictures(), rising, words(), StateSampler(walk))
    back = sample_without_noise(model, noise, rising.flip(0), words(), StateSampler(walk))
    return relative_error(back, pictures())


def test_a_picture_comes_back_by_the_second_order_and_hardly_by_euler(flux: ModelPatcher) -> None:
    errors = {steps: error_of_the_way_back(flux, steps) for steps in (10, 20, 40)}
    eulers = {steps: error_of_euler(flux, steps) for steps in (10, 20, 40)}
    assert list(errors.values()) == pytest.approx([0.0575, 0.0213, 0.0088], rel=0.1)
    assert list(eulers.values()) == pytest.approx([0.228, 0.122, 0.0613], rel=0.1)


@pytest.mark.parametrize("name", slow_but(FLOW_NAMES, ("flux", "qwen_image", "sd35")))
def test_a_picture_of_every_family_comes_back(name: str) -> None:
    family = TRANSFORMERS[name]
    model, calls = record_calls(family.model())
    made = invert(model, pictures(family, size=(8, 12)), 8, MIDPOINT, words(family))
    trajectory = made.trajectory
    assert [len(call["x"]) for call in calls] == [1] * 16, "two calls a step, of the picture alone"
    assert trajectory.latents.shape == (9, 1, family.channels, 8, 12)
    assert trajectory.sigmas[0] == 0 and trajectory.sigmas[-1] == 1
    back = sample_back(model, trajectory, words(family))
    assert back.shape == family.latent(1, 8, 12).get("samples").shape == made.noise.shape
    coarse = reconstruction_error(model, trajectory, back)
    fine = invert(model, pictures(family, size=(8, 12)), 24, MIDPOINT, words(family)).trajectory
    error = reconstruction_error(model, fine, sample_back(model, fine, words(family)))
    assert error < coarse / 2 and error < 0.1


def test_the_first_step_asks_for_the_velocity_at_the_lowest_level(flux: ModelPatcher) -> None:
    """At 0 the prediction of the clean latent says nothing of the velocity."""
    model, calls = record_calls(flux)
    made = invert(model, pictures(), 2, MIDPOINT, words()).trajectory
    sampling = flux.get_model_object("model_sampling")
    (_, middle, top), lowest = made.sigmas, float(sampling.sigma_min)
    expected = [lowest, middle / 2, middle, (middle + top) / 2]
    assert [call["sigma"] for call in calls] == pytest.approx(expected)
    assert torch.equal(calls[0]["x"].cpu(), made.latents[0])


def test_half_precision_is_inverted_like_single(flux: ModelPatcher) -> None:
    half = FLUX.model(dtype=torch.bfloat16)
    made = invert(half, pictures(), 10, MIDPOINT, words()).trajectory
    assert made.latents.dtype == torch.float32
    whole = invert(flux, pictures(), 10, MIDPOINT, words()).trajectory
    assert relative_error(made.latents[-1], whole.latents[-1]) < 0.05
    assert reconstruction_error(half, made, sample_back(half, made, words())) < 0.1


def test_two_pictures_inverted_together_come_out_as_alone(flux: ModelPatcher) -> None:
    two = pictures(images=2, size=(8, 9))
    both = invert(flux, two, 4, MIDPOINT, words(rows=2)).trajectory
    assert both.images == 2 and both.context.shape[0] == both.vector.shape[0] == 2
    ((context, extras),) = words(rows=2).positive
    for image in range(2):
        own = {**extras, "pooled_output": extras["pooled_output"][image : image + 1]}
        text = Text([[context[image : image + 1], own]], [])
        alone = invert(flux, two[image : image + 1], 4, MIDPOINT, text).trajectory
        assert relative_error(both.latents[:, image], alone.latents[:, 0]) < 1e-4


def test_a_cfg_whose_other_side_nobody_can_make_again_is_refused(flux: ModelPatcher) -> None:
    """It went against zeros without FluxGuidance: the way back with a negative of the user's was 1.05 to 1.44 off."""
    model, calls = record_calls(flux)
    for guidance in (0.0, 3.0):
        with pytest.raises(ValueError, match=f"The guidance is {guidance:g}, but a flow model is inverted.*CFG 1"):
            invert(model, pictures(), 4, MIDPOINT, words(guidance=guidance))
    assert calls == []


def test_the_steps_follow_the_shift_of_the_model(flux: ModelPatcher) -> None:
    flatter = ModelSamplingFlux().patch(flux, 0.5, 0.5, 64, 64)[0]
    made = invert(flatter, pictures(), 4, MIDPOINT, words()).trajectory
    assert made.sigmas[1] < flow_levels(flux, 4)[1]
    check_model(made.stamp, stamp_of(flux), flux, "It was made", INVERT_AGAIN)


def test_between_two_points_the_path_is_a_line(flux: ModelPatcher) -> None:
    made = invert(flux, pictures(), 4, MIDPOINT, words()).trajectory
    middle = (made.sigmas[1] + made.sigmas[2]) / 2
    assert torch.allclose(made.at(middle), (made.latents[1] + made.latents[2]) / 2, atol=1e-6)
    for point, sigma in enumerate(made.sigmas):
        assert torch.equal(made.at(sigma), made.latents[point])
    short = replace(made, latents=made.latents[1:4], sigmas=made.sigmas[1:4])
    for outside in (0.0, 1.0):
        with pytest.raises(OffLadder, match="Connect the SIGMAS of the StyleID node"):
            short.at(outside)


@pytest.mark.parametrize("name", ["flux", "qwen_image"])
def test_stock_samplers_and_ours_go_on_from_each_other(name: str) -> None:
    """ComfyUI's samplers hand a latent on divided by 1 - sigma; ours handed on the state: 1.05 and 4.25 beside it."""
    family = TRANSFORMERS[name]
    model, text = family.model(), words(family)
    falling = flow_levels(model, 16).flip(0)
    upper, lower = falling[:6], falling[5:]
    ours, euler = flow_sampler(), comfy.samplers.sampler_object("euler")
    empty = torch.zeros_like(family.latent(1, 8, 8)["samples"])
    noise = model.model.process_latent_out(comfy.sample.prepare_noise(empty, seed=1))

    def go(latent: Tensor, levels: Tensor, sampler: Any, adds_noise: bool = False) -> Tensor:
        given = (text.positive, text.negative, {"samples": latent}, levels)
        return sampler_custom(model, *given, sampler=sampler, add_noise=adds_noise)

    by_ours, begun_by_ours = (go(noise, levels, ours) for levels in (falling, upper))
    by_euler, begun_by_euler = (go(empty, levels, euler, adds_noise=True) for levels in (falling, upper))
    apart = relative_error(by_ours, by_euler)
    assert relative_error(go(begun_by_ours, lower, ours), by_ours) < 1e-5
    assert relative_error(go(begun_by_euler, lower, euler), by_euler) < 1e-5
    assert relative_error(go(begun_by_ours, lower, euler), by_ours) < apart < 0.2
    assert relative_error(go(begun_by_euler, lower, ours), by_euler) < apart


def test_a_picture_of_a_model_of_video_is_one_frame() -> None:
    latent = QWEN.latent(2, 8, 9, seed=3)
    assert picture_latents(latent).shape == (2, 16, 8, 9)
    moved = adain_latent(latent, QWEN.latent(1, 6, 6, seed=4), 1.0)["samples"]
    assert moved.shape == latent["samples"].shape
    with pytest.raises(ValueError, match="Connect VAE Encode, with single pictures"):
        picture_latents({"samples": torch.randn(1, 16, 3, 8, 8)})


def test_an_interrupt_ends_it_and_the_next_inversion_is_whole(
    flux: ModelPatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []

    def interrupted(step: int, *rest: Any) -> None:
        steps.append(step)
        if step == 1:
            comfy.model_management.interrupt_current_processing()

    plain = invert(flux, pictures(), 4, MIDPOINT, words()).trajectory
    with monkeypatch.context() as patched:
        patched.setattr("latent_preview.prepare_callback", lambda *given: interrupted)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            invert(flux, pictures(), 4, MIDPOINT, words())
    assert steps == [0, 1]
    assert torch.equal(invert(flux, pictures(), 4, MIDPOINT, words()).trajectory.latents, plain.latents)


# Which model it was


def test_another_model_is_told_by_its_weights_and_a_lora_is_forgiven() -> None:
    for family, name in ((FLUX, "Flux"), (QWEN, "Qwen-Image")):
        model, other = family.model(), family.model(seed=9)
        stamp = stamp_of(model)
        assert stamp.prediction == "flow" and stamp.family == name
        check_model(stamp, stamp_of(family.model(dtype=torch.bfloat16)), model, "It was made", INVERT_AGAIN)
        with pytest.raises(ValueError, match=f"another {name} model, whose weights"):
            check_model(stamp, stamp_of(other), other, "It was made", INVERT_AGAIN)
        lora = model.clone()
        layer = next(name for name in model.model.state_dict() if name.endswith("proj.weight") or "to_out" in name)
        lora.add_patches({layer: (torch.ones_like(model.model.state_dict()[layer]),)})
        comfy.model_management.load_models_gpu([lora])
        try:
            check_model(stamp, stamp_of(lora), lora, "It was made", INVERT_AGAIN)
        finally:
            comfy.model_management.load_models_gpu([model])


def test_flow_is_told_by_how_the_model_is_sampled(flux: ModelPatcher) -> None:
    unet = make_unet("sd15")
    assert is_flow(flux) and not is_flow(unet)
    shifted = ModelSamplingSD3().patch(unet, 3.0)[0]
    assert is_flow(shifted) and stamp_of(shifted).family == "SD 1.5"
    with pytest.raises(ValueError, match="predicts flow, but this one predicts eps"):
        check_model(stamp_of(shifted), stamp_of(unet), unet, "It was made", INVERT_AGAIN)
    with pytest.raises(ValueError, match="with a Flux model, but this one is SD 1.5"):
        check_model(stamp_of(flux), stamp_of(shifted), shifted, "It was made", INVERT_AGAIN)


# Refusals


def test_a_latent_of_another_vae_is_refused_before_the_first_step(flux: ModelPatcher) -> None:
    model, calls = record_calls(flux)
    with pytest.raises(ValueError, match=r"4 channels, but those of this model \(Flux\) have 16"):
        invert(model, torch.randn(1, 4, 8, 8), 4, MIDPOINT, words())
    with pytest.raises(ValueError, match="choose a number"):
        invert(model, pictures(), 1, MIDPOINT, words())
    assert calls == []


def test_a_model_that_fills_a_picture_is_refused_before_the_first_step() -> None:
    """Flux Fill reads a picture and a mask beside the latent, as inpainting UNets do."""
    model, calls = record_calls(FLUX.model(in_channels=96))
    with pytest.raises(ValueError, match="takes 96 channels where a picture's latent has 16.*cannot invert one"):
        invert(model, pictures(), 4, MIDPOINT, words())
    assert calls == []


def test_a_transformer_that_is_no_flow_is_sent_to_reference_style_alone(flux: ModelPatcher) -> None:
    cosmos, latent = TRANSFORMERS["cosmos2"].model(), TRANSFORMERS["cosmos2"].latent(seed=5)
    with pytest.raises(
        ValueError, match="a Cosmos 2 transformer that is not sampled as.*Semblance has Reference Style.$"
    ):
        invert(cosmos, picture_latents(latent), 4, MIDPOINT, words(TRANSFORMERS["cosmos2"]))
    with pytest.raises(ValueError, match="on this model Semblance has Reference Style.$"):
        map_model(cosmos)
    other = ModelSamplingDiscrete().patch(flux, "eps", False)[0]
    with pytest.raises(ValueError, match="Flux transformer that is not sampled as a rectified flow.*Reference Style.$"):
        stamp_of(other)
    for model, there_is in ((other, "Reference Style and InstantStyle"), (flux, "Style and StyleID and InstantStyle")):
        with pytest.raises(ValueError, match=f"on this model Semblance has .*{there_is}"):
            map_model(model)


def test_a_flow_model_needs_a_text(flux: ModelPatcher) -> None:
    with pytest.raises(ValueError, match="has no text of zeros"):
        text_for(flux, None, 1.0)
    clip = make_clip("sd15")
    empty = text_for(flux, clip, 1.0)
    assert torch.equal(empty.positive[0][0], clip.encode_from_tokens(clip.tokenize("")))
    assert text_for(flux, FLUX.conditioning(), 2.0).guidance == 2.0


def test_other_ways_of_inversion_refuse_a_flow_model(flux: ModelPatcher) -> None:
    with pytest.raises(ValueError, match="is a flow model, whose steps have no noise"):
        invert_edit_friendly(flux, pictures(), 4, words(), draw_noises(pictures(), 4, 0))
    with pytest.raises(ValueError, match="is a flow model, which DDIM"):
        invert_by_ddim(flux, pictures(), 4, "ddim", words())


def test_the_sampler_refuses_what_it_cannot_serve(flux: ModelPatcher) -> None:
    made = invert(flux, pictures(), 2, MIDPOINT, words())
    sigmas, noise, text = falling_levels(made.trajectory), made.noise, words()
    given: dict[str, tuple[ModelPatcher, dict[str, Any]]] = {
        "The latent is empty": (flux, {"samples": torch.zeros_like(noise)}),
        "carries a noise mask": (flux, {"samples": noise, "noise_mask": torch.ones(1, 8, 8)}),
    }
    for message, (model, latent) in given.items():
        with pytest.raises(ValueError, match=message):
            sampler_custom(model, text.positive, text.negative, latent, sigmas, sampler=flow_sampler())
    unet = make_unet("sd15")
    context = [[torch.randn(1, 77, 64), {}]]
    with pytest.raises(ValueError, match=r"this one \(SD 1.5\) is none"):
        sampler_custom(unet, context, context, {"samples": torch.randn(1, 4, 8, 8)}, sigmas, sampler=flow_sampler())


def test_a_model_without_text_tokens_is_named_with_what_it_reads(flux: ModelPatcher) -> None:
    conds = {"positive": [{"model_conds": {"guidance": None, "y": None}}]}
    guider = SimpleNamespace(conds=conds, model_patcher=flux)
    with pytest.raises(ValueError, match=r"This model \(Flux\) reads no text tokens \(c_crossattn\) but guidance, y,"):
        shown_text(guider, 1)
