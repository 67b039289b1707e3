"""Training of a masked transformer in aMUSEd's layout on tokens of drawn pictures and their captions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from semblance.attention.functional.masked_tokens import (
    draw_tokens,
    gumbel,
    mask_for_tuning,
    mask_ratios,
    one_hot,
    remask_amused,
)
from semblance.host.masked.blocks import ResponseNorm
from semblance.host.masked.model import AESTHETIC
from semblance.host.masked.settings import NUMBERS, TransformerSettings
from semblance.host.masked.transformer import MaskedTransformer
from semblance.host.masked.vq import VQModel

from ..world import PICTURE_SIZE
from .alignment import ALIGNMENT, Aligned, seen_patches
from .attention import plain_attention
from .loop import Plan, best_device, export, half_precision, seed_everything, train, use_averaged_weights
from .networks import EMBED_WIDTH, fresh_weights, zero_
from .parts import PictureEmbedder, TextContext, load_part, load_weights, part_exists
from .samples import show_samples
from .unet import EMPTY_SHARE, START_SHARE, CaptionedPool, Encode, captioned_pool, open_pools
from .vq import SETTINGS as VQ

MICRO = 32
SETTINGS = TransformerSettings(
    hidden=160,
    layers=5,
    heads=5,
    feed_forward=320,
    channels=80,
    blocks=1,
    block_heads=5,
    embedding=80,
    vocabulary=VQ.codebook + 1,
    codebook=VQ.codebook,
    text=EMBED_WIDTH,
    vector=EMBED_WIDTH + NUMBERS * MICRO,
    micro=MICRO,
    resamples=True,
)
CONFIG = {
    "num_attention_heads": SETTINGS.heads,
    "block_num_heads": SETTINGS.block_heads,
    "micro_cond_encode_dim": MICRO,
}
"""What the shapes of the weights do not tell."""
SMOOTHING = 0.1
GUIDANCE = 4.0
ALIGNED_LAYER = 2
SIDE = PICTURE_SIZE // VQ.pixels


class MaskedPainter:
    """A masked transformer with its text encoder, called as the host calls it."""

    def __init__(self, network: MaskedTransformer, device: torch.device) -> None:
        self.network, self.device = network, device
        self.text = TextContext.load("amused", device)

    def logits(self, tokens: Tensor, context: Tensor, pooled: Tensor, states: list[Tensor] | None = None) -> Tensor:
        """(rows, places, codebook) for tokens (rows, places), of which some are the mask.

        `states` takes the tokens of each layer between its two attentions.
        """

        def keep(hidden: Tensor, options: dict[str, Any]) -> Tensor:
            if states is not None:
                states.append(hidden)
            return hidden

        seen = one_hot(tokens.unflatten(1, (SIDE, SIDE)), SETTINGS.codebook)
        micro = torch.tensor([[PICTURE_SIZE, PICTURE_SIZE, 0, 0, AESTHETIC]], device=self.device).float()
        options = {"optimized_attention_override": plain_attention, "patches": {"middle_patch": [keep]}}
        with half_precision(self.device):
            made = self.network(seen, None, context, pooled, None, options, micro=micro.expand(len(tokens), -1))
        return made.float().flatten(2).mT

    @torch.no_grad()
    def sample(self, captions: list[str], seed: int, steps: int = 12, temperature: float = 2.0) -> Tensor:
        """Tokens (captions, SIDE, SIDE) after aMUSEd's steps with guidance."""
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.full((len(captions), SIDE * SIDE), SETTINGS.mask_token, device=self.device)
        context, pooled = self.text([""] * len(captions) + captions)
        for ratio in mask_ratios(steps)[1:]:
            without, with_text = self.logits(torch.cat([tokens] * 2), context, pooled).chunk(2)
            logits = without + GUIDANCE * (with_text - without)
            drawn = draw_tokens(logits, torch.empty(logits.shape).exponential_(generator=generator).to(logits))
            noise = gumbel(torch.rand(tokens.shape, generator=generator)).to(logits)
            tokens = remask_amused(tokens, logits, drawn, SETTINGS.mask_token, ratio, temperature * float(ratio), noise)
        return drawn.where(tokens == SETTINGS.mask_token, tokens).unflatten(1, (SIDE, SIDE))


def fresh_transformer() -> MaskedTransformer:
    network = fresh_weights(MaskedTransformer(SETTINGS))
    for module in network.modules():
        if isinstance(module, ResponseNorm):
            zero_(module)
    return network


def train_masked(plan: Plan, batch: int = 64) -> None:
    """Trains on the tokens of the pools; writes `transformer_amused` as aMUSEd's transformer is published."""
    seed_everything(plan.seed)
    device = best_device()
    embedder = PictureEmbedder("plus", device)
    vq = load_part(VQModel(VQ), "vq", device).to(memory_format=torch.channels_last)
    model = Aligned(fresh_transformer(), SETTINGS.hidden, embedder.width).to(device)
    if part_exists(plan.name):
        model.network.load_state_dict(load_weights(plan.name))  # goes on from what there is
    painter = MaskedPainter(model.network, device)

    @cache
    def examples() -> Examples:
        return Examples.open(plan.seed, painter.text, embedder, vq, device)

    def loss_of(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(plan.seed + step)
        known = examples()
        rows = torch.randint(len(known.pool), (batch,), generator=generator)
        empty = torch.rand(batch, generator=generator) < EMPTY_SHARE
        tokens, states = known.tokens[rows].long().to(device), list[Tensor]()
        share, order = torch.rand(batch, generator=generator), torch.rand(tokens.shape, generator=generator)
        share = share.masked_fill(torch.rand(batch, generator=generator) < START_SHARE, 0.0)
        shown, masked = mask_for_tuning(tokens, share.to(device), order.to(device), SETTINGS.mask_token)
        logits = painter.logits(shown, *known.pool.conditions(rows, empty), states)
        errors = functional.cross_entropy(logits.mT, tokens, reduction="none", label_smoothing=SMOOTHING)
        weights = masked * known.weights[rows].flatten(1)
        with half_precision(device):
            unlike = model.unlike(states[ALIGNED_LAYER], known.seen[rows])
        return (errors * weights).sum() / weights.sum() + ALIGNMENT * unlike

    def show(name: str) -> dict[str, float]:
        return show_samples(lambda captions: _decoded(vq, painter.sample(captions, seed=1)), plan, name)

    run = train(plan, model, loss_of, lambda step: show(f"samples_{step:06d}") if step % 1000 == 0 else {})
    use_averaged_weights(run)
    export(run, model.weights(), show("samples_final"), CONFIG)


@dataclass(frozen=True, eq=False)
class Examples:
    """Scenes and views with captions, as tokens."""

    pool: CaptionedPool
    tokens: Tensor  # (pictures, places)
    weights: Tensor  # (pictures, SIDE, SIDE): how much each token counts
    seen: Tensor  # (pictures, 64, width): by the picture encoder in each patch

    @classmethod
    def open(cls, seed: int, text: Encode, embedder: PictureEmbedder, vq: VQModel, device: torch.device) -> Examples:
        pools, captions = open_pools(seed, device)
        pool, weights = captioned_pool(pools, captions, text, device)

        @torch.no_grad()
        def tokens_of(pictures: Tensor) -> Tensor:
            pictures = pictures.contiguous(memory_format=torch.channels_last)  # four times as fast on a CPU
            return vq.quantize.nearest(vq.quant_conv(vq.encoder(pictures))).flatten(1).short()

        book = vq.quantize.embedding.weight.cpu().numpy().tobytes()
        name = f"tokens_{sha256(book).hexdigest()[:8]}"  # those of another codebook mean nothing to this one
        tokens = torch.cat([pool.made(name, tokens_of, device) for pool in pools])
        return cls(pool, tokens, weights, seen_patches(pools, embedder, device))


def _decoded(vq: VQModel, tokens: Tensor) -> Tensor:
    return vq.decode(one_hot(tokens, VQ.codebook)).clamp(0, 1)
