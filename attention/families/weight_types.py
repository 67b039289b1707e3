"""The weight types of ComfyUI_IPAdapter_plus, as weights of blocks.

A type spreads one weight over the blocks with cross-attention, which it counts in the order the model runs them. Its
middle block never acts, and here does not either. In the precise types some blocks are *swapped*: there the picture
stands on the unconditional side in place of its negative, so that guidance pushes it away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar, get_args

from ..engine.scope import finite

WeightType = Literal[
    "linear",
    "ease in",
    "ease out",
    "ease in-out",
    "reverse in-out",
    "weak input",
    "weak output",
    "weak middle",
    "strong middle",
    "style transfer",
    "composition",
    "strong style transfer",
    "style and composition",
    "style transfer precise",
    "composition precise",
    "standard",
    "prompt is more important",
    "style transfer precise, boosted",
    "composition precise, boosted",
    "strong style and composition",
]
WEIGHT_TYPES: tuple[WeightType, ...] = get_args(WeightType)[:-1]
"""As the user chooses them; the last one is "style and composition" with an expanded style."""
SAME_AS: Mapping[str, WeightType] = {
    "standard": "linear",
    "prompt is more important": "ease out",
    "style transfer precise, boosted": "style transfer precise",
    "composition precise, boosted": "composition precise",
}
BOOSTED = ("style transfer precise, boosted", "composition precise, boosted")
"""The types whose swapped blocks have a weight of their own, not the picture's."""
Place = TypeVar("Place", int, str)
FLOOR = 0.05  # what is left of a weight at the weakest block of an ease
WEAK = 0.2
QUIET = 0.1


@dataclass(frozen=True)
class StyleLayers:
    """Which places in the order of blocks carry style and which composition, by IPAdapter_plus."""

    style: frozenset[int]
    composition: Mapping[int, float]
    quiet: frozenset[int]
    """Those that the precise composition swaps at a tenth."""


_OF_BLOCKS: Mapping[int, StyleLayers] = {
    16: StyleLayers(frozenset({0, 1, 2, 3, *range(9, 16)}), {4: 0.25, 5: 1.0}, frozenset({7, 8})),
    11: StyleLayers(frozenset({6}), {3: 1.0}, frozenset({0, 1, 2, 5, 7, 8, 9, 10})),
}
"""By the number of blocks: SD 1.5 has 16, SDXL 11."""


@dataclass(frozen=True)
class LayerWeights:
    """Factors by block. Blocks left out, and the middle block, are not listened to."""

    by_weight: Mapping[str, float] = field(default_factory=dict[str, float])
    """Of the picture's weight."""
    by_composition: Mapping[str, float] = field(default_factory=dict[str, float])
    """Of the composition picture's weight, or of the same picture's at a weight of 1."""
    swapped: Mapping[str, float] = field(default_factory=dict[str, float])
    """Of the boost, or of the picture's weight where none is given."""


def layer_weights(kind: WeightType, blocks: Sequence[str]) -> LayerWeights:
    """The factors of a weight type for a model's blocks, in the order the model runs them.

    Raises ValueError for a model whose blocks are not those of SD 1.5 or SDXL.
    """
    layers = _layers_of(blocks)
    kind = SAME_AS.get(kind, kind)
    whole = dict.fromkeys(range(len(blocks)), 1.0)
    style, composition = dict.fromkeys(sorted(layers.style), 1.0), dict(layers.composition)

    def named(factors: Mapping[int, float]) -> dict[str, float]:
        return {blocks[place]: factor for place, factor in factors.items() if not blocks[place].startswith("middle")}

    if kind == "style transfer":
        return LayerWeights(named(style))
    if kind == "composition":
        return LayerWeights(named(composition))
    if kind == "strong style transfer":
        return LayerWeights(named(_without(whole, composition)))
    if kind == "style and composition":
        return LayerWeights(named(style), named(composition))
    if kind == "strong style and composition":
        return LayerWeights(named(_without(whole, composition)), named(dict.fromkeys(composition, 1.0)))
    if kind == "style transfer precise":
        return LayerWeights(named(style), swapped=named(composition))
    if kind == "composition precise":
        swapped = {**style, **dict.fromkeys(sorted(layers.quiet), QUIET)}
        return LayerWeights(named(composition), swapped=named(swapped))
    return LayerWeights(named({place: _eased(kind, place, blocks) for place in whole}))


def chosen_layers(text: str, kind: WeightType, blocks: Sequence[str]) -> LayerWeights:
    """The factors that a text such as "3:2.5, 6:1" gives to places in the order of blocks.

    Of the weight type it only remains which blocks the precise ones swap. Raises ValueError for a text that is not of
    this form, and for places that the model does not have.
    """
    written: dict[str, float] = {}
    for entry in filter(None, (part.strip() for part in text.replace("\n", ",").split(","))):
        place, _, factor = (part.strip() for part in entry.partition(":"))
        try:
            number, amount = int(place), finite(float(factor), "The weight of a layer")
        except ValueError:
            raise ValueError(
                f"'{entry}' is no weight of a layer. Write its number, a colon and its weight, e.g. 3:2.5, 6:1."
            ) from None
        if not 0 <= number < len(blocks):
            raise ValueError(
                f"There is no layer {number}: this model has layers 0 to {len(blocks) - 1}. Choose one of them."
            )
        if not blocks[number].startswith("middle"):
            written[blocks[number]] = amount
    swaps = layer_weights(kind, blocks).swapped
    return LayerWeights(
        _without(written, swaps), swapped={block: written[block] for block in written if block in swaps}
    )


def _eased(kind: str, place: int, blocks: Sequence[str]) -> float:
    part, half = blocks[place].partition(".")[0], len(blocks) / 2
    slopes: Mapping[str, Callable[[], float]] = {
        "ease in": lambda: 1 - place / len(blocks),
        "ease out": lambda: place / len(blocks),
        "ease in-out": lambda: 1 - abs(place - half) / half,
        "reverse in-out": lambda: abs(place - half) / half,
    }
    if kind in slopes:
        return FLOOR + (1 - FLOOR) * slopes[kind]()
    weak = {"weak input": part == "input", "weak output": part == "output", "strong middle": True}
    return WEAK if weak.get(kind, False) else 1.0


def _without(factors: Mapping[Place, float], others: Mapping[Place, float]) -> dict[Place, float]:
    return {place: factor for place, factor in factors.items() if place not in others}


def _layers_of(blocks: Sequence[str]) -> StyleLayers:
    if len(blocks) not in _OF_BLOCKS:
        raise ValueError(
            f"Weight types are known for SD 1.5 and SDXL, whose cross-attention is in 16 and 11 blocks; this model has "
            f"{len(blocks)}. Use InstantStyle with block weights of your own."
        )
    return _OF_BLOCKS[len(blocks)]
