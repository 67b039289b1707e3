"""The probe of a training: how far self-attention carries a subject's looks from picture to picture.

Stories are drawn, one subject at four told places on four grounds, and noised alike. Told is the squared error of the
predicted v on the subject's latents, as a ratio to that of each picture apart: with the subjects' keys of the whole
story, as ConsiStory shares them; with the other pictures' subjects alone; and with self-attention at zero. Where looks
are carried the first two lie below one, and the last above.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..layout_captions import plain_captions
from ..layouts import draw_views, sample_stories
from .diffusion import add_noise, velocity_to
from .parts import Autoencoder
from .unet import Denoiser, attend

IMAGES = 4
TIMES = (900, 700, 500)
STORIES_AT_ONCE = 4


@torch.no_grad()
def carried(denoiser: Denoiser, autoencoder: Autoencoder, stories: int = 12, seed: int = 321) -> dict[str, float]:
    """The ratios at each of TIMES, and the error apart; masks are those of the drawings."""
    views = sample_stories(stories, seed)
    drawing = draw_views(views)
    clean = autoencoder.encode(drawing.pictures.to(denoiser.device))
    covered = functional.avg_pool2d(drawing.masks[:, 0], drawing.masks.shape[-1] // clean.shape[-1]).to(clean)
    subject = (covered > 0.5).float()
    captions = plain_captions(views)
    found: dict[str, float] = {}
    for time in TIMES:
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(time)).to(clean)
        errors: dict[str, Tensor] = {}
        for way in ("apart", "subjects", "others", "zeroed"):
            rows = [slice(s, s + STORIES_AT_ONCE * IMAGES) for s in range(0, len(clean), STORIES_AT_ONCE * IMAGES)]
            parts = [
                _errors(denoiser, clean[r], noise[r], time, captions[r], _replacement(way, covered[r])) for r in rows
            ]
            errors[way] = (torch.cat(parts) * subject).sum() / subject.sum()
        found[f"apart_{time}"] = float(errors["apart"])
        found.update({f"{way}_{time}": float(errors[way] / errors["apart"]) for way in errors if way != "apart"})
    return found


def shared(masks: Mapping[int, Tensor], own: bool = True) -> Any:
    """ConsiStory's shared self-attention with known masks, by tokens: (rows, tokens) of booleans, IMAGES rows a story.

    Every picture sees all of its own keys and the subjects' of the others; without `own` the subject's queries see the
    others' subjects alone.
    """

    def attention(query: Tensor, key: Tensor, value: Tensor, extra: dict[str, Any], *_: Any) -> Tensor:
        mask, heads, attended = masks[query.shape[1]], extra["n_heads"], []
        for row in range(len(query)):
            first = row // IMAGES * IMAGES
            others = [other for other in range(first, first + IMAGES) if other != row]
            keys, values = (torch.cat([part[o][mask[o]] for o in others]) for part in (key, value))
            if own:
                keys, values = torch.cat([key[row], keys]), torch.cat([value[row], values])
            elif not len(keys):
                keys, values = key[row], value[row]
            seen = attend(query[row][None], keys[None], values[None], heads)
            if not own:
                alone = attend(query[row][None], key[row][None], value[row][None], heads)
                seen = torch.where(mask[row][:, None], seen, alone)
            attended.append(seen)
        return torch.cat(attended)

    return attention


def _errors(
    denoiser: Denoiser, clean: Tensor, noise: Tensor, time: int, captions: list[str], replacement: Any
) -> Tensor:
    """Squared errors of the predicted v, (rows, height, width)."""
    times = torch.full((len(clean),), time, device=clean.device)
    noisy = add_noise(clean, noise, times)
    predicted = denoiser(noisy, times, denoiser.prompt(captions), self_attention=replacement)
    return (predicted - velocity_to(clean, noisy, times)).pow(2).mean(dim=1)


def _replacement(way: str, covered: Tensor) -> Any:
    if way == "apart":
        return None
    if way == "zeroed":
        return lambda query, *_: torch.zeros_like(query)
    sides = [covered.shape[-1] // step for step in (2, 4)]
    masks = {side * side: functional.adaptive_avg_pool2d(covered, side).flatten(1) > 0.4 for side in sides}
    return shared(masks, own=way == "subjects")
