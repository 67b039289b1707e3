"""Reference Style's formula as a page of plain torch around the host's own models; it knows every family by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from semblance.attention.engine.guests import ShownPicture

from .reference_styles import TEXT, Call, some
from .transformers import TransformerFamily


@dataclass(frozen=True)
class Anatomy:
    """What the page knows of a family: which attentions of a call are its blocks' own, and where the picture begins."""

    firsts: tuple[int | None, ...]
    """For each of the last attentions of a call, how many tokens stand before the picture's; None in one to text alone.
    Attentions before these are refiners'."""
    axes: tuple[int, ...]
    """Channels of a head that are rotated by frames, rows and columns, and by the place in the text."""
    halves: bool = False
    patch: int = 2


def anatomy(name: str, text: int = TEXT) -> Anatomy:
    """Of a family, with prompts of so many tokens."""
    return {
        "flux": Anatomy((text,) * 5, (4, 6, 6)),
        "flux2": Anatomy((512,) * 4, (4, 4, 4, 4), patch=1),  # the text is filled up to 512 tokens
        "chroma": Anatomy((text,) * 5, (4, 6, 6)),
        "qwen_image": Anatomy((text,) * 3, (4, 6, 6)),
        "krea2": Anatomy((text,) * 3, (4, 6, 6)),
        "z_image": Anatomy((-(-text // 32) * 32,) * 3, (16, 24, 24)),
        "lumina2": Anatomy((text,) * 3, (4, 4, 4)),
        "anima": Anatomy((0, None) * 3, (8, 4, 4), halves=True),
        "cosmos2": Anatomy((0, None) * 3, (8, 4, 4), halves=True),
        "wan": Anatomy((0, None) * 3, (8, 4, 4)),
        "sd35": Anatomy((text, 0, text, text), ()),  # the first block attends twice, the second time without text
    }[name]


@dataclass(frozen=True)
class Page:
    """The formula's numbers at one moment."""

    high: float = 1.0
    low: float = 1.0
    falloff: float = 2.5
    queries_and_keys: float = 0.0
    values: float = 0.0
    strength: float = 1.0
    weight: float = 1.0
    area: Tensor | None = None  # (rows of tokens, columns of tokens)


def by_the_page(
    family: TransformerFamily,
    model: ModelPatcher,
    call: Call,
    references: Sequence[ShownPicture],
    page: Page,
    before: int = 0,
) -> Tensor:
    """What the model answers to `call` if its attention is the formula's, written out row by row in float64.

    `before` are tokens between text and picture.
    """
    rows, chunks = len(call.x), len(call.numbers)
    firsts = [chunk * rows // chunks for chunk in range(chunks)]
    level = float(call.sigma[0])
    seats = [(one, first) for one in references for first in firsts]
    clean = 1.0 if family.name == "cosmos2" else 1 - level  # the one that is no rectified flow adds noise to all of it
    shown = torch.cat([clean * one.clean + level * one.noise for one, _ in seats])
    plain = {name: some(value, rows, [first for _, first in seats]) for name, value in call.conds.items()}
    for name in ("ref_latents", "ref_latents_method"):  # of an editing model, which the references are not to edit
        plain.pop(name, None)
    text = some(call.text, rows, [first for _, first in seats])
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def look(q: Tensor, k: Tensor, v: Tensor, at: slice, out: Tensor, mask: Tensor | None) -> Tensor:
        seen.append((q[:, :, at], k[:, :, at], v[:, :, at]))
        return out

    run(family, model, shown, call, text, plain, 0, look)
    came: list[int] = []

    def styled_rows(q: Tensor, k: Tensor, v: Tensor, at: slice, out: Tensor, mask: Tensor | None) -> Tensor:
        here, styled = seen[len(came)], out.clone()
        came.append(1)
        for row in range(rows):
            chunk = row * chunks // rows
            guests = [number * chunks + chunk for number in range(len(references))]
            given = [tuple(part[guest] for part in here) for guest in guests]
            own = q[row], k[row], v[row]
            styled[row] = one_row(own, given, anatomy(family.name), at, page, out[row], mask, row)
        return styled

    return run(family, model, call.x, call, call.text, call.conds, before, styled_rows)


Edit = Callable[[Tensor, Tensor, Tensor, slice, Tensor, Tensor | None], Tensor]
"""Query, key and value by head, where the picture stands, what attention gives, and the mask, to what it is to give."""


def run(
    family: TransformerFamily,
    model: ModelPatcher,
    x: Tensor,
    call: Call,
    text: Tensor,
    conds: Mapping[str, Any],
    before: int,
    edit: Edit,
) -> Tensor:
    """The host's answer to `x` with another output of every attention of the blocks that the picture is in."""
    body = anatomy(family.name, text.shape[1])
    height, width = (-(-side // body.patch) for side in x.shape[-2:])
    tokens = height * width * (x.shape[2] if x.ndim == 5 else 1)

    def asked(attend: Callable[..., Tensor]) -> Tensor:
        options = {"optimized_attention_override": attend, "cond_or_uncond": list(call.numbers)}
        t = call.sigma[:1].expand(len(x))
        with torch.inference_mode():
            return model.model.apply_model(x, t, c_crossattn=text, transformer_options=options, **conds)

    every: list[int] = []
    asked(lambda func, *arguments, **named: every.append(1) or func(*arguments, **named))
    passed: list[int] = []

    def attend(func: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, heads: int, *rest: Any, **named: Any):
        plain = func(q, k, v, heads, *rest, **named)
        number = len(passed) - (len(every) - len(body.firsts))
        passed.append(1)
        if number < 0 or (first := body.firsts[number]) is None:
            return plain
        skip = bool(named.get("skip_reshape", rest[2] if len(rest) > 2 else False))
        mask = named.get("mask", rest[0] if rest else None)
        apart = before if first else 0
        at = slice(first + apart, first + apart + tokens)
        query, key, value = (by_head(part, heads, skip) for part in (q, k, v))
        return edit(query, key, value, at, plain, mask)

    return asked(attend)


def by_head(part: Tensor, heads: int, skip: bool) -> Tensor:
    """As (rows, heads, tokens, head_dim), in float64."""
    if skip:
        return part.double()
    if part.ndim == 3:
        part = part.unflatten(2, (heads, -1))
    return part.transpose(1, 2).double()


def one_row(
    own: tuple[Tensor, Tensor, Tensor],
    seen: Sequence[tuple[Tensor, ...]],
    body: Anatomy,
    image: slice,
    page: Page,
    plain: Tensor,
    mask: Tensor | None,
    row: int,
) -> Tensor:
    """Attention of one of the sampler's rows by the formula: only the picture's queries look at the references."""
    tokens = image.stop - image.start
    query, key, value = (part.clone() for part in own)
    if page.queries_and_keys:
        query[:, image] = adain(query[:, image], [one[0] for one in seen], page.queries_and_keys)
        key[:, image] = adain(key[:, image], [one[1] for one in seen], page.queries_and_keys)
    if page.values:
        value[:, image] = adain(value[:, image], [one[2] for one in seen], page.values)
    heads, _, head_dim = query.shape
    factors = torch.tensor(factors_by_loops(body, head_dim, page), dtype=torch.float64)
    shared_key = torch.cat([one[1] * factors for one in seen], dim=1)
    shared_value = torch.cat([one[2] for one in seen], dim=1)
    kept = None if mask is None else own_mask(mask, row, heads, query.shape[1], key.shape[1])
    if kept is not None:
        kept = torch.nn.functional.pad(kept[:, image], (0, shared_key.shape[1]))
    if page.weight != 1.0:
        kept = torch.zeros(1, tokens, key.shape[1] + shared_key.shape[1]) if kept is None else kept
        kept[..., key.shape[1] :] += math.log(page.weight)
    key, value = torch.cat([key, shared_key], dim=1), torch.cat([value, shared_value], dim=1)
    looked = softmax_attention(query[:, image], key, value, kept)
    output = plain.double().clone()
    weight = torch.full((tokens, 1), page.strength, dtype=torch.float64)
    if page.area is not None:
        weight = weight * page.area.double().reshape(-1, 1)
    packed = looked.transpose(0, 1).reshape(tokens, -1)
    output[image] = output[image] * (1 - weight) + packed * weight
    return output.to(plain)


def softmax_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    logits = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
    logits = logits if mask is None else logits + mask
    weights = (logits - logits.amax(dim=-1, keepdim=True)).exp()
    return weights / weights.sum(dim=-1, keepdim=True) @ value


def own_mask(mask: Tensor, row: int, heads: int, queries: int, keys: int) -> Tensor:
    while mask.ndim < 4:
        mask = mask[None] if mask.ndim == 2 else mask[:, None]
    one = mask[row % len(mask)].double()
    return one.expand(heads, queries, keys)


def adain(own: Tensor, given: Sequence[Tensor], share: float) -> Tensor:
    """Every channel of every head of `own` with the mean and deviation of all tokens given, in part."""
    means = [one.mean(dim=1, keepdim=True) for one in given]
    mean = sum(means) / len(given)
    variance = sum(one.var(dim=1, keepdim=True) + (at - mean) ** 2 for one, at in zip(given, means, strict=True))
    normal = (own - own.mean(dim=1, keepdim=True)) / (own.var(dim=1, keepdim=True) + 1e-5).sqrt()
    moved = normal * (variance / len(given) + 1e-5).sqrt() + mean
    return own * (1 - share) + moved * share


def factors_by_loops(body: Anatomy, head_dim: int, page: Page) -> list[float]:
    """A factor for each channel of a head, by rotated pairs; the low one throughout where nothing is rotated."""
    if not body.axes:
        return [page.low] * head_dim
    factors = [0.0] * head_dim
    pair = 0
    for axis, channels in enumerate(body.axes):
        for place in range(channels // 2):
            depth = place / (channels // 2 - 1) if channels > 2 else 1.0
            factor = page.low if axis not in (1, 2) else page.high + (page.low - page.high) * depth**page.falloff
            first, second = (pair, pair + head_dim // 2) if body.halves else (2 * pair, 2 * pair + 1)
            factors[first] = factors[second] = factor
            pair += 1
    return factors
