"""Apply IP-Adapter gives the numbers of ComfyUI_IPAdapter_plus, chains with all else, and refuses what it cannot do."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import semblance.host.instantstyle.vision as vision
from semblance.host.binding.model import map_model, patches_on
from semblance.host.instantstyle.adapter import LoadedAdapter, manage_adapter
from semblance.host.ip_adapter.regions import Region
from semblance.nodes.apply_adapter import ApplyAdapter
from semblance.tests.host.ip_adapter.frozen_applications import predicted_noise
from semblance.tests.support.frozen_cases import furthest
from semblance.tests.support.graphs import encode, picture, relative_error, run, sampled, styled
from semblance.tests.support.old_nodes import DEFAULTS, FACTS, TENSORS, applied, frozen_sample
from semblance.tests.support.oracles import oracle_unet
from semblance.tests.support.speeds import slow_but
from semblance.tests.tiny_models import Family, adapter_state_dict, make_clip_vision, make_unet

QUICK_FORWARDS = {
    *("sd15.simple.prompt_is_more_important", "sd15.embeds.weighted_average", "sd15.precise_style.negative_boost"),
    *("sd15.layers.1.style_precise", "sd15.batch.weights", "sd15.enhancer.one", "sdxl.style_composition.plus"),
    *("sd15.params.two_regions", "sdxl.negative.two_and_one", "sd15.list_without_batch", "sdxl.tiled.tall_sharp"),
}
SHARP = "K+V"
"""Scaled keys make attention sharp: there even attention in float64 lies 2e-5 from the frozen float32."""
QUICK_RUNS = {"sd15.window.1", "sd15.params_windows", "sd15.batch_weights", "sdxl.style_then_composition"}


@pytest.mark.parametrize("name", slow_but(FACTS["forward"], QUICK_FORWARDS))
def test_a_forward_through_the_node_equals_that_of_ipadapter_plus(name: str) -> None:
    kind = name.partition(".")[0]
    model = oracle_unet(kind)
    for node in FACTS["forward"][name]:
        model = applied(model, kind, node)
    sharp = any(node.get("embeds_scaling") == SHARP for node in FACTS["forward"][name])
    assert furthest(predicted_noise(model, kind), TENSORS[f"out.{name}"]) <= (5e-5 if sharp else 1e-5)


@pytest.mark.parametrize("name", slow_but(FACTS["sampling"], QUICK_RUNS))
def test_a_sampling_equals_that_of_ipadapter_plus(name: str) -> None:
    kind = name.partition(".")[0]
    model = oracle_unet(kind)
    for node in FACTS["sampling"][name]:
        model = applied(model, kind, node)
    assert relative_error(frozen_sample(model, kind), TENSORS[f"run.{name}"]) <= 1e-4


# Beside InstantStyle


def test_style_transfer_on_sdxl_is_the_style_preset_of_instantstyle() -> None:
    encoder, adapter = make_clip_vision("g"), tiny_adapter("sdxl")
    style = encode(adapter, encoder, picture(1))
    model = make_unet("sdxl")
    mine = on_model(model, adapter, style, weight_type="style transfer", weight=0.8)
    theirs = styled(model, style, blocks={"blocks": "style"}, strength=0.8)
    assert relative_error(sampled(mine, "sdxl"), sampled(theirs, "sdxl")) <= 1e-6
    assert relative_error(sampled(theirs, "sdxl"), sampled(model, "sdxl")) > 1e-4


# What may be connected


def test_the_model_and_its_other_branch_stay_as_they_were(tiny: Any) -> None:
    model = make_unet("sd15")
    first = on_model(model, tiny, picture(1))
    before = sampled(first)
    second = on_model(first, tiny, picture(2), weight_type="composition precise")
    assert (len(patches_on(model)), len(patches_on(first)), len(patches_on(second))) == (0, 1, 3)
    assert relative_error(sampled(second), before) > 1e-4
    assert torch.equal(sampled(first), before)


@pytest.mark.parametrize(
    "settings",
    [
        {"weight": 0.0},
        {"attn_mask": torch.zeros(1, 8, 8)},
        {"layers": "6:2.0"},
        {"weight": [0.0, 1.0]},
        {"weight": [0.0, 0.0], "per_image": True},
    ],
    ids=["weight 0", "empty mask", "the dead middle", "a list that begins with 0", "a list of zeros"],
)
def test_nothing_asked_for_leaves_the_model_as_it_is(tiny: Any, settings: dict[str, Any]) -> None:
    model = make_unet("sd15")
    assert on_model(model, tiny, picture(1), **settings) is model


def test_a_window_that_meets_no_step_does_nothing(tiny: Any) -> None:
    model = make_unet("sd15")
    assert torch.equal(sampled(on_model(model, tiny, picture(1), start_at=0.6, end_at=0.4)), sampled(model))


def test_a_reference_is_set_against_its_own_negative_unless_another_is_connected(tiny: Any) -> None:
    model, encoder = make_unet("sd15"), tiny.encoder
    disliked, other = (encode(tiny, encoder, picture(1), negative=picture(seed)) for seed in (5, 6))
    plain = encode(tiny, encoder, picture(1))
    with_own = sampled(on_model(model, tiny, disliked))
    assert relative_error(with_own, sampled(on_model(model, tiny, plain))) > 1e-4
    by_socket = sampled(on_model(model, tiny, other, image_negative=encode(tiny, encoder, picture(5))))
    assert relative_error(by_socket, with_own) < 1e-6


def test_a_reference_needs_no_encoder(tiny: Any) -> None:
    bare, model = replace(tiny, encoder=None), make_unet("sd15")
    reference = encode(tiny, tiny.encoder, picture(1))
    assert len(patches_on(on_model(model, bare, reference))) == 1


def test_shares_of_a_reference_count_as_in_instantstyle(tiny: Any) -> None:
    model = make_unet("sd15")
    style = encode(tiny, tiny.encoder, picture(1), picture(2), weights="1.0, 0.4")
    blocks = ", ".join(f"{block}=1" for block in map_model(model).family.blocks if block != "middle.0")
    theirs = sampled(styled(model, style, blocks={"blocks": "custom", "weights": blocks}))
    assert relative_error(sampled(on_model(model, tiny, style)), theirs) < 1e-6
    with pytest.raises(ValueError, match="weighs its pictures, which only 'concat' keeps apart"):
        on_model(model, tiny, style, combine_embeds="average")


def test_a_reference_in_tiles_is_one_picture(tiny: Any) -> None:
    model, wide = make_unet("sd15"), encode(tiny, tiny.encoder, picture(1, width=140), picture(2), fit="tile")
    assert torch.isfinite(sampled(on_model(model, tiny, wide))).all()
    for settings in ({"combine_embeds": "add"}, {"per_image": True}):
        with pytest.raises(ValueError, match="cut into different numbers of tiles"):
            on_model(model, tiny, wide, **settings)


def test_each_image_of_a_batch_gets_its_own_picture_and_weight(tiny: Any) -> None:
    model, pictures = make_unet("sd15"), torch.cat([picture(1), picture(2)])
    both = sampled(on_model(model, tiny, pictures, weight=[0.5, 1.5], per_image=True), images=2)
    # The noise of the first image does not hang on how many there are.
    first = sampled(on_model(model, tiny, picture(1), weight=0.5), images=2)
    second = sampled(on_model(model, tiny, picture(2), weight=1.5), images=2)
    assert relative_error(both[0], first[0]) < 1e-5 and relative_error(both[1], second[1]) < 1e-5


def test_a_picture_is_encoded_once_however_often_its_weight_changes(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    encode_pixels = vision.encode_pixels

    def counting(encoder: Any, pixels: torch.Tensor, is_global: bool) -> torch.Tensor:
        seen.append(len(pixels))
        return encode_pixels(encoder, pixels, is_global)

    monkeypatch.setattr(vision, "encode_pixels", counting)
    model = make_unet("sd15")
    for weight in (0.5, 1.0):
        on_model(model, tiny, picture(1), weight=weight, image_negative=picture(2))
    assert seen == [1, 1]


def test_the_patches_of_one_node_say_what_they_do(tiny: Any) -> None:
    pictures = torch.cat([picture(1), picture(2)])
    settings = {"weight_type": "style transfer precise", "per_image": True, "embeds_scaling": "K+V"}
    model = on_model(make_unet("sd15"), tiny, pictures, weight=[0.5, 1.5], start_at=0.6, end_at=0.4, **settings)
    first, second = map(repr, patches_on(model))
    assert first.startswith("Apply IP-Adapter (sd15 base), by image at strengths 0.5, 1.5, input.1=1, ")
    assert second.startswith("Apply IP-Adapter, pushing away (sd15 base), ") and second.endswith("0.6 to 0.4, K+V")


# Refusals, all before sampling


def test_an_adapter_without_an_encoder_says_where_to_take_one_from(tiny: Any) -> None:
    with pytest.raises(ValueError, match=r"^The adapter came without an image encoder\. Connect Load CLIP Vision"):
        on_model(make_unet("sd15"), replace(tiny, encoder=None), picture(1))


def test_the_wrong_encoder_is_refused_whether_connected_or_loaded_along(tiny: Any) -> None:
    for settings in (
        {"clip_vision": make_clip_vision("g")},
        {"ipadapter": replace(tiny, encoder=make_clip_vision("g"))},
    ):
        with pytest.raises(ValueError, match="but the image encoder connected is"):
            on_model(make_unet("sd15"), **{"adapter": settings.pop("ipadapter", tiny)}, image=picture(1), **settings)


def test_an_adapter_of_another_family_is_refused_before_its_encoder_works(tiny: Any) -> None:
    with pytest.raises(ValueError, match="Load an adapter for SDXL"):
        on_model(make_unet("sdxl"), replace(tiny, encoder=None), picture(1))


def test_an_adapter_for_kolors_is_refused(tiny: Any) -> None:
    kolors = replace(tiny, layout=replace(tiny.layout, variant="plus", text_width=2048, clip_width=1024))
    with pytest.raises(ValueError, match="is for Kolors, which Semblance does not know"):
        on_model(make_unet("sdxl"), kolors, picture(1))


def test_regions_have_masks_of_their_own(tiny: Any) -> None:
    region = Region(picture(1), 1.0, "linear", 0.0, 1.0, torch.ones(1, 8, 8))
    with pytest.raises(ValueError, match="Regions have masks of their own and no composition picture"):
        on_model(make_unet("sd15"), tiny, (region,), attn_mask=torch.ones(1, 8, 8))
    without = replace(region, mask=None)
    assert len(patches_on(on_model(make_unet("sd15"), tiny, (region, without)))) == 2


@pytest.mark.parametrize("settings", [{}, {"weight_type": "style and composition", "layers": "1:1"}])
def test_a_composition_picture_that_would_do_nothing_is_refused(tiny: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="acts only with the weight type 'style and composition', and this is"):
        on_model(make_unet("sd15"), tiny, picture(1), image_composition=picture(2), **settings)


def test_style_and_composition_work_on_sd15_too(tiny: Any) -> None:
    both = on_model(
        make_unet("sd15"), tiny, picture(1), weight_type="style and composition", image_composition=picture(2)
    )
    assert [sorted(patch.scope.blocks) for patch in patches_on(both)][1] == ["input.7", "input.8"]


def test_a_reference_of_another_kind_is_refused(tiny: Any) -> None:
    foreign = encode(tiny_adapter("sd15", "plus"), make_clip_vision("h"), picture(1))
    for sources in ({"image": foreign}, {"image": picture(1), "image_negative": foreign}):
        with pytest.raises(ValueError, match="The reference was made for an adapter of the kind 'plus"):
            on_model(make_unet("sd15"), tiny, **sources)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"weight": []}, "The list of weights is empty"),
        ({"weight": [float("nan")]}, "A weight is nan"),
        ({"weight": {"a": 1}}, "neither a number nor a list"),
        ({"layers": "3:2.5, 16:1"}, "There is no layer 16: this model has layers 0 to 15"),
        ({"layers": "middle=1"}, "'middle=1' is no weight of a layer"),
        ({"image_negative": torch.zeros(1, 4, 4, 3)}, "The negative image is 4x4 pixels"),
        ({"image_negative": torch.zeros(1, 40, 40, 4)}, "The negative image has 4 channels"),
    ],
)
def test_what_cannot_be_used_is_named(tiny: Any, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        on_model(make_unet("sd15"), tiny, picture(1), **settings)


def test_a_reference_cannot_be_cut_up_any_more(tiny: Any) -> None:
    with pytest.raises(ValueError, match="a reference is encoded already"):
        on_model(make_unet("sd15"), tiny, encode(tiny, tiny.encoder, picture(1)), enhance_tiles=2)


@pytest.mark.parametrize("length", [1, 2])
def test_pictures_per_image_in_contexts_of_animatediff_are_refused_before_sampling(tiny: Any, length: int) -> None:
    model = make_unet("sd15")
    options = SimpleNamespace(context_options=SimpleNamespace(context_length=length))
    model.set_attachments("ADE_params", options)
    pictures = torch.cat([picture(1), picture(2)])
    patched = on_model(model, tiny, pictures, per_image=True)
    if length == 2:
        assert torch.isfinite(sampled(patched, images=2)).all()
        return
    masks = torch.stack([torch.ones(16, 16), torch.eye(16)])
    for per_image in (patched, on_model(model, tiny, pictures, attn_mask=masks)):
        with pytest.raises(ValueError, match=r"samples in windows of frames \(AnimateDiff\)"):
            sampled(per_image, images=2)
    assert torch.isfinite(sampled(on_model(model, tiny, pictures), images=2)).all()


@pytest.fixture
def tiny() -> LoadedAdapter:
    return tiny_adapter("sd15")


def tiny_adapter(kind: Family, variant: Any = "base") -> LoadedAdapter:
    """An adapter with its encoder."""
    adapter = manage_adapter(f"{kind} {variant}", adapter_state_dict(kind, variant))
    return replace(adapter, encoder=make_clip_vision("g" if kind == "sdxl" and variant == "base" else "h"))


def on_model(model: Any, adapter: LoadedAdapter, image: Any, **settings: Any) -> Any:
    return run(ApplyAdapter, model=model, ipadapter=adapter, image=image, **{**DEFAULTS, **settings})[0]
