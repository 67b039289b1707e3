"""Reference Style on a MODEL: its family, the references as latents of the model, and the settings of a preset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Tensor

from ..attention.engine.guests import ShownPicture
from ..attention.families.family import ModelFamily
from ..attention.families.reference_styles import STYLE_PRESETS, StyleSettings
from .binding.conditions import nothing_to_fill
from .binding.model import map_model, map_transformer
from .conditioning import Conditioning, for_a_part_of_the_steps
from .latents import check_pictures
from .masked.transformer import MaskedTransformer

NOISE_APART = 1_852_727_981
"""Added to seeds, so that a reference's noise is not the noise that a sampler of the same seed begins with."""
FOR_A_PART = {"area": "an area", "mask": "a mask", "control": "a ControlNet"}
"""What a conditioning holds that does not go with a reference, which is looked at whole."""


def family_for_reference(model: Any) -> ModelFamily:
    """The family of a MODEL that can look at reference pictures. Raises ValueError for any other."""
    network = model.model.diffusion_model
    if isinstance(network, MaskedTransformer):
        raise ValueError(
            "This model is a masked transformer (aMUSEd), to which no reference can be shown at a noise level. Load "
            "another model; on this one Semblance has StyleDrop: Tune Style and Apply Style Adapter."
        )
    if not hasattr(network, "output_blocks"):
        return map_transformer(model)
    channels = model.model.latent_format.latent_channels
    fills = network.in_channels != channels
    if fills and nothing_to_fill(model.model, torch.zeros(1, channels, 8, 8)) is None:
        raise ValueError(
            f"The model takes {network.in_channels} channels where a picture's latent has {channels}, and ComfyUI does "
            "not say what the others are. Load an ordinary checkpoint for Reference Style."
        )
    return map_model(model).family


def style_preset(family: ModelFamily, name: str | None = None) -> StyleSettings:
    """The settings of one of STYLE_PRESETS; without a name, those of the family's own preset.

    Raises ValueError for a preset that the family does not have.
    """
    known = [key for key in STYLE_PRESETS if key in family.choices]
    wanted = known[0] if name is None else next(key for key in STYLE_PRESETS if key.name == name)
    if wanted not in known:
        others = " and ".join(f"'{key.name}'" for key in known)
        raise ValueError(
            f"The preset '{wanted.name}' is not for {family.name} models, for which there is {others}. Choose another "
            "preset, or 'custom' to set the numbers yourself."
        )
    return family.choice(wanted)


def shown_pictures(
    model: Any, latent: Mapping[str, Any], prompt: Conditioning | None, seed: int
) -> tuple[ShownPicture, ...]:
    """Every picture of a LATENT as one reference, with noise drawn from `seed` and a prompt of its own if there is one.

    Raises ValueError for a latent that holds no pictures of this model, and for several prompts.
    """
    clean = model.model.process_latent_in(reference_latents(model, latent).float())
    noise = torch.randn(clean.shape, generator=Generator().manual_seed((seed + NOISE_APART) % 2**64))
    own = None if prompt is None else _checked(prompt)
    width = None if own is None else own[0][0].shape[-1]
    return tuple(
        ShownPicture(f"reference {number}", clean[number : number + 1], noise[number : number + 1], own, width)
        for number in range(len(clean))
    )


def reference_latents(model: Any, latent: Mapping[str, Any]) -> Tensor:
    """The samples of a LATENT as the model's own: (images, channels, height, width), or with frames before height."""
    samples: Tensor = latent["samples"]
    form = model.model.latent_format
    if latent.get("noise_mask") is not None:
        raise ValueError(
            "The reference carries a noise mask, which would leave out a part of it, and a reference is looked at "
            "whole. Connect VAE Encode. To style a part of the new picture, connect a mask to this node."
        )
    if form.latent_dimensions == 3 and samples.ndim == 4:
        samples = samples.unsqueeze(2)
    if samples.ndim == 5 and samples.shape[2] > 1:
        raise ValueError(
            f"The reference is a video of {samples.shape[2]} latent frames, and a reference is one picture. Encode a "
            "single picture: the VAEs of video models take a batch of pictures for a video. For several references, "
            "use one Reference Style node for each."
        )
    if samples.ndim != form.latent_dimensions + 2 or 0 in samples.shape:
        raise ValueError(
            f"The reference has shape {tuple(samples.shape)}, which is not that of this model's pictures. Encode the "
            "picture with the VAE of this model."
        )
    if samples.shape[1] != form.latent_channels:
        raise ValueError(
            f"The reference is a latent of {samples.shape[1]} channels, and this model works on "
            f"{form.latent_channels}. Encode the picture with the VAE of this model."
        )
    check_pictures(samples)
    return samples


def _checked(prompt: Conditioning) -> Conditioning:
    """A CONDITIONING that is one prompt for a whole picture."""
    rows = [len(context) for context, _ in prompt]
    if rows != [1]:
        raise ValueError(
            f"The reference prompt holds {sum(rows)} prompts, and a reference is looked at with one. Connect the "
            "output of one CLIP Text Encode."
        )
    found = [name for key, name in FOR_A_PART.items() if prompt[0][1].get(key) is not None]
    if found := [*found, *(["a timestep range"] if for_a_part_of_the_steps(prompt[0][1]) else [])]:
        raise ValueError(
            f"The reference prompt has {' and '.join(found)} set, and a reference is looked at whole, in every step "
            "and without ControlNet. Connect the output of one CLIP Text Encode."
        )
    return prompt
