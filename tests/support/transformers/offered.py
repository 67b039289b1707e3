"""What the host offers in each transformer family, as data: measured on its own classes, tried by tests/contract.

Numbers of tokens and angles are those of the tiny models; what they stand for is the same in the real ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Axes = tuple[int, ...]
TEXT, HEIGHT, WIDTH = 7, 8, 12
"""Tokens of the prompts and size of the latents that are looked at; not square."""
PADDED_TO, LONGEST_TEXT = 32, 512

FLUX_BLOCKS = {"double": "double_blocks", "single": "single_blocks"}
SINGLES = {"double": "layers"}  # the host's own word for these blocks, which know no streams


@dataclass(frozen=True)
class Rotation:
    """How queries and keys are turned by their place."""

    axes: Axes  # channels of a head for each axis of position
    thetas: tuple[float, ...]  # the base of each axis's frequencies
    text_step: Axes  # how far a text token is from the one before it, on each axis
    pairs: Literal["neighbours", "halves"] = "neighbours"  # which channels are turned together


@dataclass(frozen=True)
class References:
    """The tokens of reference latents, for families that take them."""

    place: Literal["behind", "before"]  # the image's
    told: bool  # whether `reference_image_num_tokens` counts them
    cond: str = "reference_latents"
    also: Mapping[str, Any] = field(default_factory=dict)  # without which the host leaves them out


@dataclass(frozen=True)
class Offered:
    module: str  # the class of `model.model.diffusion_model`
    sampling: str  # the class of its noise levels
    blocks: Mapping[str | None, str]  # lists of blocks by `block_type`, in order
    conds: frozenset[str] = frozenset()  # what apply_model is given by name
    attentions: tuple[str, ...] = ("joint",)  # in each block, in order
    before: int = 0  # attentions that come before the first block, without a `block_index`
    image_at: int = 0  # the attention that first holds the image as it was embedded
    unpacked: bool = True  # whether heads are a dimension of their own: (rows, heads, tokens, head_dim)
    value_unpacked: bool = False  # whether values alone are (rows, tokens, heads, head_dim)
    numbered: bool = True  # whether options tell the block
    rotation: Rotation | None = None
    patch: int = 2  # latent pixels to a side of a token
    text_padded: Literal["left", "right", None] = None
    text_multiple: int = 1  # text is filled up to a multiple of so many tokens
    image_multiple: int = 1
    together: bool = False  # conditionings with texts of different length go into one call
    told_span: frozenset[str] = frozenset()  # block types whose options have `img_slice`
    references: References | None = None
    lists: frozenset[str] = frozenset()  # patches that chain and are called
    slots: frozenset[str] = frozenset()  # patches_replace["dit"]
    options_at: int | str | None = None  # where a DIFFUSION_MODEL wrapper finds transformer_options

    def text_tokens(self, tokens: int = TEXT) -> int:
        """How many tokens of text an attention holds that holds the image too, for a prompt of so many."""
        if self.attentions[0] != "joint":
            return 0
        return -(-tokens // self.text_multiple) * self.text_multiple

    def image_tokens(self, height: int = HEIGHT, width: int = WIDTH) -> int:
        return math.ceil(height / self.patch) * math.ceil(width / self.patch)

    def filled(self, tokens: int) -> int:
        """Tokens of an image with those that fill them up."""
        return -(-tokens // self.image_multiple) * self.image_multiple

    def first_image_token(self) -> int:
        """In the attention that first holds the image, which may be one without text."""
        return self.text_tokens() if self.image_at >= self.before else 0


def neighbours(axes: Axes, theta: float, text_step: Axes) -> Rotation:
    return Rotation(axes, (theta,) * len(axes), text_step)


FLUX_LIKE: dict[str, Any] = {
    "blocks": FLUX_BLOCKS,
    "sampling": "ModelSamplingFlux",
    "told_span": frozenset({"single"}),
    "slots": frozenset({"double_block", "single_block"}),
}
BOTH_SIDES = frozenset({"attn1_patch", "attn1_output_patch"})

LUMINA_LIKE: dict[str, Any] = {
    "module": "comfy.ldm.lumina.model.NextDiT",
    "sampling": "ModelSamplingDiscreteFlow",
    "blocks": SINGLES,
    "conds": frozenset({"num_tokens"}),
    "before": 4,
    "image_at": 2,
    "lists": frozenset({"noise_refiner", "double_block"}),
    "options_at": "transformer_options",
}

OFFERED: Mapping[str, Offered] = {
    "flux": Offered(
        "comfy.ldm.flux.model.Flux",
        conds=frozenset({"y", "guidance"}),
        rotation=neighbours((4, 6, 6), 10000, (0, 0, 0)),
        references=References("behind", told=True),
        lists=BOTH_SIDES | {"post_input"},
        options_at=7,
        **FLUX_LIKE,
    ),
    "flux2": Offered(
        "comfy.ldm.flux.model.Flux",
        conds=frozenset({"guidance"}),
        rotation=neighbours((4, 4, 4, 4), 2000, (0, 0, 0, 1)),
        patch=1,
        text_padded="left",
        text_multiple=LONGEST_TEXT,
        together=True,
        references=References("behind", told=True),
        lists=BOTH_SIDES | {"post_input"},
        options_at=7,
        **FLUX_LIKE,
    ),
    "chroma": Offered(
        "comfy.ldm.chroma.model.Chroma",
        conds=frozenset({"guidance"}),
        rotation=neighbours((4, 6, 6), 10000, (0, 0, 0)),
        lists=BOTH_SIDES,
        options_at=5,
        **FLUX_LIKE,
    ),
    "qwen_image": Offered(
        "comfy.ldm.qwen_image.model.QwenImageTransformer2DModel",
        "ModelSamplingFlux",
        {"double": "transformer_blocks"},
        rotation=neighbours((4, 6, 6), 10000, (1, 1, 1)),
        references=References("behind", told=True),
        lists=frozenset({"attn1_patch", "post_input", "double_block"}),
        slots=frozenset({"double_block"}),
        options_at=6,
    ),
    "krea2": Offered(
        "comfy.ldm.krea2.model.SingleStreamDiT",
        "ModelSamplingFlux",
        {"single": "blocks"},
        before=4,
        image_at=4,
        rotation=neighbours((4, 6, 6), 1000, (0, 0, 0)),
        told_span=frozenset({"single"}),
        references=References("behind", told=True, also={"reference_latents_method": "index"}),
        lists=BOTH_SIDES | {"post_input"},
        options_at=5,
    ),
    "z_image": Offered(
        rotation=neighbours((16, 24, 24), 256, (1, 0, 0)),
        text_padded="right",
        text_multiple=PADDED_TO,
        image_multiple=PADDED_TO,
        references=References("before", told=False),
        **LUMINA_LIKE,
    ),
    "lumina2": Offered(rotation=neighbours((4, 4, 4), 10000, (1, 0, 0)), **LUMINA_LIKE),
    "anima": Offered(
        "comfy.ldm.anima.model.Anima",
        "ModelSamplingDiscreteFlow",
        {None: "blocks"},
        attentions=("self", "cross"),
        # Height and width are stretched by 4, as in every file: 4 ** (channels / (channels - 2)).
        rotation=Rotation((8, 4, 4), (10000, 160000, 160000), (), pairs="halves"),
        together=True,
        lists=frozenset({"attn1_patch", "attn2_patch", "post_input", "mlp_patch"}),
        options_at="transformer_options",
    ),
    "cosmos2": Offered(
        "comfy.ldm.cosmos.predict2.MiniTrainDIT",
        "ModelSamplingCosmosRFlow",
        {None: "blocks"},
        attentions=("self", "cross"),
        # Height and width are stretched by 4, as in every file: 4 ** (channels / (channels - 2)).
        rotation=Rotation((8, 4, 4), (10000, 160000, 160000), (), pairs="halves"),
        conds=frozenset({"fps"}),
        lists=frozenset({"attn1_patch", "attn2_patch", "post_input", "mlp_patch"}),
        options_at="transformer_options",
    ),
    "wan": Offered(
        "comfy.ldm.wan.model.WanModel",
        "ModelSamplingDiscreteFlow",
        {"double": "blocks"},
        attentions=("self", "cross"),
        unpacked=False,
        rotation=neighbours((8, 4, 4), 10000, ()),
        references=References("behind", told=False, cond="context_latents"),
        lists=frozenset({"attn1_patch", "attn2_patch", "double_block"}),
        slots=frozenset({"double_block"}),
        options_at=5,
    ),
    "sd35": Offered(
        "comfy.ldm.modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper",
        "ModelSamplingDiscreteFlow",
        {None: "joint_blocks"},
        conds=frozenset({"y"}),
        unpacked=False,
        value_unpacked=True,
        numbered=False,
        slots=frozenset({"double_block"}),
    ),
}
