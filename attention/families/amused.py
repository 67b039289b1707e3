"""aMUSEd, a masked transformer (arXiv:2401.01808): every layer is a block, and any number of them is one family."""

from .family import ModelFamily

AMUSED = "aMUSEd"


def amused_of(layers: int) -> ModelFamily:
    """The family for a transformer of so many layers; the published ones have 22."""
    return ModelFamily(AMUSED, tuple(f"middle.{layer}" for layer in range(layers)), {})
