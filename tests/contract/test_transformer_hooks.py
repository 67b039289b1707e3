"""What Semblance takes for granted of ComfyUI's transformers, family by family: the failing test names what moved.

What each family offers stands in tests/support/transformers/offered.py. Nothing of Semblance runs here.
"""

from __future__ import annotations

from typing import Any

import comfy.patcher_extension
import torch
from comfy.patcher_extension import WrappersMP

from semblance.tests.support.transformers import HUNYUAN_DIT, TRANSFORMERS, TransformerFamily, sample, watched
from semblance.tests.support.transformers.offered import LONGEST_TEXT, TEXT, Offered
from semblance.tests.support.transformers.traced import drawn_noise, model_of, one_call
from semblance.tests.support.transformers.watched import SeenCall

DIT, READING, KINDS = "host/binding/dit.py", "host/binding/transformer.py", "attention/families/transformers.py"
CONDITIONS, ATTENDING = "host/binding/conditions.py", "host/binding/attending.py"
WHEREABOUTS, WRAPPERS = "host/binding/whereabouts.py", "host/binding/wrappers.py"


def test_the_transformer_is_the_class_we_know(family: TransformerFamily, offered: Offered) -> None:
    model = model_of(family).model
    kind = type(model.diffusion_model)
    where = f"{family.name}: its transformer is {kind.__module__}.{kind.__qualname__} now"
    assert f"{kind.__module__}.{kind.__qualname__}" == offered.module, f"{where}; see KINDS in {KINDS}"
    for name in offered.blocks.values():
        assert len(getattr(model.diffusion_model, name, ())), f"{where}, which has no {name}; see {KINDS}"
    assert offered.sampling in {base.__name__ for base in type(model.model_sampling).__mro__}, (
        f"{family.name}: noise levels are no {offered.sampling} any more; see host/inversion"
    )
    assert model.latent_format.latent_channels == family.channels


def test_a_call_comes_with_the_arguments_we_pass_on(family: TransformerFamily, offered: Offered) -> None:
    model, calls = watched(model_of(family))
    sample(model, family.conditioning(), family.conditioning(seed=2), family.latent(2), steps=1)
    (call,) = calls
    assert call.by_place == 6, (
        f"{family.name}: APPLY_MODEL wrappers get {call.by_place} arguments by place; see {WRAPPERS}"
    )
    assert set(call.conds) == offered.conds, (
        f"{family.name}: apply_model is given {sorted(call.conds)} beside text; see {CONDITIONS}"
    )
    assert len(call.x) == 4 and call.sigma.shape == (4,), (
        f"{family.name}: sigma is not one noise level a row; see {DIT}"
    )
    for name, value in {"c_crossattn": call.text, **call.conds}.items():
        assert not isinstance(value, torch.Tensor) or len(value) == 4, (
            f"{family.name}: {name} is {tuple(value.shape)} where there are 4 rows; see {CONDITIONS}"
        )
    assert all(attention.rows == 4 for attention in call.attentions[offered.before :]), (
        f"{family.name}: attention has other rows than the call; see {DIT}"
    )


def test_every_attention_of_every_block_asks_us_once(
    family: TransformerFamily, offered: Offered, call: SeenCall
) -> None:
    module = model_of(family).model.diffusion_model
    image = offered.filled(offered.image_tokens())
    lengths: list[int] = []
    expected: list[Any] = [(None, None)] * offered.before
    for part, attribute in offered.blocks.items():
        for number, block in enumerate(getattr(module, attribute)):
            again = getattr(getattr(block, "x_block", None), "x_block_self_attn", False)
            told = (part, number) if offered.numbered else (None, None)
            expected += [told] * (len(offered.attentions) + bool(again))
            lengths += [offered.text_tokens() + image] * len(offered.attentions) + [image] * bool(again)
    assert [attention.block for attention in call.attentions] == expected, (
        f"{family.name}: optimized_attention_override is asked for other attentions, or with another block_type and "
        f"block_index; see {WHEREABOUTS}"
    )
    found = [attention.query.shape[-2] for attention in call.attentions[offered.before :]]
    assert found == lengths, f"{family.name}: attentions have {found} tokens, not {lengths}; see {WHEREABOUTS}"


def test_an_attention_shows_the_tensors_we_expect(family: TransformerFamily, offered: Offered, call: SeenCall) -> None:
    for attention in call.attentions[offered.before :]:
        where = f"{family.name}: at {attention.block} the query is {tuple(attention.query.shape)}; see {DIT}"
        assert attention.unpacked == offered.unpacked and attention.query.ndim == 3 + offered.unpacked, where
        assert attention.rows == len(attention.key) == len(attention.value) == len(call.x), where
        values = (*attention.key.shape[:2], attention.heads, -1) if offered.value_unpacked else attention.key.shape
        assert attention.value.shape[: len(values) - 1] == values[:-1] and attention.value.ndim == len(values), (
            f"{family.name}: values are {tuple(attention.value.shape)} beside such keys; see {ATTENDING}"
        )
        assert attention.mask is None, f"{family.name}: attention has a mask without one in the prompt; see {DIT}"
        assert attention.output.shape == (attention.rows, attention.query.shape[-2], attention.width), (
            f"{family.name}: attention gives {tuple(attention.output.shape)}, not heads packed; see {DIT}"
        )
        assert "cond_or_uncond" in attention.options, f"{family.name}: attention gets no transformer_options; see {DIT}"
        told = "img_slice" in attention.options
        assert told == (attention.block[0] in offered.told_span), (
            f"{family.name}: img_slice is {'' if told else 'not '}told at {attention.block}; see {READING}"
        )
        if told:
            assert attention.options["img_slice"] == [offered.text_tokens(), attention.query.shape[-2]], where


def test_the_query_and_key_of_an_attention_are_as_long_as_its_kind(
    family: TransformerFamily, offered: Offered, call: SeenCall
) -> None:
    other = one_call(family, drawn_noise(family, seed=4))
    if offered.attentions != ("self", "cross"):
        return
    for number, (seen, again) in enumerate(zip(call.attentions, other.attentions, strict=True)):
        kind = offered.attentions[number % 2]
        of_text = torch.equal(seen.key, again.key)
        assert of_text == (kind == "cross"), (
            f"{family.name}: attention {number} is not {kind} any more; see {WHEREABOUTS}"
        )
        length = call.text.shape[1] if of_text else offered.image_tokens()
        assert seen.key.shape[-2] == length, f"{family.name}: {kind} has {seen.key.shape[-2]} keys; see {DIT}"


def test_texts_of_different_length_come_in_calls_of_their_own(family: TransformerFamily, offered: Offered) -> None:
    for negative, together in ((TEXT, True), (TEXT - 2, offered.together)):
        model, calls = watched(model_of(family))
        sample(model, family.conditioning(TEXT), family.conditioning(negative, seed=2), family.latent(), steps=1)
        found = [call.options["cond_or_uncond"] for call in calls]
        assert found == ([[1, 0]] if together else [[0], [1]]), (
            f"{family.name}: prompts of {TEXT} and {negative} tokens come as {found}; see {DIT}"
        )


def test_other_packs_have_the_hooks_we_stand_beside(family: TransformerFamily, offered: Offered) -> None:
    lists, slots, places = hooks_of(family)
    assert lists == offered.lists, f"{family.name}: the lists of patches that are called are {sorted(lists)} now"
    assert slots == offered.slots, f"{family.name}: the slots in patches_replace['dit'] are {sorted(slots)} now"
    assert places == ([] if offered.options_at is None else [offered.options_at]), (
        f"{family.name}: DIFFUSION_MODEL wrappers get transformer_options at {places}; see {WRAPPERS}"
    )


def hooks_of(family: TransformerFamily) -> tuple[set[str], set[str], list[Any]]:
    """Which lists of patches and which slots are called, and where a DIFFUSION_MODEL wrapper finds the options."""
    lists: set[str] = set()
    slots: set[str] = set()
    places: list[Any] = []

    def listed(name: str) -> Any:
        def patch(given: Any, *_: Any, **named: Any) -> Any:
            lists.add(name)
            if isinstance(given, dict):
                return given["x"] if name.startswith("attn") else given
            return given if name == "attn1_output_patch" else {}

        return patch

    def slot(kind: str) -> Any:
        def replacement(given: Any, extra: Any) -> Any:
            slots.add(kind)
            return extra["original_block"](given)

        return replacement

    def wrapper(executor: Any, *arguments: Any, **named: Any) -> Any:
        found = [at for at, part in enumerate(arguments) if isinstance(part, dict) and "cond_or_uncond" in part]
        places.extend(found or [name for name in ("transformer_options",) if name in named])
        return executor(*arguments, **named)

    model = model_of(family).clone()
    options = model.model_options["transformer_options"]
    names = ("attn1_patch", "attn1_output_patch", "attn2_patch", "attn2_output_patch", "post_input")
    options["patches"] = {name: [listed(name)] for name in (*names, "double_block", "noise_refiner", "mlp_patch")}
    kinds = ("double_block", "single_block")
    options["patches_replace"] = {"dit": {(kind, number): slot(kind) for kind in kinds for number in range(4)}}
    comfy.patcher_extension.add_wrapper_with_key(
        WrappersMP.DIFFUSION_MODEL, "probe", wrapper, model.model_options, True
    )
    prompt = family.conditioning(77 if family is HUNYUAN_DIT else TEXT)
    sample(model, prompt, prompt, family.latent(), steps=1, cfg=1.0)
    return lists, slots, places


def test_hunyuan_dit_still_keeps_its_attention_to_itself() -> None:
    model, calls = watched(HUNYUAN_DIT.model())
    prompt = HUNYUAN_DIT.conditioning(77)
    sample(model, prompt, prompt, HUNYUAN_DIT.latent(), steps=1)
    assert not any(call.attentions for call in calls), f"HunyuanDiT can be reached now; see UNREACHED in {KINDS}"
    assert hooks_of(HUNYUAN_DIT) == (set(), {"double_block"}, []), "HunyuanDiT has other hooks now"


def test_a_masked_prompt_of_qwen_image_masks_attention_and_one_of_lumina_does_not() -> None:
    mask = torch.ones(1, TEXT, dtype=torch.long)
    mask[:, -2:] = 0
    qwen, lumina, z_image = (TRANSFORMERS[name] for name in ("qwen_image", "lumina2", "z_image"))
    call = one_call(qwen, attention_mask=mask)
    seen = call.attentions[0].mask
    assert seen is not None and seen.shape == (1, 1, call.attentions[0].query.shape[-2]), (
        f"qwen_image: a mask of the prompt is no mask (rows, 1, tokens) of keys any more; see {ATTENDING}"
    )
    assert (seen[0, 0] < -1e30).nonzero().flatten().tolist() == [TEXT - 2, TEXT - 1], (
        f"qwen_image: a mask is not added to the scores of its text; see {ATTENDING}"
    )
    for family in (lumina, z_image):
        model, calls = watched(model_of(family))
        sample(model, family.conditioning(attention_mask=mask), family.conditioning(seed=2), family.latent(), steps=1)
        assert all(attention.mask is None for call in calls for attention in call.attentions), (
            f"{family.name}: a mask of the prompt masks attention now; see {ATTENDING}"
        )
        assert [call.options["cond_or_uncond"] for call in calls] == [[0], [1]], (
            f"{family.name}: prompts of one length, one of them masked, come in one call now; see {DIT}"
        )


def test_the_second_text_of_anima_is_read_before_the_model_is_called() -> None:
    call = one_call(TRANSFORMERS["anima"])
    assert call.text.shape[1] == LONGEST_TEXT and not call.conds, (
        f"anima: text is {tuple(call.text.shape)} and apply_model is given {sorted(call.conds)}; see {CONDITIONS}"
    )
