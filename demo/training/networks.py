"""The small models: the host's own classes at small widths, with fresh weights."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPVisionConfig, CLIPVisionModelWithProjection

from semblance.attention.engine.call import AttentionSite
from semblance.host.known_words import VOCABULARY

from .loop import LATENT_CHANNELS

EMBED_WIDTH = 64  # of the text encoder and of the space it shares with pictures
TEXT_CONFIG: dict[str, Any] = {
    "hidden_size": EMBED_WIDTH,
    "intermediate_size": 4 * EMBED_WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "hidden_act": "gelu",
    "projection_dim": EMBED_WIDTH,
    "max_position_embeddings": 77,
    "eos_token_id": 49407,
}
VISION_CONFIG: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "hidden_act": "gelu",
    "projection_dim": EMBED_WIDTH,
    "image_size": 64,
    "patch_size": 8,
    "num_channels": 3,
}
_UNET_COMMON: dict[str, Any] = {
    "image_size": 32,
    "model_channels": 64,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "use_spatial_transformer": True,
    "use_checkpoint": False,
    "legacy": False,
}
_UNET_OWN: dict[str, dict[str, Any]] = {
    "sdxl": {
        # No attention at the first level, as in SDXL: so it is wide, and the deeper ones are no wider.
        "channel_mult": [1, 1, 1],
        "num_res_blocks": [2, 2, 2],
        "transformer_depth": [0, 0, 1, 1, 2, 2],
        "transformer_depth_middle": 2,
        "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2],
        "num_heads": -1,
        "num_head_channels": 16,
        "use_linear_in_transformer": True,
        "context_dim": 2 * EMBED_WIDTH,  # CLIP-L and CLIP-G side by side
        "num_classes": "sequential",
        "adm_in_channels": EMBED_WIDTH + 6 * 256,  # pooled text and six numbers of size and crop
    },
    "sd15": {
        "channel_mult": [1, 1, 1, 1],
        "num_res_blocks": [2, 2, 2, 2],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_middle": 1,
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        "num_heads": 4,
        "num_head_channels": -1,
        "use_linear_in_transformer": False,
        "context_dim": EMBED_WIDTH,
        "adm_in_channels": None,
    },
}
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def build_autoencoder() -> Any:
    """TAESD as the host knows it: `taesd_encoder`, `taesd_decoder`, `vae_scale`, `vae_shift`; 8 pixels a latent."""
    from comfy.taesd.taesd import TAESD

    return fresh_weights(TAESD(latent_channels=LATENT_CHANNELS))


# On a CPU torch's fused attention takes far longer to go back through a few dozen tokens.
_WRITTEN_OUT: dict[str, Any] = {"attn_implementation": "eager"}


def unet_config(topology: str) -> dict[str, Any]:
    """The keyword arguments of the host's UNetModel: real block numbers, small widths."""
    return {**_UNET_COMMON, **_UNET_OWN[topology]}


def build_unet(topology: str) -> Any:
    """The host's own UNetModel, with silent residual branches to start from."""
    import comfy.ops
    from comfy.ldm.modules.attention import SpatialTransformer
    from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock, UNetModel

    config = unet_config(topology)
    unet = fresh_weights(UNetModel(**config, dtype=torch.float32, operations=comfy.ops.disable_weight_init))
    for module in unet.modules():
        if isinstance(module, ResBlock):
            zero_(module.out_layers[-1])
        elif isinstance(module, SpatialTransformer):
            zero_(module.proj_out)
    zero_(unet.out[-1])
    if config["adm_in_channels"]:
        # Six nearly constant sizes fill 24 times as many columns as the pooled text: they start silent.
        nn.init.zeros_(unet.label_emb[0][0].weight.data[:, EMBED_WIDTH:])
        nn.init.normal_(unet.label_emb[0][0].weight.data[:, :EMBED_WIDTH], std=EMBED_WIDTH**-0.5)
    return unet


def build_text_encoder() -> Any:
    """A CLIP text encoder with the whole vocabulary. The host's own class adds in place and cannot be trained."""
    special = {"bos_token_id": 49406, "pad_token_id": 49407, "vocab_size": VOCABULARY}
    return CLIPTextModelWithProjection(CLIPTextConfig(**TEXT_CONFIG, **special, **_WRITTEN_OUT))


def build_vision_encoder() -> Any:
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION_CONFIG, **_WRITTEN_OUT))


def vision_pixels(pictures: Tensor) -> Tensor:
    """Pictures (pictures, 3, height, width) as the vision encoder sees them: resized as by the host, normalised."""
    side = VISION_CONFIG["image_size"]
    small = functional.interpolate(pictures, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = pictures.new_tensor(CLIP_MEAN)[:, None, None], pictures.new_tensor(CLIP_STD)[:, None, None]
    return (small - mean) / std


def fresh_weights(model: Any) -> Any:
    """Gives torch's default initial weights to layers that the host leaves as raw memory."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.Linear.reset_parameters(module)
        elif isinstance(module, nn.Conv2d):
            nn.Conv2d.reset_parameters(module)
        elif isinstance(module, nn.ConvTranspose2d):
            nn.ConvTranspose2d.reset_parameters(module)
        elif isinstance(module, nn.RMSNorm):
            nn.RMSNorm.reset_parameters(module)
        elif isinstance(module, nn.LayerNorm):
            nn.LayerNorm.reset_parameters(module)
        elif isinstance(module, nn.GroupNorm):
            nn.GroupNorm.reset_parameters(module)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
    return model


def cross_attention_widths(unet: Any) -> dict[AttentionSite, int]:
    """Every cross-attention of a UNet, in the order it is run, with the width of its queries."""
    from semblance.host.binding.model import attention_layer
    from semblance.host.binding.unet_sites import attention_sites

    cross = (site for site in attention_sites(unet) if site.kind == "cross")
    return {site: attention_layer(unet, site).to_q.out_features for site in cross}


def zero_(layer: nn.Module) -> None:
    """Starts a residual branch silent."""
    for parameter in layer.parameters():
        torch.nn.init.zeros_(parameter)
