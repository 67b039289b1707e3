"""What a family of models is, and which of the known ones a model belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..engine.call import AttentionSite
from ..subjects.blocks import StoryBlocks

PRESETS = ("style", "layout", "style + layout", "all")


@dataclass(frozen=True)
class ModelFamily:
    """The map of a family: which blocks hold attention, and which of them carry style and layout."""

    name: str
    blocks: tuple[str, ...]
    """Blocks with attention in the order the model runs them."""
    style: tuple[str, ...]
    layout: tuple[str, ...]
    source: str
    """Where the choice of style and layout blocks comes from."""
    styleid: tuple[str, ...]
    """Blocks in whose self-attention StyleID acts."""
    styleid_source: str
    consistory: StoryBlocks

    text_width: int | None = None
    """Channels of the text it reads, where only that tells it from a family of the same blocks."""

    def preset(self, name: str) -> dict[str, float]:
        """Weight 1 for every block of the preset `style`, `layout`, `style + layout` or `all`."""
        chosen: Mapping[str, tuple[str, ...]] = {
            "style": self.style,
            "layout": self.layout,
            "style + layout": (*self.layout, *self.style),
            "all": self.blocks,
        }
        if name not in chosen:
            raise ValueError(f"There is no preset called '{name}'. The presets are: {', '.join(PRESETS)}.")
        return dict.fromkeys(chosen[name], 1.0)


def family_of(
    sites: Iterable[AttentionSite], known: Sequence[ModelFamily], text_width: int | None = None
) -> ModelFamily | None:
    """The first family whose blocks are exactly those of `sites`, and whose text is `text_width` wide if it says so."""
    blocks = {site.block for site in sites}
    fitting = (family for family in known if family.text_width in (None, text_width))
    return next((family for family in fitting if set(family.blocks) == blocks), None)


def adapter_numbers(sites: Iterable[AttentionSite]) -> dict[AttentionSite, int]:
    """The number under which IP-Adapter files keep each cross-attention's weights.

    Files count diffusers' attention processors: down blocks, up blocks, the middle block last, with
    self-attentions on the even numbers and cross-attentions on the odd ones.
    """
    order = ("input", "output", "middle")
    cross = sorted(
        (site for site in sites if site.kind == "cross"),
        key=lambda site: (order.index(site.part), site.number, site.depth),
    )
    return {site: 2 * place + 1 for place, site in enumerate(cross)}
