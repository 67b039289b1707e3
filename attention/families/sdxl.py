"""Stable Diffusion XL: attention on the two lower of three levels, up to ten transformer blocks each."""

from ..subjects.blocks import StoryBlocks
from .family import CONSISTORY, LAYOUT, STYLE, STYLEID, BlockChoice, ModelFamily
from .reference_styles import STYLE_ALIGNED, VISUAL_STYLE_PROMPTING, style_aligned, visual_style_prompting

_BLOCKS = (
    *("input.4", "input.5", "input.7", "input.8"),
    "middle.0",
    *("output.0", "output.1", "output.2", "output.3", "output.4", "output.5"),
)

SDXL = ModelFamily(
    name="SDXL",
    blocks=_BLOCKS,
    choices={
        STYLE: BlockChoice(("output.1",), "InstantStyle (arXiv:2404.02733): up_blocks.0.attentions.1."),
        LAYOUT: BlockChoice(("input.8",), "InstantStyle (arXiv:2404.02733): down_blocks.2.attentions.1."),
        STYLEID: BlockChoice(
            ("output.3", "output.4", "output.5"),
            "Semblance's own: StyleID's authors name no layers for SDXL. These are its finest with attention, as "
            "theirs are. On the demo model they alone transfer texture; output.0 to output.2 transfer none.",
        ),
        CONSISTORY: StoryBlocks(
            words=("input.7", "input.8", "middle.0", "output.0", "output.1", "output.2"),
            shared=("output.0", "output.1", "output.2", "output.3", "output.4", "output.5"),
            injected=("input.4", "input.5", "output.3", "output.4", "output.5"),
            features="output.3",
            levels=3,
            source="ConsiStory (arXiv:2402.03286) and its authors' code.",
        ),
        STYLE_ALIGNED: style_aligned(_BLOCKS),
        VISUAL_STYLE_PROMPTING: visual_style_prompting(
            ("output.3", "output.4", "output.5"),
            "Visual Style Prompting (arXiv:2402.12974) and its authors' code: the six self-attentions of up_blocks.1. "
            "The code's higher guidance in the first steps is not part of it.",
        ),
    },
)
