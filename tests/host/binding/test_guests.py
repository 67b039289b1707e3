"""Guest rows ride along as what they are, the sampler's rows do not notice, and other packs do not see them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import comfy.controlnet
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from node_helpers import conditioning_set_values
from torch import Tensor

import nodes
from semblance.attention.engine.scope import Scope
from semblance.host.binding.model import add_patch
from semblance.tests.support.studio import Conditioning, Studio, relative_error
from semblance.tests.support.toy_patches import Diary, Visit, Watch
from semblance.tests.tiny_models import make_conditioning, make_controlnet

SIZE = (8, 12)


def watch(studio: Studio, block: str = "output.5", size: tuple[int, int] = SIZE) -> Watch:
    """Two guests with text of other lengths than the prompt's, seen at the self-attentions of one block."""
    guests = (studio.guest("one", size, seed=1), studio.guest("two", size, rows=2, tokens=154, seed=2))
    return Watch(Scope({block: 1.0}), visitors=guests)


def guided(studio: Studio, strength: float = 1.0) -> tuple[Conditioning, Conditioning]:
    control, picture = (
        make_controlnet(studio.kind),
        torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(5)),
    )
    texts = (studio.positive, studio.negative)
    return nodes.ControlNetApplyAdvanced().apply_controlnet(*texts, control, picture, strength, 0.0, 1.0)


def free_u(model: ModelPatcher) -> ModelPatcher:
    from comfy_extras.nodes_freelunch import FreeU_V2

    return FreeU_V2.execute(model, 1.3, 1.4, 0.9, 0.2)[0]


def self_attention_guidance(model: ModelPatcher) -> ModelPatcher:
    from comfy_extras.nodes_sag import SelfAttentionGuidance

    return SelfAttentionGuidance.execute(model, 0.8, 2.0)[0]


def perturbed_attention_guidance(model: ModelPatcher) -> ModelPatcher:
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance

    return PerturbedAttentionGuidance.execute(model, 2.0)[0]


@pytest.mark.parametrize("tokens", [(77, 77), (154, 77), (77, 231)])
def test_rows_of_the_sampler_do_not_notice_guests(studio: Studio, tokens: tuple[int, int]) -> None:
    texts = {"positive": studio.text(3, tokens=tokens[0]), "negative": studio.text(4, tokens=tokens[1])}
    accompanied = studio.sample(add_patch(studio.model, watch(studio)), size=SIZE, **texts)
    assert relative_error(accompanied, studio.sample(size=SIZE, **texts)) < 1e-5


@pytest.mark.parametrize("pack", [free_u, self_attention_guidance, perturbed_attention_guidance])
@pytest.mark.parametrize("ours_first", [True, False])
def test_rows_of_the_sampler_do_not_notice_guests_beside_other_packs(
    sd15: Studio, pack: Callable[[ModelPatcher], ModelPatcher], ours_first: bool
) -> None:
    size = (16, 16)  # self-attention guidance needs a square of four tokens at the middle
    ours = watch(sd15, size=size)
    model = pack(add_patch(sd15.model, ours)) if ours_first else add_patch(pack(sd15.model), ours)
    alone = sd15.sample(pack(sd15.model), size=size, images=1)
    assert relative_error(sd15.sample(model, size=size, images=1), alone) < 1e-5
    assert relative_error(alone, sd15.sample(size=size, images=1)) > 1e-3


def test_a_controlnet_guides_the_rows_of_the_sampler_and_no_guest(studio: Studio) -> None:
    positive, negative = guided(studio)
    texts = {"positive": positive, "negative": negative}
    with_control, without = watch(studio), watch(studio)
    accompanied = studio.sample(add_patch(studio.model, with_control), size=SIZE, **texts)
    studio.sample(add_patch(studio.model, without), size=SIZE)
    assert relative_error(accompanied, studio.sample(size=SIZE, **texts)) < 1e-5
    assert relative_error(with_control.host_seen[0], without.host_seen[0]) > 1e-2
    for guided_guest, plain_guest in zip(with_control.guests_seen, without.guests_seen, strict=True):
        assert relative_error(guided_guest, plain_guest) < 1e-5


def test_one_residual_for_all_rows_is_no_guests_either(sd15: Studio) -> None:
    """As T2I-Adapters give them."""
    called: dict[str, Tensor] = {}
    seen: dict[str, Watch] = {"with": watch(sd15), "without": watch(sd15)}
    for name, ours in seen.items():
        called[name] = call_unet(add_patch(sd15.model, ours), residual() if name == "with" else None)
    alone = call_unet(sd15.model, residual())
    assert relative_error(called["with"], alone) < 1e-5
    assert relative_error(called["with"], called["without"]) > 1e-3
    for guided_guest, plain_guest in zip(seen["with"].guests_seen, seen["without"].guests_seen, strict=True):
        assert relative_error(guided_guest, plain_guest) < 1e-5


def residual() -> dict[str, list[Tensor | None]]:
    middle = torch.randn(1, 128, 1, 2, generator=torch.Generator().manual_seed(8))
    return {"input": [None], "middle": [5 * middle], "output": []}


def call_unet(model: ModelPatcher, control: Any) -> Tensor:
    noise = torch.randn(4, 4, *SIZE, generator=torch.Generator().manual_seed(6))
    ((context, _),) = make_conditioning("sd15", rows=4, seed=7)
    options = {**model.model_options["transformer_options"], "cond_or_uncond": [1, 0]}
    with torch.no_grad():
        return model.model.apply_model(
            noise, torch.full((4,), 2.0), c_crossattn=context, control=control, transformer_options=options
        )


@pytest.mark.parametrize("block", ["input.8", "output.4"])
def test_a_guest_is_what_it_would_be_in_a_call_of_its_own(studio: Studio, block: str) -> None:
    """With its own text, of its own length, and its own size vector; at the sampler's noise level."""
    ours = watch(studio, block)
    sampling: Any = studio.model.get_model_object("model_sampling")
    sigma = float(sampling.sigmas[400])
    called_with_latents_of_its_own(studio, add_patch(studio.model, ours), sigma)
    ridden = torch.stack(ours.guests_seen)  # (depth, rows, tokens, channels)
    first = 0
    for guest in ours.visitors:
        alone = Watch(ours.scope)
        model = add_patch(studio.model, alone)
        options = {**model.model_options["transformer_options"], "cond_or_uncond": [0]}
        rows = (guest.rows, -1, -1)
        vector = {} if guest.vector is None else {"y": guest.vector.expand(guest.rows, -1)}
        with torch.no_grad():
            model.model.apply_model(
                guest.latent * (1 + sigma**2) ** 0.5,  # the UNet sees it divided by this
                torch.full((guest.rows,), sigma),
                c_crossattn=guest.context.expand(rows),
                transformer_options=options,
                **vector,
            )
        expected = torch.stack(alone.host_seen)
        assert relative_error(ridden[:, first : first + guest.rows], expected) < 1e-5
        first += guest.rows
    assert first == ridden.shape[1]


def called_with_latents_of_its_own(studio: Studio, model: ModelPatcher, sigma: float) -> None:
    ((context, extras),) = studio.text(11)
    vector = studio.guest("size", SIZE, seed=9).vector
    options = {**model.model_options["transformer_options"], "cond_or_uncond": [0]}
    with torch.no_grad():
        model.model.apply_model(
            torch.randn(1, 4, *SIZE),
            torch.tensor([sigma]),
            c_crossattn=context,
            transformer_options=options,
            **({} if vector is None else {"y": vector}),
        )


def test_guests_ride_with_every_call_apart_or_together(sd15: Studio, request: pytest.FixtureRequest) -> None:
    ours = [watch(sd15), watch(sd15)]
    sd15.sample(add_patch(sd15.model, ours[0]), size=SIZE, steps=1)
    request.getfixturevalue("one_conditioning_a_call")
    sd15.sample(add_patch(sd15.model, ours[1]), size=SIZE, steps=1)
    assert (len(ours[0].guests_seen), len(ours[1].guests_seen)) == (1, 2)
    for seen in ours[1].guests_seen:
        assert relative_error(seen, ours[0].guests_seen[0]) < 1e-5


def test_two_patches_find_each_their_own_guests_under_one_name(sd15: Studio) -> None:
    seen: dict[str, Tensor] = {}

    class Mine(Visit):
        def edit_output(self, call: Any, output: Tensor, *rest: Any) -> Tensor:
            seen[self.visitors[0].name + str(self.strength)] = output[call.layout.guest_rows(self, "guest")]
            return output

    first, second = (
        Mine(Scope({"output.5": 1.0}), strength, visitors=(sd15.guest("guest", SIZE, rows=rows, seed=rows),))
        for strength, rows in ((1.0, 1), (2.0, 2))
    )
    sd15.sample(add_patch(add_patch(sd15.model, first), second), size=SIZE, steps=1)
    assert {name: len(rows) for name, rows in seen.items()} == {"guest1.0": 1, "guest2.0": 2}
    layout = Diary(Scope({"output.5": 1.0}))
    sd15.sample(add_patch(add_patch(add_patch(sd15.model, first), second), layout), size=SIZE, steps=1)
    assert layout.layouts[0].rows == 4 + 1 + 2
    with pytest.raises(KeyError, match="No guest called stranger"):
        layout.layouts[0].guest_rows(first, "stranger")


def test_other_packs_see_the_rows_of_the_sampler_alone(sd15: Studio) -> None:
    seen: list[tuple[str, tuple[int, ...]]] = []

    def look(name: str, extra: dict[str, Any], *tensors: Tensor) -> None:
        shapes = {len(tensor) for tensor in tensors}
        assert len(tensors[0]) % len(extra["cond_or_uncond"]) == 0
        seen.append((name, (*shapes, extra["activations_shape"][0], extra["original_shape"][0])))

    def patched(name: str) -> Callable[..., Any]:
        def patch(*arguments: Any) -> Any:
            *tensors, extra = arguments
            look(name, extra, *tensors)
            return tensors[0] if name.endswith("output_patch") or name == "middle_patch" else tuple(tensors)

        return patch

    def replaced(name: str) -> Callable[..., Any]:
        def replacement(query: Tensor, key: Tensor, value: Tensor, extra: dict[str, Any]) -> Tensor:
            look(name, extra, query, key, value)
            return query

        return replacement

    def with_strangers(model: ModelPatcher) -> ModelPatcher:
        strange = model.clone()
        for name in ("attn1_patch", "attn2_patch", "attn1_output_patch", "attn2_output_patch", "middle_patch"):
            strange.set_model_patch(patched(name), name)
        strange.set_model_attn1_replace(replaced("attn1"), "output", 5)  # where the guests are seen
        strange.set_model_attn2_replace(replaced("attn2"), "output", 4, 0)  # and where nothing of ours is
        return strange

    accompanied = sd15.sample(with_strangers(add_patch(sd15.model, watch(sd15))), size=SIZE, steps=1)
    blocks = len(sd15.model_map.family.blocks)
    assert set(seen) == {(name, (4, 4, 4)) for name, _ in seen}
    counts = {name: sum(other == name for other, _ in seen) for name, _ in seen}
    assert counts == {
        **dict.fromkeys(("attn1_patch", "attn2_patch", "attn1_output_patch", "attn2_output_patch"), blocks),
        "middle_patch": blocks,
        "attn1": 1,
        "attn2": 1,
    }
    alone = sd15.sample(with_strangers(sd15.model), size=SIZE, steps=1)
    assert relative_error(accompanied, alone) < 1e-5


def test_another_packs_replacement_leaves_the_guests_their_own_attention(sd15: Studio) -> None:
    ours, plain = watch(sd15), watch(sd15)
    model = add_patch(sd15.model, ours)
    model.set_model_attn1_replace(lambda query, key, value, extra: 0 * query, "output", 5)
    sd15.sample(model, size=SIZE, steps=1)
    sd15.sample(add_patch(sd15.model, plain), size=SIZE, steps=1)
    assert not ours.host_seen[0].any()
    assert relative_error(ours.guests_seen[0], plain.guests_seen[0]) < 1e-5


def test_guests_come_only_while_their_patch_acts(sd15: Studio) -> None:
    from semblance.attention.engine.scope import ScheduleWindow

    ours = replace(watch(sd15), scope=Scope({"output.5": 1.0}, ScheduleWindow(0.0, 0.4)))
    sd15.sample(add_patch(sd15.model, ours), size=SIZE, steps=4)
    assert len(ours.guests_seen) == 2
    diary = Diary(Scope({"output.5": 1.0}))
    sd15.sample(add_patch(add_patch(sd15.model, ours), diary), size=SIZE, steps=4)
    assert [layout.rows for layout in diary.layouts[::2]] == [7, 7, 4, 4]


def test_an_area_conditioning_with_guests_is_refused_in_a_sentence(sd15: Studio) -> None:
    (area,) = nodes.ConditioningSetArea().append(sd15.text(3), width=64, height=64, x=32, y=0, strength=1.0)
    with pytest.raises(ValueError, match=r"crop of the picture.*\(one, two\).*conditioning mask instead"):
        sd15.sample(add_patch(sd15.model, watch(sd15)), size=SIZE, positive=[*sd15.positive, *area])


def test_a_guest_of_another_size_is_refused_in_a_sentence(sd15: Studio) -> None:
    with pytest.raises(ValueError, match=r"'one' is 12x8 latent pixels of 4 channels.*works on 8x8.*of one size"):
        sd15.sample(add_patch(sd15.model, watch(sd15)), size=(8, 8))


@pytest.mark.parametrize(("guest_of", "host"), [("sd15", "sdxl"), ("sdxl", "sd15")])
def test_a_guest_of_another_family_is_refused_in_a_sentence(
    studio_of: Callable[[Any], Studio], guest_of: str, host: str
) -> None:
    foreign = Watch(studio_of(host).everywhere(), visitors=(studio_of(guest_of).guest("stranger", SIZE),))
    with pytest.raises(ValueError, match=r"'stranger' comes with the conditioning of another family"):
        studio_of(host).sample(add_patch(studio_of(host).model, foreign), size=SIZE)


def test_tokens_merged_under_guests_are_refused_in_a_sentence(sd15: Studio) -> None:
    from comfy_extras.nodes_tomesd import TomePatchModel

    merged = TomePatchModel.execute(sd15.model, 0.5)[0]
    seen = r"from \d+ to \d+, which the reference latents.*patches attn1_patch: comfy_extras\.nodes_tomesd.*Bypass that"
    with pytest.raises(ValueError, match=seen):
        sd15.sample(add_patch(merged, watch(sd15, size=(16, 16))), size=(16, 16))


class ReferenceAdvanced(comfy.controlnet.ControlBase):
    """A control that brings latents of its own into the model, by the name that another pack gives it."""

    def get_control(self, *_: Any) -> None:
        return None


@pytest.mark.parametrize("name", ["styleid", "consistory", "instantstyle"])
def test_a_control_that_brings_latents_of_its_own_is_refused_where_rows_are_counted(sd15: Studio, name: str) -> None:
    control = comfy.controlnet.ControlBase()
    control.get_control = lambda *_: None
    control.set_previous_controlnet(ReferenceAdvanced())
    controlled = conditioning_set_values(sd15.positive, {"control": control, "control_apply_to_uncond": False})
    if name == "instantstyle":
        seen = sd15.sample(sd15.with_patch(name), positive=controlled)
        assert relative_error(seen, sd15.patched(name)) < 1e-5
        return
    with pytest.raises(
        ValueError, match="^The reference control of Advanced-ControlNet on the same model .*Bypass it.$"
    ):
        sd15.sample(sd15.with_patch(name), positive=controlled)
