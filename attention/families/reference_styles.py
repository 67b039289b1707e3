"""What Reference Style is set to by each of its presets, and in which blocks it acts then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..references.shared_style import PLAIN, Frequencies, Statistics
from .family import ChoiceKey


@dataclass(frozen=True)
class StyleSettings:
    """One preset of Reference Style in one family."""

    blocks: tuple[str, ...]
    source: str
    frequencies: Frequencies = PLAIN
    statistics: Statistics = Statistics()
    instead: bool = False
    """Whether the reference's tokens stand in the place of the images' own."""


STYLE_ALIGNED = ChoiceKey("StyleAligned", StyleSettings)
VISUAL_STYLE_PROMPTING = ChoiceKey("Visual Style Prompting", StyleSettings)
UNTWISTING = ChoiceKey("Untwisting RoPE", StyleSettings)
KREA2_STYLE = ChoiceKey("Krea 2", StyleSettings)
STYLE_PRESETS: tuple[ChoiceKey[StyleSettings], ...] = (
    KREA2_STYLE,
    UNTWISTING,
    STYLE_ALIGNED,
    VISUAL_STYLE_PROMPTING,
)
"""The presets of Reference Style. Of those that a family has, the first is its own."""


def style_aligned(blocks: Sequence[str]) -> StyleSettings:
    """StyleAligned in a UNet of these blocks with attention."""
    return StyleSettings(
        tuple(blocks),
        "StyleAligned (arXiv:2312.02133) and its authors' code: every self-attention, queries and keys with the whole "
        "statistics of the reference's, values as they are. Norms over both pictures, which the code also has, are not "
        "part of it.",
        statistics=Statistics(queries_and_keys=1.0),
    )


def visual_style_prompting(blocks: Sequence[str], source: str) -> StyleSettings:
    """Visual Style Prompting in these blocks."""
    return StyleSettings(tuple(blocks), source, instead=True)


def untwisting_rope(blocks: Sequence[str]) -> StyleSettings:
    """Untwisting RoPE in a transformer of these blocks."""
    return StyleSettings(
        tuple(blocks),
        "Untwisting RoPE (arXiv:2602.05013): structure below 1, detail above it, both rising over the schedule, in "
        "every block. The numbers are Semblance's own, and statistics are taken of queries and keys after their "
        "rotation.",
        Frequencies(),
        Statistics(queries_and_keys=0.5),
    )


STRENGTH_OF_KEYS = 1.06  # Krea2-StyleTransfer's "ref_k_strength", a factor of all the reference's keys


def krea2_style(blocks: Sequence[str]) -> StyleSettings:
    """The recipe of Krea2-StyleTransfer in a Krea 2 of these blocks, whose first quarter it leaves out."""
    return StyleSettings(
        tuple(blocks[len(blocks) // 4 :]),
        "The recommended mode of ComfyUI-Krea2-StyleTransfer, made for 8 steps at CFG 1: blocks 7 to 27 of 28. It "
        "leads the reference to each noise level by the model, where Semblance adds noise to it.",
        Frequencies((1.04 * STRENGTH_OF_KEYS, 0.0), (STRENGTH_OF_KEYS, 1.1 * STRENGTH_OF_KEYS), falloff=2.5),
        Statistics(queries_and_keys=0.85),
    )
