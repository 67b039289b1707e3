"""Subject masks from the cross-attention to the subject's words (ConsiStory, arXiv:2402.03286)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from .statistics import otsu_threshold


def word_columns(scenes: Sequence[Sequence[Sequence[int]]], tokens: int) -> Tensor:
    """The weight of each text token in each subject: (scenes, tokens, subjects), zeros if a subject is absent.

    `scenes[scene][subject]` are the columns of the subject's words. Each has weight 1 / their number, so that a matrix
    product takes their mean.
    """
    word_weights = torch.zeros(len(scenes), tokens, len(scenes[0]))
    for scene, subjects in enumerate(scenes):
        for subject, columns in enumerate(subjects):
            word_weights[scene, list(columns), subject] = 1 / max(len(columns), 1)
    return word_weights


def attention_to_words(query: Tensor, key: Tensor, heads: int, word_weights: Tensor) -> Tensor:
    """The attention of picture tokens to each subject's words, averaged over heads: (images, subjects, tokens) float32.

    `query` is (images, tokens, heads * head_dim), `key` (images, text_tokens, heads * head_dim), and `word_weights`,
    from `word_columns`, (images, text_tokens, subjects).
    """
    split_query, split_key = (
        torch.unflatten(part, 2, (heads, -1)).transpose(1, 2).float() for part in (query, key)
    )  # -> (images, heads, tokens, head_dim)
    scores = split_query @ split_key.transpose(2, 3) * split_query.shape[3] ** -0.5
    attention = scores.softmax(dim=-1).mean(dim=1)  # -> (images, tokens, text_tokens)
    return (attention @ word_weights).transpose(1, 2)


def resized(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Attention maps (images, subjects, rows, columns) on a grid of this height and width."""
    if maps.shape[-2:] == grid:
        return maps
    return functional.interpolate(maps.float(), size=grid, mode="bilinear", align_corners=False)


def subject_mask(maps: Tensor, height: int, width: int) -> Tensor:
    """Subject masks, bool (images, height * width), from attention maps (images, subjects, rows, columns).

    Each map is resized to the grid and thresholded by Otsu's method; the masks of an image's subjects are united.
    """
    flat = resized(maps.float(), (height, width)).flatten(2)  # -> (images, subjects, tokens)
    thresholds = otsu_threshold(flat.flatten(0, 1)).view(*flat.shape[:2], 1)
    return (flat > thresholds).any(dim=1)
