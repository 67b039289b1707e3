"""The laws every patch obeys, through the real samplers: every patch on SD 1.5, one of each kind on SDXL.

`nox -s laws` tries every patch on both.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import nodes
from semblance.attention.engine.scope import ScheduleWindow, Scope
from semblance.host.binding.describe import describe
from semblance.host.binding.model import patches_on
from semblance.tests.support.speeds import slow
from semblance.tests.support.studio import (
    PATCHES,
    STORIES,
    TELLS_IMAGES_APART,
    WITH_GUESTS,
    Studio,
    on_both_families,
    record_calls,
    relative_error,
)
from semblance.tests.tiny_models import Family, random_latent, sampler_custom

every_patch = pytest.mark.parametrize("name", PATCHES)
# Of the laws that stories cannot be asked by these tests, those that hold are in test_story_laws.py.
SCOPED = [name for name in PATCHES if name not in STORIES]
LONE_IMAGES = [name for name in SCOPED if name not in {"shares keys", *TELLS_IMAGES_APART}]
OWN_PROMPTS = [name for name in LONE_IMAGES if not name.startswith("reference style")]
"""All whose images hear nothing of each other's prompts; a reference without its own has the first image's."""
CROPPED = [name for name in SCOPED if name not in WITH_GUESTS]

scoped_patch = pytest.mark.parametrize("name", SCOPED)


FEW = ("edits inputs", "brings guests")
"""Enough of SDXL for laws that hang on no family."""


@on_both_families(PATCHES, quick_on_sdxl=FEW)
def test_a_patch_changes_the_picture_and_the_same_way_every_time(studio: Studio, name: str) -> None:
    patched = studio.with_patch(name)
    first, second = studio.sample(patched), studio.sample(patched)
    assert torch.isfinite(first).all()
    assert 1e-3 < relative_error(first, studio.plain) < 3
    assert torch.equal(first, second) and torch.equal(first, studio.patched(name))


@on_both_families(PATCHES)
def test_strength_zero_leaves_the_model_untouched(studio: Studio, name: str) -> None:
    assert torch.equal(studio.sample(studio.with_patch(name, strength=0.0)), studio.plain)


@on_both_families(SCOPED)
def test_an_empty_scope_leaves_the_model_untouched(studio: Studio, name: str) -> None:
    unweighted = Scope({"output.5": 0.0})
    assert torch.equal(studio.sample(studio.with_patch(name, scope=unweighted)), studio.plain)


@every_patch
def test_the_given_model_and_its_other_branches_stay_as_they_were(sd15: Studio, name: str) -> None:
    other = sd15.with_patch("edits output")
    other_before = sd15.patched("edits output")
    branch = sd15.with_patch(name, model=other)
    sd15.sample(branch)
    assert patches_on(sd15.model) == () and len(patches_on(other)) == 1 and len(patches_on(branch)) == 2
    assert torch.equal(sd15.sample(), sd15.plain) and torch.equal(sd15.sample(other), other_before)


@on_both_families(PATCHES, quick_on_sdxl=FEW)
def test_conditionings_sent_one_by_one_give_the_same_result(
    studio: Studio, name: str, request: pytest.FixtureRequest
) -> None:
    batched = studio.patched(name)
    request.getfixturevalue("one_conditioning_a_call")
    apart, calls = record_calls(studio.with_patch(name))
    assert relative_error(studio.sample(apart), batched) < 1e-4
    assert [call["numbers"] for call in calls[:2]] == [[1], [0]]


@on_both_families(PATCHES, quick_on_sdxl=FEW)
def test_without_guidance_the_negative_side_is_not_missed(studio: Studio, name: str) -> None:
    lone, calls = record_calls(studio.with_patch(name))
    alone = studio.sample(lone, cfg=1.0)
    assert calls[0]["numbers"] == [0]
    both = studio.with_patch(name)
    both.model_options["disable_cfg1_optimization"] = True
    assert relative_error(studio.sample(both, cfg=1.0), alone) < 1e-4


@on_both_families(PATCHES, quick_on_sdxl=("edits inputs",))
def test_two_positive_entries_of_different_length_go_together_or_apart(
    studio: Studio, name: str, request: pytest.FixtureRequest
) -> None:
    entries = [*studio.text(3, tokens=77), *studio.text(4, tokens=154)]
    together, calls = record_calls(studio.with_patch(name))
    batched = studio.sample(together, positive=entries)
    assert calls[0]["numbers"] == [1, 0, 0]
    request.getfixturevalue("one_conditioning_a_call")
    assert relative_error(studio.sample(studio.with_patch(name), positive=entries), batched) < 1e-4


@pytest.mark.parametrize("name", CROPPED)
def test_an_area_conditioning_goes_together_or_apart(sd15: Studio, name: str, request: pytest.FixtureRequest) -> None:
    (area,) = nodes.ConditioningSetArea().append(sd15.text(3), width=64, height=48, x=32, y=16, strength=1.0)
    entries = [*sd15.positive, *area]
    together, calls = record_calls(sd15.with_patch(name, size=(12, 16)))
    batched = sd15.sample(together, size=(12, 16), positive=entries)
    assert {tuple(call["x"].shape[2:]) for call in calls} == {(12, 16), (6, 8)}
    request.getfixturevalue("one_conditioning_a_call")
    apart = sd15.sample(sd15.with_patch(name, size=(12, 16)), size=(12, 16), positive=entries)
    assert relative_error(apart, batched) < 1e-4


@pytest.mark.parametrize("size", [slow(((24, 8),)), (9, 13)], ids=["24x8", "9x13"])
@pytest.mark.parametrize("name", LONE_IMAGES)
def test_each_image_of_a_batch_comes_out_as_it_would_alone(sd15: Studio, name: str, size: tuple[int, int]) -> None:
    latent, sigmas = random_latent(3, *size), torch.tensor([4.0, 1.0, 0.0])
    patched = sd15.with_patch(name, size=size)
    batch = sampler_custom(patched, sd15.positive, sd15.negative, latent, sigmas, cfg=4.0)
    for image in range(3):
        one = {"samples": latent["samples"][image : image + 1]}
        alone = sampler_custom(patched, sd15.positive, sd15.negative, one, sigmas, cfg=4.0)
        assert relative_error(batch[image : image + 1], alone) < 1e-4


@on_both_families(OWN_PROMPTS, quick_on_sdxl=("edits inputs",))
def test_each_image_of_a_batch_keeps_its_own_prompt(studio: Studio, name: str) -> None:
    prompts, latent, sigmas = studio.text(5, rows=3), random_latent(3, 8, 8), torch.tensor([4.0, 1.0, 0.0])
    patched = studio.with_patch(name)
    batch = sampler_custom(patched, prompts, studio.negative, latent, sigmas, cfg=4.0)
    ((context, extras),) = prompts
    for image in (0, 2):
        row = slice(image, image + 1)
        own = [[context[row], {key: tensor[row] for key, tensor in extras.items()}]]
        alone = sampler_custom(patched, own, studio.negative, {"samples": latent["samples"][row]}, sigmas, cfg=4.0)
        assert relative_error(batch[row], alone) < 1e-4


@scoped_patch
def test_a_single_odd_sized_picture_is_changed_from_half_noise_on(sd15: Studio, name: str) -> None:
    patched, size = sd15.with_patch(name, size=(9, 13)), (9, 13)
    changed, plain = (sd15.sample(model, images=1, size=size, denoise=0.5, steps=4) for model in (patched, sd15.model))
    assert changed.shape == (1, 4, 9, 13) and torch.isfinite(changed).all()
    assert relative_error(changed, plain) > 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, slow(torch.bfloat16)])
@scoped_patch
def test_half_precision_is_kept_and_costs_no_more_than_in_the_plain_model(
    sd15: Studio, half: Callable[[torch.dtype], Studio], name: str, dtype: torch.dtype
) -> None:
    seen: list[torch.dtype] = []
    patched = half(dtype).with_patch(name)
    unet = patched.model.diffusion_model
    handle = unet.output_blocks[5][1].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    try:
        sampled = half(dtype).sample(patched)
    finally:
        handle.remove()
    single = sd15.patched(name)
    assert seen and set(seen) == {dtype}
    assert torch.isfinite(sampled).all()
    rounding = relative_error(half(dtype).plain, sd15.plain)
    assert relative_error(sampled, single) < 1.5 * rounding


@scoped_patch
def test_the_description_says_what_each_patch_does_in_order(sd15: Studio, name: str) -> None:
    window = sd15.everywhere(window=ScheduleWindow(0.2, 0.8))
    patched = sd15.with_patch(name, sd15.with_patch("edits output", strength=0.25), strength=0.75, scope=window)
    first, second = describe(patched).splitlines()[1:3]
    assert first.startswith("1. LookAway, strength 0.25, input.1=1, ")
    assert second == f"2. {patches_on(patched)[1]!r}"
    strength = {"ip-adapter per image": "strengths 1.125, 0.525"}.get(name, "strength 0.75")
    assert strength in second and "output.11=1, 0.2 to 0.8" in second


@pytest.fixture(scope="session")
def half() -> Callable[[torch.dtype], Studio]:
    studios: dict[torch.dtype, Studio] = {}

    def studio(dtype: torch.dtype, kind: Family = "sd15") -> Studio:
        if dtype not in studios:
            studios[dtype] = Studio.of(kind, dtype)
        return studios[dtype]

    return studio
