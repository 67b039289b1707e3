"""The sizes of the published models, on the meta device."""

from __future__ import annotations

import pytest
import torch
from diffusers import UVit2DModel, VQModel

from semblance.host.masked import vq
from semblance.host.masked.settings import transformer_settings, vq_settings
from semblance.host.masked.transformer import MaskedTransformer

PUBLISHED_VQ = {
    "block_out_channels": (128, 256, 256, 512, 768),
    "down_block_types": ("DownEncoderBlock2D",) * 5,
    "up_block_types": ("UpDecoderBlock2D",) * 5,
    "layers_per_block": 2,
    "latent_channels": 64,
    "num_vq_embeddings": 8192,
    "vq_embed_dim": 64,
    "mid_block_add_attention": False,
    "lookup_from_codebook": True,
}


def shapes(network: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize(("resamples", "millions"), [(False, 603.5), (True, 608.3)])
def test_the_published_transformer_is_read_off_its_shapes(resamples: bool, millions: float) -> None:
    with torch.device("meta"):
        expected = shapes(UVit2DModel(downsample=resamples, upsample=resamples))
        settings = transformer_settings(expected)
        found = shapes(MaskedTransformer(settings, device="meta"))
    assert found == expected
    assert (settings.heads, settings.block_heads, settings.layers, settings.pooled) == (16, 12, 22, 768)
    assert settings.mask_token == 8255
    assert round(sum(torch.Size(shape).numel() for shape in found.values()) / 1e6, 1) == millions


def test_the_published_vq_model_is_read_off_its_shapes() -> None:
    with torch.device("meta"):
        expected = shapes(VQModel(**PUBLISHED_VQ))
        settings = vq_settings(expected)
        assert shapes(vq.VQModel(settings)) == expected
    assert (settings.pixels, settings.codebook) == (16, 8192)
