"""Training of a VQ model in aMUSEd's layout: a picture as 16 x 16 tokens of a codebook, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from semblance.host.masked.settings import VQSettings
from semblance.host.masked.vq import VQModel

from ..world import draw, sample_scenes
from .autoencoder import draw_crops, drawn_again
from .loop import Plan, best_device, export, half_precision, seed_everything, train
from .networks import fresh_weights
from .sheets import contact_sheet, save_picture

SETTINGS = VQSettings(channels=(32, 32, 64, 64), blocks=1, latent=32, code=16, codebook=512, groups=8)
COMMITMENT = 0.25
MEMORY = 0.98
"""Of the running mean of the codes that chose an entry, which the entry is (arXiv:1711.00937, appendix A.1)."""
UNUSED = 0.05
"""An entry that is chosen this much less than the mean one takes the place of a code of the batch."""


class Quantised(nn.Module):
    """A VQ model whose codebook follows the codes by running means."""

    counts: Tensor
    sums: Tensor

    def __init__(self, settings: VQSettings = SETTINGS) -> None:
        super().__init__()
        self.vq = fresh_weights(VQModel(settings))
        book = self.vq.quantize.embedding.weight
        book.requires_grad_(False).normal_(std=0.5)
        self.register_buffer("counts", torch.ones(settings.codebook))
        self.register_buffer("sums", book.detach().clone())

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """The pictures drawn again, and how far their codes lie from the entries they chose."""
        codes = self.vq.quant_conv(self.vq.encoder(pictures)).float()
        tokens = self.vq.quantize.nearest(codes.detach())
        chosen = self.vq.quantize.embedding(tokens, out_dtype=codes.dtype).movedim(-1, 1)
        if self.training:
            self._follow(codes.detach().movedim(1, -1).flatten(0, 2), tokens.flatten())
        straight = codes + (chosen - codes).detach()  # the gradient passes the choice as if there were none
        return self.vq.decoder(self.vq.post_quant_conv(straight)), (codes - chosen).pow(2).mean()

    @torch.no_grad()
    def _follow(self, codes: Tensor, tokens: Tensor) -> None:
        counts = torch.zeros_like(self.counts).index_add_(0, tokens, torch.ones_like(codes[:, 0]))
        self.counts.lerp_(counts, 1 - MEMORY)
        self.sums.lerp_(torch.zeros_like(self.sums).index_add_(0, tokens, codes), 1 - MEMORY)
        unused = self.counts < UNUSED * self.counts.mean()
        if count := int(unused.sum()):
            self.counts[unused] = self.counts.mean()
            self.sums[unused] = codes[torch.randint(len(codes), (count,))] * self.counts.mean()
        self.vq.quantize.embedding.weight.copy_(self.sums / self.counts[:, None])


def train_vq(plan: Plan, crops: int = 16) -> None:
    """Trains on crops of freshly drawn pictures; writes `vq` as aMUSEd's VQ model is published."""
    seed_everything(plan.seed)
    device = best_device()
    model = Quantised().to(device)

    def loss_of(step: int) -> Tensor:
        pictures = draw_crops(crops, plan.seed + step, device)
        with half_precision(device):
            rebuilt, distance = model(pictures)
        return drawn_again(rebuilt.float() - pictures) + COMMITMENT * distance

    def validate(step: int) -> dict[str, float]:
        return show_tokens(model, plan.folder / f"reconstructions_{step:06d}.png", device)

    run = train(plan, model, loss_of, validate)
    figures = show_tokens(model, plan.folder / "reconstructions_final.png", device)
    export(run, model.vq.state_dict(), figures, {"norm_num_groups": SETTINGS.groups})


@torch.no_grad()
def show_tokens(model: Quantised, path: Path, device: torch.device) -> dict[str, Any]:
    """Writes pictures above what their tokens are drawn as; returns the error of 64 never drawn for training."""
    pictures = draw(sample_scenes(64, 991, "held_out"), device=device).pictures
    tokens = model.vq.encode(pictures)
    rebuilt = model.vq.decode(tokens).clamp(0, 1)
    save_picture(contact_sheet(torch.cat([pictures[:12], rebuilt[:12]]), 12), path)
    error = (rebuilt - pictures).pow(2).mean(dim=(1, 2, 3))
    used = (tokens.sum(dim=(0, 2, 3)) > 0).float().mean()
    return {"psnr_db": (-10 * error.log10()).mean().item(), "entries_used": used.item()}
