"""A run knows where it stands, acts when the window says, and leaves nothing behind however it ends."""

from __future__ import annotations

import gc
import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy.model_management import InterruptProcessingException
from comfy.patcher_extension import CallbacksMP
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import nodes
from semblance.attention.engine.scope import CURVES, ScheduleWindow, Scope
from semblance.attention.methods.instantstyle import InstantStyle
from semblance.host.binding.model import add_patch
from semblance.host.binding.run import RUN
from semblance.host.binding.unet import BoundSite
from semblance.tests.support.endings import Fault, raise_fault, raise_interrupt
from semblance.tests.support.neighbours import one_tile_after_another
from semblance.tests.support.speeds import slow
from semblance.tests.support.studio import PATCHES, Studio, guider_of, ladder, record_calls, relative_error, run_guider
from semblance.tests.support.toy_patches import Diary, Echo
from semblance.tests.tiny_models import make_controlnet, random_latent, sampler_custom

ONE_BLOCK = {"output.5": 1.0}


@pytest.mark.parametrize(
    ("sampler", "steps"),
    [
        ("euler", [0, 1, 2]),
        ("euler_ancestral", [0, 1, 2]),
        ("dpmpp_2m", [0, 1, 2]),
        ("heun", [0, 1, 1, 2, 2]),  # the second look is at the step's end
        ("dpm_2", [0, 0, 1, 1, 2]),  # the second look is between two points of the ladder
        ("dpmpp_sde", [0, 0, 1, 1, 2]),
    ],
)
def test_step_is_the_ladder_point_last_reached(sd15: Studio, sampler: str, steps: list[int]) -> None:
    diary = Diary(Scope(ONE_BLOCK))
    sd15.sample(add_patch(sd15.model, diary), steps=3, sampler=sampler, images=1)
    assert [moment.step for moment in diary.moments] == steps
    assert {moment.steps for moment in diary.moments} == {3}


@pytest.mark.parametrize("name", ["instantstyle masked", "remembers", "brings guests"])
@pytest.mark.parametrize("sampler", [slow("heun"), "dpm_2", slow("dpmpp_sde")])
def test_samplers_that_look_twice_a_step_repeat_themselves(sd15: Studio, name: str, sampler: str) -> None:
    patched = sd15.with_patch(name)
    first, second = (sd15.sample(patched, steps=3, sampler=sampler, images=1) for _ in range(2))
    assert torch.isfinite(first).all() and torch.equal(first, second)
    assert relative_error(first, sd15.sample(steps=3, sampler=sampler, images=1)) > 1e-3


def test_the_ladder_of_an_img2img_run_is_the_part_that_is_left(sd15: Studio) -> None:
    diary = Diary(Scope(ONE_BLOCK))
    whole = ladder(sd15, 6)
    sd15.sample(add_patch(sd15.model, diary), steps=3, denoise=0.5, images=1)
    assert [(moment.step, moment.steps) for moment in diary.moments] == [(0, 3), (1, 3), (2, 3)]
    assert [moment.sigma for moment in diary.moments] == pytest.approx(whole[3:6].tolist())
    assert 0.3 < diary.moments[0].progress < 0.7


def test_a_rising_ladder_counts_upwards(sd15: Studio) -> None:
    diary = Diary(Scope(ONE_BLOCK))
    rising = torch.tensor([0.1, 0.5, 2.0, 14.0])
    sampler_custom(add_patch(sd15.model, diary), sd15.positive, sd15.negative, random_latent(1, 8, 8), rising)
    assert [moment.step for moment in diary.moments] == [0, 1, 2]
    assert [moment.progress for moment in diary.moments] == sorted((m.progress for m in diary.moments), reverse=True)


@pytest.mark.parametrize("sampler", ["euler", "dpm_2"])
def test_progress_inverts_the_percentages_of_comfyui(sd15: Studio, sampler: str) -> None:
    diary = Diary(Scope(ONE_BLOCK))
    sd15.sample(add_patch(sd15.model, diary), steps=8, sampler=sampler, scheduler="normal", images=1, cfg=1.0)
    sampling: Any = sd15.model.get_model_object("model_sampling")
    moments = diary.moments
    assert moments[0].progress == pytest.approx(0, abs=1e-6) and 0.85 < moments[-1].progress <= 1
    for moment in moments[1:-1]:
        assert sampling.percent_to_sigma(moment.progress) == pytest.approx(moment.sigma, rel=1e-3)


def test_curves_follow_progress_in_the_window(sd15: Studio) -> None:
    diary = Diary(Scope(ONE_BLOCK, ScheduleWindow(0.25, 0.75, CURVES["fade in"])))
    sd15.sample(add_patch(sd15.model, diary), steps=10, scheduler="normal", images=1, cfg=1.0)
    expected = [(moment.progress - 0.25) / 0.5 for moment in diary.moments]
    assert len(expected) == 4 and diary.weights == pytest.approx(expected, abs=1e-3)


PERCENTS = [(0.0, 0.5), (0.5, 1.0), (0.3, 0.7), (0.1, 0.2), (0.33, 0.9), (0.0, 1.0), (0.4, 0.401)]


# With sgm_uniform, and with normal at 11 steps, the steps fall on whole tenths of the schedule, as people's windows do.
@pytest.mark.parametrize(
    ("scheduler", "steps"), [("sgm_uniform", 10), ("normal", 11), slow("karras", 8), slow("simple", 10)]
)
def test_the_window_is_that_of_a_controlnet_with_the_same_percentages(
    sd15: Studio, scheduler: str, steps: int, control: Any
) -> None:
    picture = torch.rand(1, 64, 64, 3)
    for start, end in PERCENTS:
        diary = Diary(Scope(ONE_BLOCK, ScheduleWindow(start, end)))
        model, calls = record_calls(add_patch(sd15.model, diary))
        guided, _ = nodes.ControlNetApplyAdvanced().apply_controlnet(
            sd15.positive, sd15.negative, control, picture, 1.0, start, end
        )
        sd15.sample(model, positive=guided, images=1, cfg=1.0, steps=steps, scheduler=scheduler)
        guided_at = [call["sigma"] for call in calls if call["control"]]
        assert [moment.sigma for moment in diary.moments] == guided_at, (start, end)


@pytest.fixture
def control(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A ControlNet whose network has nothing to say, to save time; when it speaks is the host's own affair."""
    control = make_controlnet("sd15")
    monkeypatch.setattr(type(control.control_model), "forward", lambda self, **_: {})
    return control


def test_a_later_change_of_the_noise_schedule_moves_the_window_too(sd15: Studio) -> None:
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    diary = Diary(Scope(ONE_BLOCK, ScheduleWindow(0.04, 1.0)))
    model = ModelSamplingDiscrete().patch(add_patch(sd15.model, diary), "v_prediction", True)[0]
    given, moved = (cast(Any, m.get_model_object("model_sampling")).percent_to_sigma(0.04) for m in (sd15.model, model))
    sigmas = torch.tensor([2 * moved, (given + moved) / 2, given / 2, 0.0])
    comfy.model_management.unload_all_models()
    sampler_custom(model, sd15.positive, sd15.negative, random_latent(1, 8, 8), sigmas)
    assert given < sigmas[1] < moved
    assert [moment.step for moment in diary.moments] == [1, 2]


def press_interrupt(*_: Any) -> None:
    comfy.model_management.interrupt_current_processing(True)


@pytest.mark.parametrize(
    ("end", "raised"),
    [
        (None, None),
        (raise_fault, Fault),
        (raise_interrupt, InterruptProcessingException),
        (press_interrupt, InterruptProcessingException),
    ],
)
def test_a_run_leaves_no_bank_however_it_ends(
    sd15: Studio, end: Callable[..., None] | None, raised: type[BaseException] | None
) -> None:
    diary = Diary(Scope(ONE_BLOCK))
    model = add_patch(sd15.with_patch("remembers"), diary)
    guider, options = guider_of(sd15, model), []
    before = run_guider(guider_of(sd15, model), ladder(sd15, 3), images=1)
    diary.banks.clear()

    def finish(*progress: Any) -> None:
        options.append(guider.model_options["transformer_options"])
        assert RUN in options[0]
        if end is not None:
            end(*progress)

    if raised is None:
        run_guider(guider, ladder(sd15, 3), images=1, callback=finish)
    else:
        with pytest.raises(raised) as caught:
            run_guider(guider, ladder(sd15, 3), images=1, callback=finish)
        # The traceback still holds the run's frames; the banks are empty all the same.
        assert all(not bank() for bank in diary.banks)
        del caught
    assert len(diary.banks) >= (3 if raised is None else 1)
    assert RUN not in options[0] and RUN not in guider.model_options["transformer_options"]
    gc.collect()
    assert [bank() for bank in diary.banks] == [None] * len(diary.banks)
    assert torch.equal(run_guider(guider, ladder(sd15, 3), images=1), before)


def test_an_error_inside_attention_leaves_no_bank_and_no_trace_in_the_next_run(sd15: Studio) -> None:
    class Stumble(Echo):
        def edit_output(self, call: Any, *rest: Any) -> Tensor:
            if call.moment.step == 1 and trap:
                raise Fault
            return super().edit_output(call, *rest)

    trap, diary = [], Diary(Scope(ONE_BLOCK))
    model = add_patch(add_patch(sd15.model, Stumble(sd15.everywhere())), diary)
    before = sd15.sample(model)
    diary.banks.clear()
    trap.append(True)
    with pytest.raises(Fault):
        sd15.sample(model)
    trap.clear()
    gc.collect()
    assert diary.banks and all(bank() is None for bank in diary.banks)
    assert torch.equal(sd15.sample(model), before)


def test_options_handed_to_other_packs_hold_the_run_only_while_it_lasts(sd15: Studio) -> None:
    kept: list[dict[str, Any]] = []
    model = sd15.with_patch("remembers").clone()
    model.set_model_sampler_post_cfg_function(lambda args: kept.append(args["model_options"]) or args["denoised"])
    sd15.sample(model, steps=1)
    assert RUN in kept[0]["transformer_options"]
    assert RUN not in model.model_options["transformer_options"]
    assert not kept[0]["transformer_options"][RUN]._banks


def test_a_model_called_without_a_sampler_gets_a_run_as_long_as_the_call(studio: Studio) -> None:
    diary = Diary(Scope(dict.fromkeys(studio.model_map.family.blocks, 1.0)))
    model = add_patch(studio.with_patch("edits output"), diary)
    model, calls = record_calls(model)
    studio.sample(model, steps=1, cfg=1.0)
    (call,) = calls
    diary.banks.clear()
    options = {**model.model_options["transformer_options"], "cond_or_uncond": [0]}
    sigma = torch.full((2,), call["sigma"])
    with torch.no_grad():
        alone = model.model.apply_model(
            call["x"], sigma, c_crossattn=call["context"], transformer_options=options, **call["more"]
        )
    assert torch.equal(alone, call["output"])
    assert diary.moments[-1].sigma == call["sigma"]
    gc.collect()
    assert [bank() for bank in diary.banks] == [None]


def test_notes_another_pack_keeps_in_the_options_of_a_run_last_the_run(sd15: Studio) -> None:
    counts: list[int] = []

    def note(patcher: Any, timestep: Tensor, model_options: dict[str, Any]) -> None:
        model_options["another pack"] = model_options.get("another pack", 0) + 1
        counts.append(model_options["another pack"])

    model = sd15.with_patch("edits output")
    model.add_callback(CallbacksMP.ON_PREPARE_STATE, note)
    sd15.sample(model, steps=3)
    assert counts == [1, 2, 3]


def test_a_pack_that_calls_the_model_itself_during_the_run_is_served(sd15: Studio) -> None:
    """Such a call brings neither noise levels nor conditionings in its options; the plain model needs none."""
    diary, second = Diary(Scope(ONE_BLOCK)), []
    model = add_patch(sd15.with_patch("edits output"), diary)

    def call_again(args: dict[str, Any]) -> Tensor:
        ((context, _),) = sd15.text(5, rows=2)
        options = args["model_options"]["transformer_options"]
        noisy = (args["input"], args["sigma"])
        second.append(args["model"].apply_model(*noisy, c_crossattn=context, transformer_options=options))
        return args["denoised"]

    model.set_model_sampler_post_cfg_function(call_again)
    sd15.sample(model)
    assert torch.isfinite(second[1]).all()
    assert [moment.step for moment in diary.moments] == [0, 0, 1, 1]
    assert [layout.conditional for layout in diary.layouts[2:4]] == [(True,), (True,)]


def test_a_pack_that_puts_tiles_into_one_batch_is_refused_in_a_sentence(sd15: Studio) -> None:
    """Rows then come tile by tile, and no longer conditioning by conditioning."""

    def tile(apply_model: Callable[..., Tensor], args: dict[str, Any]) -> Tensor:
        x, t, c = args["input"], args["timestep"], dict(args["c"])
        c["c_crossattn"] = c["c_crossattn"].repeat(2, 1, 1)
        tiles = apply_model(torch.cat([x[..., :4, :], x[..., 4:, :]]), t.repeat(2), **c)
        return torch.cat(tiles.chunk(2), dim=2)

    model = sd15.with_patch("edits output").clone()
    model.set_model_unet_function_wrapper(tile)
    with pytest.raises(
        ValueError, match="8 rows for 2 conditionings of 2 images.*model_function_wrapper: .*tile.*Bypass the node"
    ):
        sd15.sample(model)


def test_tiles_one_after_another_are_each_a_picture(sd15: Studio) -> None:
    tiled = sd15.with_patch("instantstyle").clone()
    tiled.set_model_unet_function_wrapper(one_tile_after_another)
    tiles: list[Tensor] = []
    model, calls = record_calls(tiled)
    sd15.sample(model, steps=1)
    assert [tuple(call["x"].shape) for call in calls] == [(4, 4, 4, 8)] * 2
    for call in calls:
        options = {**tiled.model_options["transformer_options"], "cond_or_uncond": call["numbers"]}
        sigma = torch.full((4,), call["sigma"])
        with torch.no_grad():
            tiles.append(
                tiled.model.apply_model(call["x"], sigma, c_crossattn=call["context"], transformer_options=options)
            )
        assert relative_error(call["output"], tiles[-1]) < 1e-5


@pytest.mark.parametrize("name", ["instantstyle masked", "instantstyle regions"])
def test_a_mask_over_tiles_of_unknown_place_is_refused_in_a_sentence(sd15: Studio, name: str) -> None:
    tiled = sd15.with_patch(name).clone()
    tiled.set_model_unet_function_wrapper(one_tile_after_another)
    with pytest.raises(ValueError, match="parts of the picture and not told which.*one_tile_after.*remove the mask"):
        sd15.sample(tiled, steps=1)


@pytest.mark.parametrize("name", ["edits output", "brings guests"])
def test_a_call_leaves_the_options_it_was_given_as_they_were(sd15: Studio, name: str) -> None:
    def replacement(query: Tensor, *_: Any) -> Tensor:
        return query

    model = sd15.with_patch(name)
    model.set_model_attn1_replace(replacement, "output", 5)
    options = {**model.model_options["transformer_options"], "cond_or_uncond": [0]}
    before = {key: value for key, value in options.items()}
    ((context, _),) = sd15.positive
    with torch.no_grad():
        model.model.apply_model(
            torch.randn(1, 4, 8, 8), torch.tensor([2.0]), c_crossattn=context, transformer_options=options
        )
    assert options == before
    assert options["patches_replace"] == {"attn1": {("output", 5): replacement}}


class CountingAdapter:
    """An adapter that counts its projections by layer."""

    def __init__(self, adapter: Any) -> None:
        self.adapter = adapter
        self.projected: Counter[int] = Counter()

    def keys_values(self, number: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
        self.projected[number] += 1
        return self.adapter.keys_values(number, tokens)


def counted(patch: InstantStyle, counter: CountingAdapter) -> InstantStyle:
    return InstantStyle(patch.tokens, counter, patch.numbers, patch.scope, patch.strength, patch.name)


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_image_keys_are_projected_once_for_each_layer_and_before_any_run(
    studio: Studio, sampler: str, one_conditioning_a_call: None
) -> None:
    counter = CountingAdapter(studio.adapters["base"])
    patch = counted(studio.instantstyle(pictures=2), counter)
    projected = dict.fromkeys(patch.numbers.values(), 1)
    assert dict(counter.projected) == projected
    model = add_patch(studio.model, patch)
    for _ in range(2):
        studio.sample(model, sampler=sampler)
    assert dict(counter.projected) == projected


def test_only_the_layers_in_scope_are_projected(sd15: Studio) -> None:
    counter = CountingAdapter(sd15.adapters["base"])
    patch = counted(sd15.instantstyle(scope=Scope({"output.4": 0.5, "input.8": 1.0, "output.3": 0.0})), counter)
    sd15.sample(add_patch(sd15.model, patch))
    layers = {number for site, number in patch.numbers.items() if site.block in ("output.4", "input.8")}
    assert dict(counter.projected) == dict.fromkeys(layers, 1)


class NoReadBack(TorchDispatchMode):
    """Refuses what makes a GPU wait for the CPU."""

    REFUSED = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique", "equal")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in self.REFUSED, f"{name} reads a tensor back to the CPU inside attention"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", PATCHES)
def test_no_tensor_is_read_back_inside_attention(sd15: Studio, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attend, entered = BoundSite.__call__, itertools.count()

    def watched(self: BoundSite, *tensors: Any) -> Tensor:
        next(entered)
        with NoReadBack():
            return attend(self, *tensors)

    monkeypatch.setattr(BoundSite, "__call__", watched)
    sd15.sample(sd15.with_patch(name))
    assert next(entered) >= 2 * 16
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoReadBack():
        torch.ones(1).item()
