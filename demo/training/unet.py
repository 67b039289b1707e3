"""Training of a UNet of SDXL or SD 1.5 topology on latents of drawn pictures and their captions."""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..captions import write_captions
from ..layout_captions import view_captions
from ..world import PICTURE_SIZE
from .attention import plain_attention
from .diffusion import STEPS, add_noise, alphas_cumprod, sample, velocity_to
from .grafting import graft
from .loop import Plan, best_device, export, half_precision, seed_everything, train, use_averaged_weights
from .networks import build_unet, unet_config
from .parts import LATENT_SCALE, V_PREDICTION_KEY, Autoencoder, TextContext, load_weights, part_exists
from .pool import CHUNK, Pool, ViewPool, open_pool, open_view_pool
from .samples import show_samples

EMPTY_SHARE = 0.1  # captions left empty, for guidance
START_SHARE = 1 / 8  # examples of pure noise
UNPOOLED_SHARE = 0.9
"""Examples without the pooled text: what comes in by it goes past cross-attention, where adapters act."""
GUIDANCE = 3.0
POOL_SIZE, VIEWS = 12_288, 6_144  # scenes and views
FIGURE_WEIGHT = 2.0  # of an error on a figure, which is small and what one looks at first
Encode = Callable[[list[str]], tuple[Tensor, Tensor]]  # captions to contexts and pooled texts
DONOR = "unet_sdxl"
"""What both UNets start from, where it has been trained: the SDXL-like one goes on, the other takes what fits."""


class CaptionedPool:
    """Latents with one caption each, whose contexts are computed once."""

    def __init__(self, latents: Tensor, captions: Sequence[str], text: Encode) -> None:
        """`latents` are (pictures, 4, 16, 16) at SDXL's scale."""
        self._latents = latents
        words = list(dict.fromkeys(["", *captions]))  # the empty caption is the first
        encoded = [text(words[start : start + CHUNK]) for start in range(0, len(words), CHUNK)]
        self.contexts = torch.cat([context.half() for context, _ in encoded])  # some 20 kB a caption
        self.pooled = torch.cat([pooled for _, pooled in encoded])
        numbers = {caption: number for number, caption in enumerate(words)}
        self._caption = torch.tensor([numbers[caption] for caption in captions])

    def __len__(self) -> int:
        return len(self._latents)

    def latents(self, rows: Tensor, topology: str) -> Tensor:
        """At the topology's own scale: (rows, 4, 16, 16)."""
        return self._latents[rows].to(self.pooled) * (LATENT_SCALE[topology] / LATENT_SCALE["sdxl"])

    def conditions(self, rows: Tensor, empty: Tensor, unpooled: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Context and pooled text of these rows.

        Those marked in `empty` (rows,) have no words, those in `unpooled` (rows,) no pooled text.
        """
        words = torch.where(empty, 0, self._caption[rows])
        pooled = words if unpooled is None else torch.where(unpooled, 0, words)
        return self.contexts[words].float(), self.pooled[pooled]


class Denoiser:
    """A UNet with its text encoder, called as the host calls it."""

    def __init__(self, unet: Any, topology: str, device: torch.device) -> None:
        self.unet, self.topology, self.device = unet, topology, device
        self.text = TextContext.load(topology, device)

    def prompt(self, captions: list[str]) -> dict[str, Tensor]:
        """The UNet's conditions for captions, at the true picture size."""
        return self.conditions(*self.text(captions), picture_sizes(len(captions)))

    def conditions(self, context: Tensor, pooled: Tensor, sizes: Tensor) -> dict[str, Tensor]:
        """Context, and for SDXL the vector of pooled text and sizes: (rows, EMBED_WIDTH + 1536)."""
        if self.topology == "sd15":
            return {"context": context}
        return {"context": context, "y": torch.cat([pooled, size_embedding(sizes.to(self.device))], dim=1)}

    def __call__(self, latents: Tensor, timesteps: Tensor, prompt: dict[str, Tensor], replace=None) -> Tensor:
        """The predicted v; `replace` has cross-attentions by site."""
        options = {"optimized_attention_override": plain_attention, "patches_replace": {"attn2": replace or {}}}
        with half_precision(self.device):
            return self.unet(latents, timesteps.float(), transformer_options=options, **prompt).float()

    def sample(
        self, captions: list[str], seed: int, guidance: float = GUIDANCE, replace=None, steps: int = 25
    ) -> Tensor:
        """Latents (captions, 4, 16, 16) after guided sampling; rows of `replace` come unconditional first."""
        generator = torch.Generator().manual_seed(seed)
        side = PICTURE_SIZE // 8
        noise = torch.randn((len(captions), 4, side, side), generator=generator).to(self.device)
        prompt = self.prompt([""] * len(captions) + captions)

        def predict(latents: Tensor, timesteps: Tensor) -> Tensor:
            both = self(torch.cat([latents] * 2), torch.cat([timesteps] * 2), prompt, replace)
            without, with_text = both.chunk(2)
            return without + guidance * (with_text - without)

        return sample(predict, noise, steps)


def train_unet(plan: Plan, topology: str, batch: int = 32) -> None:
    """Trains from a pool encoded once; writes `unet_TOPOLOGY` in the layout of the host's diffusion models."""
    seed_everything(plan.seed)
    device = best_device()
    unet = build_unet(topology)
    if part_exists(DONOR):
        graft(unet, load_weights(DONOR), topology)  # form and texture are drawn the same way in both
    unet = unet.to(device)  # not channels-last: its group norm is slow on a CPU in bf16
    denoiser = Denoiser(unet, topology, device)
    autoencoder = Autoencoder.load(topology, device)

    @cache
    def pool() -> tuple[CaptionedPool, Tensor]:
        return captioned_pool(*open_pools(plan.seed, device), denoiser.text, device)

    def loss_of(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(plan.seed + step)
        captioned, weights = pool()
        rows = torch.randint(len(captioned), (batch,), generator=generator)
        empty = torch.rand(batch, generator=generator) < EMPTY_SHARE
        unpooled = torch.rand(batch, generator=generator) < UNPOOLED_SHARE
        prompt = denoiser.conditions(*captioned.conditions(rows, empty, unpooled), picture_sizes(batch, generator))
        latents = captioned.latents(rows, topology)
        return denoising_loss(lambda x, t: denoiser(x, t, prompt), latents, generator, weights[rows])

    def show(name: str) -> dict[str, float]:
        unet.eval()
        figures = show_samples(lambda captions: autoencoder.decode(denoiser.sample(captions, seed=1)), plan, name)
        unet.train()
        return figures

    def validate(step: int) -> dict[str, float]:
        return show(f"samples_{step:06d}") if step % 600 == 0 else {}

    run = train(plan, unet, loss_of, validate)
    use_averaged_weights(run)
    weights = {**unet.state_dict(), V_PREDICTION_KEY: torch.zeros(1)}
    export(run, weights, show("samples_final"), unet_config(topology))


def captioned_pool(
    pools: tuple[Pool, ViewPool], captions: Sequence[str], text: Encode, device: torch.device
) -> tuple[CaptionedPool, Tensor]:
    """Scenes and views with their captions, and how much each latent counts: (pictures, 16, 16)."""
    weights = 1 + (FIGURE_WEIGHT - 1) * torch.cat([pool.coverage() for pool in pools])
    return CaptionedPool(torch.cat([pool.latents for pool in pools]), captions, text), weights.to(device)


def open_pools(seed: int, device: torch.device) -> tuple[tuple[Pool, ViewPool], list[str]]:
    """Scenes and views, and a caption for each."""
    scenes, views = open_pool(POOL_SIZE, seed, device), open_view_pool(VIEWS, seed, device)
    captions = write_captions(scenes.scenes, seed)
    captions += [caption for chunk in views.chunks for caption in view_captions(chunk, seed)]
    return (scenes, views), captions


def denoising_loss(predict, latents: Tensor, generator: torch.Generator, weights: Tensor | None = None) -> Tensor:
    """Squared error of the predicted v in units of its own spread, so that each noise level counts alike.

    `predict` takes noisy latents and timesteps; `weights` (rows, height, width) say how much each latent counts. A
    share START_SHARE is pure noise, where sampling starts: the last level of the schedule still holds a trace of the
    picture, and a network that learns to read it there looks for it in noise that has none, and does not listen to the
    words.
    """
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    timesteps = draw_timesteps(len(latents), generator).to(latents.device)
    start = (torch.rand(len(latents), generator=generator) < START_SHARE).to(latents.device)
    timesteps = timesteps.masked_fill(start, STEPS - 1)
    noisy = torch.where(start[:, None, None, None], noise, add_noise(latents, noise, timesteps))
    errors = (predict(noisy, timesteps) - velocity_to(latents, noisy, timesteps)).pow(2).mean(dim=1)
    errors = (errors if weights is None else errors * weights / weights.mean()).mean(dim=(1, 2))
    kept = alphas_cumprod().to(latents)[timesteps]
    return (errors / (kept + (1 - kept) * latents.pow(2).mean())).mean()


def draw_timesteps(count: int, generator: torch.Generator) -> Tensor:
    """Timesteps (count,) of examples: one half evenly, the other mostly from the middle, where form is settled.

    The logit-normal density of arXiv:2403.03206.
    """
    evenly = torch.randint(STEPS, (count,), generator=generator)
    middle = (torch.randn(count, generator=generator).sigmoid() * STEPS).long().clamp(0, STEPS - 1)
    return torch.where(torch.rand(count, generator=generator) < 0.5, evenly, middle)


def picture_sizes(count: int, generator: torch.Generator | None = None) -> Tensor:
    """SDXL's six numbers (count, 6): height, width, crop, target, in pixels; one in four at random in training.

    The host passes the latent's true size; the random ones teach the network that nothing hangs on them.
    """
    sizes = torch.tensor([[PICTURE_SIZE, PICTURE_SIZE, 0, 0, PICTURE_SIZE, PICTURE_SIZE]]).float().repeat(count, 1)
    if generator is None:
        return sizes
    chosen = torch.rand((count, 1), generator=generator) < 0.25
    return torch.where(chosen, torch.rand((count, 6), generator=generator) * 1024, sizes)


def size_embedding(sizes: Tensor) -> Tensor:
    """Sinusoids of each number, 256 wide, as the host's Timestep(256) gives: (count, 6) -> (count, 1536)."""
    frequencies = torch.exp(-math.log(10000) * torch.arange(128, device=sizes.device) / 128)
    angles = sizes[:, :, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=2).flatten(1)
