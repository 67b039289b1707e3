"""Where ComfyUI's transformers keep the tokens of image, text and references, and how they turn them by their places.

What each family offers stands in tests/support/transformers/offered.py. Nothing of Semblance runs here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from semblance.tests.support.transformers import TransformerFamily, sample, watched
from semblance.tests.support.transformers.offered import Offered, Rotation
from semblance.tests.support.transformers.traced import (
    TEXT,
    WIDTH,
    changed_tokens,
    drawn_noise,
    even_noise,
    expected_turns,
    model_of,
    one_call,
    turns,
)
from semblance.tests.support.transformers.watched import SeenAttention, SeenCall

READING, KINDS = "host/binding/transformer.py", "attention/families/transformers.py"


def test_a_token_of_the_image_stands_where_we_look_for_it(
    family: TransformerFamily, offered: Offered, call: SeenCall
) -> None:
    row, column = 2, 3
    patch, tokens = offered.patch, offered.image_tokens()
    noise = drawn_noise(family)
    noise[..., row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] += 1
    moved = one_call(family, noise)
    at, text = offered.image_at, offered.text_tokens()
    expected = offered.first_image_token() + row * (WIDTH // patch) + column
    found = changed_tokens(call.attentions[at], moved.attentions[at])
    assert found == [expected], (
        f"{family.name}: the latent at ({row}, {column}) is token {found}, not {expected}; see image in {READING}"
    )
    block = offered.before
    if at < block:  # the image has attended to itself before the first block
        found = changed_tokens(call.attentions[block], moved.attentions[block])
        assert found == list(range(text, text + offered.filled(tokens))), (
            f"{family.name}: the image stands at {found[:1]} to {found[-1:]} of the first block; see image in {READING}"
        )
    padding = call.attentions[at].value[..., offered.first_image_token() + tokens :, :] if at < block else None
    if padding is not None and offered.image_multiple > 1:
        assert padding.shape[-2] == -tokens % offered.image_multiple > 0 and (padding == padding[..., :1, :]).all(), (
            f"{family.name}: what fills up the image's tokens is not all alike behind them; see image in {READING}"
        )


def test_odd_sizes_are_rounded_up_to_whole_tokens(family: TransformerFamily, offered: Offered) -> None:
    model, calls = watched(model_of(family))
    prompt = family.conditioning(TEXT)
    result = sample(model, prompt, prompt, family.latent(2, 7, 9), steps=1, cfg=1.0)
    found = calls[0].attentions[-1].query.shape[-2] - offered.text_tokens()
    assert found == offered.filled(offered.image_tokens(7, 9)), (
        f"{family.name}: 7 x 9 latents are {found} tokens; see picture_tokens in {READING}"
    )
    assert result.shape[-2:] == (7, 9)


def test_text_stands_before_the_image(family: TransformerFamily, offered: Offered, call: SeenCall) -> None:
    if offered.attentions[0] != "joint":
        return
    ((text, extras),) = family.conditioning(TEXT)
    text = text.clone()
    text[:, -1] += 1
    moved = one_call(family, drawn_noise(family), text=text, **extras)
    at, length = offered.before, offered.text_tokens()
    found = changed_tokens(call.attentions[at], moved.attentions[at])
    alone = length - 1 if offered.text_padded != "right" else TEXT - 1
    # Where text attends to itself before the first block, all its tokens change.
    expected = list(range(length)) if offered.before else [alone]
    assert found == expected, f"{family.name}: the last text token is {found}, not {expected}; see image in {READING}"


def test_places_turn_the_pairs_of_channels_we_scale(family: TransformerFamily, offered: Offered) -> None:
    rotation = offered.rotation
    if rotation is None:
        return
    at, start = offered.image_at, offered.first_image_token()
    image = one_call(family, even_noise(family)).attentions[at]
    axes = range(len(rotation.axes))
    for name, axis, step in (("downwards", 1, WIDTH // offered.patch), ("to the right", 2, 1)):
        expected = expected_turns(rotation, [float(one == axis) for one in axes])
        told = f"{family.name}: a step {name} turns other pairs of channels, or otherwise"
        same_turns(image, start, start + step, rotation, expected, told)
    if rotation.text_step:
        tokens = offered.text_multiple if offered.text_padded == "right" else TEXT
        even = family.conditioning(tokens)[0][0][:, :1].expand(1, tokens, -1).clone()
        seen = one_call(family, drawn_noise(family), tokens, text=even).attentions
        last = offered.text_tokens(tokens) - 1
        text = seen[offered.before if at >= offered.before else 0]
        told = f"{family.name}: the tokens of text are turned otherwise"
        same_turns(text, last - 1, last, rotation, expected_turns(rotation, rotation.text_step), told)


def same_turns(
    attention: SeenAttention, first: int, second: int, rotation: Rotation, expected: Tensor, told: str
) -> None:
    where = f"see Rotary in attention/engine/call.py, _rotary in {READING}, pairs in {KINDS}"
    for what in ("query", "key"):
        found = turns(attention, first, second, rotation.pairs, what)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0, msg=f"{told} in a {what}; {where}")


def test_reference_latents_stand_where_we_leave_them_out(family: TransformerFamily, offered: Offered) -> None:
    references = offered.references
    if references is None:
        return
    height, width = 6, 8
    noise, tokens = drawn_noise(family), offered.image_tokens(height, width)

    def seen(seed: int) -> SeenCall:
        latents = [drawn_noise(family, seed, height, width)]
        return one_call(family, noise, **{references.cond: latents, **references.also})

    first, second = seen(5), seen(6)
    attention = first.attentions[offered.image_at]
    begin = offered.first_image_token()
    start = begin + (offered.filled(offered.image_tokens()) if references.place == "behind" else 0)
    found = changed_tokens(attention, second.attentions[offered.image_at])
    assert found == list(range(start, start + tokens)), (
        f"{family.name}: reference latents are tokens {found[:1]} to {found[-1:]}; see references in {KINDS}"
    )
    told = attention.options.get("reference_image_num_tokens")
    assert told == ([tokens] if references.told else None), (
        f"{family.name}: reference_image_num_tokens is {told}; see REFERENCES in {READING}"
    )
