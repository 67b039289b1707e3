"""Whether a style adapter fits a model: another family is refused, another checkpoint of its family is warned of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...attention.adapters.style_adapter import StyleAdapter
from ..binding.model import ModelMap, map_model
from ..display import tell
from ..identity import check_family, same_weights, subject_stamp
from .lora import Layer

REMEDY = "Load the checkpoint that it was tuned on, or tune one with Tune Style on this model."


def check_fits(adapter: StyleAdapter, model: Any) -> ModelMap:
    """The map of a MODEL that the adapter fits.

    Raises ValueError for a model of another family, or with attention layers of other widths. Another checkpoint of
    the family is told of and taken: a finetune often keeps enough of the model that it was made from.
    """
    known = map_model(model)
    check_family(adapter.stamp, known.name, "The style adapter was tuned", REMEDY)
    widths = {site.name: channels for site, channels in known.widths.items()}
    for module in adapter.modules:
        tuned, here = _shape(adapter, module), _shape_here(adapter, model, widths, module)
        if tuned != here:
            found = "no such layer" if here is None else f"{here[0]}x{here[1]}"
            raise ValueError(
                f"The style adapter was tuned with {tuned[0]}x{tuned[1]} channels at {module}, where this {known.name} "
                f"model has {found}. {REMEDY}"
            )
    stamp = subject_stamp(model)
    if adapter.stamp.prediction != stamp.prediction:
        tell(
            f"The style adapter was tuned on a model that samples by {adapter.stamp.prediction}, but this one samples "
            f"by {stamp.prediction}. If the style does not show, load the model it was tuned on."
        )
    elif not same_weights(adapter.stamp, stamp, model):
        tell(
            f"The style adapter was tuned on another {known.name} checkpoint. It acts here too, but the style may come "
            "out weaker or harder: change the strength, or tune again on this model."
        )
    return known


def check_blocks(adapter: StyleAdapter, blocks: Mapping[str, float]) -> None:
    """Tells if the adapter has nothing in any block with a weight, so that it does nothing."""
    own = blocks_of(adapter)
    if any(blocks.values()) and not any(blocks.get(block) for block in own):
        tell(f"The style adapter does nothing in these blocks: it was tuned in {', '.join(own)}. Set blocks to 'all'.")


def blocks_of(adapter: StyleAdapter) -> tuple[str, ...]:
    """The blocks that an adapter acts in, as users write them."""
    if adapter.form == "lora":
        return tuple(dict.fromkeys(Layer.read(module).block for module in adapter.modules))
    return tuple(dict.fromkeys(".".join(module.split(".")[:2]) for module in adapter.modules))


Shape = tuple[int, int]
"""Channels that a layer's module gives out and takes in."""


def _shape(adapter: StyleAdapter, module: str) -> Shape:
    return adapter.tensors[f"{module}.up"].shape[0], adapter.tensors[f"{module}.down"].shape[1]


def _shape_here(adapter: StyleAdapter, model: Any, widths: Mapping[str, int], module: str) -> Shape | None:
    """The shape that an adapter's module must have in MODEL, or None where the model has no such layer."""
    if adapter.form == "bottleneck":
        channels = widths.get(module)
        return None if channels is None else (channels, channels)
    try:
        layer = model.model.get_submodule(module)
    except AttributeError:
        return None
    return layer.out_features, layer.in_features
