"""Training of the autoencoder in TAESD's layout: picture -> latent of 4 channels, 8 pixels a latent, and back."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..world import draw, sample_scenes
from .loop import Plan, Run, best_device, export, half_precision, seed_everything, train, use_averaged_weights
from .networks import build_autoencoder
from .parts import load_part
from .sheets import contact_sheet, save_picture

CROP = 64  # pixels
LATENT_STD = 1.7
"""Deviation of the latents an SDXL UNet is shown: twice that of large models, whose latents are four times as wide.
On 16 x 16 latents the common schedule's noise would hide all texture until its last fifth (arXiv:2301.11093, 3.1)."""
SDXL_SCALE = 0.13025  # what the host multiplies SDXL latents with


def train_autoencoder(plan: Plan, crops: int = 16) -> None:
    """Trains on crops of freshly drawn pictures and writes one file that the stock VAE loader opens."""
    seed_everything(plan.seed)
    device = best_device()
    model = build_autoencoder().to(device, memory_format=torch.channels_last)
    for frozen in (model.vae_scale, model.vae_shift):
        frozen.requires_grad_(False)

    run = train_on_crops(plan, model, crops, device)
    use_averaged_weights(run)
    settle_latent_scale(model, device)
    figures = show_reconstructions(model, plan.folder / "reconstructions_final.png", device)
    export(run, model.state_dict(), figures)


def refine_decoder(plan: Plan, crops: int = 16) -> None:
    """Trains the decoder on while the encoder stands still: what was trained on its latents stays true."""
    seed_everything(plan.seed)
    device = best_device()
    model = load_part(build_autoencoder(), "autoencoder", device).to(memory_format=torch.channels_last).train()
    model.taesd_decoder.requires_grad_(True)

    run = train_on_crops(plan, model, crops, device)
    figures = show_reconstructions(model, plan.folder / f"reconstructions_{run.step:06d}.png", device)
    run.plan = replace(plan, name="autoencoder")
    export(run, model.state_dict(), figures)


def train_on_crops(plan: Plan, model: Any, crops: int, device: torch.device) -> Run:
    """Trains whatever of the model is not frozen to draw `crops` crops again at every step."""

    def loss_of(step: int) -> Tensor:
        pictures = draw_crops(crops, plan.seed + step, device)
        with half_precision(device):
            return reconstruction_loss(model, pictures)

    def validate(step: int) -> dict[str, float]:
        return show_reconstructions(model, plan.folder / f"reconstructions_{step:06d}.png", device)

    return train(plan, model, loss_of, validate)


def reconstruction_loss(model: Any, pictures: Tensor) -> Tensor:
    """How far pictures drawn again from noisy latents lie from themselves, with latents that are uneven."""
    latents = model.taesd_encoder(pictures)
    noisy = latents + 0.05 * torch.randn_like(latents)
    return drawn_again(model.taesd_decoder(noisy).float() - pictures) + 0.05 * unevenness(latents)


def drawn_again(difference: Tensor) -> Tensor:
    """The size of a `difference` of pictures: at full size, of edges, and of colours averaged over 8 pixels.

    Differences of hue count twice more: they are small in RGB, and without this one direction of colour is lost.
    """
    edges = difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
    red, green, blue = functional.avg_pool2d(difference, 8).unbind(1)
    hues = (red - green).abs().mean() + (blue - (red + green) / 2).abs().mean()
    colours = (red.abs() + green.abs() + blue.abs()).mean() / 3 + 2.0 * hues
    return difference.abs().mean() + difference.pow(2).mean() + 0.5 * edges + colours


def unevenness(latents: Tensor) -> Tensor:
    """How far the channels are from mean 0 and deviation 1, which a noise of equal strength on all asks for."""
    channels = latents.float().transpose(0, 1).flatten(1)
    return channels.mean(dim=1).pow(2).sum() + (channels.std(dim=1) - 1).pow(2).sum()


def draw_crops(count: int, seed: int, device: torch.device) -> Tensor:
    """Freshly drawn pictures cut to CROP pixels square at a random place: (count, 3, CROP, CROP)."""
    pictures = draw(sample_scenes(count, seed), device=device).pictures
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, pictures.shape[-1] - CROP + 1, (count, 2), generator=generator).tolist()
    crops = [p[:, top : top + CROP, left : left + CROP] for p, (top, left) in zip(pictures, corners, strict=True)]
    return torch.stack(crops).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def settle_latent_scale(model: Any, device: torch.device) -> None:
    """Sets `vae_scale` and `vae_shift` so that SDXL's latents have mean 0 and deviation LATENT_STD."""
    pictures = draw(sample_scenes(256, 77), device=device).pictures
    latents = model.taesd_encoder(pictures)
    scale = latents.std() / LATENT_STD * SDXL_SCALE
    model.vae_scale.copy_(scale)
    model.vae_shift.copy_(-latents.mean() / scale)


@torch.no_grad()
def show_reconstructions(model: Any, path: Path, device: torch.device) -> dict[str, float]:
    """Writes pictures above their reconstructions and returns the error of 64 never drawn for training."""
    pictures = draw(sample_scenes(64, 991, "held_out"), device=device).pictures
    latents = model.taesd_encoder(pictures)
    rebuilt = model.taesd_decoder(latents).clamp(0, 1)
    save_picture(contact_sheet(torch.cat([pictures[:12], rebuilt[:12]]), 12), path)
    error = (rebuilt - pictures).pow(2).mean(dim=(1, 2, 3))
    return {
        "psnr_db": (-10 * error.log10()).mean().item(),
        "latent_mean": latents.mean().item(),
        "latent_std": latents.std().item(),
        "latent_largest": latents.abs().max().item(),
    }
