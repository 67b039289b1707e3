"""Edit-friendly inversion on the real sampler equals the authors' code, comes back, and refuses what does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustom
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete
from torch import Tensor

from semblance.attention.references.trajectory import OffLadder, ReferenceTrajectory
from semblance.host.conditioning import Text
from semblance.host.inversion.ddim import invert
from semblance.host.inversion.edit_friendly import (
    draw_noises,
    invert_edit_friendly,
    replay,
    replay_sampler,
    start_after,
)
from semblance.host.inversion.report import reconstruction_error
from semblance.host.inversion.styleid_start import check_pair
from semblance.host.latents import picture_latents
from semblance.tests.support.frozen_cases import load_reference
from semblance.tests.support.oracles import oracle_unet
from semblance.tests.support.studio import Studio, record_calls, relative_error
from semblance.tests.tiny_models import make_unet

CASE, FACTS = load_reference("edit_friendly")
UNET = {name.removeprefix("unet."): tensor for name, tensor in CASE.items() if name.startswith("unet.")}
STEPS = FACTS["N"]


def furthest(made: Tensor, expected: Tensor) -> float:
    return float((made - expected).abs().max())


def text_of(studio: Studio, guidance: float = 3.5) -> Text:
    return Text(studio.positive, studio.negative, guidance)


def pictures(images: int = 1, size: tuple[int, int] = (8, 8), seed: int = 5) -> Tensor:
    """Clean latents as VAE Encode gives them."""
    return torch.randn(images, 4, *size, generator=torch.Generator().manual_seed(seed)) * 4


def inverted(model: Any, latents: Tensor, text: Text, steps: int = 10, seed: int = 0) -> ReferenceTrajectory:
    return invert_edit_friendly(model, latents, steps, text, draw_noises(latents, steps, seed)).trajectory


def sampled(
    model: Any, trajectory: ReferenceTrajectory, text: Text, skip: int = 0, sigmas: Tensor | None = None, **changes: Any
) -> Tensor:
    """What the SamplerCustom node makes of the trajectory's start with its sampler."""
    start = start_after(model, trajectory, skip)
    latent = {"samples": start.latent, **changes}
    noise, ladder = changes.pop("add_noise", False), start.sigmas if sigmas is None else sigmas
    sampler = replay_sampler(trajectory)
    made = SamplerCustom.execute(model, noise, 1, text.guidance, text.positive, text.negative, sampler, ladder, latent)
    return made[0]["samples"]


class Theirs:
    """The frozen run on the UNet, inverted once here."""

    def __init__(self) -> None:
        self.model = oracle_unet("sd15")
        empty, source, target = ([[UNET[f"in.context_{name}"], {}]] for name in ("uncond", "src", "tar"))
        self.empty = Text(empty, empty)
        self.source = Text(source, empty, FACTS["cfg_src"])
        self.target = Text(target, empty, FACTS["cfg_tar"])
        self.trajectory = self.inverted(self.source)

    def inverted(self, text: Text) -> ReferenceTrajectory:
        picture = self.model.model.process_latent_out(UNET["in.x0"])
        noises = UNET["in.noises_in_draw_order"][:, None]
        return invert_edit_friendly(self.model, picture, STEPS, text, noises).trajectory

    def scaled(self, latent: Tensor) -> Tensor:
        return self.model.model.process_latent_in(latent)


@pytest.fixture(scope="module")
def theirs() -> Iterator[Theirs]:
    yield Theirs()


def test_states_and_noises_equal_theirs(theirs: Theirs) -> None:
    made = theirs.trajectory
    assert FACTS["eta"] == 1, "the host takes DDPM's steps alone: at another eta their formula is not one of DDIM's"
    assert made.noises is not None
    assert furthest(made.latents[:, 0], UNET["out.xts"]) <= 1e-5
    assert furthest(made.noises[:, 0], UNET["out.zs"]) <= 1e-3
    levels = [0, *FACTS["runs"]["unet"]["draw_order_timesteps"]]
    assert made.sigmas == pytest.approx(theirs.model.model.model_sampling.sigmas[levels].tolist())


def test_noises_without_a_prompt_equal_theirs(theirs: Theirs) -> None:
    made = theirs.inverted(theirs.empty)
    assert made.noises is not None
    assert furthest(made.noises[:, 0], UNET["out.zs_unconditional"]) <= 1e-3


@pytest.mark.parametrize("skip", FACTS["skips"])
def test_samples_with_either_prompt_equal_theirs(theirs: Theirs, skip: int) -> None:
    back = theirs.scaled(replay(theirs.model, theirs.trajectory, theirs.source, skip))
    assert furthest(back, UNET[f"out.recon_skip{skip}"]) <= 1e-4
    lost = FACTS["runs"]["unet"][f"recon_err_skip{skip}"]
    assert furthest(back, UNET["in.x0"]) == pytest.approx(lost, abs=1e-4)
    edited = theirs.scaled(sampled(theirs.model, theirs.trajectory, theirs.target, skip))
    assert furthest(edited, UNET[f"out.edit_skip{skip}"]) <= 1e-2


def test_a_start_that_was_changed_is_kept(theirs: Theirs) -> None:
    """The sampler takes the trajectory's own latent only for what is that but for rounding."""
    start = start_after(theirs.model, theirs.trajectory, STEPS // 2).latent
    back = sampled(theirs.model, theirs.trajectory, theirs.source, STEPS // 2)
    moved = sampled(theirs.model, theirs.trajectory, theirs.source, STEPS // 2, samples=start * 1.001)
    assert 1e-5 < relative_error(moved, back) < 0.1


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("skip", [0, 4])
def test_the_picture_comes_back_but_for_the_last_noise(sd15: Studio, prediction: str, skip: int) -> None:
    model = sd15.model
    if prediction == "v":
        model = ModelSamplingDiscrete().patch(model, "v_prediction", zsnr=False)[0]
    made, text = inverted(model, pictures(2), text_of(sd15)), text_of(sd15)
    assert made.stamp.prediction == prediction and made.noises is not None and not made.noises[0].any()
    assert reconstruction_error(model, made, replay(model, made, text, skip)) < 0.1
    above = start_after(model, made, skip).sigmas[:-1]  # without the last step, whose noise is not kept
    scale = (1 + above[-1] ** 2) ** 0.5
    reached = model.model.process_latent_in(sampled(model, made, text, skip, above)) / scale
    assert relative_error(reached, made.latents[1]) < 1e-6


def test_another_prompt_edits_and_skipping_more_edits_less(theirs: Theirs) -> None:
    clean = UNET["in.x0"]
    edits = [
        relative_error(theirs.scaled(replay(theirs.model, theirs.trajectory, theirs.target, skip)), clean)
        for skip in (0, STEPS // 2, STEPS - 2)
    ]
    assert edits[0] > edits[1] > edits[2] > 0, edits


def test_an_image_gets_the_same_noises_whatever_stands_beside_it(studio: Studio) -> None:
    both, text = pictures(2), text_of(studio)
    assert torch.equal(draw_noises(both, 4, 7)[:, 1:], draw_noises(both[1:], 4, 7, [1]))
    assert torch.equal(draw_noises(both, 4, 7)[:, 1:], draw_noises(both[1:], 4, 8))
    assert not torch.equal(draw_noises(both, 4, 7)[:, 0], draw_noises(both, 4, 7)[:, 1])
    assert torch.isfinite(draw_noises(both, 4, 2**64 - 1)).all()
    together = inverted(studio.model, both, text, 4)
    for image in range(2):
        noises = draw_noises(both, 4, 0)[:, image : image + 1]
        alone = invert_edit_friendly(studio.model, both[image : image + 1], 4, text, noises).trajectory
        chosen = together.select([image])
        assert chosen.images == 1 and chosen.noises is not None and alone.noises is not None
        assert relative_error(chosen.latents, alone.latents) < 1e-5
        assert relative_error(chosen.noises, alone.noises) < 1e-3
        back = replay(studio.model, alone, text, 2)
        # On a random network rounding grows manifold with each step.
        assert relative_error(replay(studio.model, together, text, 2)[image : image + 1], back) < 1e-2


def test_it_costs_one_call_a_step_and_guidance_a_second_row(sd15: Studio) -> None:
    model, calls = record_calls(sd15.model)
    made = inverted(model, pictures(2), text_of(sd15), 4)
    assert [len(call["x"]) for call in calls] == [4] * 4 and made.guidance == 3.5
    calls.clear()
    inverted(model, pictures(2), text_of(sd15, 1.0), 4)
    assert [len(call["x"]) for call in calls] == [2] * 4


def test_each_picture_may_have_a_prompt_of_its_own(sd15: Studio) -> None:
    prompts = sd15.text(9, rows=2)
    made = inverted(sd15.model, pictures(2), Text(prompts, sd15.negative, 3.5), 4)
    assert len(made.context) == 2 and made.noises is not None
    second = [[prompts[0][0][1:], {}]]
    alone = inverted(sd15.model, pictures(2)[1:], Text(second, sd15.negative, 3.5), 4, seed=1)
    assert alone.noises is not None and relative_error(made.noises[:, 1:], alone.noises) < 1e-3
    assert torch.equal(made.select([1]).context, alone.context)
    with pytest.raises(ValueError, match="holds 2 prompts, but there are 3 pictures"):
        inverted(sd15.model, pictures(3), Text(prompts, sd15.negative, 3.5), 4)


def test_one_trajectory_serves_copies_of_its_latent(sd15: Studio) -> None:
    made, text = inverted(sd15.model, pictures(2), text_of(sd15), 4), text_of(sd15)
    start = start_after(sd15.model, made, 1)
    latent = {"samples": start.latent.repeat(2, 1, 1, 1)}
    four = SamplerCustom.execute(
        sd15.model, False, 1, 3.5, text.positive, text.negative, replay_sampler(made), start.sigmas, latent
    )[0]["samples"]
    two = replay(sd15.model, made, text, 1)
    assert relative_error(four, two.repeat(2, 1, 1, 1)) < 1e-3


def test_a_run_in_two_parts_ends_where_one_does(sd15: Studio) -> None:
    made, text = inverted(sd15.model, pictures(), text_of(sd15), 6), text_of(sd15)
    sigmas = start_after(sd15.model, made).sigmas
    whole = replay(sd15.model, made, text)
    half = sampled(sd15.model, made, text, sigmas=sigmas[:4])
    sampler = replay_sampler(made)
    rest = SamplerCustom.execute(
        sd15.model, False, 1, 3.5, text.positive, text.negative, sampler, sigmas[3:], {"samples": half}
    )[0]["samples"]
    assert relative_error(rest, whole) < 1e-4


def test_an_interrupt_leaves_nothing_and_the_next_run_is_whole(sd15: Studio) -> None:
    text = text_of(sd15)
    expected = inverted(sd15.model, pictures(), text, 4)
    calls: list[int] = []

    def stop(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            comfy.model_management.interrupt_current_processing()

    handle = sd15.model.model.diffusion_model.register_forward_hook(stop)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            inverted(sd15.model, pictures(), text, 4)
    finally:
        handle.remove()
        comfy.model_management.interrupt_current_processing(False)
    again = inverted(sd15.model, pictures(), text, 4)
    assert again.noises is not None and expected.noises is not None and torch.equal(again.noises, expected.noises)
    assert torch.equal(sd15.sample(), sd15.plain)


def test_what_is_no_picture_and_no_number_of_steps_is_refused(sd15: Studio) -> None:
    broken = pictures()
    broken[0, 0, 0, 0] = float("nan")
    for latent, steps, words in (
        (torch.zeros(1, 4, 8, 8), 4, "Connect VAE Encode"),
        (broken, 4, "not numbers"),
        (pictures(), 1, "choose a number"),
        (pictures(), 501, "choose a number"),
    ):
        with pytest.raises(ValueError, match=words):
            inverted(sd15.model, picture_latents({"samples": latent}), text_of(sd15), steps)


def test_runs_that_the_noises_do_not_belong_to_are_refused(sd15: Studio) -> None:
    made, text = inverted(sd15.model, pictures(2), text_of(sd15), 4), text_of(sd15)
    sigmas = start_after(sd15.model, made).sigmas
    wrong: dict[str, dict[str, Any]] = {
        "Turn add_noise off": {"add_noise": True},
        "carries a noise mask": {"noise_mask": torch.ones(1, 8, 8)},
        "3 images of 8x8, but the noises are those of 2": {"samples": torch.randn(3, 4, 8, 8)},
        "2 images of 9x8, but": {"samples": torch.randn(2, 4, 8, 9)},
        "leaves out points": {"sigmas": sigmas[::2]},
        "Connect the SIGMAS of Invert Image .edit-friendly": {"sigmas": sigmas * 1.1},
    }
    for words, changes in wrong.items():
        with pytest.raises(ValueError, match=words) as fault:
            sampled(sd15.model, made, text, **changes)
        assert isinstance(fault.value, OffLadder) == ("SIGMAS of" in words)
    other = Studio.of("sdxl")
    with pytest.raises(ValueError, match="made with an SD 1.5 model, but this one is SDXL"):
        sampled(other.model, made, text_of(other))
    ddim = invert(sd15.model, pictures(2), 4, "ddim", text_of(sd15, 1.0)).trajectory
    with pytest.raises(ValueError, match="holds no noises to replay"):
        sampled(sd15.model, ddim, text)


def test_styleid_refuses_it(sd15: Studio) -> None:
    made = inverted(sd15.model, pictures(2), text_of(sd15), 4)
    ddim = invert(sd15.model, pictures(), 4, "ddim", text_of(sd15, 1.0)).trajectory
    for content, style, which in ((made, made, "content"), (ddim, made, "style")):
        with pytest.raises(ValueError, match=f"The {which} was inverted by Invert Image .edit-friendly"):
            check_pair(sd15.model, content, style)


def test_noises_of_another_shape_or_not_numbers_are_refused(sd15: Studio) -> None:
    made = inverted(sd15.model, pictures(), text_of(sd15), 4)
    assert made.noises is not None
    assert made.bytes == 4 * (made.latents.numel() + made.noises.numel())
    with pytest.raises(ValueError, match="one for each step"):
        replace(made, noises=made.noises[1:])
    with pytest.raises(ValueError, match="not numbers"):
        replace(made, noises=made.noises * float("nan"))


def test_a_model_that_predicts_neither_is_refused() -> None:
    changed = ModelSamplingDiscrete().patch(make_unet("sd15"), "x0", zsnr=False)[0]
    empty = [[torch.zeros(1, 77, 48), {}]]
    with pytest.raises(ValueError, match="cannot invert"):
        inverted(changed, pictures(), Text(empty, empty), 4)
