"""Captions of drawn scenes: a plain grammar with synonyms, whose parts are sometimes left out.

"a small star on the left, ocean colours, dotted, with soft edges", or "a cat above, a woodcut". Words name kinds only;
what is continuous in a style (the exact hue, angle, frequency, width) has no words, and free palettes have none at all.
"""

import random
from typing import TypeVar

from .shapes import SHAPES
from .world import EDGES, LARGEST_SHIFT, NAMED_STYLES, PALETTE_NAMES, TEXTURES, Scenes

NOUNS: dict[str, tuple[tuple[str, str], ...]] = {
    "cat": (("cat", "cats"), ("kitten", "kittens")),
    "dog": (("dog", "dogs"), ("puppy", "puppies")),
    "fish": (("fish", "fish"), ("goldfish", "goldfish")),
    "bird": (("bird", "birds"), ("sparrow", "sparrows")),
    "frog": (("frog", "frogs"), ("toad", "toads")),
    "hippo": (("hippo", "hippos"), ("hippopotamus", "hippopotamuses")),
    "kiwi": (("kiwi", "kiwis"), ("kiwi bird", "kiwi birds")),
    "horse": (("horse", "horses"), ("pony", "ponies")),
    "rabbit": (("rabbit", "rabbits"), ("bunny", "bunnies")),
    "ghost": (("ghost", "ghosts"), ("spook", "spooks")),
    "tree": (("tree", "trees"), ("fir", "firs")),
    "house": (("house", "houses"), ("cottage", "cottages")),
    "rocket": (("rocket", "rockets"), ("spaceship", "spaceships")),
    "boat": (("boat", "boats"), ("sailboat", "sailboats")),
    "car": (("car", "cars"), ("motorcar", "motorcars")),
    "cactus": (("cactus", "cactuses"), ("desert plant", "desert plants")),
    "flower": (("flower", "flowers"), ("blossom", "blossoms")),
    "butterfly": (("butterfly", "butterflies"), ("moth", "moths")),
    "leaf": (("leaf", "leaves"), ("foliage leaf", "foliage leaves")),
    "snowman": (("snowman", "snowmen"), ("snow figure", "snow figures")),
    "moon": (("moon", "moons"), ("crescent", "crescents")),
    "star": (("star", "stars"), ("twinkling star", "twinkling stars")),
    "heart": (("heart", "hearts"), ("valentine", "valentines")),
    "dove": (("dove", "doves"), ("pigeon", "pigeons")),
}
"""One and several of each shape, and a synonym."""
SHAPE_WORDS = {name: tuple(one for one, _ in words) for name, words in NOUNS.items()}
PALETTE_WORDS = {
    "ocean": ("ocean", "sea"),
    "forest": ("forest", "woodland"),
    "sunset": ("sunset", "evening sky"),
    "candy": ("candy", "sweet shop"),
    "desert": ("desert", "sand"),
    "night": ("night", "midnight"),
    "berry": ("berry", "raspberry"),
    "ice": ("ice", "winter"),
    "ink": ("ink", "black and white"),
    "woodcut": ("woodcut", "old paper"),
    "pastel": ("pastel", "pale"),
    "neon": ("neon", "glowing"),
    "comic": ("comic", "poster"),
    "blueprint": ("blueprint", "cyanotype"),
}
TEXTURE_WORDS = {
    "plain": ("plain", "flat", "without a pattern"),
    "dots": ("dotted", "spotted", "with dots"),
    "stripes": ("striped", "with stripes"),
    "checks": ("checked", "with checks", "like a chessboard"),
    "waves": ("wavy", "with waves"),
    "grid": ("gridded", "with a grid of lines"),
    "motifs": ("strewn", "strewn with motifs", "sprinkled with little shapes"),
}
EDGE_WORDS = {
    "crisp": ("with crisp edges", "sharp edges"),
    "outlined": ("outlined", "with an outline"),
    "soft": ("with soft edges", "blurred edges"),
    "wobbly": ("with wobbly edges", "ragged edges"),
}
STYLE_WORDS = {
    "ink drawing": ("an ink drawing", "drawn in ink"),
    "woodcut": ("a woodcut", "a linocut"),
    "pastel": ("a pastel", "drawn in chalk"),
    "neon": ("a neon sign", "in neon"),
    "comic": ("a comic", "like a comic strip"),
    "blueprint": ("a blueprint", "a technical drawing"),
}
PLACE_WORDS = {
    (0, 0): ("in the middle", "in the centre"),
    (-1, 0): ("on the left", "to the left"),
    (1, 0): ("on the right", "to the right"),
    (0, 1): ("at the top", "above"),
    (0, -1): ("at the bottom", "below"),
    (-1, 1): ("at the top left", "in the upper left corner"),
    (1, 1): ("at the top right", "in the upper right corner"),
    (-1, -1): ("at the bottom left", "in the lower left corner"),
    (1, -1): ("at the bottom right", "in the lower right corner"),
}
SMALL, LARGE = 0.43, 0.55  # radii below and above which a size has a word


def write_captions(scenes: Scenes, seed: int) -> list[str]:
    """One caption a picture; of ten, two name the content alone and one the style alone."""
    chance = random.Random(seed)
    return [_caption(parts, chance) for parts in _described(scenes)]


def worded_contents(scenes: Scenes, seed: int) -> list[str]:
    """The content alone, in any of its words, parts sometimes left out."""
    chance = random.Random(seed)
    return [" and ".join(_shape_phrase(shape, chance) for shape in shapes) for shapes, _ in _described(scenes)]


def content_captions(scenes: Scenes) -> list[str]:
    """The content in its plainest words, nothing left out, no style: what the demo and the tests prompt with."""
    return [" and ".join(_shape_phrase(shape, None) for shape in shapes) for shapes, _ in _described(scenes)]


def shape_captions(scenes: Scenes) -> list[str]:
    """The first shape of each and nothing more: its place is left open."""
    return [f"a {SHAPE_WORDS[SHAPES[shape]][0]}" for shape in scenes.content.shape[:, 0].tolist()]


def full_captions(scenes: Scenes) -> list[str]:
    """Content and style in their plainest words, nothing left out but what has no words."""
    captions = []
    for shapes, style in _described(scenes):
        content = " and ".join(_shape_phrase(shape, None) for shape in shapes)
        captions.append(", ".join([content, *_style_phrases(style, None)]))
    return captions


Words = TypeVar("Words")
_Shape = tuple[str, str, tuple[int, int]]  # size word or "", shape, place
_Style = tuple[str, str, str]  # palette or "", texture, edge


def _described(scenes: Scenes) -> list[tuple[list[_Shape], _Style]]:
    content, style = scenes.content, scenes.style
    places = (content.centre / LARGEST_SHIFT).round().clamp(-1, 1).int().tolist()
    shapes, radii = content.shape.tolist(), content.radius.tolist()
    styles = zip(style.palette_name.tolist(), style.texture.tolist(), style.edge.tolist(), strict=True)
    described = []
    for row, (palette, texture, edge) in enumerate(styles):
        slots = [slot for slot in range(2) if shapes[row][slot] >= 0]
        things = [(_size(radii[row][s]), SHAPES[shapes[row][s]], (places[row][s][0], places[row][s][1])) for s in slots]
        described.append((things, (PALETTE_NAMES[palette] if palette >= 0 else "", TEXTURES[texture], EDGES[edge])))
    return described


def _caption(described: tuple[list[_Shape], _Style], chance: random.Random) -> str:
    shapes, style = described
    kind = chance.random()
    content = " and ".join(_shape_phrase(shape, chance) for shape in shapes)
    if kind < 0.2:
        return content
    phrases = _style_phrases(style, chance)
    chance.shuffle(phrases)
    if kind < 0.3:
        return ", ".join(phrases)
    first = chance.random() < 0.8
    return ", ".join([content, *phrases] if first else [*phrases, content])


def _shape_phrase(shape: _Shape, chance: random.Random | None) -> str:
    """The words for one shape; without `chance` the plainest, and no size."""
    size, name, place = shape
    if chance is None:
        return f"a {SHAPE_WORDS[name][0]} {PLACE_WORDS[place][0]}"
    words = ["a", size if chance.random() < 0.5 else "", pick(SHAPE_WORDS[name], chance)]
    words.append(pick(PLACE_WORDS[place], chance) if chance.random() < 0.9 else "")
    return " ".join(word for word in words if word)


def _style_phrases(style: _Style, chance: random.Random | None) -> list[str]:
    named = next((name for name, parts in NAMED_STYLES.items() if parts == style), None)
    if named and (chance is None or chance.random() < 0.75):
        return [pick(STYLE_WORDS[named], chance)]
    palette, texture, edge = style
    phrases = []
    if palette and (chance is None or chance.random() < 0.85):
        phrases.append(f"{pick(PALETTE_WORDS[palette], chance)} colours")
    if chance is None or chance.random() < 0.85:
        phrases.append(pick(TEXTURE_WORDS[texture], chance))
    if chance is None or chance.random() < 0.6:
        phrases.append(pick(EDGE_WORDS[edge], chance))
    return phrases


def _size(radius: float) -> str:
    return "small" if radius < SMALL else "large" if radius > LARGE else ""


def pick(words: tuple[Words, ...], chance: random.Random | None) -> Words:
    """One of several ways to say a thing; without `chance` the plainest."""
    return words[0] if chance is None else chance.choice(words)
