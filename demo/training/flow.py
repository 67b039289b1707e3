"""Training of a transformer of Flux's layout as a rectified flow on latents of drawn pictures and their captions."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from semblance.host.demo_models import FLUX_SHIFT, FLUX_WORDS

from ..captions import full_captions, write_captions
from ..layout_captions import view_captions
from ..world import PICTURE_SIZE, draw, sample_scenes
from .flux import FluxShape, FluxTransformer
from .loop import (
    LATENT_CHANNELS,
    Plan,
    best_device,
    export,
    half_precision,
    seed_everything,
    train,
    use_averaged_weights,
)
from .networks import build_text_encoder
from .parts import Autoencoder, PictureEmbedder, load_part, load_weights, part_exists
from .pool import open_pool, open_view_pool
from .sheets import contact_sheet, save_picture
from .tokens import END_TOKEN, tokenize
from .unet import EMPTY_SHARE, FIGURE_WEIGHT, POOL_SIZE, START_SHARE, VIEWS, CaptionedPool

GUIDANCE = 3.0
ALIGNMENT = 0.5
"""Weight of the features' loss: a middle block's tokens tell what the picture encoder sees there (arXiv:2410.06940)."""
ALIGNED_BLOCK = 1  # of the single blocks
NETWORK = "network."


class Trained(nn.Module):
    """The transformer, and what reads a middle block in training alone."""

    def __init__(self, shape: FluxShape, seen_width: int) -> None:
        super().__init__()
        self.network = FluxTransformer(shape)
        width = shape.hidden_size
        self.reader = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, seen_width))

    def weights(self) -> dict[str, Tensor]:
        """The transformer's alone, as the host names them."""
        own = self.state_dict()
        return {name.removeprefix(NETWORK): value for name, value in own.items() if name.startswith(NETWORK)}


class FlowModel:
    """A transformer with its text encoder."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self.network, self.device = network, device
        self._encoder = load_part(build_text_encoder(), "text_encoder", device)

    @torch.no_grad()
    def text(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Context (captions, FLUX_WORDS, width) and pooled text (captions, width): as in Flux, not projected."""
        tokens = tokenize(captions).to(self.device)
        states = self._encoder(tokens).last_hidden_state
        ends = (tokens == END_TOKEN).int().argmax(dim=1)
        return states[:, :FLUX_WORDS], states[torch.arange(len(captions)), ends]

    @torch.no_grad()
    def sample(self, captions: list[str], seed: int, guidance: float = GUIDANCE, steps: int = 25) -> Tensor:
        """Latents (captions, 4, 16, 16) after guided Euler steps from pure noise."""
        side = PICTURE_SIZE // 8
        noise = torch.randn((len(captions), LATENT_CHANNELS, side, side), generator=torch.Generator().manual_seed(seed))
        latents = noise.to(self.device)
        context, pooled = self.text([""] * len(captions) + captions)
        times = shifted(torch.linspace(1, 0, steps + 1)).tolist()
        for now, then in zip(times[:-1], times[1:], strict=True):
            time = torch.full((2 * len(captions),), now, device=self.device)
            with half_precision(self.device):
                both = self.network(torch.cat([latents] * 2), time, context, pooled).float()
            without, with_text = both.chunk(2)
            latents = latents + (then - now) * (without + guidance * (with_text - without))
        return latents


def shifted(times: Tensor) -> Tensor:
    """Evenly spaced times in 0..1 as Flux's schedule spaces them."""
    factor = math.exp(FLUX_SHIFT)
    return factor * times / (1 + (factor - 1) * times)


def train_flow(plan: Plan, compiled: bool = False, batch: int = 64) -> None:
    """Trains on the pools; writes `transformer_flux` in the layout of the host's diffusion models.

    `compiled` has torch compile the network, which needs a C++ compiler and saves a tenth of the time.
    """
    seed_everything(plan.seed)
    device = best_device()
    embedder = PictureEmbedder("plus", device)
    model = Trained(FluxShape(), embedder.width).to(device)
    if part_exists(plan.name):
        model.network.load_state_dict(load_weights(plan.name))  # goes on from what there is
    flow, autoencoder = FlowModel(model.network, device), Autoencoder.load("sdxl", device)
    network = torch.compile(model.network, dynamic=False) if compiled else model.network

    @cache
    def examples() -> tuple[CaptionedPool, Tensor, Tensor]:
        return _examples(plan.seed, flow, embedder, device)

    def loss_of(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(plan.seed + step)
        pool, weights, seen = examples()
        rows = torch.randint(len(pool), (batch,), generator=generator)
        empty = torch.rand(batch, generator=generator) < EMPTY_SHARE
        latents, states = pool.latents(rows, "sdxl"), list[Tensor]()
        noisy, times, velocity = _on_the_way(latents, generator)
        with half_precision(device):
            predicted = network(noisy, times, *pool.conditions(rows, empty), states).float()
            told = model.reader(states[ALIGNED_BLOCK]).float()
        errors = (predicted - velocity).pow(2).mean(dim=1) * weights[rows] / weights[rows].mean()
        unlike = 1 - functional.cosine_similarity(told, seen[rows].to(told), dim=2)
        return errors.mean() / (1 + latents.pow(2).mean()) + ALIGNMENT * unlike.mean()

    def validate(step: int) -> dict[str, float]:
        return show_samples(flow, autoencoder, plan.folder / f"samples_{step:06d}.png") if step % 1000 == 0 else {}

    run = train(plan, model, loss_of, validate)
    use_averaged_weights(run)
    export(
        run, model.weights(), show_samples(flow, autoencoder, plan.folder / "samples_final.png"), FluxShape().config()
    )


def _on_the_way(latents: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Latents somewhere between picture and noise, their times and the velocity from the one to the other.

    Times are half even and half logit-normal (arXiv:2403.03206); a share START_SHARE is pure noise.
    """
    noise = torch.randn(latents.shape, generator=generator)
    count = len(latents)
    middle = torch.randn(count, generator=generator).sigmoid()
    times = torch.where(torch.rand(count, generator=generator) < 0.5, torch.rand(count, generator=generator), middle)
    times = times.masked_fill(torch.rand(count, generator=generator) < START_SHARE, 1.0)
    noise, times = noise.to(latents), times.to(latents)
    share = times[:, None, None, None]
    return latents.lerp(noise, share), times, noise - latents


def _examples(
    seed: int, flow: FlowModel, embedder: PictureEmbedder, device: torch.device
) -> tuple[CaptionedPool, Tensor, Tensor]:
    """Scenes and views with captions, how much each latent counts, and what the picture encoder sees in each patch.

    The last is (pictures, 64, width) in half precision, standardised.
    """
    scenes, views = open_pool(POOL_SIZE, seed, device), open_view_pool(VIEWS, seed, device)
    captions = write_captions(scenes.scenes, seed)
    captions += [caption for chunk in views.chunks for caption in view_captions(chunk, seed)]
    weights = 1 + (FIGURE_WEIGHT - 1) * torch.cat([scenes.coverage(), views.coverage()])
    pool = CaptionedPool(torch.cat([scenes.latents, views.latents]), captions, flow.text)
    seen = torch.cat([scenes.seen(embedder, device), views.seen(embedder, device)])[:, 1:]
    few = seen[::16].float()
    return pool, weights.to(device), ((seen - few.mean(dim=(0, 1))) / few.std(dim=(0, 1))).half()


@torch.no_grad()
def show_samples(flow: FlowModel, autoencoder: Autoencoder, path: Path) -> dict[str, Any]:
    """Writes drawings above samples for the same captions of held-out combinations; returns colour errors."""
    scenes = sample_scenes(24, 5, "held_out")
    pictures = draw(scenes).pictures
    made = autoencoder.decode(flow.sample(full_captions(scenes), seed=1)).cpu()
    rows = [part for start in (0, 12) for part in (pictures[start : start + 12], made[start : start + 12])]
    save_picture(contact_sheet(torch.cat(rows), 12), path)
    return {"mean_colour_error": (made.mean(dim=(2, 3)) - pictures.mean(dim=(2, 3))).abs().mean().item()}
