"""Training of the flow transformer: rectified flow on latents of drawn pictures and their captions.

Latents at time t are t parts noise and 1 - t parts picture; the network predicts noise less picture (arXiv:2209.03003,
arXiv:2403.03206). Its inner tokens are drawn towards what the demo's vision encoder sees in the clean picture at the
same place (REPA, arXiv:2410.06940): without that, figures were still blobs after 2,400 steps.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..captions import full_captions
from ..world import PICTURE_SIZE, draw, sample_scenes
from .flux import FLOW_CONFIG, build_flow, velocity, velocity_and_states
from .loop import Plan, best_device, export, seed_everything, train, use_averaged_weights
from .networks import VISION_CONFIG
from .parts import Autoencoder, PictureEmbedder, TextContext, load_weights, part_exists
from .pool import open_pool, open_view_pool
from .sheets import contact_sheet, save_picture
from .unet import EMPTY_SHARE, GUIDANCE, POOL_SIZE, START_SHARE, VIEWS, CaptionedPool, captioned_pool

NAME = "transformer_flux"
SEEN_WEIGHT = 0.5
STATES_WIDTH = VISION_CONFIG["hidden_size"]
TOKENS = 32  # of a caption; shorter ones are filled up, as the host does for Load Demo Model


class Trained(nn.Module):
    """What the training changes: the transformer, and a head that serves training only."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        width = FLOW_CONFIG["hidden_size"]
        self.seen = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, STATES_WIDTH))


class Flow:
    """The transformer with its text encoder."""

    def __init__(self, network: Any, device: torch.device) -> None:
        self.network, self.device = network, device
        self._text = TextContext.load("sd15", device)

    def text(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Context (captions, TOKENS, width) and pooled text (captions, EMBED_WIDTH)."""
        context, pooled = self._text(captions)
        return context[:, :TOKENS], pooled

    @torch.no_grad()
    def sample(self, captions: list[str], seed: int, guidance: float = GUIDANCE, steps: int = 25) -> Tensor:
        """Latents (captions, 4, 16, 16) by Euler's method in even steps, guided."""
        side = PICTURE_SIZE // 8
        latents = torch.randn((len(captions), 4, side, side), generator=torch.Generator().manual_seed(seed))
        latents, prompt = latents.to(self.device), self.text([""] * len(captions) + captions)
        for step in range(steps):
            times = torch.full((2 * len(captions),), 1 - step / steps, device=self.device)
            without, with_text = velocity(self.network, torch.cat([latents] * 2), times, *prompt).chunk(2)
            latents = latents - (without + guidance * (with_text - without)) / steps
        return latents


def train_flow(plan: Plan, batch: int = 32) -> None:
    """Trains from a pool encoded once; writes `transformer_flux` in the layout of Flux's files."""
    seed_everything(plan.seed)
    device = best_device()
    trained = Trained(build_flow()).to(device)
    if part_exists(NAME):
        trained.network.load_state_dict(host_layout(load_weights(NAME)))
    flow = Flow(trained.network, device)
    predict = torch.compile(velocity_and_states)  # a third less time on a CPU

    @cache
    def pool() -> tuple[CaptionedPool, Tensor, Tensor]:
        return *captioned_pool(plan.seed, flow.text, device), pictures_seen(plan.seed, device)

    def loss_of(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(plan.seed + step)
        captioned, weights, seen = pool()
        rows = torch.randint(len(captioned), (batch,), generator=generator)
        prompt = captioned.conditions(rows, torch.rand(batch, generator=generator) < EMPTY_SHARE)
        latents = captioned.latents(rows, "flux")
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        times = draw_times(batch, generator).to(latents)
        share = times[:, None, None, None]
        predicted, states = predict(flow.network, latents.lerp(noise, share), times, *prompt)
        errors = (predicted - (noise - latents)).pow(2).mean(dim=1)
        likeness = functional.cosine_similarity(trained.seen(states), seen[rows].to(states), dim=2)
        return (errors * weights[rows]).mean() / weights.mean() + SEEN_WEIGHT * (1 - likeness).mean()

    def validate(step: int) -> dict[str, float]:
        return show_samples(flow, plan.folder / f"samples_{step:06d}.png") if step % 600 == 0 else {}

    run = train(plan, trained, loss_of, validate)
    use_averaged_weights(run)
    figures = show_samples(flow, plan.folder / "samples_final.png")
    export(run, file_layout(flow.network.state_dict()), figures, FLOW_CONFIG)


def pictures_seen(seed: int, device: torch.device) -> Tensor:
    """What the vision encoder sees at each patch of every picture of the pool: (pictures, patches, STATES_WIDTH)."""
    embedder = PictureEmbedder("plus", device)
    scenes, views = open_pool(POOL_SIZE, seed, device), open_view_pool(VIEWS, seed, device)
    states = torch.cat([scenes.seen(embedder, device), views.seen(embedder, device)])[:, 1:]  # the first is the whole's
    return states - states.float().mean(dim=(0, 1)).to(states)


def draw_times(count: int, generator: torch.Generator) -> Tensor:
    """Times (count,) of examples: one half evenly, the other mostly from the middle; an eighth of all is pure noise."""
    evenly = torch.rand(count, generator=generator)
    middle = torch.randn(count, generator=generator).sigmoid()
    times = torch.where(torch.rand(count, generator=generator) < 0.5, evenly, middle)
    return times.masked_fill(torch.rand(count, generator=generator) < START_SHARE, 1.0)


def file_layout(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names as in Flux's published files, where the norms of queries and keys have a `scale`."""
    return {name.replace("_norm.weight", "_norm.scale"): weight for name, weight in weights.items()}


def host_layout(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of `file_layout`."""
    return {name.replace("_norm.scale", "_norm.weight"): weight for name, weight in weights.items()}


@torch.no_grad()
def show_samples(flow: Flow, path: Path) -> dict[str, float]:
    """Writes drawings above samples for the same captions of held-out combinations; returns colour errors."""
    scenes = sample_scenes(24, 5, "held_out")
    drawn = draw(scenes).pictures
    made = Autoencoder.load("flux", flow.device).decode(flow.sample(full_captions(scenes), seed=1)).cpu()
    rows = [part for s in (0, 12) for part in (drawn[s : s + 12], made[s : s + 12])]
    save_picture(contact_sheet(torch.cat(rows), 12), path)
    return {"mean_colour_error": (made.mean(dim=(2, 3)) - drawn.mean(dim=(2, 3))).abs().mean().item()}
