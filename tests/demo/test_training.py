"""The training script: a killed run goes on as if it had not been, and every command writes what its reader opens."""

from __future__ import annotations

import json
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from semblance.attention.adapters.checkpoint import recognise
from semblance.attention.functional.word_maps import attention_to_words
from semblance.demo import train
from semblance.demo.shapes import SHAPES
from semblance.demo.training import flow, loop, masked, parts, pool, unet, vq
from semblance.demo.training.loop import Plan
from semblance.demo.training.networks import build_unet
from semblance.host.masked.files import read_part, transformer_of, vq_of


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where models and runs are written: a folder of the test's own, with a pool of one chunk."""
    for module in (loop, parts):
        monkeypatch.setattr(module, "MODELS_FOLDER", tmp_path / "models")
    for module in (loop, pool):
        monkeypatch.setattr(module, "RUNS_FOLDER", tmp_path / "runs")
    from semblance.demo.training import adapter, encoders, words

    monkeypatch.setattr(encoders, "RUNS_FOLDER", tmp_path / "runs")
    monkeypatch.setattr(pool, "SHARD", 64)
    for module in (unet, adapter, words):
        monkeypatch.setattr(module, "POOL_SIZE", 64)
    monkeypatch.setattr(unet, "VIEWS", 64)
    return tmp_path


def noisy_loss(model: nn.Module) -> loop.Loss:
    """One that draws from torch's own generator as well, as dropout or added grain do."""
    return lambda step: (model(torch.randn(4, 3)) - step).pow(2).mean()


def weights_after(folder: Path, *stops: int) -> dict[str, Tensor]:
    """Trains a layer in as many pieces as there are `stops`, the last of which is the end."""
    for stop in stops:
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        plan = Plan("layer", stops[-1], 1e-2, seed=5, warmup=2, average=0.9, checkpoint_every=1)

        def loss_of(step: int, stop: int = stop, model: nn.Module = model) -> Tensor:
            if step == stop:
                raise KeyboardInterrupt
            return noisy_loss(model)(step)

        try:
            run = loop.train(plan, model, loss_of, lambda step: {})
        except KeyboardInterrupt:
            continue
        loop.use_averaged_weights(run)
        return {name: value.clone() for name, value in model.state_dict().items()}
    raise AssertionError("the run never reached its end")


def test_a_killed_run_goes_on_as_if_it_had_never_stopped(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = weights_after(folders, 7)
    monkeypatch.setattr(loop, "RUNS_FOLDER", folders / "pieces")
    pieces = weights_after(folders, 2, 5, 7)
    for name, weight in whole.items():
        assert torch.equal(weight, pieces[name]), name


def test_the_rate_rises_and_falls_by_the_plan() -> None:
    plan = Plan("any", 1000, 1e-3, seed=0, warmup=100)
    assert plan.rate_at(0) == pytest.approx(1e-5) and plan.rate_at(99) == pytest.approx(1e-3)
    assert plan.rate_at(550) == pytest.approx(1e-3 * 0.505) and plan.rate_at(1000) == pytest.approx(1e-5)


@pytest.mark.behaviour
def test_every_command_trains_from_nothing_and_writes_its_file(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step each, in the order of the model card; each stands on the files of those before."""
    monkeypatch.setattr(train, "use_library", lambda cpu: None)  # the tests have done so
    # Samples are only looked at here, and take four fifths of the time.
    for model in (unet.Denoiser, flow.FlowModel, masked.MaskedPainter):
        monkeypatch.setattr(model, "sample", partialmethod(model.sample, steps=2))
    commands = {
        "autoencoder": "autoencoder",
        "text": "text_encoder",
        "vision": "clip_vision",
        "judge": "judge",
        "unet": "unet_sdxl",
        "flow": "transformer_flux",
        "vq": "vq",
        "masked": "transformer_amused",
        "adapter": "ipadapter/semblance_demo_sdxl",
        "adapter --variant plus": "ipadapter/semblance_demo_sdxl_plus",
        "adapter --blocks output.1": "ipadapter/semblance_demo_sdxl_style",
        "words": "loras/semblance_demo_words",
    }
    for command, name in commands.items():
        train.main([*command.split(), "--steps", "1"])
        path = folders / "models" / f"{name}.safetensors"
        weights, record = load_file(path), json.loads(path.with_suffix(".json").read_text())
        assert all(torch.isfinite(weight.float()).all() for weight in weights.values()), name
        assert record["steps_done"] == 1 and record["figures"] and record["seconds"] >= 0
        if command.startswith("adapter"):
            layout = recognise(weights)
            assert layout.variant == ("plus" if "plus" in command else "base")
    transformer, tokens = (folders / "models" / f"{commands[name]}.safetensors" for name in ("masked", "vq"))
    assert transformer_of(read_part(transformer, "transformer")) == masked.SETTINGS
    assert vq_of(read_part(tokens, "VQ model")) == vq.SETTINGS


def test_an_adapter_for_some_blocks_trains_those_alone_and_keeps_the_files_layout() -> None:
    from semblance.demo.training.adapter import IPAdapter
    from semblance.demo.training.networks import build_unet

    adapter = IPAdapter(build_unet("sdxl"), "sdxl", "base", ["output.1"])
    trained = {name for name, parameter in adapter.ip_adapter.named_parameters() if parameter.requires_grad}
    numbers = {str(adapter.numbers[site]) for site in adapter.trained_sites}
    assert {site.block for site in adapter.trained_sites} == {"output.1"} and len(numbers) == 2
    assert {name.split(".")[0] for name in trained} == numbers
    assert len(recognise(adapter.state_dict()).widths) == len(adapter.numbers)


def test_the_sd15_network_starts_from_what_the_sdxl_one_has_learnt() -> None:
    from semblance.demo.training.grafting import graft
    from semblance.demo.training.networks import build_unet

    unet, donor = build_unet("sd15"), build_unet("sdxl").state_dict()
    before = {name: weight.clone() for name, weight in unet.state_dict().items()}
    copied = graft(unet, donor, "sd15")
    after = unet.state_dict()
    assert torch.equal(after["output_blocks.3.0.in_layers.2.weight"], donor["output_blocks.0.0.in_layers.2.weight"])
    block = "transformer_blocks.0.attn2.to_k.weight"
    towers = donor[f"input_blocks.4.1.{block}"].chunk(2, dim=1)
    assert torch.equal(after[f"input_blocks.4.1.{block}"], towers[0] + towers[1])
    linear, convolution = donor["input_blocks.4.1.proj_in.weight"], after["input_blocks.4.1.proj_in.weight"]
    assert torch.equal(convolution[:, :, 0, 0], linear)
    for fresh in ("input_blocks.10.0.in_layers.2.weight", "output_blocks.0.0.in_layers.2.weight"):
        assert torch.equal(after[fresh], before[fresh])
    assert 0.6 * len(after) < copied < len(after)


def test_a_captions_word_for_its_shape_is_found_among_the_tokens() -> None:
    from semblance.demo.training.words import word_shares

    star = word_shares("a small star on the left", SHAPES.index("star"))
    assert star.nonzero().flatten().tolist() == [3] and star.sum() == 1
    cactus = word_shares("a desert plant below", SHAPES.index("cactus"))
    assert cactus.nonzero().flatten().tolist() == [2, 3] and cactus.sum() == 1
    with pytest.raises(ValueError, match="no word for heart"):
        word_shares("a star", SHAPES.index("heart"))


def test_words_that_are_not_yet_taught_are_looked_up_as_the_unet_does() -> None:
    from semblance.demo.training.words import WordLoRA

    lora = WordLoRA(build_unet("sdxl"))
    generator = torch.Generator().manual_seed(0)
    seen = [torch.randn((2, 16, a.to_q.in_features), generator=generator) for a in lora.attentions]
    context = torch.randn((2, 77, 128), generator=generator)
    words = torch.zeros(2, 77)
    words[:, 2] = 1
    maps, moved = lora.look_up(seen, context, words)
    assert moved < 1e-9 and maps.shape == (2, 16)
    expected = [
        attention_to_words(a.to_q(x), a.to_k(context), a.heads, words[:, :, None])[:, 0]
        for a, x in zip(lora.attentions, seen, strict=True)
    ]
    torch.testing.assert_close(maps, torch.stack(expected).mean(dim=0))
