"""Invert Image and StyleID on flow models as a person connects them: the way back, files, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.utils  # noqa: F401  (puts ComfyUI on the path)
import folder_paths
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from semblance.attention.methods.styleid.joint import JointStyleID
from semblance.attention.methods.styleid.method import StyleID as StyleIDPatch
from semblance.attention.references.trajectory import ReferenceTrajectory
from semblance.host.binding.model import map_transformer, patches_on
from semblance.host.inversion import solver
from semblance.host.inversion.trajectory_files import read_trajectory, write_trajectory
from semblance.nodes.edit_friendly import InvertEditFriendly
from semblance.nodes.inversion import InvertImage, LoadTrajectory, SaveTrajectory
from semblance.nodes.styleid import StyleID
from semblance.tests.support.graphs import relative_error, run
from semblance.tests.support.speeds import slow_but
from semblance.tests.support.studio import record_calls
from semblance.tests.support.transformers import TRANSFORMERS, TransformerFamily
from semblance.tests.tiny_models import make_conditioning, make_unet, sampler_custom

STEPS = 8


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    return tmp_path / "temp"


@pytest.fixture
def flow_unet() -> ModelPatcher:
    """A UNet that is sampled as a rectified flow, as some finetunes of SDXL are."""
    return ModelSamplingSD3().patch(make_unet("sd15"), 1.0)[0]


def inverted(model: Any, content: dict[str, Any], style: dict[str, Any] | None = None, **settings: Any) -> Any:
    """The outputs of Invert Image: content, noise, style, report, sigmas, sampler."""
    settings = {"steps": STEPS, "convention": "styleid", "guidance": 1.0, "check": False} | settings
    return run(InvertImage, model, content, style=style, **settings).result


def painted(model: Any, content: ReferenceTrajectory, style: ReferenceTrajectory, **settings: Any) -> Any:
    """The outputs of StyleID: model, latent, sigmas, sampler."""
    chosen: dict[str, Any] = {
        "preset": {"preset": "balanced"},
        "blocks": {"blocks": "family"},
        "strength": 1.0,
        "adain": 1.0,
        "start_mode": "official",
        "start": 0.0,
        "end": 1.0,
    }
    return run(StyleID, model, content, style, **(chosen | settings)).result


def loud(family: TransformerFamily, seed: int) -> dict[str, Any]:
    """Noise as loud as an encoded picture."""
    return {"samples": family.latent(1, 8, 12, seed=seed)["samples"] * 2.7}


def latent(seed: int, images: int = 1) -> dict[str, Any]:
    return {"samples": torch.randn(images, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) * 4}


def sampled(model: Any, text: Any, start: dict[str, Any], sigmas: Tensor, sampler: Any, **settings: Any) -> Tensor:
    return sampler_custom(model, text, text, start, sigmas, sampler=sampler, **settings)


@pytest.mark.parametrize("name", slow_but(("flux", "qwen_image", "z_image"), ("flux", "qwen_image")))
def test_the_nodes_own_sampler_goes_the_way_back(name: str) -> None:
    """ComfyUI's own would scale the noise to nothing, and a latent of Qwen-Image has frames."""
    family = TRANSFORMERS[name]
    model, text = family.model(), family.conditioning()
    picture, other = loud(family, 5), loud(family, 6)
    content, noise, style, report, sigmas, sampler = inverted(model, picture, other, text=text, check=True)
    assert content.images == style.images == 1 and content.convention == style.convention == "midpoint"
    assert noise["samples"].shape == picture["samples"].shape and "relative error of" in report
    back = sampled(model, text, noise, sigmas, sampler)
    assert relative_error(back, picture["samples"]) < 0.2
    assert torch.equal(sampled(model, text, noise, sigmas, sampler, add_noise=True), back)
    assert "midpoint" in repr(content) and "sigma 0 to 1" in repr(content)


def test_each_step_of_both_ways_costs_two_calls() -> None:
    family = TRANSFORMERS["flux"]
    model, calls = record_calls(family.model())
    inverted(model, family.latent(1, seed=5), text=family.conditioning(), check=True)
    assert len(calls) == 2 * 2 * STEPS


def test_the_convention_is_not_asked_for_and_makes_no_second_inversion(monkeypatch: pytest.MonkeyPatch) -> None:
    family, made = TRANSFORMERS["flux"], []
    original = solver.invert
    monkeypatch.setattr("semblance.nodes.inversion.invert", lambda *given: made.append(given) or original(*given))
    model, text = family.model(), family.conditioning()
    first, *_ = inverted(model, family.latent(1, seed=5), text=text)
    again, *_ = inverted(model, family.latent(1, seed=5), text=text, convention="ddim")
    assert len(made) == 1 and torch.equal(first.latents, again.latents) and first.stamp == again.stamp
    for change in (
        {"steps": STEPS + 1},
        {"text": family.conditioning(seed=9)},
        {"text": family.conditioning(guidance=2.0)},
    ):
        count = len(made)
        inverted(model, family.latent(1, seed=5), **({"text": text} | change))
        assert len(made) == count + 1


def test_a_saved_trajectory_of_a_flow_comes_back(models: Path) -> None:
    family = TRANSFORMERS["qwen_image"]
    content, *_ = inverted(family.model(), family.latent(1, seed=5), text=family.conditioning())
    again = run(LoadTrajectory, run(SaveTrajectory, content, "house", "float32")[0])[0]
    assert torch.equal(again.latents, content.latents) and again.at(0.3).equal(content.at(0.3))
    assert (again.sigmas, again.steps, again.convention, again.stamp) == (
        content.sigmas, content.steps, content.convention, content.stamp,
    )  # fmt: skip
    assert again.embedded_guidance is content.embedded_guidance is None


def test_a_saved_trajectory_keeps_the_guidance_of_its_text_and_an_older_file_opens_without(
    models: Path, tmp_path: Path
) -> None:
    family = TRANSFORMERS["flux"]
    content, *_ = inverted(family.model(), loud(family, 5), text=family.conditioning(guidance=2.5))
    assert content.embedded_guidance == 2.5
    again = run(LoadTrajectory, run(SaveTrajectory, content, "house", "float32")[0])[0]
    assert again.embedded_guidance == 2.5
    written = tmp_path / "new.safetensors"
    write_trajectory(written, content, "0")
    with safe_open(written, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        described = {name: text for name, text in file.metadata().items() if name != "embedded_guidance"}
    save_file(tensors, tmp_path / "old.safetensors", described)
    old, _ = read_trajectory(tmp_path / "old.safetensors", "old")
    assert old.embedded_guidance is None and torch.equal(old.latents, content.latents)


def test_an_edit_friendly_inversion_refuses_a_flow() -> None:
    family = TRANSFORMERS["flux"]
    settings = {"steps": 4, "seed": 0, "guidance": 1.0, "skip": 0.0, "check": False, "text": family.conditioning()}
    with pytest.raises(ValueError, match="is a flow model, whose steps have no noise"):
        run(InvertEditFriendly, family.model(), family.latent(1, seed=5), **settings)


@pytest.mark.parametrize("words", [False, True])
def test_a_transformer_that_is_no_flow_is_refused_with_a_text_and_without(words: bool) -> None:
    family = TRANSFORMERS["cosmos2"]
    with pytest.raises(ValueError, match="Cosmos 2 transformer that is not sampled as a rectified flow"):
        inverted(family.model(), family.latent(1, seed=5), text=family.conditioning() if words else None)


# StyleID on a UNet that is a flow


def test_the_contents_own_features_give_the_content_back(flow_unet: ModelPatcher) -> None:
    """With gamma 1, temperature 1 and the content as its own style, every attention sees what it saw anyway."""
    text = make_conditioning("sd15", seed=1)
    content, noise, style, _, sigmas, sampler = inverted(flow_unet, latent(1), latent(2), text=text, steps=40)
    own = {"preset": {"preset": "custom", "gamma": 1.0, "temperature": 1.0}}
    patched, start, levels, way = painted(flow_unet, content, content, **own)
    assert torch.equal(levels, sigmas) and relative_error(start["samples"], noise["samples"]) < 1e-5
    plain = sampled(flow_unet, text, noise, sigmas, sampler)
    made = sampled(patched, text, start, levels, way)
    missed = relative_error(plain, latent(1)["samples"])
    near = 2 * missed + 1e-3
    assert relative_error(made, plain) < near
    other = painted(flow_unet, content, style, **own)[0]
    assert relative_error(sampled(other, text, start, levels, way), plain) > near, "another style is not so near"


def test_a_style_moves_the_picture_at_both_calls_of_a_step(flow_unet: ModelPatcher) -> None:
    text = make_conditioning("sd15", seed=1)
    content, _, style, _, _, _ = inverted(flow_unet, latent(1), latent(2), text=text)
    counted, calls = record_calls(flow_unet)
    patched, start, sigmas, sampler = painted(counted, content, style)
    made = sampled(patched, text, start, sigmas, sampler)
    assert len(calls) == 2 * STEPS
    plain, *_ = painted(flow_unet, content, style, strength=0.0)
    assert relative_error(made, sampled(plain, text, start, sigmas, sampler)) > 1e-3
    assert torch.equal(
        sampled(plain, text, start, sigmas, sampler), sampled(flow_unet, text, start, sigmas, sampler)
    ), "at strength 0 the model is untouched"
    assert patches_on(flow_unet) == () and isinstance(patches_on(patched)[0], StyleIDPatch)


def test_a_stock_sampler_is_refused_where_it_would_paint_from_nothing(flow_unet: ModelPatcher) -> None:
    text = make_conditioning("sd15", seed=1)
    content, _, style, _, _, _ = inverted(flow_unet, latent(1), latent(2), text=text)
    patched, start, sigmas, _ = painted(flow_unet, content, style)
    with pytest.raises(ValueError, match="scale an inverted picture to nothing"):
        sampled(patched, text, start, sigmas, "euler")
    ddim, *_ = inverted(make_unet("sd15"), latent(1), text=text)
    with pytest.raises(ValueError, match="a model that predicts eps, but this one predicts flow"):
        painted(flow_unet, content, ddim)


# StyleID on transformers


@pytest.mark.parametrize("name", slow_but(("flux", "qwen_image", "sd35"), ("flux", "qwen_image")))
def test_a_transformer_is_painted_from_the_styled_noise(name: str) -> None:
    family = TRANSFORMERS[name]
    model, text = family.model(), family.conditioning()
    content, _, style, _, _, _ = inverted(model, loud(family, 5), loud(family, 6), text=text)
    patched, start, sigmas, sampler = painted(model, content, style)
    (patch,) = patches_on(patched)
    assert isinstance(patch, JointStyleID) and "midpoint" in repr(patch)
    blocks = map_transformer(model).blocks
    assert list(patch.scope.blocks) == list(blocks[len(blocks) // 2 :])
    noise = model.model.process_latent_in(start["samples"])
    noise = noise[:, :, 0] if family.has_frames else noise
    assert torch.allclose(noise.mean(dim=(2, 3)), style.latents[-1].mean(dim=(2, 3)), atol=1e-4)
    made = sampled(patched, text, start, sigmas, sampler)
    assert made.shape == loud(family, 5)["samples"].shape
    assert relative_error(made, sampled(model, text, start, sigmas, sampler)) > 1e-3
    named = {"blocks": "custom", "weights": f"{blocks[0]}=1"}
    assert list(patches_on(painted(model, content, style, blocks=named)[0])[0].scope.blocks) == [blocks[0]]
    with pytest.raises(ValueError, match="scale an inverted picture to nothing"):
        sampled(patched, text, start, sigmas, "euler")
