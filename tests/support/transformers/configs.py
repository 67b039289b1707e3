"""The settings that the host reads off a file of each transformer family, with a few narrow blocks in place of many.

What shapes a call of attention is as in the real models: kinds of blocks, patch size, axes and base of the rotary
embedding (the axes in proportion), grouped keys, text to the left or right of the image. Only widths and depths are
small. Values are those of `comfy/model_detection.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Config = Mapping[str, Any]

POOLED_WIDTH = 24
TEXT_WIDTH = 20

FLUX_LIKE = {
    "in_channels": 16,
    "out_channels": 16,
    "hidden_size": 32,
    "num_heads": 2,
    "mlp_ratio": 2.0,
    "axes_dim": [4, 6, 6],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "txt_ids_dims": [],
    "context_in_dim": TEXT_WIDTH,
    "depth": 2,
    "depth_single_blocks": 3,
}

FLUX: Config = {**FLUX_LIKE, "image_model": "flux", "vec_in_dim": POOLED_WIDTH, "guidance_embed": True}

FLUX2: Config = {
    **FLUX_LIKE,
    "image_model": "flux2",
    "in_channels": 128,
    "out_channels": 128,
    "axes_dim": [4, 4, 4, 4],
    "theta": 2000,
    "patch_size": 1,
    "qkv_bias": False,
    "txt_ids_dims": [3],
    "vec_in_dim": None,
    "guidance_embed": True,
    "global_modulation": True,
    "mlp_silu_act": True,
    "ops_bias": False,
    "default_ref_method": "index",
    "ref_index_scale": 10.0,
    "depth_single_blocks": 2,
}

# The numbers of channels are those of a patch, as in the real file; `in_dim` is what the host feeds the Approximator.
CHROMA: Config = {
    **FLUX_LIKE,
    "image_model": "chroma",
    "in_channels": 64,
    "out_channels": 64,
    "vec_in_dim": None,
    "in_dim": 64,
    "out_dim": 32,
    "hidden_dim": 32,
    "n_layers": 2,
}

QWEN_IMAGE: Config = {
    "image_model": "qwen_image",
    "in_channels": 64,
    "num_layers": 3,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": TEXT_WIDTH,
    "axes_dims_rope": (4, 6, 6),
}

KREA2_TEXT_LAYERS, KREA2_TEXT_HEADS = 3, 2
KREA2_LAYER_WIDTH = 16
KREA2: Config = {
    "image_model": "krea2",
    "features": 64,
    "tdim": 32,
    "txtdim": KREA2_LAYER_WIDTH,
    "heads": 4,
    "kvheads": 2,
    "multiplier": 1,
    "layers": 3,
    "patch": 2,
    "channels": 16,
    "txtlayers": KREA2_TEXT_LAYERS,
    "txtheads": KREA2_TEXT_HEADS,
    "txtkvheads": KREA2_TEXT_HEADS,
}

LUMINA_LIKE = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "cap_feat_dim": TEXT_WIDTH,
    "n_layers": 3,
    "n_refiner_layers": 2,
    "qk_norm": True,
    "multiple_of": 16,
}

LUMINA2: Config = {
    **LUMINA_LIKE,
    "dim": 48,
    "n_heads": 4,
    "n_kv_heads": 2,
    "axes_dims": [4, 4, 4],
    "axes_lens": [300, 512, 512],
    "rope_theta": 10000.0,
    "ffn_dim_multiplier": 4.0,
}

# The host's code for Z-Image has no model narrower than 256.
Z_IMAGE: Config = {
    **LUMINA_LIKE,
    "dim": 256,
    "n_heads": 4,
    "n_kv_heads": 4,
    "axes_dims": [16, 24, 24],
    "axes_lens": [1536, 512, 512],
    "rope_theta": 256.0,
    "ffn_dim_multiplier": 0.25,
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}

ANIMA: Config = {
    "image_model": "anima",
    "max_img_h": 240,
    "max_img_w": 240,
    "max_frames": 128,
    "in_channels": 16,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "model_channels": 32,
    "concat_padding_mask": True,
    "crossattn_emb_channels": TEXT_WIDTH,
    "pos_emb_cls": "rope3d",
    "pos_emb_learnable": True,
    "pos_emb_interpolation": "crop",
    "min_fps": 1,
    "max_fps": 30,
    "use_adaln_lora": True,
    "adaln_lora_dim": 8,
    "num_blocks": 3,
    "num_heads": 2,
    "extra_per_block_abs_pos_emb": False,
    "rope_h_extrapolation_ratio": 4.0,
    "rope_w_extrapolation_ratio": 4.0,
    "rope_t_extrapolation_ratio": 1.0,
    "rope_enable_fps_modulation": False,
}

COSMOS2: Config = {**ANIMA, "image_model": "cosmos_predict2"}

WAN: Config = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "dim": 32,
    "in_dim": 16,
    "out_dim": 16,
    "num_heads": 2,
    "num_layers": 3,
    "ffn_dim": 64,
    "freq_dim": 256,
    "text_dim": TEXT_WIDTH,
    "patch_size": (1, 2, 2),
    "window_size": (-1, -1),
    "qk_norm": True,
    "cross_attn_norm": True,
    "eps": 1e-6,
}

SD35_WIDEST = 48
"""The side of the largest picture, in tokens, that the position embedding covers."""

# A head is 64 wide and the model has as many heads as `depth` says; the first block of three has a second attention.
SD35: Config = {
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "input_size": None,
    "depth": 2,
    "num_blocks": 3,
    "mlp_ratio": 1.0,
    "adm_in_channels": POOLED_WIDTH,
    "context_embedder_config": {
        "target": "torch.nn.Linear",
        "params": {"in_features": TEXT_WIDTH, "out_features": 128},
    },
    "num_patches": SD35_WIDEST**2,
    "pos_embed_max_size": SD35_WIDEST,
    "pos_embed_scaling_factor": None,
    "qk_norm": "rms",
    "x_block_self_attn_layers": [0],
}

HUNYUAN_TEXT, HUNYUAN_T5 = 77, 256
"""The numbers of text tokens that HunyuanDiT takes, no others."""
HUNYUAN_T5_WIDTH = 16
HUNYUAN_DIT: Config = {
    "image_model": "hydit",
    "depth": 4,
    "hidden_size": 32,
    "num_heads": 2,
    "text_states_dim": TEXT_WIDTH,
    "text_states_dim_t5": HUNYUAN_T5_WIDTH,
}
