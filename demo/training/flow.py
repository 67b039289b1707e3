"""Training of a transformer of Flux's layout as a rectified flow on latents of drawn pictures and their captions."""

from __future__ import annotations

from functools import cache

import torch
from comfy.model_sampling import flux_time_shift
from torch import Tensor, nn

from semblance.host.demo_models import FLUX_SHIFT

from ..world import PICTURE_SIZE
from .alignment import ALIGNMENT, Aligned, seen_patches
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
from .parts import Autoencoder, PictureEmbedder, TextContext, load_weights, part_exists
from .samples import show_samples
from .unet import EMPTY_SHARE, START_SHARE, CaptionedPool, captioned_pool, open_pools

GUIDANCE = 3.0
ALIGNED_BLOCK = 1  # of the single blocks


class FlowModel:
    """A transformer with its text encoder."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self.network, self.device = network, device
        self.text = TextContext.load("flux", device)

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
    return flux_time_shift(FLUX_SHIFT, 1.0, times)


def train_flow(plan: Plan, compiled: bool = False, batch: int = 64) -> None:
    """Trains on the pools; writes `transformer_flux` in the layout of the host's diffusion models.

    `compiled` has torch compile the network, which needs a C++ compiler and saves a tenth of the time.
    """
    seed_everything(plan.seed)
    device = best_device()
    embedder = PictureEmbedder("plus", device)
    model = Aligned(FluxTransformer(FluxShape()), FluxShape().hidden_size, embedder.width).to(device)
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
            unlike = model.unlike(states[ALIGNED_BLOCK], seen[rows])
        errors = (predicted - velocity).pow(2).mean(dim=1) * weights[rows] / weights[rows].mean()
        return errors.mean() / (1 + latents.pow(2).mean()) + ALIGNMENT * unlike

    def show(name: str) -> dict[str, float]:
        return show_samples(lambda captions: autoencoder.decode(flow.sample(captions, seed=1)), plan, name)

    run = train(plan, model, loss_of, lambda step: show(f"samples_{step:06d}") if step % 1000 == 0 else {})
    use_averaged_weights(run)
    export(run, model.weights(), show("samples_final"), FluxShape().config())


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
    """Scenes and views with captions, how much each latent counts, and what is seen in each patch."""
    pools, captions = open_pools(seed, device)
    pool, weights = captioned_pool(pools, captions, flow.text, device)
    return pool, weights, seen_patches(pools, embedder, device)
