"""The blocks of a family in which a subject is looked for, shared and copied."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StoryBlocks:
    """Where a method looks for a subject, shares it, and copies its features."""

    words: tuple[str, ...]
    """Blocks whose attention to the subject's words makes its mask; all of one resolution."""
    shared: tuple[str, ...]
    """Blocks in whose self-attention images attend to each other's subjects."""
    injected: tuple[str, ...]
    """Blocks after whose self-attention features are copied from image to image; all of one resolution."""
    features: str
    """The block whose input tells which patches of two images match."""
    levels: int
    """Resolutions of the UNet, each half of the one before."""
    source: str

    def grid(self, block: str, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of a block's tokens on a latent of `size`."""
        part, number = block.split(".")
        level = {
            "input": int(number) // 3,
            "middle": self.levels - 1,
            "output": self.levels - 1 - int(number) // 3,
        }[part]
        height, width = (-(-side // 2**level) for side in size)
        return height, width
