"""Real pictures as anchors: they come out as they went in, and the story's other images look at them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.utils  # noqa: F401  (puts ComfyUI on the path)
import folder_paths
import pytest
import torch
from torch import Tensor

from semblance.host.identity import stamp_of
from semblance.nodes.edit_friendly import InvertEditFriendly
from semblance.nodes.inspect import ShowPatches
from semblance.tests.support.graphs import relative_error, run
from semblance.tests.support.speeds import FAMILIES, slow, slow_but
from semblance.tests.support.subjects import applied, prompts, recorded, story_on
from semblance.tests.tiny_models import (
    Family,
    empty_latent,
    ksampler,
    make_conditioning,
    make_unet,
    make_vae,
    random_latent,
    sampler_custom,
)
from semblance.tests.tiny_models.unets import UNET_CONFIGS, base_model, patcher_around
from semblance.tests.tiny_models.weights import seed_weights

STEPS = 5  # divides 1000, so that ddim_uniform has the levels of the inversion
SIDE = 16
SCENES = ("asleep", "by a lake", "in a boat")


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A temporary folder of the test's own, so that no test finds another's inversions."""
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))


@pytest.fixture(params=slow_but(FAMILIES, ("sd15",)))
def kind(request: pytest.FixtureRequest) -> Family:
    return request.param


def inverted(model: Any, pictures: dict[str, Any], kind: Family = "sd15", steps: int = STEPS) -> Any:
    text, _ = prompts(kind, *SCENES[: len(pictures["samples"])])
    settings = {"steps": steps, "seed": 0, "guidance": 3.5, "skip": 0.0, "check": False}
    return run(InvertEditFriendly, model, pictures, text=text, **settings).result


def sampled(model: Any, kind: Family = "sd15", scenes: tuple[str, ...] = SCENES, **settings: Any) -> Tensor:
    text, _ = prompts(kind, *scenes)
    settings = {"steps": STEPS, "cfg": 4.0, "scheduler": "ddim_uniform", "seed": 8} | settings
    return ksampler(model, text, make_conditioning(kind, seed=2), empty_latent(len(scenes), SIDE, SIDE), **settings)


def told(model: Any, trajectory: Any, kind: Family = "sd15", **settings: Any) -> Any:
    """MODEL with a story of three scenes on it, the first of which are pictures."""
    _, words = prompts(kind, *SCENES)
    return story_on(model, words, pictures=trajectory, **settings)


@pytest.mark.parametrize("images", [slow(1), 2])
def test_pictures_come_out_as_they_are_and_the_others_look_at_them(kind: Family, images: int) -> None:
    model, pictures = make_unet(kind), random_latent(images, SIDE, SIDE, seed=3)
    others = random_latent(images, SIDE, SIDE, seed=4)
    made = sampled(told(model, inverted(model, pictures, kind)[0], kind), kind)
    assert relative_error(made[:images], pictures["samples"]) < 1e-5
    vae = make_vae()
    assert relative_error(vae.decode(made[:images]), vae.decode(pictures["samples"])) < 1e-4
    with_others = sampled(told(model, inverted(model, others, kind)[0], kind), kind)
    assert relative_error(with_others[:images], others["samples"]) < 1e-5
    assert relative_error(made[2:], with_others[2:]) > 1e-3
    without = sampled(told(model, None, kind), kind)
    assert relative_error(made[2:], without[2:]) > 1e-3


@pytest.mark.parametrize("sampler", slow_but(["euler", "euler_ancestral", "heun", "dpmpp_2m"], ("euler_ancestral",)))
def test_any_sampler_that_keeps_to_the_levels_brings_them_back(sampler: str) -> None:
    model, pictures = make_unet("sd15"), random_latent(2, SIDE, SIDE, seed=3)
    made = sampled(told(model, inverted(model, pictures)[0], mode="fast"), sampler=sampler)
    assert relative_error(made[:2], pictures["samples"]) < 1e-5 and torch.isfinite(made).all()


def test_what_the_model_is_shown_are_the_states_of_the_inversion() -> None:
    model, pictures = make_unet("sd15"), random_latent(2, SIDE, SIDE, seed=3)
    trajectory = inverted(model, pictures)[0]
    shown: list[Tensor] = []
    first_layer = model.model.diffusion_model.input_blocks[0][0]
    handle = first_layer.register_forward_pre_hook(lambda module, inputs: shown.append(inputs[0].clone()))
    try:
        sampled(told(model, trajectory, injection=0.0, query_blend=0.0))
    finally:
        handle.remove()
    assert len(shown) == STEPS
    for x, states in zip(shown, trajectory.latents.flip(0), strict=False):
        for chunk in x.unflatten(0, (2, 3)):
            assert torch.equal(chunk[:2], states)
            assert relative_error(chunk[2:], states[:1]) > 0.1


def test_pictures_on_an_inpainting_model_are_refused_before_the_first_step() -> None:
    model = patcher_around(base_model("sd15", {**UNET_CONFIGS["sd15"], "in_channels": 9}))
    seed_weights(model.model.diffusion_model, 0)
    model.model.set_inpaint()
    ordinary = make_unet("sd15")
    trajectory = inverted(ordinary, random_latent(2, SIDE, SIDE, seed=3))[0]
    patched = told(model, replace(trajectory, stamp=stamp_of(model)))
    assert torch.isfinite(sampled(told(model, None))).all()
    with pytest.raises(ValueError, match="takes 9 channels where the inverted pictures have 4.*ordinary checkpoint"):
        sampled(patched)
    with pytest.raises(ValueError, match="takes 9 channels where a picture's latent has 4.*ordinary checkpoint"):
        inverted(model, random_latent(2, SIDE, SIDE, seed=3))


def test_scenes_that_would_start_from_too_little_noise_are_refused() -> None:
    """The SIGMAS of Invert Image (edit-friendly) without the steps it skips, or KSampler's denoise below 1."""
    model, pictures = make_unet("sd15"), random_latent(2, SIDE, SIDE, seed=3)
    trajectory = inverted(model, pictures)[0]
    patched, sigmas = told(model, trajectory), torch.tensor(trajectory.sigmas).flip(0)
    text, negative = prompts("sd15", *SCENES)[0], make_conditioning("sd15", seed=2)
    empty = empty_latent(len(SCENES), SIDE, SIDE)
    assert torch.isfinite(sampler_custom(patched, text, negative, empty, sigmas, add_noise=True)).all()
    with pytest.raises(ValueError, match="starts at noise level .*ddim_uniform, 5 steps and denoise 1, or set skip"):
        sampler_custom(patched, text, negative, empty, sigmas[2:], add_noise=True)
    scenes = random_latent(len(SCENES), SIDE, SIDE, seed=5)  # img2img starts lower, from pictures
    assert torch.isfinite(sampler_custom(patched, text, negative, scenes, sigmas[2:], add_noise=True)).all()


def test_the_states_of_the_pictures_need_no_prompt() -> None:
    model, pictures = make_unet("sd15"), random_latent(2, SIDE, SIDE, seed=3)
    without = run(InvertEditFriendly, model, pictures, steps=STEPS, seed=0, guidance=1.0, skip=0.0, check=False)[0]
    assert relative_error(without.latents, inverted(model, pictures)[0].latents) < 1e-5


@pytest.mark.slow
def test_conditionings_sent_one_by_one_and_cfg_one_keep_the_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    from comfy.model_patcher import ModelPatcher

    model, pictures = make_unet("sd15"), random_latent(2, SIDE, SIDE, seed=3)
    patched = told(model, inverted(model, pictures)[0])
    together = sampled(patched)
    assert relative_error(sampled(patched, cfg=1.0)[:2], pictures["samples"]) < 1e-5
    monkeypatch.setattr(ModelPatcher, "get_free_memory", lambda self, device: 1)
    apart = sampled(patched)
    assert relative_error(apart[:2], pictures["samples"]) < 1e-5
    assert relative_error(apart, together) < 1e-2


def test_pictures_are_recorded_as_a_subject() -> None:
    model, pictures = make_unet("sd15"), random_latent(2, SIDE, SIDE, seed=3)
    trajectory = inverted(model, pictures)[0]
    latent, subject, report = recorded(model, pictures=trajectory, steps=STEPS, scheduler="ddim_uniform")
    assert relative_error(latent["samples"], pictures["samples"]) < 1e-5
    assert "no recipe: " in report and "inverted pictures" in report
    _, words = prompts("sd15", "at night")
    made = sampled(applied(model, subject, words), scenes=("at night",))
    assert relative_error(made, sampled(model, scenes=("at night",))) > 1e-3


@pytest.mark.slow
def test_the_model_and_its_next_run_are_left_as_they_were() -> None:
    model, pictures = make_unet("sd15"), random_latent(2, SIDE, SIDE, seed=3)
    plain = sampled(model)
    patched = told(model, inverted(model, pictures)[0])
    assert torch.equal(sampled(patched), sampled(patched))
    assert torch.equal(sampled(model), plain)
    idle = told(model, inverted(model, pictures)[0], sharing=0.0, injection=0.0)
    assert torch.equal(sampled(idle), plain)
    assert "your pictures" in run(ShowPatches, patched)[0]


def test_pictures_that_do_not_fit_the_story_are_refused() -> None:
    model = make_unet("sd15")
    three = inverted(model, random_latent(3, SIDE, SIDE))[0]
    with pytest.raises(
        ValueError, match="There are 3 inverted pictures, but the story has 2 anchors. Set anchors to 3"
    ):
        sampled(told(model, three))
    small = inverted(model, random_latent(2, 8, 8))[0]
    with pytest.raises(ValueError, match="pictures are 8x8 in the latent, but the story's images 16x16"):
        sampled(told(model, small))
    fitting = inverted(model, random_latent(2, SIDE, SIDE))[0]
    for settings in ({"steps": 8}, {"scheduler": "karras"}):
        with pytest.raises(ValueError, match="noise level .*Use KSampler with the scheduler ddim_uniform and as many"):
            sampled(told(model, fitting), **settings)
    with pytest.raises(ValueError, match="trajectory of the pictures was made with an SD 1.5 model, but this one"):
        told(make_unet("sdxl"), fitting, "sdxl")
