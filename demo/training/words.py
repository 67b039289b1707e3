"""Training of a LoRA by which the SDXL-like UNet's attention to a shape's word lies on the figure.

In large models it does, and ConsiStory finds its subjects by it; in the small UNet what the word marks is half of the
picture. Each cross-attention of the blocks that ConsiStory looks at is taught for itself, from what reaches it in the
frozen UNet: the mean of all their maps is to lie on the figure, and what each gives out is to stay as it is. So the
pictures stay the same, and nothing goes back through the UNet.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from semblance.attention.families import CONSISTORY
from semblance.attention.families.sdxl import SDXL
from semblance.attention.functional.word_maps import subject_mask
from semblance.host.binding.model import attention_layer
from semblance.host.binding.unet_sites import attention_sites

from ..captions import SHAPE_WORDS, worded_contents
from ..shapes import SHAPES
from ..world import Scenes, draw, single_shapes
from .diffusion import STEPS, add_noise
from .loop import Plan, best_device, export, seed_everything, train, use_averaged_weights
from .networks import build_unet
from .parts import Autoencoder, load_part
from .pool import Pool, encoded_pool
from .tokens import END_TOKEN, tokenize
from .unet import START_SHARE, CaptionedPool, Denoiser, draw_timesteps, picture_sizes

TOPOLOGY = "sdxl"
POOL_SIZE = 1024
RANK = 32
KEPT_WEIGHT = 0.3
"""Of the change in what an attention gives out, in units of its own variance, against the maps' error in nats."""


class LowRank(nn.Module):
    """What is added to the weight of a linear layer: `up` @ `down`, nothing at first."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        outputs, inputs = weight.shape
        self.up = nn.Parameter(torch.zeros(outputs, RANK))
        self.down = nn.Parameter(torch.randn(RANK, inputs) * inputs**-0.5)

    def forward(self, layer: Any, inputs: Tensor) -> Tensor:
        return functional.linear(inputs, layer.weight + self.up @ self.down)


class WordLoRA(nn.Module):
    """Changes to the queries and keys of the cross-attentions that ConsiStory looks for its subjects in."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        names = {module: name for name, module in unet.named_modules()}
        words = SDXL.choice(CONSISTORY).words
        sites = [s for s in attention_sites(unet) if s.kind == "cross" and s.block in words]
        self.attentions = [attention_layer(unet, site) for site in sites]
        self.names = [[names[layer].replace(".", "_") for layer in (a.to_q, a.to_k)] for a in self.attentions]
        pairs = ([LowRank(a.to_q.weight), LowRank(a.to_k.weight)] for a in self.attentions)
        self.changes = nn.ModuleList(nn.ModuleList(pair) for pair in pairs)

    def published(self) -> dict[str, Tensor]:
        """In the layout that ComfyUI's own LoRA loaders read."""
        weights: dict[str, Tensor] = {}
        for names, pair in zip(self.names, cast("Iterable[Any]", self.changes), strict=True):
            for name, change in zip(names, pair, strict=True):
                weights[f"lora_unet_{name}.alpha"] = torch.tensor(float(RANK))
                weights[f"lora_unet_{name}.lora_up.weight"] = change.up
                weights[f"lora_unet_{name}.lora_down.weight"] = change.down
        return weights

    def look_up(self, seen: Sequence[Tensor], context: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """The mean map of the attention to `words` (rows, tokens), and how far what is given out has moved.

        `seen` is what reaches each attention's queries: (rows, tokens, channels). Moved: mean square by variance.
        """
        maps, moved = [], []
        for attention, pair, hidden in zip(self.attentions, self.changes, seen, strict=True):
            with torch.no_grad():
                before = _shares(attention.to_q(hidden), attention.to_k(context), attention.heads)
                given = _output(attention, before, context)
            query, key = (change(layer, x) for change, layer, x in _changed(pair, attention, hidden, context))
            after = _shares(query, key, attention.heads)
            maps.append((after.mean(dim=1) @ words[:, :, None])[..., 0])
            moved.append((_output(attention, after, context) - given).pow(2).mean() / given.var())
        return torch.stack(maps).mean(dim=0), torch.stack(moved).mean()


def _changed(pair: Any, attention: Any, hidden: Tensor, context: Tensor) -> Iterator[tuple[Any, Any, Tensor]]:
    return zip(pair, (attention.to_q, attention.to_k), (hidden, context), strict=True)


def _shares(query: Tensor, key: Tensor, heads: int) -> Tensor:
    """Softmax attention: (rows, heads, tokens, text_tokens)."""
    query, key = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (query, key))
    return (query @ key.transpose(2, 3) * query.shape[-1] ** -0.5).softmax(dim=-1)


def _output(attention: Any, shares: Tensor, context: Tensor) -> Tensor:
    value = attention.to_v(context).unflatten(2, (attention.heads, -1)).transpose(1, 2)
    return attention.to_out((shares @ value).transpose(1, 2).flatten(2))


@contextmanager
def seen_by(attentions: Sequence[Any]) -> Iterator[list[Tensor]]:
    """While it is open, what reaches the queries of each attention is written down, in their order."""
    seen: list[Tensor] = []
    with ExitStack() as hooks:
        for attention in attentions:
            handle = attention.to_q.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float()))
            hooks.callback(handle.remove)
        yield seen


@dataclass(frozen=True, eq=False)
class Named:
    """Drawings of one shape each, and captions with a word for it."""

    captioned: CaptionedPool
    coverage: Tensor
    """How much of each latent the figure covers: (pictures, 16, 16)."""
    words: Tensor
    """The share of each text token in the shape's word: (pictures, 77)."""

    @classmethod
    def of(cls, pool: Pool, denoiser: Denoiser, seed: int) -> Named:
        captions, shapes = worded_contents(pool.scenes, seed), pool.scenes.content.shape[:, 0].tolist()
        words = torch.stack([word_shares(caption, shape) for caption, shape in zip(captions, shapes, strict=True)])
        return cls(CaptionedPool(pool.latents, captions, denoiser.text), pool.coverage(), words)

    def look_up(
        self, lora: WordLoRA, denoiser: Denoiser, rows: Tensor, timesteps: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The maps of these rows at these timesteps, what they should be (rows, tokens), and how far outputs moved."""
        latents = self.captioned.latents(rows, TOPOLOGY)
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        start = (timesteps == STEPS - 1)[:, None, None, None]
        noisy = torch.where(start, noise, add_noise(latents, noise, timesteps))
        context, pooled = self.captioned.conditions(rows, torch.zeros(len(rows), dtype=torch.bool))
        with torch.no_grad(), seen_by(lora.attentions) as seen:
            denoiser(noisy, timesteps, denoiser.conditions(context, pooled, picture_sizes(len(rows))))
        maps, moved = lora.look_up(seen, context, self.words[rows].to(context))
        side = round(maps.shape[1] ** 0.5)
        return maps, functional.adaptive_avg_pool2d(self.coverage[rows], side).flatten(1).to(maps), moved


def word_shares(caption: str, shape: int) -> Tensor:
    """The share of each token of `caption` in its word for a shape: (77,)."""
    ids = tokenize([caption])[0]
    for word in SHAPE_WORDS[SHAPES[shape]]:
        named = tokenize([word])[0]
        named = named[1 : int((named == END_TOKEN).int().argmax())]
        found = (ids.unfold(0, len(named), 1) == named).all(dim=1)
        if found.any():
            shares = torch.zeros(len(ids))
            shares[int(found.int().argmax()) :][: len(named)] = 1 / len(named)
            return shares
    raise ValueError(f"'{caption}' has no word for {SHAPES[shape]}.")


def map_error(maps: Tensor, coverage: Tensor) -> Tensor:
    """How far maps are from lying evenly on what the figure covers: the mean divergence in nats."""
    wanted, found = (part / part.sum(dim=1, keepdim=True).clamp_min(1e-6) for part in (coverage, maps))
    return (wanted * (wanted.clamp_min(1e-6).log() - found.clamp_min(1e-6).log())).sum(dim=1).mean()


def train_words(plan: Plan, batch: int = 32) -> None:
    seed_everything(plan.seed)
    device = best_device()
    denoiser = Denoiser(load_part(build_unet(TOPOLOGY), f"unet_{TOPOLOGY}", device), TOPOLOGY, device)
    lora = WordLoRA(denoiser.unet).to(device)
    pool = encoded_pool(single_shapes(POOL_SIZE, plan.seed), f"single_{POOL_SIZE}_{plan.seed}", device)
    drawings = Named.of(pool, denoiser, plan.seed)

    def loss_of(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(plan.seed + step)
        rows = torch.randint(POOL_SIZE, (batch,), generator=generator)
        start = torch.rand(batch, generator=generator) < START_SHARE
        timesteps = draw_timesteps(batch, generator).masked_fill(start, STEPS - 1).to(device)
        maps, coverage, moved = drawings.look_up(lora, denoiser, rows, timesteps, generator)
        return map_error(maps, coverage) + KEPT_WEIGHT * moved

    fresh = _fresh(64, denoiser, plan.seed + 500_000)
    run = train(plan, lora, loss_of, lambda step: judge_words(lora, denoiser, fresh))
    use_averaged_weights(run)
    export(run, lora.published(), judge_words(lora, denoiser, fresh), {"topology": TOPOLOGY})


@torch.no_grad()
def judge_words(lora: WordLoRA, denoiser: Denoiser, drawings: Named) -> dict[str, float]:
    """On drawings of held-out combinations half-way up the noise: the maps' error, and that of the masks from them."""
    rows = torch.arange(len(drawings.words))
    timesteps = torch.full((len(rows),), STEPS // 2, device=denoiser.device)
    maps, coverage, moved = drawings.look_up(lora, denoiser, rows, timesteps, torch.Generator().manual_seed(0))
    side = round(maps.shape[1] ** 0.5)
    mask = subject_mask(maps.unflatten(1, (side, side))[:, None], 2 * side, 2 * side)
    figure = functional.adaptive_avg_pool2d(drawings.coverage, 2 * side).flatten(1).to(maps) > 0.5
    overlap = (mask & figure).sum(dim=1) / (mask | figure).sum(dim=1).clamp_min(1)
    return {
        "map_error": map_error(maps, coverage).item(),
        "mask_iou": overlap.mean().item(),
        "output_moved": moved.item(),
    }


def _fresh(count: int, denoiser: Denoiser, seed: int) -> Named:
    scenes: Scenes = single_shapes(count, seed, "held_out")
    latents = Autoencoder.load(TOPOLOGY, denoiser.device).encode(draw(scenes, device=denoiser.device).pictures)
    return Named.of(Pool(scenes, latents, Path()), denoiser, seed)
