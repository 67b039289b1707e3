"""Stable Diffusion XL: attention on the two lower of three levels, up to ten transformer blocks each."""

from ..subjects.blocks import StoryBlocks
from .family import ModelFamily

SDXL = ModelFamily(
    name="SDXL",
    blocks=(
        *("input.4", "input.5", "input.7", "input.8"),
        "middle.0",
        *("output.0", "output.1", "output.2", "output.3", "output.4", "output.5"),
    ),
    style=("output.1",),
    layout=("input.8",),
    source="InstantStyle (arXiv:2404.02733): style is up_blocks.0.attentions.1, layout is down_blocks.2.attentions.1.",
    styleid=("output.3", "output.4", "output.5"),
    styleid_source="Semblance's own: StyleID's authors name no layers for SDXL. These are its finest with attention, "
    "as theirs are; on the demo model they alone bring texture over, output.0 to output.2 none.",
    consistory=StoryBlocks(
        words=("input.7", "input.8", "middle.0", "output.0", "output.1", "output.2"),
        shared=("output.0", "output.1", "output.2", "output.3", "output.4", "output.5"),
        injected=("input.4", "input.5", "output.3", "output.4", "output.5"),
        features="output.3",
        levels=3,
        source="ConsiStory (arXiv:2402.03286) and its authors' code.",
    ),
)
