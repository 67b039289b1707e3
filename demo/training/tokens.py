"""Captions as CLIP tokens, by the host's own tokenizer."""

from functools import cache

import torch
from torch import Tensor

END_TOKEN = 49407
PAD_L = END_TOKEN  # what the host fills up with for a CLIP-L tower
PAD_G = 0  # and for a CLIP-G tower
LENGTH = 77


def tokenize(captions: list[str], pad: int = PAD_L) -> Tensor:
    """Token numbers (captions, 77): start, words, end, and `pad` after it."""
    rows = torch.full((len(captions), LENGTH), pad, dtype=torch.long)
    for row, caption in zip(rows, captions, strict=True):
        ids = _token_ids(caption)
        row[: len(ids)] = torch.tensor(ids)
    return rows


@cache
def _tokenizer():
    from comfy.sd1_clip import SDTokenizer

    return SDTokenizer().tokenizer


@cache
def _token_ids(caption: str) -> tuple[int, ...]:
    return tuple(_tokenizer()(caption)["input_ids"][:LENGTH])
