"""Families of diffusion transformers as data: their blocks, what attends in each, and where the picture's tokens stand.

Tokens of text, of the picture and of reference pictures are one sequence in most of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..engine.call import AttentionKind, AttentionSite, BlockPart
from .family import STYLEID, BlockChoice, Choice, ChoiceKey, ModelFamily
from .reference_styles import KREA2_STYLE, UNTWISTING, krea2_style, untwisting_rope


@dataclass(frozen=True)
class TransformerKind:
    """What the binding has to know of the transformers of one class."""

    name: str
    """As people know it; one class may serve several families, which the model tells apart."""
    blocks: Mapping[BlockPart, str]
    """The lists of blocks by part, in the order the model runs them, by the name of the module's attribute."""
    attentions: tuple[AttentionKind, ...] = ("joint",)
    """What attends in a block, in order."""
    pairs: Literal["neighbours", "halves", "none"] = "neighbours"
    """Which channels a rotation takes together, as in `Rotary`; "none" where positions are learnt."""
    references: Literal["behind", "before"] = "behind"
    """Where the tokens of reference pictures stand, seen from the picture's."""
    behind_text: bool = False
    """Whether the first axis counts the picture's place from the end of the text, so that it depends on its length."""
    counted: bool = False
    """Whether the host does not say which block it is in, so that attentions have to be counted."""
    tells_rotation: bool = False
    """Whether the host hands patches a table of rotations, and lets them run around its double blocks."""
    frames: bool = False
    """Whether latents have frames: (rows, channels, frames, height, width)."""
    among_frames: Mapping[str, str] = field(default_factory=dict[str, str])
    """What a conditioning may hold that the host puts among the tokens of the frames, with the node that adds it."""


KREA2 = "Krea 2"
FLUX_BLOCKS: Mapping[BlockPart, str] = {"double": "double_blocks", "single": "single_blocks"}
KINDS: Mapping[str, TransformerKind] = {
    "comfy.ldm.flux.model.Flux": TransformerKind("Flux", FLUX_BLOCKS, tells_rotation=True),
    "comfy.ldm.chroma.model.Chroma": TransformerKind("Chroma", FLUX_BLOCKS, tells_rotation=True),
    "comfy.ldm.qwen_image.model.QwenImageTransformer2DModel": TransformerKind(
        "Qwen-Image", {"double": "transformer_blocks"}, frames=True
    ),
    "comfy.ldm.krea2.model.SingleStreamDiT": TransformerKind(KREA2, {"single": "blocks"}),
    "comfy.ldm.lumina.model.NextDiT": TransformerKind(
        "Lumina 2", {"single": "layers"}, references="before", behind_text=True
    ),
    "comfy.ldm.anima.model.Anima": TransformerKind(
        "Anima", {"single": "blocks"}, ("self", "cross"), "halves", frames=True
    ),
    "comfy.ldm.cosmos.predict2.MiniTrainDIT": TransformerKind(
        "Cosmos 2", {"single": "blocks"}, ("self", "cross"), "halves", frames=True
    ),
    "comfy.ldm.wan.model.WanModel": TransformerKind(
        "Wan",
        {"single": "blocks"},
        ("self", "cross"),
        frames=True,
        among_frames={"time_dim_concat": "WanPhantomSubjectToVideo", "context_latents": "Bernini Conditioning"},
    ),
    "comfy.ldm.modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper": TransformerKind(
        "SD 3.5", {"double": "joint_blocks"}, ("joint", "self"), pairs="none", counted=True
    ),
}
"""By the class of the host's module. Classes that build on these differ in ways of their own and are not among them."""
NAMES: Mapping[str, str] = {"Flux2": "Flux.2", "LongCatImage": "LongCat-Image"}
"""Families that share a class with another, by the class of the host's model around it."""
UNREACHED: Mapping[str, str] = {
    "comfy.ldm.hydit.models.HunYuanDiT": "HunyuanDiT",
}
"""Transformers whose attention no patch can reach, by the class of the host's module."""


def transformer_family(name: str, sites: tuple[AttentionSite, ...]) -> ModelFamily:
    """The family of one transformer: any number of blocks is one family."""
    blocks = tuple(dict.fromkeys(site.block for site in sites))
    later = BlockChoice(blocks[len(blocks) // 2 :], "ours, after the paper's choice of the decoder; not measured")
    choices: dict[ChoiceKey[Choice], Choice] = {STYLEID: later, UNTWISTING: untwisting_rope(blocks)}
    if name == KREA2:
        choices[KREA2_STYLE] = krea2_style(blocks)
    return ModelFamily(name, blocks, choices)
