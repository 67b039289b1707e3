"""A style adapter on a MODEL: which rows it reaches, what a LoRA of it does, and which models it is refused for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import comfy.sd
import pytest
import torch
from comfy.model_patcher import ModelPatcher

from semblance.attention.adapters.style_adapter import AdapterForm, StyleAdapter
from semblance.attention.engine.bank import FeatureBank
from semblance.attention.engine.call import AttentionCall, AttentionSite
from semblance.attention.engine.layout import BatchLayout, Chunk, GuestRows
from semblance.attention.engine.moment import Moment
from semblance.attention.engine.scope import ImageMask, ScheduleWindow, Scope
from semblance.attention.functional.bottleneck import bottleneck
from semblance.attention.methods.styledrop import StyleDrop
from semblance.attention.references.weight_samples import WeightSamples
from semblance.host.binding.describe import describe
from semblance.host.styledrop import fitting
from semblance.host.styledrop.applying import apply_adapter
from semblance.host.styledrop.lora import Layer, lora_file
from semblance.tests.support.studio import Studio, relative_error
from semblance.tests.support.style_adapters import bottleneck_tensors, style_adapter
from semblance.tests.tiny_models import Family, make_unet
from semblance.tests.tiny_models.unets import UNET_CONFIGS, WIDE

each_form = pytest.mark.parametrize("form", ["bottleneck", "lora"])
SITE = AttentionSite("self", "output", 4)
TENSORS = bottleneck_tensors({SITE.name: 16})


def applied(model: ModelPatcher, adapter: StyleAdapter, strength: float = 1.0, **scoped: Any) -> ModelPatcher:
    def scope(known: Any) -> Scope:
        blocks: Mapping[str, float] = scoped.pop("blocks", known.family.preset("all"))
        return Scope(blocks, **scoped)

    return apply_adapter(model, adapter, strength, scope)


def attention(*roles: str, guests: int = 0, images: int = 2) -> AttentionCall:
    layout = BatchLayout(tuple(map(Chunk, roles)), images, (4, 4), (GuestRows(None, "any", guests),) if guests else ())
    moment = Moment(1.0, 0, 2, 0.5, lambda fraction: 10 * (1 - fraction))
    rows = torch.randn(layout.rows, 16, 16, generator=torch.Generator().manual_seed(1))
    return AttentionCall(SITE, layout, moment, 4, 4, 2, rows, rows, rows)


def edited(patch: StyleDrop, call: AttentionCall) -> Any:
    def attend(*given: Any) -> Any:
        raise AssertionError("a bottleneck attends to nothing")

    assert patch.applies_to(call.site, call.moment)
    return patch.edit_output(call, call.query, attend, FeatureBank())


@pytest.mark.parametrize(
    ("roles", "tuned"),
    [
        (("negative", "positive"), [1]),
        (("base", "negative", "positive"), [2]),
        (("positive", "positive"), [0, 1]),
        (("base",), []),
        (("middle", "empty_negative_prompt"), [0]),
    ],
)
def test_the_rows_of_prompts_alone_are_tuned(roles: tuple[str, ...], tuned: list[int]) -> None:
    patch, call = StyleDrop(TENSORS, Scope({"output.4": 0.5})), attention(*roles, guests=3)
    made, before = edited(patch, call), call.query
    added = 0.5 * bottleneck(before, TENSORS[f"{SITE.name}.down"], TENSORS[f"{SITE.name}.up"])
    assert torch.equal(made[call.layout.host_rows :], before[call.layout.host_rows :])
    for number in range(len(roles)):
        rows = call.layout.chunk_rows(number)
        expected = before[rows] + added[rows] if number in tuned else before[rows]
        assert torch.allclose(made[rows], expected, atol=1e-6)
        assert number in tuned or torch.equal(made[rows], before[rows])


def test_each_image_has_its_own_mask() -> None:
    masks = torch.zeros(2, 32, 32)
    masks[0, :16], masks[1, 16:] = 1, 1
    patch, call = StyleDrop(TENSORS, Scope({"output.4": 1.0}, mask=ImageMask(masks))), attention("positive")
    changed = (edited(patch, call) != call.query).any(dim=-1)
    assert changed[0, :8].all() and not changed[0, 8:].any()
    assert changed[1, 8:].all() and not changed[1, :8].any()


def test_a_loss_on_its_output_reaches_the_tensors() -> None:
    learnt = {name: tensor.clone().requires_grad_() for name, tensor in TENSORS.items()}
    edited(StyleDrop(learnt, Scope({"output.4": 1.0})), attention("positive")).square().mean().backward()
    assert all(tensor.grad is not None and tensor.grad.any() for tensor in learnt.values())


def test_layers_that_it_was_not_tuned_in_stay_alone(sd15: Studio) -> None:
    patch, call = StyleDrop(TENSORS, sd15.everywhere()), attention("positive")
    others = [site for site in sd15.model_map.sites if site != SITE]
    assert not any(patch.applies_to(site, call.moment) for site in others)


@each_form
def test_a_fresh_adapter_and_strength_zero_leave_the_model_bit_identical(studio: Studio, form: AdapterForm) -> None:
    assert torch.equal(studio.sample(applied(studio.model, style_adapter(studio.model, form, size=0.0))), studio.plain)
    assert torch.equal(studio.sample(applied(studio.model, style_adapter(studio.model, form), 0.0)), studio.plain)
    assert torch.equal(studio.sample(), studio.plain)


@each_form
def test_blocks_choose_where_it_acts(sd15: Studio, form: AdapterForm) -> None:
    adapter = style_adapter(sd15.model, form)
    alone = replace(
        adapter,
        tensors={
            key: tensor
            for key, tensor in adapter.tensors.items()
            if key.startswith(("output.5.", "diffusion_model.output_blocks.5."))
        },
    )
    chosen = sd15.sample(applied(sd15.model, adapter, blocks={"output.5": 1.0}))
    assert relative_error(chosen, sd15.sample(applied(sd15.model, alone))) < 1e-6
    half = sd15.sample(applied(sd15.model, adapter, 0.5, blocks={"output.5": 1.0}))
    assert relative_error(sd15.sample(applied(sd15.model, adapter, blocks={"output.5": 0.5})), half) < 1e-6
    assert relative_error(half, chosen) > 1e-5 and relative_error(chosen, sd15.plain) > 1e-4


def test_a_lora_is_what_the_hosts_own_loader_makes_of_its_file(studio: Studio) -> None:
    adapter = style_adapter(studio.model, "lora")
    loaded, _ = comfy.sd.load_lora_for_models(studio.model, None, lora_file(adapter), 0.8, 0.0)
    assert len(loaded.patches) == len(adapter.modules)
    expected = studio.sample(loaded)
    assert relative_error(expected, studio.plain) > 1e-3
    assert relative_error(studio.sample(applied(studio.model, adapter, 0.8)), expected) < 1e-5


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_layers_have_the_names_that_diffusers_gives_them(kind: Family) -> None:
    import comfy.utils

    named = {
        here.removesuffix(".weight"): there.removesuffix(".weight")
        for there, here in comfy.utils.unet_to_diffusers(UNET_CONFIGS[kind]).items()
        if ".transformer_blocks." in here and here.endswith(".weight")
    }
    read = {here: Layer.read(f"diffusion_model.{here}").diffusers for here in named}
    assert len(read) > 100 and read == named


def test_layers_of_a_masked_transformer_are_blocks_each() -> None:
    layer = Layer.read("diffusion_model.transformer_layers.12.attn1.to_out.0")
    assert layer == Layer("middle.12", "transformer_layers.12.attn1.to_out.0")
    with pytest.raises(ValueError, match="'diffusion_model.time_embed.0' is no layer of an attention"):
        Layer.read("diffusion_model.time_embed.0")


def test_a_window_a_curve_or_a_mask_is_refused_for_a_lora(sd15: Studio) -> None:
    adapter = style_adapter(sd15.model, "lora")
    with pytest.raises(ValueError, match=r"start 0.2 and end 1 cannot hold .*tune a bottleneck, or take StyleDrop"):
        applied(sd15.model, adapter, window=ScheduleWindow(0.2, 1.0))
    with pytest.raises(ValueError, match="a curve and a mask cannot hold"):
        window = ScheduleWindow(0.0, 1.0, ((0.0, 0.0), (1.0, 1.0)))
        applied(sd15.model, adapter, window=window, mask=ImageMask(torch.ones(1, 8, 8)))


@each_form
def test_an_adapter_of_another_family_is_refused(sd15: Studio, form: AdapterForm) -> None:
    foreign = style_adapter(make_unet("sdxl"), form)
    with pytest.raises(ValueError, match=r"tuned with an .* model, but this one is SD 1.5. Load the checkpoint that"):
        applied(sd15.model, foreign)


@each_form
def test_an_adapter_for_other_widths_is_refused(sd15: Studio, form: AdapterForm) -> None:
    wide = style_adapter(make_unet("sd15", channels=WIDE), form)
    with pytest.raises(ValueError, match=r"tuned with \d+x\d+ channels at \S+, where this \S+ .* model has \d+x\d+"):
        applied(sd15.model, wide)
    with pytest.raises(ValueError, match="model has no such layer"):
        elsewhere = "output.1.0.self" if form == "bottleneck" else "diffusion_model.output_blocks.1.1.attn1.to_q"
        applied(
            sd15.model, replace(wide, tensors={f"{elsewhere}.{part}": torch.zeros(4, 4) for part in ("down", "up")})
        )


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(fitting, "tell", said.append)
    return said


def test_another_checkpoint_of_the_family_is_warned_of_and_taken(sd15: Studio, told: list[str]) -> None:
    other = style_adapter(make_unet("sd15", seed=5))
    assert relative_error(sd15.sample(applied(sd15.model, other)), sd15.plain) > 1e-4
    assert len(told) == 1 and "tuned on another SD 1.5 checkpoint" in told[0]
    assert WeightSamples.read(other.stamp.weights) is not None
    applied(sd15.model, style_adapter(make_unet("sd15", v_prediction=True)))
    assert "samples by ModelSamplingDiscrete/V_PREDICTION, but this one samples by" in told[1]


@each_form
def test_of_its_own_model_nothing_is_said_even_with_a_lora_on_it(
    sd15: Studio, told: list[str], form: AdapterForm
) -> None:
    adapter = style_adapter(sd15.model, form)
    applied(applied(sd15.model, style_adapter(sd15.model, "lora", seed=3)), adapter)
    assert told == []


def test_blocks_that_it_was_not_tuned_in_are_told_of(sd15: Studio, told: list[str]) -> None:
    adapter = replace(style_adapter(sd15.model), tensors=bottleneck_tensors({SITE.name: 128}))
    model = applied(sd15.model, adapter, blocks={"output.5": 1.0})
    assert torch.equal(sd15.sample(model), sd15.plain)
    assert told == ["The style adapter does nothing in these blocks: it was tuned in output.4. Set blocks to 'all'."]


def test_show_patches_says_what_is_on_the_model(sd15: Studio) -> None:
    said = describe(applied(sd15.model, style_adapter(sd15.model), 0.5))
    assert "StyleDrop (32 layers), strength 0.5, " in said
