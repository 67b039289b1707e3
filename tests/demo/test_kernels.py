"""A UNet whose kernels are cut: the host opens it, attention alone mixes places, and the code of places is held."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from semblance.demo.training.kernels import PLACE_CHANNELS, Cut, cut_kernels, stock_weights
from semblance.demo.training.muon import Muon, orthogonalised
from semblance.demo.training.networks import build_unet
from semblance.demo.training.places import place_code, teach_places

SIDE = 16


def woken(unet: Any) -> Any:
    """The UNet with its silent branches alive."""
    for parameter in unet.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return unet.eval()


def run(unet: Any, latents: Tensor, attention: bool = True) -> Tensor:
    def silent(query: Tensor, key: Tensor, value: Tensor, extra: Any) -> Tensor:
        return torch.zeros_like(query)

    from semblance.host.binding.unet import attention_sites

    rows = len(latents)
    sites = [(s.part, s.number, s.depth) for s in attention_sites(unet) if s.kind == "self"]
    options: dict[str, Any] = {"patches_replace": {} if attention else {"attn1": dict.fromkeys(sites, silent)}}
    text = {"context": torch.zeros(rows, 3, 128), "y": torch.zeros(rows, 1600)}
    return unet(latents, torch.full((rows,), 500.0), transformer_options=options, **text)


def reached(unet: Any, attention: bool) -> Tensor:
    """Where (SIDE, SIDE) the output changes if one latent in the middle does."""
    torch.manual_seed(3)
    latents = torch.randn(1, 4, SIDE, SIDE)
    moved = latents.clone()
    moved[:, :, 8, 8] += 20
    return (run(unet, moved, attention) - run(unet, latents, attention)).abs().amax(dim=(0, 1)) > 0


@torch.no_grad()
def test_the_hosts_own_unet_opens_the_weights_and_gives_the_same() -> None:
    torch.manual_seed(0)
    cut = build_unet("sdxl_figures")
    cut_kernels(cut)
    stock = build_unet("sdxl_figures")
    stock.load_state_dict(stock_weights(woken(cut)))
    latents = torch.randn(2, 4, SIDE, SIDE)
    torch.testing.assert_close(run(cut, latents), run(stock.eval(), latents), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_without_self_attention_a_latent_is_seen_no_further_than_the_finest_level_sees(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A normalisation tells every place the picture's mean, which is no business of kernels.
    monkeypatch.setattr(nn.GroupNorm, "forward", lambda norm, features: features * 0.5)
    torch.manual_seed(1)
    unet = build_unet("sdxl_figures")
    cut_kernels(unet)
    woken(unet)
    rows, columns = reached(unet, attention=False).nonzero().T
    # One token of the lowest level is four latents wide; four kernels on the way up see one further each.
    assert rows.min() >= 8 - 4 and rows.max() < 12 + 4
    assert columns.min() >= 8 - 4 and columns.max() < 12 + 4
    assert reached(unet, attention=True).all()


@pytest.mark.slow
def test_the_place_channels_learn_where_they_are_and_stay_so_in_training() -> None:
    torch.manual_seed(2)
    unet = build_unet("sdxl_figures")
    places = cut_kernels(unet)
    assert teach_places(unet, places, SIDE, steps=60, rate=8e-3) < 0.4
    before = {name: weight.detach().clone() for name, weight in unet.named_parameters()}
    optimizer = torch.optim.SGD(woken(unet).parameters(), 0.1)
    run(unet, torch.randn(2, 4, SIDE, SIDE)).pow(2).mean().backward()
    optimizer.step()
    moved = 0
    for name, module in unet.named_modules():
        if isinstance(module, Cut) and len(module.weight) > 4 and before[f"{name}.weight"].any():
            old, new = before[f"{name}.weight"], module.weight
            assert torch.equal(old[-PLACE_CHANNELS:], new[-PLACE_CHANNELS:])
            moved += int(not torch.equal(old, new))
    assert moved > 10


def test_the_code_tells_every_place_from_every_other() -> None:
    code = place_code(8).flatten(1).T
    apart = (code[:, None] - code).norm(dim=2) + 9 * torch.eye(64)
    assert apart.min() > 0.5


def test_muon_makes_a_matrix_nearly_orthogonal_and_learns_what_adam_learns() -> None:
    torch.manual_seed(4)
    values = torch.linalg.svdvals(orthogonalised(torch.randn(12, 40)))
    assert values.min() > 0.5 and values.max() < 1.3
    wanted, weight, bias = torch.randn(6, 5), nn.Parameter(torch.zeros(6, 5)), nn.Parameter(torch.zeros(6))
    optimizer = Muon([weight], [bias], lr=0.01, factor=2.0)
    seen = torch.randn(64, 5)
    for _ in range(300):
        optimizer.zero_grad()
        (seen @ weight.T + bias - seen @ wanted.T - 0.5).pow(2).mean().backward()
        optimizer.step()
    assert (weight - wanted).abs().max() < 0.1 and (bias - 0.5).abs().max() < 0.1
