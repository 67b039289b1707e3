"""Which of our nodes stands for which node of IPAdapter_plus (snapshot of 2025-02-26), input by input.

Nodes that no entry names are not replaced: ComfyUI then names them as missing. Those are the nodes for FaceID, for
Kolors' faces, for saved embeds and for the prompts of animations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

APPLY = "SemblanceApplyAdapter"
TILES = "SemblanceApplyAdapterTiles"
LOAD_BY_KIND = "SemblanceLoadAdapterKind"
WEIGHTS = "SemblanceWeightsOverFrames"


@dataclass(frozen=True)
class Replacement:
    """One old node and what takes its place."""

    node: str
    """The id of our node."""
    widgets: tuple[str, ...] = ()
    """The old node's widgets in the order of a workflow's `widgets_values`, left out ones among them."""
    inputs: Mapping[str, str] = field(default_factory=dict[str, str])
    """Which of the old node's inputs each of ours takes, by our id."""
    values: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What the old node could not choose, by our id."""
    outputs: int = 1
    """How many outputs the old node has; each is ours of the same index."""
    left_out: tuple[str, ...] = ()
    """Inputs of the old node that mean nothing here."""
    demanded: tuple[str, ...] = ()
    """Our optional inputs without which the old node would not have run."""


def same(*names: str, **renamed: str) -> dict[str, str]:
    """Inputs that keep their names, and those that change them: `ours="theirs"`."""
    return {**{name: name for name in names}, **renamed}


WINDOW = ("start_at", "end_at")
LINKS = ("image_negative", "attn_mask", "clip_vision")
KIND, COMBINING, SCALING = "weight_type", "combine_embeds", "embeds_scaling"
PICTURE = same("model", "ipadapter", "image", "weight", KIND, COMBINING, *WINDOW, SCALING, *LINKS)
"""The inputs of IPAdapterAdvanced, which are all inputs of ours."""
ADVANCED = ("weight", KIND, COMBINING, *WINDOW, SCALING)
"""Its widgets."""
BATCHED = {"per_image": True, COMBINING: "concat"}
"""A picture for each image of the batch; nothing is combined."""
ENCODE_BATCH = "encode_batch_size"
LENGTHS = ("frames", "start_frame", "end_frame", "add_starting_frames", "add_ending_frames")
FRAMES = ("weights", "timing", *LENGTHS, "method")


def without(inputs: Mapping[str, str], *ours: str) -> dict[str, str]:
    return {new: old for new, old in inputs.items() if new not in ours}


def batched(plain: Replacement, *, combines: bool = True, encodes: bool = False) -> Replacement:
    """The `*Batch` twin of a node; some cannot combine, and some can encode in parts."""
    widgets = tuple(name for name in plain.widgets if combines or name != COMBINING)
    return Replacement(
        plain.node,
        widgets + (ENCODE_BATCH,) * encodes,
        plain.inputs if combines else without(plain.inputs, COMBINING),
        {**plain.values, **BATCHED} if not combines else {**plain.values, "per_image": True},
        plain.outputs,
        plain.left_out + (ENCODE_BATCH,) * encodes,
        plain.demanded,
    )


STYLE_COMPOSITION = Replacement(
    APPLY,
    ("weight_style", "weight_composition", "expand_style", COMBINING, *WINDOW, SCALING),
    {
        **without(PICTURE, KIND),
        **same("image_composition", "weight_composition", "expand_style", image="image_style", weight="weight_style"),
    },
    {KIND: "style and composition"},
    demanded=("image_composition", "weight_composition", "expand_style"),
)


def precise(boost: str, kind: str) -> Replacement:
    return Replacement(
        APPLY,
        ("weight", boost, COMBINING, *WINDOW, SCALING),
        {**without(PICTURE, KIND), "boost": boost},
        {KIND: kind},
        demanded=("boost",),
    )


PRECISE_STYLE = precise("style_boost", "style transfer precise, boosted")
PRECISE_COMPOSITION = precise("composition_boost", "composition precise, boosted")
ENHANCER = Replacement(
    APPLY,
    (*ADVANCED, "enhance_tiles", "enhance_ratio"),
    {**PICTURE, **same("enhance_tiles", "enhance_ratio")},
    demanded=("enhance_tiles", "enhance_ratio"),
)
EMBEDS = Replacement(
    APPLY,
    ("weight", KIND, *WINDOW, SCALING),
    {**without(PICTURE, COMBINING), "image": "pos_embed", "image_negative": "neg_embed"},
    {COMBINING: "concat"},
)
TILED = Replacement(
    TILES, ("weight", KIND, COMBINING, *WINDOW, "sharpening", SCALING), {**PICTURE, **same("sharpening")}, outputs=3
)

REPLACEMENTS: Mapping[str, Replacement] = {
    "IPAdapter": Replacement(
        APPLY,
        ("weight", *WINDOW, KIND),
        without(PICTURE, COMBINING, SCALING, "image_negative", "clip_vision"),
        {COMBINING: "concat", SCALING: "V only"},
    ),
    "IPAdapterAdvanced": Replacement(APPLY, ADVANCED, PICTURE),
    "IPAdapterBatch": batched(Replacement(APPLY, ADVANCED, PICTURE), combines=False, encodes=True),
    "IPAdapterStyleComposition": STYLE_COMPOSITION,
    "IPAdapterStyleCompositionBatch": batched(STYLE_COMPOSITION, combines=False),
    "IPAdapterPreciseStyleTransfer": PRECISE_STYLE,
    "IPAdapterPreciseStyleTransferBatch": batched(PRECISE_STYLE),
    "IPAdapterPreciseComposition": PRECISE_COMPOSITION,
    "IPAdapterPreciseCompositionBatch": batched(PRECISE_COMPOSITION),
    "IPAdapterMS": Replacement(
        APPLY,
        ("weight", "weight_faceidv2", KIND, COMBINING, *WINDOW, SCALING, "layer_weights"),
        {**PICTURE, "layers": "layer_weights"},
        left_out=("weight_faceidv2", "insightface"),  # both count for FaceID adapters alone, which are refused
        demanded=("layers",),
    ),
    "IPAdapterClipVisionEnhancer": ENHANCER,
    "IPAdapterClipVisionEnhancerBatch": batched(ENHANCER, combines=False, encodes=True),
    "IPAdapterEmbeds": EMBEDS,
    "IPAdapterEmbedsBatch": batched(EMBEDS),
    "IPAdapterFromParams": Replacement(
        APPLY,
        (COMBINING, SCALING),
        same(
            "model", "ipadapter", COMBINING, SCALING, "image_negative", "clip_vision", image="ipadapter_params"
        ),  # each region has a weight, a type and a window of its own
        {"weight": 1.0, KIND: "linear", "start_at": 0.0, "end_at": 1.0},
    ),
    "IPAdapterTiled": TILED,
    "IPAdapterTiledBatch": batched(TILED, combines=False, encodes=True),
    "IPAdapterUnifiedLoader": Replacement(
        LOAD_BY_KIND, ("preset",), same("model", "preset"), outputs=2, left_out=("ipadapter",)
    ),
    "IPAdapterUnifiedLoaderCommunity": Replacement(
        LOAD_BY_KIND, ("preset",), same("model", "preset"), outputs=2, left_out=("ipadapter",)
    ),
    "IPAdapterModelLoader": Replacement("SemblanceLoadAdapter", ("ipadapter_file",), {"file": "ipadapter_file"}),
    "PrepImageForClipVision": Replacement(
        "SemblancePreparePicture",
        ("interpolation", "crop_position", "sharpening"),
        same("image", "interpolation", "crop_position", "sharpening"),
    ),
    "IPAdapterEncoder": Replacement(
        "SemblanceEncodePicture", ("weight",), same("ipadapter", "image", "weight", "mask", "clip_vision"), outputs=2
    ),
    "IPAdapterCombineEmbeds": Replacement(
        "SemblanceCombineReferences",
        ("method",),
        same("embed1", "method", "embed2", "embed3", "embed4", "embed5"),
    ),
    "IPAdapterRegionalConditioning": Replacement(
        "SemblanceRegion",
        ("image_weight", "prompt_weight", KIND, *WINDOW),
        same("image", "image_weight", "prompt_weight", KIND, *WINDOW, "mask", "positive", "negative"),
        outputs=3,
    ),
    "IPAdapterCombineParams": Replacement(
        "SemblanceCombineRegions", (), same(*(f"params_{place}" for place in range(1, 6)))
    ),
    "IPAdapterNoise": Replacement(
        "SemblanceNoisePicture",
        ("type", "strength", "blur"),
        same("type", "strength", "blur", image="image_optional"),
    ),
    "IPAdapterWeights": Replacement(WEIGHTS, FRAMES, same(*FRAMES, "image"), outputs=6),
    "IPAdapterWeightsFromStrategy": Replacement(
        WEIGHTS,
        (),
        same("weights_strategy", "image"),
        # All of these come with the strategy, so that the node's own are not read.
        dict(zip(FRAMES, ("1.0, 0.0", "linear", 0, 0, 9999, 0, 0, "full batch"), strict=True)),
        outputs=6,
        demanded=("weights_strategy",),
    ),
}
"""Every node that is replaced, by its id."""
