"""Inversion on the real sampler equals diffusers' schedulers, comes back, and is refused where it cannot hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import comfy.latent_formats
import comfy.model_management
import pytest
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete
from torch import Tensor

from semblance.attention.engine.scope import ScheduleWindow, Scope
from semblance.attention.functional.inversion import Convention, inversion_timesteps, sampling_timesteps
from semblance.attention.functional.statistics import adain
from semblance.attention.methods.styleid.method import StyleID
from semblance.attention.references.trajectory import OffLadder, ReferenceTrajectory
from semblance.host.binding.model import add_patch
from semblance.host.conditioning import Text
from semblance.host.identity import stamp_of
from semblance.host.inversion.ddim import invert, sample_back, sampling_sigmas
from semblance.host.inversion.report import reconstruction_error
from semblance.host.inversion.runs import start_latent
from semblance.host.inversion.styleid_start import check_pair, start_of
from semblance.host.latents import picture_latents
from semblance.tests.support.frozen_cases import load_reference
from semblance.tests.support.oracles import oracle_unet
from semblance.tests.support.speeds import slow_but
from semblance.tests.support.studio import Studio, record_calls, relative_error, trajectory
from semblance.tests.tiny_models import make_unet, sampler_custom

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
GRIDS = {name: table for name, table in load_reference("schedules")[1]["tables"].items() if name.isdigit()}
STEPS = slow_but((4, 10, 20, 30, 50), (4,))


def text_of(studio: Studio) -> Text:
    return Text(studio.positive, studio.negative)


def pictures(images: int = 1, size: tuple[int, int] = (8, 8), seed: int = 5) -> Tensor:
    """Clean latents as VAE Encode gives them."""
    return torch.randn(images, 4, *size, generator=torch.Generator().manual_seed(seed)) * 4


@pytest.fixture(scope="module")
def networks(sd15: Studio) -> dict[str, Any]:
    """The same network, taken to predict noise and taken to predict v."""
    v = ModelSamplingDiscrete().patch(sd15.model, "v_prediction", zsnr=False)[0]
    return {"eps": sd15.model, "v": v}


def call(model: Any, studio: Studio) -> Callable[[Tensor, int], Tensor]:
    """The bare UNet, as diffusers would call it."""
    comfy.model_management.load_models_gpu([model])
    context = studio.positive[0][0]
    unet = model.model.diffusion_model
    options: dict[str, Any] = {}

    def network(latent: Tensor, timestep: int) -> Tensor:
        with torch.no_grad():
            return unet(latent, torch.tensor([float(timestep)]), context, transformer_options=options)

    return network


@pytest.mark.parametrize("steps", sorted(map(int, GRIDS)))
def test_ladders_are_the_authors_and_diffusers(steps: int) -> None:
    table = GRIDS[str(steps)]
    assert sampling_timesteps(steps) == table["diffusers_inverse"] == table["diffusers_leading"][::-1]
    assert inversion_timesteps(steps, "ddim")[1:] == table["diffusers_inverse"]
    assert inversion_timesteps(steps, "styleid")[:-1] == table["styleid_inversion_calls"]
    assert inversion_timesteps(steps, "styleid")[1:] == table["styleid_inversion_targets"]


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_ddim_inversion_equals_diffusers(sd15: Studio, networks: dict[str, Any], prediction: str, steps: int) -> None:
    from diffusers import DDIMInverseScheduler

    model = networks[prediction]
    theirs = DDIMInverseScheduler(
        **SCHEDULE,
        prediction_type={"eps": "epsilon", "v": "v_prediction"}[prediction],
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
    )
    theirs.set_timesteps(steps)
    network, latent = call(model, sd15), model.model.process_latent_in(pictures())
    expected = [latent]
    for timestep in theirs.timesteps.tolist():
        expected.append(theirs.step(network(expected[-1], timestep), timestep, expected[-1]).prev_sample)
    made = invert(model, pictures(), steps, "ddim", text_of(sd15)).trajectory
    assert made.stamp.prediction == prediction and len(made.latents) == steps + 1
    for mine, theirs_there in zip(made.latents, expected, strict=True):
        assert relative_error(mine, theirs_there) < 1e-4


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_sampling_over_the_ladder_equals_diffusers_ddim(
    sd15: Studio, networks: dict[str, Any], prediction: str, steps: int
) -> None:
    from diffusers import DDIMScheduler

    model = networks[prediction]
    theirs = DDIMScheduler(
        **SCHEDULE,
        prediction_type={"eps": "epsilon", "v": "v_prediction"}[prediction],
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
    )
    theirs.set_timesteps(steps)
    network = call(model, sd15)
    latent = expected = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    for timestep in theirs.timesteps.tolist():
        expected = theirs.step(network(expected, timestep), timestep, expected).prev_sample
    levels = invert(model, pictures(), steps, "ddim", text_of(sd15)).trajectory
    sigmas = sampling_sigmas(model, levels)
    start = {"samples": start_latent(model, latent, sigmas[0].item())}
    made = sampler_custom(model, sd15.positive, sd15.negative, start, sigmas)
    scaled = model.model.process_latent_in(made) / (1 + sigmas[-1] ** 2) ** 0.5
    assert relative_error(scaled, expected) < 1e-4


@pytest.mark.parametrize("convention", ["styleid", "ddim"])
def test_two_pictures_inverted_together_come_out_as_alone_and_each_costs_a_row(
    studio: Studio, convention: Convention
) -> None:
    model, calls = record_calls(studio.model)
    both = invert(model, pictures(2), 4, convention, text_of(studio))
    assert [len(call["x"]) for call in calls] == [2] * (len(both.trajectory.sigmas) - 1)
    assert [call["numbers"] for call in calls] == [[0]] * len(calls)
    for image in range(2):
        alone = invert(studio.model, pictures(2)[image : image + 1], 4, convention, text_of(studio))
        # Steps of a quarter of the schedule on a random network blow rounding up.
        assert relative_error(both.trajectory.latents[:, image], alone.trajectory.latents[:, 0]) < 1e-2
        assert relative_error(both.noise[image], alone.noise[0]) < 1e-2
        chosen = both.trajectory.select([image])
        assert chosen.images == 1 and torch.equal(chosen.latents[:, 0], both.trajectory.latents[:, image])


def test_prompts_of_the_contents_are_those_of_their_styles_too(studio: Studio) -> None:
    """Two contents and two styles in one batch with two prompts; the second half once had none."""
    prompts = studio.text(31, rows=2)
    made = invert(studio.model, pictures(4), 4, "styleid", Text(prompts, studio.negative)).trajectory
    content, style = made.select([0, 1]), made.select([2, 3])
    for half in (content, style):
        assert torch.equal(half.context, prompts[0][0])
    if made.vector is not None:
        assert torch.equal(content.vector, style.vector) and len(made.vector) == 4
    second = [[prompts[0][0][1:], {name: value[1:] for name, value in prompts[0][1].items()}]]
    alone = invert(studio.model, pictures(4)[3:], 4, "styleid", Text(second, studio.negative)).trajectory
    assert relative_error(made.latents[:, 3], alone.latents[:, 0]) < 1e-2


@pytest.mark.slow
def test_the_way_back_gets_nearer_with_more_steps() -> None:
    """On a network that acts like a denoiser; random ones do not hold still."""
    case, _ = load_reference("styleid")
    model, empty = oracle_unet("sd15"), [[case["in.context_empty"], {}]]
    picture = model.model.process_latent_out(case["in.content_latent"])
    errors = []
    for steps in (10, 50):
        made = invert(model, picture, steps, "styleid", Text(empty, empty)).trajectory
        errors.append(reconstruction_error(model, made, sample_back(model, made, Text(empty, empty))))
    assert errors[1] < errors[0] / 2 and errors[1] < 0.2, errors


def test_guidance_is_followed_and_costs_twice(sd15: Studio) -> None:
    guided = Text(sd15.positive, sd15.negative, guidance=3.0)
    model, calls = record_calls(sd15.model)
    made = invert(model, pictures(), 4, "styleid", guided).trajectory
    plain = invert(sd15.model, pictures(), 4, "styleid", text_of(sd15)).trajectory
    assert made.guidance == 3.0 and [len(call["x"]) for call in calls] == [2] * 4
    assert relative_error(made.latents[-1], plain.latents[-1]) > 1e-3


FORMATS = [comfy.latent_formats.SD15, comfy.latent_formats.SDXL, comfy.latent_formats.SDXL_Playground_2_5]


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.__name__)
def test_adain_commutes_with_every_latent_format_at_equal_noise(form: Callable[[], Any]) -> None:
    """So the node may work on LATENT samples, whatever the sampler makes of them."""
    fmt, content, style = form(), pictures(), pictures(seed=6)
    for scale in (1.0, 14.6):
        outside = fmt.process_in(adain(content, style)) * scale
        inside = adain(fmt.process_in(content) * scale, fmt.process_in(style) * scale)
        assert relative_error(outside, inside) < 1e-5


def test_adain_in_part_lies_between_and_a_flat_channel_stays_finite() -> None:
    content, style = pictures(), pictures(seed=6) * 2 + 1
    half = adain(content, style, 0.5)
    assert torch.allclose(half, (content + adain(content, style)) / 2, atol=1e-5)
    assert torch.allclose(adain(content, style).std(dim=(2, 3)), style.std(dim=(2, 3)), rtol=1e-4)
    flat = torch.full_like(content, 3.0)
    assert torch.isfinite(adain(flat, style)).all() and torch.isfinite(adain(style, flat)).all()


def test_a_latent_that_is_no_picture_is_refused(sd15: Studio) -> None:
    broken = pictures()
    broken[0, 0, 0, 0] = float("nan")
    for latent, words in ((torch.zeros(1, 4, 8, 8), "Connect VAE Encode"), (broken, "not numbers")):
        with pytest.raises(ValueError, match=words):
            picture_latents({"samples": latent})
    with pytest.raises(ValueError, match="choose a number"):
        invert(sd15.model, pictures(), 1, "styleid", text_of(sd15))


def test_a_model_that_ddim_cannot_invert_is_refused(sd15: Studio) -> None:
    for kind in ("lcm", "x0"):
        changed = ModelSamplingDiscrete().patch(sd15.model, kind, zsnr=False)[0]
        with pytest.raises(ValueError, match="which DDIM cannot invert|noise schedule has"):
            invert(changed, pictures(), 4, "styleid", text_of(sd15))


def test_several_prompts_at_once_are_refused(sd15: Studio) -> None:
    with pytest.raises(ValueError, match="one prompt for the whole picture"):
        invert(sd15.model, pictures(), 4, "styleid", Text([*sd15.positive, *sd15.text(9)], sd15.negative))


def pair(studio: Studio, **changes: Any) -> tuple[ReferenceTrajectory, ReferenceTrajectory]:
    content, style = (trajectory(studio, (8, 8), seed) for seed in (1, 2))
    return content, replace(style, **changes)


def test_trajectories_that_do_not_belong_together_are_refused_before_sampling(sd15: Studio) -> None:
    content, style = pair(sd15)
    check_pair(sd15.model, content, style)
    stamp = stamp_of(sd15.model)
    wrong: dict[str, dict[str, Any]] = {
        "an SDXL model": {"stamp": replace(stamp, family="SDXL")},
        "predicts v": {"stamp": replace(stamp, prediction="v")},
        "another SD 1.5 model": {"stamp": replace(stamp, weights="0" * 16)},
        "8x8 latent pixels and the style 8x9 latent": {"latents": torch.randn(len(style.sigmas), 1, 4, 9, 8)},
        "in 50 steps .styleid. and the style in 50 .ddim": {"convention": "ddim"},
        r"at other noise levels \(another shift\)": {"sigmas": tuple(sigma * 1.01 for sigma in style.sigmas)},
    }
    for words, changes in wrong.items():
        with pytest.raises(ValueError, match=words):
            check_pair(sd15.model, content, replace(style, **changes))
    two = replace(content, latents=content.latents.expand(-1, 2, -1, -1, -1))
    three = replace(style, latents=style.latents.expand(-1, 3, -1, -1, -1))
    with pytest.raises(ValueError, match="2 contents and 3 styles"):
        check_pair(sd15.model, two, three)
    with pytest.raises(ValueError, match="not numbers"):
        replace(style, latents=style.latents * float("nan"))


def test_the_stamp_knows_another_model_and_forgives_a_lora(sd15: Studio) -> None:
    other = make_unet("sd15", seed=99)
    assert stamp_of(other) != stamp_of(sd15.model)
    lora = sd15.model.clone()
    name = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    weight = sd15.model.model.diffusion_model.input_blocks[1][1].transformer_blocks[0].attn1.to_q.weight
    lora.add_patches({name: (torch.ones_like(weight),)})
    comfy.model_management.load_models_gpu([lora])
    try:
        assert stamp_of(lora) == stamp_of(sd15.model)
    finally:
        comfy.model_management.load_models_gpu([sd15.model])


def stylised(studio: Studio, **settings: Any) -> Any:
    content, style = pair(studio)
    return add_patch(studio.model, StyleID(content, style, studio.everywhere(), **settings))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sampler": "euler_ancestral"}, "adds noise of its own"),
        ({"sampler": "dpmpp_2m_sde"}, "adds noise of its own"),
        ({"size": (9, 8)}, "8x8 latent pixels, but the sampler works on 8x9"),
    ],
)
def test_runs_that_cannot_be_served_are_refused_before_the_first_step(
    sd15: Studio, settings: dict[str, Any], words: str
) -> None:
    patched, calls = record_calls(stylised(sd15))
    with pytest.raises(ValueError, match=words):
        sd15.sample(patched, **settings)
    assert calls == []
    assert torch.equal(sd15.sample(), sd15.plain)


def test_a_noise_mask_and_caches_and_token_mergers_are_refused(sd15: Studio) -> None:
    from comfy_extras.nodes_easycache import EasyCacheNode
    from comfy_extras.nodes_hypertile import HyperTile
    from comfy_extras.nodes_tomesd import TomePatchModel

    patched = stylised(sd15)
    masked = {"samples": pictures(), "noise_mask": torch.ones(1, 8, 8)}
    with pytest.raises(ValueError, match="carries a noise mask"):
        sampler_custom(patched, sd15.positive, sd15.negative, masked, torch.tensor([4.0, 1.0, 0.0]))
    others = {
        "EasyCache": EasyCacheNode.execute(patched, 0.2, 0.15, 0.95, False)[0],
        "HyperTile": HyperTile.execute(patched, 64, 2, 0, False)[0],
        "ToMe": TomePatchModel.execute(patched, 0.3)[0],
    }
    for name, model in others.items():
        with pytest.raises(ValueError, match=f"{name} on the same model"):
            sd15.sample(model)


def test_a_sampler_that_looks_between_the_points_is_refused(sd15: Studio) -> None:
    content, style = (replace(t, sigmas=t.sigmas) for t in pair(sd15))
    levels = [place for place, sigma in enumerate(content.sigmas) if sigma in (1.0, 4.0)]
    few = [
        replace(t, latents=t.latents[levels], sigmas=tuple(t.sigmas[place] for place in levels))
        for t in (content, style)
    ]
    patched = add_patch(sd15.model, StyleID(few[0], few[1], sd15.everywhere()))
    latent = {"samples": pictures()}
    sampler_custom(patched, sd15.positive, sd15.negative, latent, torch.tensor([4.0, 1.0, 0.0]))
    with pytest.raises(OffLadder, match="evaluates the model once a step"):
        sampler_custom(patched, sd15.positive, sd15.negative, latent, torch.tensor([4.0, 1.0, 0.0]), sampler="dpm_2")
    with pytest.raises(OffLadder, match="Connect the SIGMAS"):
        sampler_custom(patched, sd15.positive, sd15.negative, latent, torch.tensor([4.0, 2.0, 0.0]))


def test_outside_its_window_no_trajectory_is_asked_and_no_row_added(sd15: Studio) -> None:
    content, style = pair(sd15)
    scope = Scope(sd15.everywhere().blocks, ScheduleWindow(0.5, 1.0))
    rows: list[int] = []
    unet = sd15.model.model.diffusion_model
    handle = unet.input_blocks[0][0].register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    try:
        patched = add_patch(sd15.model, StyleID(content, style, scope))
        sigmas = torch.tensor([14.0, 4.0, 1.0, 0.0])
        sampler_custom(patched, sd15.positive, sd15.negative, {"samples": pictures()}, sigmas)
    finally:
        handle.remove()
    assert rows == [1, 3, 3] or rows == [1, 1, 3]


def test_the_start_follows_the_mode(sd15: Studio) -> None:
    made = invert(sd15.model, pictures(2), 10, "styleid", text_of(sd15)).trajectory
    content, style = made.select([0]), made.select([1])
    official, exact = (start_of(sd15.model, content, style, mode) for mode in ("official", "exact"))
    assert len(official.sigmas) == 10 and len(exact.sigmas) == 11
    bare = start_of(sd15.model, content, style, "exact", adain_strength=0.0)
    clean = sd15.model.model.process_latent_in(bare.latent) / (1 + bare.sigmas[0] ** 2) ** 0.5
    assert torch.allclose(clean, content.at(bare.sigmas[0].item()), atol=1e-4)
    several = start_of(sd15.model, content, made, "exact")
    assert several.latent.shape[0] == 2


@pytest.mark.slow
def test_the_cost_is_one_call_a_step_and_a_row_for_each_picture(sd15: Studio) -> None:
    """50 + 49 calls; the inversion of both pictures holds two rows, each step of the sampling three."""
    rows: list[int] = []
    unet = sd15.model.model.diffusion_model
    handle = unet.input_blocks[0][0].register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    try:
        made = invert(sd15.model, pictures(2), 50, "styleid", text_of(sd15)).trajectory
        assert rows == [2] * 50
        rows.clear()
        content, style = made.select([0]), made.select([1])
        start = start_of(sd15.model, content, style, "official")
        patched = add_patch(sd15.model, StyleID(content, style, sd15.everywhere()))
        sampler_custom(patched, sd15.positive, sd15.negative, {"samples": start.latent}, start.sigmas)
    finally:
        handle.remove()
    assert rows == [3] * 49
