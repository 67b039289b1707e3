"""Pictures with captions, or latents with conditionings, as what an adapter is tuned on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..conditioning import Conditioning
from ..pictures import check_picture
from .examples import NO_PICTURE, Example, Examples


def encode_examples(
    pictures: Sequence[Tensor], contents: Sequence[str], style: str, clip: Any, vae: Any, flips: bool
) -> Examples:
    """Batches of pictures (pictures, height, width, 3), with content words for each or for all, as examples.

    Raises ValueError for unusable pictures, a wrong number of content words or none, and a VAE that cannot encode.
    """
    for batch in pictures:
        check_picture(batch, "The picture to tune on")
    each = [picture for batch in pictures for picture in batch]
    contents = _one_for_each(contents, len(each), "lines of content words", "pictures")
    texts = {content: encode_text(clip, caption(content, style)) for content in dict.fromkeys(contents)}
    examples = tuple(
        Example(
            encode_picture(vae, picture),
            texts[content],
            encode_picture(vae, picture.flip(1)) if flips else None,
        )
        for picture, content in zip(each, contents, strict=True)
    )
    thumbnail = (each[0].clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    return Examples(examples, contents[0], style.strip(), thumbnail)


def given_examples(
    latents: Sequence[Mapping[str, Any]], conditionings: Sequence[Conditioning], style: str = ""
) -> Examples:
    """LATENTs and CONDITIONINGs as Make Training Dataset gives them: each latent has an entry, or all have one.

    Their captions hold the words of the style already; the adapter only remembers them. Raises ValueError for numbers
    that do not fit, and for latents with a noise mask.
    """
    if any("noise_mask" in latent for latent in latents):
        raise ValueError(
            "A latent comes with a noise mask, but all of a picture is learnt from. Encode the picture with VAE "
            "Encode, without Set Latent Noise Mask; crop it to the part that is to be learnt."
        )
    each = [sample for latent in latents for sample in latent["samples"]]
    entries = [[entry] for conditioning in conditionings for entry in conditioning]
    texts = _one_for_each(entries, len(each), "captions", "latents")
    examples = tuple(Example(latent, text) for latent, text in zip(each, texts, strict=True))
    return Examples(examples, style_words=style.strip())


def caption(content: str, style: str) -> str:
    """The words of the content and those of the style as one prompt."""
    content, style = content.strip(), style.strip()
    return f"{content}{'' if style[:1] in ',.;' else ' '}{style}".strip()


def encode_text(clip: Any, text: str) -> Conditioning:
    """A prompt as CLIP Text Encode encodes it."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def encode_picture(vae: Any, picture: Tensor) -> Tensor:
    """The latent (channels, height, width) of a picture (height, width, 3)."""
    try:
        return vae.encode(picture[None])[0]
    except (AttributeError, TypeError, NotImplementedError) as fault:
        raise ValueError(
            f"This VAE cannot encode a picture ({fault}): its file may hold a decoder only. Load the whole VAE, such "
            "as that of Load Checkpoint."
        ) from fault


def _one_for_each(given: Sequence[Any], count: int, what: str, counted: str) -> list[Any]:
    if not count:
        raise ValueError(NO_PICTURE)
    if not given:
        raise ValueError(f"There are no {what}. Say what the pictures show, once for all of them or once for each.")
    if len(given) not in (1, count):
        raise ValueError(
            f"There are {len(given)} {what} for {count} {counted}. Give one for all of them, or one for each."
        )
    return list(given) * count if len(given) == 1 else list(given)
