"""Pictures as tokens that are masked and found again, step by step: MaskGIT (arXiv:2202.04200) and its heirs.

Two ways to decode, and they are not the same: that of aMUSEd (arXiv:2401.01808), and that of the public port of MUSE
on which StyleDrop (arXiv:2306.00983) was repeated. Tokens are whole numbers; a masked one is the number after those of
the vocabulary that the model predicts, or whatever the model calls it. Every random draw is an argument.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

SMALLEST = 1e-20


def one_hot(tokens: Tensor, codebook: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """`tokens` (rows, height, width) as (rows, codebook, height, width), zero for tokens outside the codebook."""
    inside = (tokens >= 0) & (tokens < codebook)
    found = tokens.new_zeros(len(tokens), codebook, *tokens.shape[1:], dtype=dtype)
    return found.scatter_(1, tokens.where(inside, 0)[:, None], inside[:, None].to(dtype))


def tokens_of(latent: Tensor, mask_token: int) -> Tensor:
    """One-hot `latent` (rows, codebook, height, width) as tokens, `mask_token` where a column is zero."""
    return latent.argmax(dim=1).where(latent.any(dim=1), mask_token)


def mask_ratios(steps: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Which part of the tokens is masked before each of `steps` steps and after the last: a cosine from 1 to 0.

    aMUSEd counts in float32 and the port of MUSE in float64: 16 cos(pi / 3) is 7 in the one and 8 in the other.
    """
    ratios = torch.cos(torch.arange(steps + 1, dtype=dtype) / steps * math.pi / 2)
    ratios[0], ratios[-1] = 1.0, 0.0
    return ratios


def mask_count(tokens: int, ratio: Tensor, masked: Tensor) -> Tensor:
    """How many of `tokens` stay masked where `masked` (rows,) are now: at least 1, and fewer than now.

    `ratio` is a number on any device. On the CPU it may be float64, which not every device has.
    """
    return torch.minimum(masked - 1, (tokens * ratio).floor().long().to(masked.device)).clamp(min=1)


def gumbel(uniform: Tensor) -> Tensor:
    """Gumbel noise from draws of 0 to 1, as aMUSEd makes it."""
    return -torch.log((-torch.log(uniform.clamp(SMALLEST))).clamp(SMALLEST))


def draw_tokens(logits: Tensor, exponential: Tensor) -> Tensor:
    """One token of each softmax over `logits` (rows, tokens, codebook), by exponential draws of that shape.

    The draw of `torch.multinomial`, which divides by such numbers and takes the largest.
    """
    return (logits.softmax(dim=-1) / exponential).argmax(dim=-1)


def remask_amused(
    tokens: Tensor, logits: Tensor, drawn: Tensor, mask_token: int, ratio: Tensor, temperature: float, noise: Tensor
) -> Tensor:
    """One step of aMUSEd: tokens (rows, tokens) after it, `mask_token` where they stay masked.

    The masked ones of `tokens` are `drawn`; of these, the least probable are masked again, with Gumbel `noise`
    (rows, tokens) times `temperature` on the logarithm. `ratio` of all tokens stay masked, counted for each
    row; known tokens never are.
    """
    unknown = tokens == mask_token
    found = drawn.where(unknown, tokens)
    probable = logits.softmax(dim=-1).gather(-1, found.where(unknown, 0)[..., None])[..., 0]
    probable = probable.where(unknown, torch.finfo(probable.dtype).max)
    confidence = torch.log(probable.clamp(SMALLEST)) + temperature * noise
    count = mask_count(tokens.shape[1], ratio, unknown.sum(dim=1))
    # A picture of a single token has no token after the first.
    cut_off = confidence.sort(dim=1).values.gather(1, count[:, None].clamp(max=tokens.shape[1] - 1))
    return found.masked_fill((confidence < cut_off) & unknown, mask_token)


def draw_tokens_muse(logits: Tensor, temperature: float, noise: Tensor) -> Tensor:
    """One token for each of `logits` (rows, tokens, codebook): the largest, with Gumbel `noise`."""
    return (logits + temperature * noise).argmax(dim=-1)


def remask_muse(
    tokens: Tensor, logits: Tensor, drawn: Tensor, mask_token: int, ratio: Tensor, temperature: float, noise: Tensor
) -> Tensor:
    """One step of the port of MUSE, with the arguments of `remask_amused`.

    Confidence is the logit, not a probability; the first row's count of masked tokens holds for all rows, and tokens
    at the cut-off are masked too. `ratio` and its count are in float64 there.
    """
    unknown = tokens == mask_token
    found = drawn.where(unknown, tokens)
    sure = logits.gather(-1, found.where(unknown, 0)[..., None])[..., 0].masked_fill(~unknown, math.inf)
    confidence = sure + temperature * noise
    count = mask_count(tokens.shape[1], ratio, unknown[:1].sum(dim=1))
    cut_off = confidence.sort(dim=1).values[:, count - 1]
    return found.masked_fill((confidence <= cut_off) & unknown, mask_token)


def mask_for_tuning(tokens: Tensor, share: Tensor, order: Tensor, mask_token: int) -> tuple[Tensor, Tensor]:
    """`tokens` (rows, tokens) with some masked, and which, by draws of 0 to 1.

    `share` (rows,) is drawn from 0 to 1, and cos(pi share / 2) of a row's tokens are masked, at least one; which, is
    drawn by `order` (rows, tokens).
    """
    length = tokens.shape[1]
    count = (length * torch.cos(share * math.pi / 2)).round().clamp(min=1)
    masked = order.argsort(dim=1) < count[:, None]
    return tokens.masked_fill(masked, mask_token), masked


def masked_cross_entropy(logits: Tensor, tokens: Tensor, masked: Tensor, smoothing: float = 0.0) -> Tensor:
    """The mean cross entropy of `logits` (rows, tokens, codebook) over the `masked` ones of `tokens`."""
    return functional.cross_entropy(logits[masked], tokens[masked], label_smoothing=smoothing)
