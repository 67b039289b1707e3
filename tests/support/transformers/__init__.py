"""Tiny random-weight transformers of every family that users have, on the real ComfyUI's classes and samplers.

    model = family.model()
    picture = sample(model, family.conditioning(), family.conditioning(seed=2), family.latent())

`family` is also a fixture that stands for each of `TRANSFORMERS` in turn.
"""

from .families import HUNYUAN_DIT, TRANSFORMERS, TransformerFamily, sample
from .watched import SeenAttention, SeenCall, watched

__all__ = [
    "HUNYUAN_DIT",
    "TRANSFORMERS",
    "SeenAttention",
    "SeenCall",
    "TransformerFamily",
    "sample",
    "watched",
]
