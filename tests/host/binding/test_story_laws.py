"""What holds for a method that needs a whole batch and samples it twice: ConsiStory, through the real samplers."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from comfy.model_management import InterruptProcessingException
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_hypertile import HyperTile
from comfy_extras.nodes_tomesd import TomePatchModel
from node_helpers import conditioning_set_values
from torch import Tensor

import nodes
from semblance.attention.engine.bank import FeatureBank
from semblance.attention.engine.call import AttentionSite
from semblance.attention.engine.layout import BatchLayout
from semblance.attention.engine.moment import Moment
from semblance.attention.engine.scope import ImageMask
from semblance.attention.families import CONSISTORY
from semblance.attention.methods.consistory.method import ConsiStory
from semblance.attention.methods.consistory.settings import Injection, QueryBlend, Sharing, StepRange
from semblance.attention.subjects.maps import REMEMBERED_STEPS, Grid
from semblance.attention.subjects.masks import SubjectMasks
from semblance.attention.subjects.user_masks import UserMasks
from semblance.attention.subjects.words import SubjectWords
from semblance.host.binding.conditionings import TAG as STORY_MARK
from semblance.host.binding.model import add_patch
from semblance.host.binding.run import RUN
from semblance.host.subjects.masks import subject_masks_of
from semblance.tests.support.endings import Fault, raise_fault, raise_interrupt, tensors_alive
from semblance.tests.support.neighbours import Foreigner, Kernel, one_tile_after_another
from semblance.tests.support.speeds import slow, slow_but
from semblance.tests.support.studio import (
    STORIES,
    STORY,
    Studio,
    guider_of,
    ladder,
    painted,
    relative_error,
    run_guider,
    told_on,
    wrap,
)
from semblance.tests.tiny_models import ksampler

every_story = pytest.mark.parametrize("name", sorted(STORIES))


def story(studio: Studio, scenes: int = 2, **settings: Any) -> ConsiStory:
    """A story that acts at every step of a short run."""
    columns = tuple(((2 + scene,),) for scene in range(scenes))
    words = SubjectWords(("a fox",), tuple(f"scene {scene} of a fox" for scene in range(scenes)), columns, 77)
    chosen = {"injection": Injection(window=StepRange(0.0, 1.0)), "blend": QueryBlend(until=0.6)} | settings
    return ConsiStory(words, studio.model_map.family.choice(CONSISTORY), **chosen)


def told(studio: Studio, patch: ConsiStory, **settings: Any) -> Tensor:
    return studio.sample(add_patch(studio.model, patch), **settings)


def record_unet_calls(model: ModelPatcher) -> tuple[ModelPatcher, list[float]]:
    """A clone of `model` that writes down the timestep of every call of the UNet, rehearsals included."""
    calls: list[float] = []

    def recorder(executor: Any, x: Tensor, timesteps: Tensor, *rest: Any, **named: Any) -> Tensor:
        calls.append(float(timesteps[0]))
        return executor(x, timesteps, *rest, **named)

    return wrap(model, WrappersMP.DIFFUSION_MODEL, recorder), calls


# The batch


def test_the_order_of_the_conditionings_in_a_call_does_not_matter(studio: Studio) -> None:
    def turned(part: Any, rows: int) -> Any:
        fits = isinstance(part, Tensor) and len(part) == rows
        return torch.cat(part.chunk(2)[::-1]) if fits else part

    orders: list[list[int]] = []

    def turn(executor: Any, x: Tensor, *rest: Any, **named: Any) -> Tensor:
        *tensors, options = rest
        options = {**options, **{name: options[name][::-1] for name in ("cond_or_uncond", "uuids")}}
        orders.append(options["cond_or_uncond"])
        given = [turned(part, len(x)) for part in tensors]
        named = {name: turned(part, len(x)) for name, part in named.items()}
        return turned(executor(turned(x, len(x)), *given, options, **named), len(x))

    given = studio.patched("consistory")
    other = studio.sample(wrap(studio.with_patch("consistory"), WrappersMP.APPLY_MODEL, turn))
    assert orders and orders[0] == [0, 1]
    assert relative_error(other, given) < 1e-4


@pytest.mark.parametrize("in_turn", [True, False], ids=["official", "clean"])
def test_more_images_do_not_change_the_anchors(studio: Studio, in_turn: bool) -> None:
    # Scenes in which no token stands so near a mask's threshold that the rounding of a longer batch moves it.
    text, latent = studio.text(6, rows=3), {"samples": torch.zeros(3, 4, 8, 8)}
    ((context, extras),) = text
    two = [[context[:2], {name: tensor[:2] for name, tensor in extras.items()}]]
    injection = Injection(window=StepRange(0.0, 1.0), in_turn=in_turn)

    def sampled(scenes: int, positive: Any) -> Tensor:
        model = add_patch(studio.model, story(studio, scenes, injection=injection))
        empty = {"samples": latent["samples"][:scenes]}
        return ksampler(model, told_on(model, positive), studio.negative, empty, steps=3, scheduler="simple")

    alone, together = sampled(2, two), sampled(3, text)
    assert relative_error(together[:2], alone) < 1e-5
    plain = ksampler(studio.model, text, studio.negative, latent, steps=3, scheduler="simple")
    assert relative_error(together[2:], plain[2:]) > 1e-3


def test_without_anchors_and_with_more_than_there_are_images_all_look_at_all(sd15: Studio) -> None:
    everyone, many, one = (told(sd15, story(sd15, sharing=Sharing(anchors=anchors))) for anchors in (0, 9, 1))
    assert torch.equal(everyone, many)
    assert relative_error(one, everyone) > 1e-4


@pytest.mark.parametrize(
    ("name", "size"),
    slow_but(
        itertools.product(sorted(STORIES), [(9, 13), (24, 8), (7, 5)]),
        [("consistory", (9, 13)), ("consistory fast", (7, 5))],
    ),
)
def test_any_size_is_told_and_marked(studio: Studio, name: str, size: tuple[int, int]) -> None:
    patched = studio.with_patch(name, size=size)
    made = studio.sample(patched, size=size)
    assert made.shape == (2, 4, *size) and torch.isfinite(made).all()
    assert relative_error(made, studio.sample(size=size)) > 1e-3
    masks = subject_masks_of({"samples": made})
    assert masks.shape == (2, *(-(-side // 2) for side in size)) or studio.kind == "sd15"
    assert 0 < masks.mean() < 1


# The steps


SAMPLERS = ["euler_ancestral", "heun", "dpm_2", "dpmpp_2m", "dpmpp_sde", "ddim", "lcm"]


@pytest.mark.parametrize(
    ("name", "sampler"),
    slow_but(
        itertools.product(sorted(STORIES), SAMPLERS),
        [("consistory", "dpm_2")],
    ),
)
def test_any_sampler_tells_it_the_same_way_every_time(sd15: Studio, name: str, sampler: str) -> None:
    patched = sd15.with_patch(name)
    first, second = (sd15.sample(patched, steps=3, sampler=sampler) for _ in range(2))
    assert torch.isfinite(first).all() and torch.equal(first, second)
    assert relative_error(first, sd15.sample(steps=3, sampler=sampler)) > 1e-3


@every_story
def test_img2img_is_told_too(sd15: Studio, name: str) -> None:
    settings = {"steps": 3, "denoise": 0.5}
    made = sd15.sample(sd15.with_patch(name), **settings)
    assert torch.isfinite(made).all() and relative_error(made, sd15.sample(**settings)) > 1e-4


def test_features_of_a_rehearsal_are_not_recorded(sd15: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    """Late in the schedule, as in img2img, the step whose features match best is among those rehearsed."""
    kept: list[Tensor] = []
    remember = FeatureBank.remember

    def watched(self: FeatureBank, name: Any, tensor: Any) -> None:
        if name == "features":
            kept.append(tensor)
        remember(self, name, tensor)

    monkeypatch.setattr(FeatureBank, "remember", watched)
    blend = QueryBlend(until=1.0)
    told(sd15, story(sd15, blend=blend), steps=2, denoise=0.2, cfg=1.0)
    assert len(kept) == 1


@pytest.mark.parametrize(
    ("settings", "first", "second"),
    [
        ({}, 10 + 1, 10 + 1),  # 2 x (50 + 5) at 50 steps: the authors' 6 less the first, which shares nothing
        ({"fast": True}, 8 + 1, 10 + 1),
        ({"blend": QueryBlend(strength=0.0)}, 10, 10),
        ({"injection": Injection(strength=0.0)}, 0, 10 + 1),
    ],
    ids=["official", "fast", "without query blend", "without injection"],
)
def test_the_unet_is_called_as_often_as_said(sd15: Studio, settings: Any, first: int, second: int) -> None:
    patch = ConsiStory(STORY, sd15.model_map.family.choice(CONSISTORY), **settings)
    model, calls = record_unet_calls(add_patch(sd15.model, patch))
    sd15.sample(model, steps=10, scheduler="normal", size=(4, 4))
    starts = [place for place, time in enumerate(calls) if time == calls[0] and calls[place - 1] != time]
    ends = [*starts[1:], len(calls)]
    assert [end - start for start, end in zip(starts, ends, strict=True)] == [
        calls for calls in (first, second) if calls
    ]


def test_fast_ends_the_first_sampling_early_and_comes_to_the_same(sd15: Studio) -> None:
    """All that the second takes from the first is known by then, and the rehearsal it leaves out has no effect."""
    clean = Injection(window=StepRange(0.0, 0.5), in_turn=False)
    whole, early = (story(sd15, injection=clean, fast=fast) for fast in (False, True))
    masks = {"masks": UserMasks(ImageMask(torch.ones(1, 64, 64)))}  # those found would be of fewer steps
    model, calls = record_unet_calls(add_patch(sd15.model, replace(early, **masks)))
    made = sd15.sample(model, steps=6)
    other, more_calls = record_unet_calls(add_patch(sd15.model, replace(whole, **masks)))
    assert torch.equal(made, sd15.sample(other, steps=6))
    assert len(calls) < len(more_calls)


def test_fast_does_not_end_a_sampling_that_another_story_needs(sd15: Studio) -> None:
    fast, whole, idle = (story(sd15, **settings) for settings in ({"fast": True}, {}, {"injection": Injection(0.0)}))

    def calls_of(*patches: ConsiStory) -> int:
        model = sd15.model
        for patch in patches:
            model = add_patch(model, replace(patch, blend=QueryBlend(0.0)))
        model, calls = record_unet_calls(model)
        sd15.sample(model, steps=5, scheduler="normal", size=(4, 4), cfg=1.0)
        return len(calls)

    assert calls_of(fast, whole) == 2 * 5
    assert calls_of(fast, idle) < 2 * 5


def test_progress_counts_both_passes(sd15: Studio) -> None:
    seen: list[tuple[int, int]] = []
    guider = guider_of(sd15, sd15.with_patch("consistory"))
    run_guider(guider, ladder(sd15, 3), callback=lambda step, denoised, x, steps: seen.append((step, steps)))
    assert seen == [(step, 6) for step in range(6)]


# What is left behind


@dataclass(frozen=True, eq=False)
class Watched(ConsiStory):
    """Lets a test see the bank of every run, and stop it where it likes."""

    banks: list[weakref.ref[FeatureBank]] = field(default_factory=list)
    largest: list[int] = field(default_factory=list)
    maps: list[int] = field(default_factory=list)
    """How many steps' maps there are at each call."""
    stop: Callable[[Moment, str], None] = lambda moment, where: None

    def begin(self, layout: BatchLayout, moment: Moment, bank: FeatureBank) -> None:
        super().begin(layout, moment, bank)
        self.banks.append(weakref.ref(bank))
        self.largest.append(bank.bytes)
        self.maps.append(sum("map sum" in line for line in repr(bank).splitlines()))
        self.stop(moment, "call")

    def observe(self, call: Any, bank: FeatureBank) -> None:
        super().observe(call, bank)
        self.stop(call.moment, "rehearsal")

    def edit_inputs(self, call: Any, bank: FeatureBank) -> Any:
        self.stop(call.moment, "attention")
        return super().edit_inputs(call, bank)


def watched(
    studio: Studio, stop: Callable[[Moment, str], None] = lambda moment, where: None, **settings: Any
) -> Watched:
    patch = story(studio, **settings)
    return Watched(patch.words, patch.blocks, blend=patch.blend, injection=patch.injection, stop=stop)


ENDS = {Fault: raise_fault, InterruptProcessingException: raise_interrupt}


@pytest.mark.parametrize(
    ("where", "number", "raised"),
    slow_but(
        itertools.product(["call", "rehearsal", "attention"], [1, 2], ENDS),
        [("call", 1, Fault), ("rehearsal", 2, InterruptProcessingException), ("attention", 2, Fault)],
    ),
)
def test_a_story_leaves_nothing_however_it_ends(
    sd15: Studio, where: str, number: int, raised: type[BaseException]
) -> None:
    armed: list[bool] = []

    def stop(moment: Moment, here: str) -> None:
        if armed and here == where and moment.pass_number == number and moment.step == 1:
            ENDS[raised]()

    patch = watched(sd15, stop)
    model = add_patch(sd15.model, patch)
    before = run_guider(guider_of(sd15, model), ladder(sd15, 3))
    armed.append(True)
    guider = guider_of(sd15, model)
    with pytest.raises(raised) as caught:
        run_guider(guider, ladder(sd15, 3))
    assert all(not bank() for bank in patch.banks)  # though the traceback still holds the run's frames
    assert RUN not in guider.model_options["transformer_options"]
    del caught
    armed.clear()
    gc.collect()
    assert [bank() for bank in patch.banks] == [None] * len(patch.banks)
    assert torch.equal(run_guider(guider_of(sd15, model), ladder(sd15, 3)), before)
    assert torch.equal(sd15.sample(), sd15.plain)


def test_the_bank_holds_little_and_is_gone_after_the_run(studio: Studio) -> None:
    patch = watched(studio)
    told(studio, patch, steps=3)
    gc.collect()
    assert patch.banks and [bank() for bank in patch.banks] == [None] * len(patch.banks)
    assert 0 < max(patch.largest) < 2**20


def test_maps_of_a_long_run_are_forgotten(sd15: Studio) -> None:
    patch = watched(sd15, injection=Injection(0.0))
    told(sd15, patch, steps=24, size=(4, 4), cfg=1.0)
    assert patch.maps == [min(step, REMEMBERED_STEPS) for step in range(24)]


def test_story_after_story_keeps_no_tensor(sd15: Studio) -> None:
    model = sd15.with_patch("consistory")

    def run(times: int) -> None:
        for _ in range(times):
            sd15.sample(model, size=(4, 4), cfg=1.0)

    run(2)
    tensors = tensors_alive()
    run(3)
    assert tensors_alive() == tensors


# Half precision


@pytest.mark.parametrize("dtype", [torch.float16, slow(torch.bfloat16)])
def test_half_precision_is_kept_and_costs_no_more_where_no_threshold_decides(sd15: Studio, dtype: torch.dtype) -> None:
    """On a random network, masks and matches lie at the edge: rounding alone makes other ones."""
    half, seen = Studio.of("sd15", dtype), set()
    masks = UserMasks(ImageMask((painted(2, 64, 64).values > 0.5).float()))
    settings = {"masks": masks, "injection": Injection(strength=0.0)}
    block = half.model.model.diffusion_model.output_blocks[5][1]
    handle = block.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    made, found = told(half, story(half, **settings)), told(half, story(half))
    handle.remove()
    assert seen == {dtype}
    rounding = relative_error(half.plain, sd15.plain)
    assert relative_error(made, told(sd15, story(sd15, **settings))) < 1.5 * rounding
    assert torch.isfinite(found).all() and relative_error(found, half.plain) > rounding


# Neighbours


@pytest.mark.parametrize(
    ("kind", "parts"), slow_but(itertools.product(["self", "cross"], [2, 3]), [("self", 3), ("cross", 2)])
)
def test_another_packs_attention_may_come_before_or_after(sd15: Studio, kind: Any, parts: int) -> None:
    before, after, alone = Foreigner(), Foreigner(), Foreigner()
    ours_last = sd15.sample(sd15.with_patch("consistory", before.on(sd15.model, kind, parts)))
    ours_first = sd15.sample(after.on(sd15.with_patch("consistory"), kind, parts))
    assert torch.equal(ours_last, ours_first) and before.sites == after.sites
    assert relative_error(ours_last, sd15.sample(alone.on(sd15.model, kind, parts))) > 1e-3
    assert relative_error(ours_last, sd15.patched("consistory")) > 1e-3
    assert set(alone.sites) == set(before.sites)


def test_another_packs_kernel_may_come_before_or_after(sd15: Studio) -> None:
    ours_last = sd15.sample(sd15.with_patch("consistory", Kernel(0.9).on(sd15.model)))
    ours_first = sd15.sample(Kernel(0.9).on(sd15.with_patch("consistory")))
    assert torch.equal(ours_last, ours_first)
    assert relative_error(ours_last, sd15.patched("consistory")) > 1e-3


def hypertile(model: ModelPatcher) -> ModelPatcher:
    return HyperTile.execute(model, tile_size=32, swap_size=2, max_depth=0, scale_depth=False)[0]


def token_merging(model: ModelPatcher) -> ModelPatcher:
    return TomePatchModel.execute(model, 0.3)[0]


def easy_cache(model: ModelPatcher) -> ModelPatcher:
    from comfy_extras.nodes_easycache import EasyCacheNode

    return EasyCacheNode.execute(model, 0.2, 0.15, 0.95, False)[0]


@pytest.mark.parametrize(
    ("neighbour", "name"), [(hypertile, "HyperTile"), (token_merging, "ToMe"), (easy_cache, "EasyCache")]
)
def test_nodes_that_change_what_is_shared_are_refused_by_name(
    sd15: Studio, neighbour: Callable[[ModelPatcher], ModelPatcher], name: str
) -> None:
    for model in (sd15.with_patch("consistory", neighbour(sd15.model)), neighbour(sd15.with_patch("consistory"))):
        with pytest.raises(ValueError, match=f"^{name} on the same model changes .* Bypass it.$"):
            sd15.sample(model, size=(32, 32))


def test_a_model_on_two_gpus_is_refused(sd15: Studio) -> None:
    model = sd15.with_patch("consistory")
    model.set_additional_models("multigpu", [sd15.model.clone()])
    model.match_multigpu_clones = lambda: None  # there is no second device here
    with pytest.raises(ValueError, match="spread over 2 GPUs, .* Bypass MultiGPU CFG Split."):
        sd15.sample(model)


def test_crops_of_the_picture_are_refused(sd15: Studio) -> None:
    (area,) = nodes.ConditioningSetArea().append(sd15.text(3), width=64, height=48, x=32, y=16, strength=1.0)
    with pytest.raises(ValueError, match="shows the model a crop of the pictures.*Remove Conditioning"):
        sd15.sample(sd15.with_patch("consistory"), size=(12, 16), positive=[*sd15.positive, *area])
    tiled = sd15.with_patch("consistory").clone()
    tiled.set_model_unet_function_wrapper(one_tile_after_another)
    with pytest.raises(
        ValueError, match="shown parts of the pictures.*sets model_function_wrapper: .*one_tile_after.*Bypass"
    ):
        sd15.sample(tiled)


@pytest.mark.parametrize("kind", ["pixels", "percent", "bounds"])
def test_areas_are_refused_before_the_model_is_called(sd15: Studio, kind: str) -> None:
    text, size = sd15.text(3), {"x": 0.5, "y": 0.5, "strength": 1.0}
    (area,) = {
        "pixels": lambda: nodes.ConditioningSetArea().append(text, width=64, height=48, x=32, y=16, strength=1.0),
        "percent": lambda: nodes.ConditioningSetAreaPercentage().append(text, width=0.5, height=0.5, **size),
        "bounds": lambda: nodes.ConditioningSetMask().append(text, torch.ones(1, 64, 64), "mask bounds", 1.0),
    }[kind]()
    model, calls = record_unet_calls(sd15.with_patch("consistory"))
    with pytest.raises(ValueError, match="shows the model a crop of the pictures.*Remove Conditioning"):
        sd15.sample(model, positive=[*sd15.positive, *area])
    assert not calls
    silent = add_patch(sd15.model, story(sd15, sharing=Sharing(0.0), injection=Injection(0.0)))
    assert torch.isfinite(sd15.sample(silent, positive=[*sd15.positive, *area])).all()


def test_a_batch_that_reaches_the_model_image_by_image_is_refused(sd15: Studio) -> None:
    """Images of one story in different calls cannot see each other."""

    def one_by_one(apply_model: Callable[..., Tensor], args: dict[str, Any]) -> Tensor:
        rows, c = args["input"].unflatten(0, (2, 2)), args["c"]
        context = c["c_crossattn"].unflatten(0, (2, 2))
        made = [
            apply_model(rows[:, image], args["timestep"][:2], **{**c, "c_crossattn": context[:, image]})
            for image in range(2)
        ]
        return torch.stack(made, dim=1).flatten(0, 1)

    split = sd15.with_patch("consistory").clone()
    split.set_model_unet_function_wrapper(one_by_one)
    with pytest.raises(
        ValueError, match="2 rows for 2 conditionings of 2 images.*model_function_wrapper: .*one_by_one.*Bypass"
    ):
        sd15.sample(split)


@pytest.mark.parametrize(
    ("settings", "images", "sentence"),
    [
        ({}, 3, "The story has 2 scenes but the latent 3 images. Set the batch size of Empty Latent Image to the"),
        ({"scenes": 1}, 1, "A story of one scene has no other image to be alike. Write two scenes or more."),
        ({"masks": UserMasks(ImageMask(torch.ones(3, 8, 8)))}, 2, "There are 3 subject masks for 2 images. Connect"),
    ],
)
def test_batches_that_make_no_story_are_refused(sd15: Studio, settings: Any, images: int, sentence: str) -> None:
    with pytest.raises(ValueError) as refusal:
        told(sd15, story(sd15, **settings), images=images)
    assert str(refusal.value).startswith(sentence)


def test_text_that_is_not_the_storys_is_refused(sd15: Studio) -> None:
    with pytest.raises(ValueError, match="reads texts of 50 tokens where Story Prompts encoded 77.*Connect"):
        told(sd15, story(sd15), positive=sd15.text(3, tokens=50), cfg=1.0)
    with pytest.raises(ValueError, match="is not the one that Story Prompts made.*Conditioning .Concat. must not"):
        marked = conditioning_set_values(sd15.positive, {STORY_MARK: "another story"})
        told(sd15, story(sd15), positive=marked)
    silent = story(sd15, sharing=Sharing(0.0), injection=Injection(0.0))
    assert torch.equal(told(sd15, silent, positive=marked), sd15.plain)


@pytest.mark.parametrize("joined", [77, 154, 50])
def test_words_joined_to_a_story_name_no_subject(sd15: Studio, joined: int) -> None:
    """Conditioning (Concat) makes the text longer; the subject's columns are those of the story's own tokens."""
    (both,) = nodes.ConditioningConcat().concat(sd15.positive, sd15.text(9, tokens=joined))
    tokens = 77 + joined
    assert both[0][0].shape[1] == tokens
    of_one, longer = story(sd15), story(sd15)
    longer = replace(longer, words=replace(longer.words, tokens=tokens))
    found = told(sd15, of_one, positive=both)
    assert torch.equal(found, told(sd15, longer, positive=both))
    masks, expected = (told_masks(made) for made in (found, told(sd15, longer, positive=both)))
    assert torch.equal(masks, expected)


def told_masks(made: Tensor) -> Tensor:
    return subject_masks_of({"samples": made})


# The masks of the run


def test_the_masks_found_come_along_with_the_latent_of_their_run(studio: Studio) -> None:
    model = add_patch(studio.model, story(studio))
    made, other = (studio.sample(model, seed=seed, size=(16, 16)) for seed in (1, 2))
    masks, others = (subject_masks_of({"samples": latent}) for latent in (made, other))
    assert masks.shape[0] == 2 and set(masks.unique().tolist()) == {0.0, 1.0}
    assert masks.shape == others.shape and not torch.equal(masks, others)
    assert torch.equal(subject_masks_of({"samples": studio.sample(model, seed=1, size=(16, 16))}), masks)


@pytest.mark.parametrize(
    "settings", [slow({"sharing": Sharing(0.0)}), {"injection": Injection(0.0)}, slow({"fast": True})]
)
def test_masks_come_along_whichever_half_of_the_method_acts(sd15: Studio, settings: Any) -> None:
    masks = subject_masks_of({"samples": told(sd15, story(sd15, **settings), size=(16, 16))})
    assert 0 < masks.mean() < 1


def test_masks_of_the_users_replace_or_limit_those_found(sd15: Studio) -> None:
    left = torch.zeros(1, 128, 128)
    left[..., :64] = 1

    def masks(**settings: Any) -> Tensor:
        return subject_masks_of({"samples": told(sd15, story(sd15, **settings), size=(16, 16))})

    given, limited = (masks(masks=UserMasks(ImageMask(left), limits)) for limits in (False, True))
    assert given[:, :, : given.shape[2] // 2].all() and not given[:, :, given.shape[2] // 2 :].any()
    assert limited.any() and (limited <= given).all() and not torch.equal(limited, given)


@pytest.mark.parametrize(
    ("first", "apart"),
    [slow(True, False), (True, True), (False, False), slow(False, True)],
    ids=["first, batched", "first, apart", "last, batched", "last, apart"],
)
def test_a_prompt_combined_with_the_storys_does_not_change_where_subjects_are_seen(
    sd15: Studio, apart: bool, first: bool, request: pytest.FixtureRequest
) -> None:
    """Its words stand at other places. At the only step all prompts are shown the same noise."""
    patch = story(sd15)
    told_by = conditioning_set_values(sd15.positive, {STORY_MARK: patch.words.text})
    zeroed = conditioning_set_values(sd15.negative, {STORY_MARK: patch.words.text})  # as ConditioningZeroOut keeps it
    other = sd15.text(9)
    if apart:
        request.getfixturevalue("one_conditioning_a_call")

    def masks(positive: Any) -> Tensor:
        made = told(sd15, patch, positive=positive, negative=zeroed, steps=1)
        return subject_masks_of({"samples": made})

    alone = masks(told_by)
    combined = [*told_by, *other] if first else [*other, *told_by]
    assert torch.equal(masks(combined), alone)
    assert torch.equal(masks(sd15.positive), alone)
    assert not torch.equal(masks([*sd15.positive, *other]), alone)


@pytest.mark.parametrize("limits", [False, True], ids=["replace", "limit"])
def test_masks_of_the_users_go_where_the_model_is(limits: bool) -> None:
    """ComfyUI keeps them on the CPU; what is selected by them indexes tensors of the model's device."""
    masks, found = UserMasks(ImageMask(torch.ones(1, 64, 64)), limits), torch.ones(2, 16, dtype=torch.bool)
    joined = masks.combined(masks.on_grid((8, 8), (4, 4)), found.to("meta"), 2)
    assert joined is not None and joined.shape == (2, 16) and joined.device.type == "meta"


def test_masks_of_the_users_go_where_the_model_is_though_no_words_were_read_yet() -> None:
    """A story whose prompt begins later has none found in its first steps."""
    masks, layout = SubjectMasks(STORY, UserMasks(ImageMask(torch.ones(1, 64, 64)))), torch.device("meta")
    mask = masks.before(1, 1, (8, 8), 2, layout, FeatureBank(), (4, 4))
    assert mask is not None and mask.shape == (2, 16) and mask.device.type == "meta"


def test_masks_of_the_users_are_fitted_once_a_run(sd15: Studio) -> None:
    """It takes a second on a picture of 1024 pixels."""
    fitted: list[Grid] = []

    @dataclass(frozen=True, eq=False)
    class Counted(UserMasks):
        def on_grid(self, size: tuple[int, int], grid: Grid) -> Tensor:
            fitted.append(grid)
            return super().on_grid(size, grid)

    masks = Counted(ImageMask(torch.ones(1, 64, 64)))
    told(sd15, story(sd15, masks=masks, injection=Injection(0.0)), steps=4, size=(4, 4), cfg=1.0)
    assert fitted and len(fitted) == len(set(fitted))


def test_a_latent_without_a_story_is_refused(sd15: Studio) -> None:
    silent = told(sd15, story(sd15, sharing=Sharing(0.0), injection=Injection(0.0)))
    for latent in (sd15.plain, silent, told(sd15, story(sd15)).clone()):
        with pytest.raises(ValueError, match="carries no subject masks. Connect it from the sampler itself"):
            subject_masks_of({"samples": latent})


def test_the_description_says_what_the_story_does(sd15: Studio) -> None:
    patch = story(sd15, fast=True, sharing=Sharing(0.75, anchors=0))
    assert repr(patch) == (
        "ConsiStory of 2 scenes of a fox, all anchors, sharing 0.75, dropout 0.5, query blend 1, injection 0.8, fast"
    )


def test_blocks_are_known_for_both_families(studio: Studio) -> None:
    family, sites = studio.model_map.family, studio.model_map.sites
    known = {site.block for site in sites}
    blocks = family.choice(CONSISTORY)
    assert {*blocks.words, *blocks.shared, *blocks.injected} <= known
    assert AttentionSite("self", *_place(blocks.injected[0])) in sites


def _place(block: str) -> Any:
    part, number = block.split(".")
    return part, int(number)
