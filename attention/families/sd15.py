"""Stable Diffusion 1.x: attention on three of four levels, one transformer block each."""

from ..subjects.blocks import StoryBlocks
from .family import CONSISTORY, LAYOUT, STYLE, STYLEID, BlockChoice, ModelFamily
from .reference_styles import STYLE_ALIGNED, VISUAL_STYLE_PROMPTING, style_aligned, visual_style_prompting

_INSTANTSTYLE = (
    "InstantStyle's infer_style_sd15.py, which its authors call experimental: style is up_blocks.1, "
    "style + layout adds down_blocks.2 and mid_block."
)

_BLOCKS = (
    *("input.1", "input.2", "input.4", "input.5", "input.7", "input.8"),
    "middle.0",
    *("output.3", "output.4", "output.5", "output.6", "output.7", "output.8"),
    *("output.9", "output.10", "output.11"),
)

SD15 = ModelFamily(
    name="SD 1.5",
    blocks=_BLOCKS,
    choices={
        STYLE: BlockChoice(("output.3", "output.4", "output.5"), _INSTANTSTYLE),
        LAYOUT: BlockChoice(("input.7", "input.8", "middle.0"), _INSTANTSTYLE),
        STYLEID: BlockChoice(
            ("output.6", "output.7", "output.8", "output.9", "output.10", "output.11"),
            "run_styleid.py of StyleID's authors: decoder layers 6 to 11.",
        ),
        CONSISTORY: StoryBlocks(
            words=("input.7", "input.8", "output.3", "output.4", "output.5"),
            shared=tuple(f"output.{number}" for number in range(3, 12)),
            injected=("input.4", "input.5", "output.6", "output.7", "output.8"),
            features="output.6",
            levels=4,
            source="Semblance's own: ConsiStory's authors wrote for SDXL alone. The same roles, by resolution.",
        ),
        STYLE_ALIGNED: style_aligned(_BLOCKS),
        VISUAL_STYLE_PROMPTING: visual_style_prompting(
            ("output.6", "output.7", "output.8", "output.9", "output.10", "output.11"),
            "Semblance's own: Visual Style Prompting's authors wrote for SDXL alone. The two finest levels of "
            "the decoder.",
        ),
    },
)
