"""The trained parts that later trainings stand on, read from the files in `models/`."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from semblance.host.demo_models import FLUX_WORDS
from semblance.host.known_words import whole_vocabulary

from .loop import MODELS_FOLDER
from .networks import (
    EMBED_WIDTH,
    VISION_CONFIG,
    build_autoencoder,
    build_text_encoder,
    build_vision_encoder,
    vision_pixels,
)
from .tokens import END_TOKEN, PAD_G, PAD_L, tokenize

Variant = Literal["base", "plus"]
V_PREDICTION_KEY = "v_pred"  # by this empty key the host knows an SDXL model that predicts v
LATENT_SCALE = {"sdxl": 0.13025, "sd15": 0.18215}  # the host's latent formats


def part_exists(name: str) -> bool:
    return (MODELS_FOLDER / f"{name}.safetensors").exists()


def load_weights(name: str) -> dict[str, Tensor]:
    """The weights in models/NAME.safetensors, in float32."""
    weights = whole_vocabulary(load_file(MODELS_FOLDER / f"{name}.safetensors"))
    weights.pop(V_PREDICTION_KEY, None)
    return {key: value.float() for key, value in weights.items()}


def load_part(model: nn.Module, name: str, device: torch.device) -> Any:
    """Fills `model` from models/NAME.safetensors, frozen, ready to use."""
    missing, unexpected = model.load_state_dict(load_weights(name), strict=False)
    if unexpected or any("position_ids" not in key for key in missing):
        raise RuntimeError(f"models/{name}.safetensors does not fit this code: train it again. {missing} {unexpected}")
    return model.to(device).eval().requires_grad_(False)


@dataclass(frozen=True, eq=False)
class Autoencoder:
    """Pictures to latents as a UNet of one topology is shown them, and back; the arithmetic is the host's."""

    network: Any
    scale: float

    @classmethod
    def load(cls, topology: str, device: torch.device) -> "Autoencoder":
        network = load_part(build_autoencoder(), "autoencoder", device).to(memory_format=torch.channels_last)
        return cls(network, LATENT_SCALE[topology])

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """(pictures, 3, height, width) in 0..1 -> (pictures, 4, height / 8, width / 8)."""
        return self.network.encode(pictures * 2 - 1) * self.scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        return (self.network.decode(latents / self.scale) / 2 + 0.5).clamp(0, 1)


@dataclass(frozen=True, eq=False)
class TextContext:
    """What the host's CLIP gives a UNet for a caption, computed by the trained text encoder.

    SDXL: the states before the last layer, of a CLIP-L and a CLIP-G tower side by side (both are this encoder; they
    differ in what fills up the 77 tokens), and the projected pooled text. SD 1.5: the last states, normalised.
    Flux: the first FLUX_WORDS of these, and the pooled text without its projection. aMUSEd: the states before the last
    layer.
    """

    encoder: Any
    topology: str

    @classmethod
    def load(cls, topology: str, device: torch.device) -> "TextContext":
        return cls(load_part(build_text_encoder(), "text_encoder", device), topology)

    @torch.no_grad()
    def __call__(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Context (captions, 77 or FLUX_WORDS, width) and pooled text (captions, EMBED_WIDTH)."""
        device = self.encoder.text_projection.weight.device
        if self.topology != "sdxl":
            tokens = tokenize(captions, PAD_L).to(device)
            output = self.encoder(tokens, output_hidden_states=True)
            if self.topology == "amused":
                return output.hidden_states[-2], output.text_embeds
            if self.topology == "flux":
                ends = (tokens == END_TOKEN).int().argmax(dim=1)
                states = output.last_hidden_state
                return states[:, :FLUX_WORDS], states[torch.arange(len(captions)), ends]
            return output.last_hidden_state, output.text_embeds
        both = torch.cat([tokenize(captions, PAD_L), tokenize(captions, PAD_G)]).to(device)
        output = self.encoder(both, output_hidden_states=True)
        tower_l, tower_g = output.hidden_states[-2].chunk(2)
        return torch.cat([tower_l, tower_g], dim=2), output.text_embeds[len(captions) :]


class PictureEmbedder:
    """Pictures to what an IP-Adapter of one variant reads: the projection for `base`, the patch states for `plus`."""

    def __init__(self, variant: Variant, device: torch.device) -> None:
        self.variant: Variant = variant
        self.encoder = load_part(build_vision_encoder(), "clip_vision", device)
        self.width: int = EMBED_WIDTH if variant == "base" else VISION_CONFIG["hidden_size"]

    def __call__(self, pictures: Tensor) -> Tensor:
        """(pictures, 3, height, width) in 0..1 -> (pictures, EMBED_WIDTH) or (pictures, tokens, states)."""
        return self._encode(vision_pixels(pictures))

    def unseen(self) -> Tensor:
        """What stands for no picture, one row: zeros for `base`, a picture of zeros as `plus` sees it."""
        side = VISION_CONFIG["image_size"]
        encoded = self._encode(torch.zeros((1, 3, side, side), device=self.encoder.device))
        return torch.zeros_like(encoded) if self.variant == "base" else encoded

    @torch.no_grad()
    def _encode(self, pixels: Tensor) -> Tensor:
        if self.variant == "base":
            return self.encoder(pixels).image_embeds
        return self.encoder(pixels, output_hidden_states=True).hidden_states[-2]
