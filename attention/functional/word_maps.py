"""Where a subject stands in a picture, by the attention that its words get (ConsiStory, arXiv:2402.03286)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from .statistics import otsu_threshold


def word_columns(scenes: Sequence[Sequence[Sequence[int]]], tokens: int) -> Tensor:
    """The share of each text token in each subject: (scenes, tokens, subjects), zeros where a subject is absent.

    `scenes` holds, by scene and by subject, the columns of its words; several count as their mean.
    """
    shares = torch.zeros(len(scenes), tokens, len(scenes[0]))
    for scene, subjects in enumerate(scenes):
        for subject, columns in enumerate(subjects):
            shares[scene, list(columns), subject] = 1 / max(len(columns), 1)
    return shares


def attention_to_words(query: Tensor, key: Tensor, heads: int, shares: Tensor) -> Tensor:
    """How much every picture token attends to each subject's words, mean over heads, in float32.

    `query` (images, tokens, heads * head_dim), `key` (images, text_tokens, heads * head_dim), `shares` (images,
    text_tokens, subjects) -> (images, subjects, tokens).
    """
    maps = [_shared(one, text, heads) @ share for one, text, share in zip(query, key, shares, strict=True)]
    return torch.stack(maps).transpose(1, 2)


def subject_mask(maps: Tensor, height: int, width: int) -> Tensor:
    """Maps (images, subjects, rows, columns) made masks of the pictures' subjects: bool (images, height * width).

    Resized to the grid, then split by Otsu's threshold for each image and subject, then united over the subjects.
    """
    grid = functional.interpolate(maps.float(), size=(height, width), mode="bilinear", align_corners=False)
    flat = grid.flatten(2)  # -> (images, subjects, tokens)
    thresholds = otsu_threshold(flat.flatten(0, 1)).view(*flat.shape[:2], 1)
    return (flat > thresholds).any(dim=1)


def _shared(query: Tensor, key: Tensor, heads: int) -> Tensor:
    """Softmax attention of one image, mean over heads: (tokens, text_tokens)."""
    query, key = (torch.unflatten(part, 1, (heads, -1)).transpose(0, 1).float() for part in (query, key))
    scores = query @ key.transpose(1, 2) * query.shape[2] ** -0.5
    return scores.softmax(dim=-1).mean(dim=0)
