"""The nodes of ComfyUI_IPAdapter_plus as they describe themselves: what the replacement is measured against."""

from __future__ import annotations

from dataclasses import dataclass

OPTIONAL, LINK = "?", ":"


@dataclass(frozen=True)
class OldNode:
    """Inputs in the order of the schema, links apart from widgets."""

    links: tuple[str, ...]
    optional: tuple[str, ...]
    """The links that may be missing; everything else is demanded."""
    widgets: tuple[str, ...]
    outputs: int

    @property
    def inputs(self) -> set[str]:
        return {*self.links, *self.widgets}

    @property
    def demanded(self) -> set[str]:
        return self.inputs - set(self.optional)


def old_node(inputs: str, outputs: int) -> OldNode:
    """`model:` is a link, `image?` one that may be missing, and a plain word a widget."""
    words = inputs.split()
    links = tuple(word.rstrip(LINK + OPTIONAL) for word in words if word[-1] in LINK + OPTIONAL)
    optional = tuple(word[:-1] for word in words if word.endswith(OPTIONAL))
    return OldNode(links, optional, tuple(word for word in words if word[-1] not in LINK + OPTIONAL), outputs)


FIRST = "model: ipadapter: image: weight"
WINDOW = "start_at end_at"
LAST = "image_negative? attn_mask? clip_vision?"
LOADER = "model: preset ipadapter?"
FRAMES = "weights timing frames start_frame end_frame add_starting_frames add_ending_frames method image?"
EMBEDS = f"model: ipadapter: pos_embed: weight weight_type {WINDOW} embeds_scaling neg_embed? attn_mask? clip_vision?"
COMPOSITION = "model: ipadapter: image_style: image_composition: weight_style weight_composition expand_style"
OLD_NODES = {
    name: old_node(*found)
    for name, found in {
        "IPAdapterAdvanced": (f"{FIRST} weight_type combine_embeds {WINDOW} embeds_scaling {LAST}", 1),
        "IPAdapterUnifiedLoader": (LOADER, 2),
        "IPAdapterUnifiedLoaderCommunity": (LOADER, 2),
        "IPAdapterModelLoader": ("ipadapter_file", 1),
        "PrepImageForClipVision": ("image: interpolation crop_position sharpening", 1),
        "IPAdapter": (f"{FIRST} {WINDOW} weight_type attn_mask?", 1),
        "IPAdapterRegionalConditioning": (
            f"image: image_weight prompt_weight weight_type {WINDOW} mask? positive? negative?",
            3,
        ),
        "IPAdapterCombineParams": ("params_1: params_2: params_3? params_4? params_5?", 1),
        "IPAdapterFromParams": (
            "model: ipadapter: ipadapter_params: combine_embeds embeds_scaling image_negative? clip_vision?",
            1,
        ),
        "IPAdapterEncoder": ("ipadapter: image: weight mask? clip_vision?", 2),
        "IPAdapterCombineEmbeds": ("embed1: method embed2? embed3? embed4? embed5?", 1),
        "IPAdapterEmbeds": (EMBEDS, 1),
        "IPAdapterEmbedsBatch": (EMBEDS, 1),
        "IPAdapterNoise": ("type strength blur image_optional?", 1),
        "IPAdapterStyleComposition": (f"{COMPOSITION} combine_embeds {WINDOW} embeds_scaling {LAST}", 1),
        "IPAdapterStyleCompositionBatch": (f"{COMPOSITION} {WINDOW} embeds_scaling {LAST}", 1),
        "IPAdapterTiled": (f"{FIRST} weight_type combine_embeds {WINDOW} sharpening embeds_scaling {LAST}", 3),
        "IPAdapterTiledBatch": (
            f"{FIRST} weight_type {WINDOW} sharpening embeds_scaling encode_batch_size {LAST}",
            3,
        ),
        "IPAdapterMS": (
            f"{FIRST} weight_faceidv2 weight_type combine_embeds {WINDOW} embeds_scaling layer_weights {LAST} "
            "insightface?",
            1,
        ),
        "IPAdapterPreciseComposition": (
            f"{FIRST} composition_boost combine_embeds {WINDOW} embeds_scaling {LAST}",
            1,
        ),
        "IPAdapterPreciseCompositionBatch": (
            f"{FIRST} composition_boost combine_embeds {WINDOW} embeds_scaling {LAST}",
            1,
        ),
        "IPAdapterPreciseStyleTransfer": (f"{FIRST} style_boost combine_embeds {WINDOW} embeds_scaling {LAST}", 1),
        "IPAdapterPreciseStyleTransferBatch": (
            f"{FIRST} style_boost combine_embeds {WINDOW} embeds_scaling {LAST}",
            1,
        ),
        "IPAdapterClipVisionEnhancer": (
            f"{FIRST} weight_type combine_embeds {WINDOW} embeds_scaling enhance_tiles enhance_ratio {LAST}",
            1,
        ),
        "IPAdapterClipVisionEnhancerBatch": (
            f"{FIRST} weight_type {WINDOW} embeds_scaling enhance_tiles enhance_ratio encode_batch_size {LAST}",
            1,
        ),
        "IPAdapterBatch": (f"{FIRST} weight_type {WINDOW} embeds_scaling encode_batch_size {LAST}", 1),
        "IPAdapterWeights": (FRAMES, 6),
        "IPAdapterWeightsFromStrategy": ("weights_strategy: image?", 6),
    }.items()
}
"""Those that Semblance replaces, in the state of 2025-02-26."""
NOT_REPLACED = (
    "IPAdapterSaveEmbeds",
    "IPAdapterLoadEmbeds",
    "IPAdapterCombineWeights",
    "IPAdapterPromptScheduleFromWeightsStrategy",
    "IPAdapterFaceID",
    "IPAAdapterFaceIDBatch",
    "IPAdapterUnifiedLoaderFaceID",
    "IPAdapterInsightFaceLoader",
    "IPAdapterFaceIDKolors",
)
