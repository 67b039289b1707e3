"""Captions of views: a figure and where it stands, or how many there are, and sometimes how they are drawn.

"two cats side by side, spotted, on a checked ground, ocean colours". As in `captions`, words name kinds only.
"""

import random

from .captions import EDGE_WORDS, NOUNS, PALETTE_WORDS, PLACE_WORDS, TEXTURE_WORDS, pick
from .layouts import ARRANGEMENT_NAMES, Views
from .shapes import SHAPES
from .world import EDGES, PALETTE_NAMES, TEXTURES

ARRANGEMENT_WORDS = {
    "one": ("a {one} {place}",),
    "two side by side": ("two {many} side by side", "two {many} next to each other"),
    "two one above the other": ("two {many} one above the other", "two {many} on top of each other"),
    "four": ("four {many}", "a square of four {many}"),
    "nine": ("nine {many}", "three rows of {many}"),
    "board": ("four pictures of a {one}", "a storyboard of a {one}"),
    "pair": ("two {many}, {place} and {second}", "a {one} {place} and a {one} {second}"),
    "trio": ("three {many}, {place}, {second} and {third}", "a {one} {place}, a {one} {second} and a {one} {third}"),
}


def view_captions(views: Views, seed: int) -> list[str]:
    """One caption a view, in any of its words; of ten, five name the content alone."""
    chance = random.Random(seed)
    return [_caption(content, style, chance) for content, style in zip(_contents(views), _styles(views), strict=True)]


def plain_captions(views: Views) -> list[str]:
    """The content in its plainest words, no style."""
    return [_content_phrase(content, None) for content in _contents(views)]


_Content = tuple[str, str, list[tuple[int, int]]]  # figure, arrangement, told places
_Style = tuple[str, str, str, str]  # palette or "", coat, texture of the ground or "", edge


def _contents(views: Views) -> list[_Content]:
    layouts = views.layouts
    rows = zip(layouts.figure.tolist(), layouts.arrangement.tolist(), layouts.place.tolist(), strict=True)
    return [(SHAPES[figure], ARRANGEMENT_NAMES[kind], [(x, y) for x, y in places]) for figure, kind, places in rows]


def _styles(views: Views) -> list[_Style]:
    subject, ground = views.subject, views.ground
    one_palette = (subject.palette_name == ground.palette_name) & (subject.palette_name >= 0)
    boards = views.layouts.arranged("board").tolist()
    styles: list[_Style] = []
    for row, board in enumerate(boards):
        palette = PALETTE_NAMES[int(subject.palette_name[row])] if one_palette[row] and not board else ""
        texture = "" if board else TEXTURES[int(ground.texture[row])]
        styles.append((palette, TEXTURES[int(subject.texture[row])], texture, EDGES[int(subject.edge[row])]))
    return styles


def _caption(content: _Content, style: _Style, chance: random.Random) -> str:
    told = _content_phrase(content, chance)
    if chance.random() < 0.5:
        return told
    palette, coat, texture, edge = style
    phrases = [f"{pick(PALETTE_WORDS[palette], chance)} colours"] if palette and chance.random() < 0.85 else []
    phrases += [pick(TEXTURE_WORDS[coat], chance)] if chance.random() < 0.5 else []
    phrases += [f"on a {TEXTURE_WORDS[texture][0]} ground"] if texture and chance.random() < 0.7 else []
    phrases += [pick(EDGE_WORDS[edge], chance)] if chance.random() < 0.5 else []
    chance.shuffle(phrases)
    return ", ".join([told, *phrases])


def _content_phrase(content: _Content, chance: random.Random | None) -> str:
    """The words for a content; without `chance` the plainest."""
    figure, arrangement, places = content
    one, many = pick(NOUNS[figure], chance)
    first, second, third = (pick(PLACE_WORDS[place], chance) for place in places)
    words = pick(ARRANGEMENT_WORDS[arrangement], chance)
    return words.format(one=one, many=many, place=first, second=second, third=third)
