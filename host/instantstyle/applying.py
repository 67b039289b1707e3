"""InstantStyle on a MODEL: a UNet, or a transformer with the blocks of Flux."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any

from ...attention.adapters.flux_checkpoint import FluxAdapterLayout, FluxForm
from ...attention.engine.scope import Scope
from ...attention.families.transformers import FLUX_BLOCKS
from ...attention.methods.instantstyle import InstantStyle, InstantXStyle, MasksBy, XLabsStyle
from ..binding.model import ModelMap, map_transformer, map_unet
from ..binding.transformer import transformer_of
from .encoding import EncodedStyle

METHOD: Mapping[FluxForm, type[InstantStyle]] = {"InstantX": InstantXStyle, "XLabs": XLabsStyle}


def map_styled(model: Any) -> ModelMap:
    """The map of a MODEL that IP-Adapters exist for. Raises ValueError for a model of another family."""
    transformer = transformer_of(model.model)
    if transformer is None:
        return map_unet(model)
    if transformer.kind.blocks != FLUX_BLOCKS:
        raise ValueError(
            f"This model is a {transformer.name} transformer, for which Semblance knows no IP-Adapter. Load an SD 1.5, "
            "SDXL or Flux model; on this one Semblance has Reference Style."
        )
    network = model.model.diffusion_model
    widths = {site: int(network.hidden_size) for site in transformer.sites}
    return ModelMap(map_transformer(model), network.txt_in.in_features, widths)


def _reached(scope: Scope, blocks: Set[str], adapter: str) -> Scope:
    """The scope without blocks that an adapter has no weights for. Raises ValueError if those alone are chosen."""
    reached = {block: weight for block, weight in scope.blocks.items() if block in blocks}
    if any(scope.blocks.values()) and not any(reached.values()):
        raise ValueError(
            f"The adapter '{adapter}' has weights for the double blocks alone, and none of them is chosen. Set blocks "
            "to 'all', or name double blocks under 'custom', e.g. double.0."
        )
    return replace(scope, blocks=reached)


def style_patch(
    style: EncodedStyle, model_map: ModelMap, scope: Scope, strength: float, masks_by: MasksBy
) -> InstantStyle:
    """The patch that gives such a MODEL a style. Raises ValueError if adapter and model do not fit each other."""
    adapter = style.adapter
    numbers = adapter.numbers_for(model_map)
    layout = adapter.layout
    method = METHOD[layout.form] if isinstance(layout, FluxAdapterLayout) else InstantStyle
    scope = _reached(scope, {site.block for site in numbers}, adapter.name)
    return method(adapter.image_tokens(style.reference), adapter, numbers, scope, strength, adapter.name, masks_by)
