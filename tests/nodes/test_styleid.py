"""Inversion and StyleID as a person connects them: files, batches, masks, prompts and neighbours on the same MODEL."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.utils  # noqa: F401  (puts ComfyUI on the path)
import folder_paths
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import nodes as host_nodes
from semblance.attention.references.trajectory import ReferenceTrajectory
from semblance.host.binding.model import patches_on
from semblance.host.conditioning import Text
from semblance.host.files import UnreadableFile
from semblance.host.identity import stamp_of
from semblance.host.inversion import ddim as inversion
from semblance.host.inversion.ddim import sample_back
from semblance.nodes.adain import AdaINLatent
from semblance.nodes.inversion import InvertImage, LoadTrajectory, SaveTrajectory
from semblance.nodes.styleid import PRESETS, StyleID
from semblance.tests.support.graphs import encode, load_adapter, picture, relative_error, run, styled
from semblance.tests.support.speeds import FAMILIES, slow, slow_but
from semblance.tests.tiny_models import (
    Family,
    ksampler,
    make_clip,
    make_clip_vision,
    make_conditioning,
    make_controlnet,
    make_unet,
    make_vae,
    sampler_custom,
    with_lora,
)
from semblance.tests.tiny_models.unets import UNET_CONFIGS, base_model, patcher_around
from semblance.tests.tiny_models.weights import seed_weights

STEPS = 4
CHANGED = 1e-3


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of the test's own, so that no test finds another's inversions."""
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    return tmp_path / "temp"


def latent(seed: int, images: int = 1, size: tuple[int, int] = (8, 8)) -> dict[str, Any]:
    return {"samples": torch.randn(images, 4, *size, generator=torch.Generator().manual_seed(seed)) * 4}


def inverted(model: Any, content: dict[str, Any], style: dict[str, Any] | None = None, **settings: Any) -> Any:
    """The outputs of Invert Image: content, noise, style, report, sigmas, sampler."""
    settings = {"steps": STEPS, "convention": "styleid", "guidance": 1.0, "check": False} | settings
    return run(InvertImage, model, content, style=style, **settings)


def painted(model: Any, content: ReferenceTrajectory, style: ReferenceTrajectory, **settings: Any) -> Any:
    """The outputs of StyleID: model, latent, sigmas, sampler."""
    chosen = {
        "preset": {"preset": "balanced"},
        "blocks": {"blocks": "family"},
        "strength": 1.0,
        "adain": 1.0,
        "start_mode": "exact",
        "start": 0.0,
        "end": 1.0,
    }
    return run(StyleID, model, content, style, **(chosen | settings))


def sampled(model: Any, start: dict[str, Any], sigmas: Tensor, kind: Family = "sd15", **settings: Any) -> Tensor:
    positive, negative = make_conditioning(kind, seed=1), make_conditioning(kind, seed=2)
    settings = {"positive": positive, "negative": negative} | settings
    return sampler_custom(model, settings.pop("positive"), settings.pop("negative"), start, sigmas, **settings)


@pytest.fixture(params=slow_but(FAMILIES, ("sd15",)))
def kind(request: pytest.FixtureRequest) -> Family:
    return request.param


@pytest.fixture
def pair() -> tuple[Any, ReferenceTrajectory, ReferenceTrajectory]:
    """A model, and a content and a style inverted with it."""
    model = make_unet("sd15")
    content, _, style, *_ = inverted(model, latent(1), latent(2)).result
    return model, content, style


def test_a_style_moves_the_picture_and_not_the_model(kind: Family) -> None:
    model = make_unet(kind)
    content, noise, style, *_ = inverted(model, latent(1), latent(2)).result
    assert content.images == style.images == 1 and noise["samples"].shape == (1, 4, 8, 8)
    patched, start, sigmas, _ = painted(model, content, style).result
    plain, _, _, _ = painted(model, content, style, strength=0.0).result
    made = sampled(patched, start, sigmas, kind)
    assert relative_error(made, sampled(model, start, sigmas, kind)) > CHANGED
    assert torch.equal(sampled(plain, start, sigmas, kind), sampled(model, start, sigmas, kind))
    assert patches_on(model) == ()


def test_the_nodes_own_sampler_and_noise_levels_go_the_way_back() -> None:
    model = make_unet("sd15")
    text = make_conditioning("sd15", seed=1)
    content, noise, _, _, sigmas, sampler = inverted(model, latent(1), convention="ddim", text=text).result
    made = sampled(model, noise, sigmas, positive=text, negative=text, sampler=sampler, add_noise=True)
    expected = sample_back(model, content, Text(text, text)) * (1 + content.sigmas[0] ** 2) ** 0.5
    assert relative_error(made, expected) < 1e-4


def test_every_setting_acts(pair: Any) -> None:
    model, content, style = pair
    _, start, sigmas, _ = painted(model, content, style).result
    ways: dict[str, dict[str, Any]] = {
        "balanced": {},
        "high style": {"preset": {"preset": "high style"}},
        "faithful": {"preset": {"preset": "faithful"}},
        "temperature": {"preset": {"preset": "custom", "gamma": 0.75, "temperature": 1.0}},
        "one block": {"blocks": {"blocks": "custom", "weights": "output.11=1"}},
        "half a block": {"blocks": {"blocks": "custom", "weights": "output.11=0.5"}},
        "strength": {"strength": 0.5},
        "late": {"start": 0.3},
        "early": {"end": 0.5},
        "masked": {"mask": torch.cat([torch.ones(1, 64, 32), torch.zeros(1, 64, 32)], dim=2)},
    }
    made = {name: sampled(painted(model, content, style, **way)[0], start, sigmas) for name, way in ways.items()}
    names = list(made)
    for place, one in enumerate(names):
        for other in names[place + 1 :]:
            assert relative_error(made[one], made[other]) > 1e-5, (one, other)
    own = painted(model, content, style, blocks={"blocks": "custom", "weights": ""})[0]
    assert torch.equal(sampled(own, start, sigmas), made["balanced"])
    assert set(PRESETS) == {"balanced", "high style", "faithful"}


def test_the_start_takes_the_styles_colours_as_far_as_adain_says(pair: Any) -> None:
    model, content, style = pair
    starts = [painted(model, content, style, adain=share)[1]["samples"] for share in (0.0, 0.5, 1.0)]
    assert torch.allclose(starts[1], (starts[0] + starts[2]) / 2, atol=1e-4)
    moved = run(AdaINLatent, {"samples": starts[0]}, painted(model, style, style, adain=0.0)[1], 1.0)[0]["samples"]
    assert torch.allclose(moved, starts[2], atol=1e-4)


def test_official_and_exact_starts_differ_by_a_step(pair: Any) -> None:
    model, content, style = pair
    official, exact = (painted(model, content, style, start_mode=mode) for mode in ("official", "exact"))
    assert len(exact[2]) == STEPS + 1 and len(official[2]) == STEPS
    assert relative_error(official[1]["samples"], exact[1]["samples"]) > CHANGED


def test_one_style_for_many_contents_many_for_one_and_pairs(pair: Any) -> None:
    model = pair[0]
    contents, _, styles, *_ = inverted(model, latent(1, 3), latent(2, 3)).result
    one_content, one_style = contents.select([0]), styles.select([0])
    for content, style, couples in (
        (contents, one_style, [(0, 0), (1, 0), (2, 0)]),
        (one_content, styles, [(0, 0), (0, 1), (0, 2)]),
        (contents, styles, [(0, 0), (1, 1), (2, 2)]),
    ):
        patched, start, sigmas, _ = painted(model, content, style).result
        batch = sampled(patched, start, sigmas)
        for image, (which, whose) in enumerate(couples):
            *alone, _ = painted(model, contents.select([which]), styles.select([whose])).result
            # Steps of a quarter of the schedule on a random network blow rounding up.
            assert relative_error(batch[image : image + 1], sampled(*alone)) < 1e-2
    with pytest.raises(ValueError, match="one picture for all, or one for each"):
        patched, start, sigmas, _ = painted(model, contents, styles).result
        sampled(patched, {"samples": start["samples"][:2]}, sigmas)


def test_a_prompt_with_guidance_is_followed_on_both_sides(pair: Any) -> None:
    model, content, style = pair
    patched, start, sigmas, _ = painted(model, content, style).result
    lone, guided = (sampled(patched, start, sigmas, cfg=cfg) for cfg in (1.0, 4.0))
    assert relative_error(lone, guided) > CHANGED
    other = sampled(patched, start, sigmas, cfg=4.0, positive=make_conditioning("sd15", seed=8))
    assert relative_error(other, guided) > CHANGED
    # The same text on both sides is the same as none pushed away from: the style acts on both alike.
    same = make_conditioning("sd15", seed=1)
    assert relative_error(sampled(patched, start, sigmas, cfg=4.0, negative=same), lone) < 1e-3


def test_the_mask_keeps_the_style_to_its_side(pair: Any) -> None:
    """Attention mixes places, so the other side moves too, but from the first step on by far less."""
    model, content, style = pair
    patched, start, sigmas, _ = painted(model, content, style, adain=0.0).result
    left = torch.cat([torch.ones(1, 64, 32), torch.zeros(1, 64, 32)], dim=2)
    masked = painted(model, content, style, adain=0.0, mask=left)[0]
    plain, whole, half = (sampled(m, start, sigmas[:2]) for m in (model, patched, masked))
    change = (half - plain).abs().mean(dim=(0, 1, 2))
    assert change[:4].mean() > 1.5 * change[4:].mean()
    everywhere = painted(model, content, style, adain=0.0, mask=torch.ones(1, 64, 64))[0]
    assert relative_error(sampled(everywhere, start, sigmas[:2]), whole) < 1e-4
    with pytest.raises(ValueError, match="There are 2 masks for 1 images"):
        sampled(painted(model, content, style, mask=torch.ones(2, 64, 64))[0], start, sigmas)


def test_lora_controlnet_and_instantstyle_act_beside_it(pair: Any, models: Path) -> None:
    model, content, style = pair
    patched, start, sigmas, _ = painted(model, content, style).result
    alone = sampled(patched, start, sigmas)
    lora = painted(with_lora(model), content, style)[0]
    assert relative_error(sampled(lora, start, sigmas), alone) > CHANGED

    positive, negative = host_nodes.ControlNetApplyAdvanced().apply_controlnet(
        make_conditioning("sd15", seed=1),
        make_conditioning("sd15", seed=2),
        make_controlnet("sd15"),
        picture(3, 64, 64),
        1.0,
        0.0,
        1.0,
    )
    controlled = sampled(patched, start, sigmas, positive=positive, negative=negative)
    assert relative_error(controlled, alone) > CHANGED

    reference = encode(load_adapter(models), make_clip_vision("h"), picture(1))
    before, after = styled(patched, reference), painted(styled(model, reference), content, style)[0]
    assert relative_error(sampled(before, start, sigmas), alone) > CHANGED
    assert relative_error(sampled(before, start, sigmas), sampled(after, start, sigmas)) < 1e-4


def test_a_choice_that_styleid_does_not_have_is_refused_with_those_it_has() -> None:
    """A preset that was not on offer ended in a KeyError, and blocks in InstantStyle's choices."""
    assert StyleID.validate_inputs(model=1, preset={}, blocks={}) is True
    said = [
        StyleID.validate_inputs(model=1, preset=preset, blocks=blocks) for preset, blocks in ((None, {}), ({}, None))
    ]
    assert said[0] == (
        "The choice for preset is missing or not on offer. Choose one of: balanced, high style, faithful, custom."
    )
    assert said[1] == "The choice for blocks is missing or not on offer. Choose one of: family, custom."


def test_added_noise_is_refused_before_the_first_step(pair: Any) -> None:
    model, content, style = pair
    patched, start, sigmas, _ = painted(model, content, style).result
    with pytest.raises(ValueError, match="adds fresh noise.*sampler of the StyleID node, or turn add_noise off"):
        sampled(patched, start, sigmas, add_noise=True)
    text = make_conditioning("sd15", seed=1)
    with pytest.raises(ValueError, match="adds fresh noise"):
        ksampler(patched, text, text, start, steps=STEPS, cfg=1.0, scheduler="ddim_uniform")


@pytest.mark.parametrize("add_noise", [False, True])
def test_the_sampler_of_the_node_adds_no_noise(pair: Any, add_noise: bool) -> None:
    model, content, style = pair
    patched, start, sigmas, own = painted(model, content, style).result
    made = sampled(patched, start, sigmas, sampler=own, add_noise=add_noise)
    assert torch.equal(made, sampled(patched, start, sigmas))


def test_an_inpainting_model_is_refused_before_the_inversion_and_before_the_first_step(pair: Any) -> None:
    _, content, style = pair
    model = patcher_around(base_model("sd15", {**UNET_CONFIGS["sd15"], "in_channels": 9}))
    seed_weights(model.model.diffusion_model, 0)
    model.model.set_inpaint()
    with pytest.raises(ValueError, match="takes 9 channels where a picture's latent has 4.*ordinary checkpoint"):
        inverted(model, latent(1), latent(2))
    stamp = stamp_of(model)
    content, style = (replace(trajectory, stamp=stamp) for trajectory in (content, style))
    patched, start, sigmas, _ = painted(model, content, style).result
    with pytest.raises(ValueError, match="takes 9 channels where the inverted pictures have 4.*ordinary checkpoint"):
        sampled(patched, start, sigmas)


@pytest.mark.parametrize("sampler", ["euler", slow("ddim")])
def test_the_plain_advanced_sampler_serves_as_documented(pair: Any, sampler: str) -> None:
    model = pair[0]
    content, _, style, *_ = inverted(model, latent(1), latent(2), steps=10).result
    patched, start, sigmas, _ = painted(model, content, style).result
    text = make_conditioning("sd15", seed=1)
    (made,) = host_nodes.KSamplerAdvanced().sample(
        patched, "disable", 1, 10, 1.0, sampler, "ddim_uniform", text, text, start, 0, 10000, "disable"
    )
    # It goes on to noise level 0, where the sigmas of the node end on that of timestep 0.
    expected = sampled(patched, start, sigmas, positive=text, negative=text)
    assert relative_error(made["samples"], expected) < 0.1


# Inversion


def test_the_text_may_be_a_clip_a_prompt_or_nothing(kind: Family) -> None:
    model, clip = make_unet(kind), make_clip(kind)
    context, pooled = clip.encode_from_tokens(clip.tokenize(""), return_pooled=True)
    by_clip = inverted(model, latent(1), text=clip)[0]
    by_prompt = inverted(model, latent(1), text=[[context, {"pooled_output": pooled}]])[0]
    by_nothing = inverted(model, latent(1))[0]
    assert torch.allclose(by_clip.latents, by_prompt.latents, atol=1e-5)
    assert relative_error(by_clip.latents, by_nothing.latents) > 1e-6
    assert not by_nothing.context.any() and by_nothing.context.shape == by_clip.context.shape


def test_the_report_says_how_well_the_picture_comes_back() -> None:
    model = make_unet("sd15")
    words = inverted(model, latent(1), check=True, vae=make_vae()).result[3]
    assert "relative error of" in words and words.endswith("dB.")
    assert inverted(model, latent(1)).result[3] == "Not checked."


def test_two_pictures_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="Scale the style picture"):
        inverted(make_unet("sd15"), latent(1), latent(2, size=(8, 9)))


def test_the_same_inversion_is_not_made_twice(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, made = make_unet("sd15"), []
    original = inversion.invert
    monkeypatch.setattr("semblance.nodes.inversion.invert", lambda *given: made.append(given) or original(*given))
    first = inverted(model, latent(1)).result
    again = inverted(model, latent(1)).result
    assert len(made) == 1 and torch.equal(first[0].latents, again[0].latents)
    assert torch.equal(first[1]["samples"], again[1]["samples"]) and first[0].stamp == again[0].stamp
    for changed in (
        lambda: inverted(model, latent(2)),
        lambda: inverted(model, latent(1), steps=5),
        lambda: inverted(model, latent(1), convention="ddim"),
        lambda: inverted(model, latent(1), text=make_conditioning("sd15", seed=9)),
        lambda: inverted(make_unet("sd15", seed=3), latent(1)),
        lambda: inverted(with_lora(model), latent(1)),
    ):
        count = len(made)
        changed()
        assert len(made) == count + 1


def test_a_model_that_carries_styleid_is_not_inverted_with(pair: Any) -> None:
    model, content, style = pair
    busy = painted(model, content, style)[0]
    with pytest.raises(ValueError, match="The model to invert with carries StyleID already"):
        inverted(busy, latent(1), steps=7)


# Files


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_saved_trajectory_comes_back(pair: Any, models: Path, precision: str) -> None:
    model, content, style = pair
    name = run(SaveTrajectory, content, "places/house", precision)[0]
    again = run(LoadTrajectory, name)[0]
    assert relative_error(again.latents, content.latents) < (1e-9 if precision == "float32" else 1e-3)
    assert (again.sigmas, again.steps, again.convention, again.stamp) == (
        content.sigmas, content.steps, content.convention, content.stamp,
    )  # fmt: skip
    patched, start, sigmas, _ = painted(model, again, style).result
    expected = sampled(*painted(model, content, style).result[:3])
    assert relative_error(sampled(patched, start, sigmas), expected) < (1e-5 if precision == "float32" else 0.2)
    assert run(SaveTrajectory, content, "places/house", precision)[0] != name


def test_files_that_are_no_trajectory_are_refused_in_a_sentence(pair: Any, models: Path) -> None:
    _, content, _ = pair
    folder = models / "semblance" / "trajectories"
    folder.mkdir(parents=True, exist_ok=True)
    name = run(SaveTrajectory, content, "whole", "float32")[0]
    (folder / "short.safetensors").write_bytes((folder / name).read_bytes()[:-100])
    save_file({"a": torch.zeros(1)}, folder / "other.safetensors")
    tensors = load_file(folder / name)
    from safetensors import safe_open

    with safe_open(str(folder / name), "pt") as file:
        metadata = file.metadata()
    save_file({**tensors, "latents": tensors["latents"] * float("nan")}, folder / "nan.safetensors", metadata)
    save_file({"context": tensors["context"]}, folder / "part.safetensors", metadata)
    for file, words in {
        "short.safetensors": "is damaged",
        "other.safetensors": "is not a trajectory saved by Semblance",
        "nan.safetensors": "not numbers",
        "part.safetensors": "is damaged",
        "nowhere.safetensors": "is not in",
    }.items():
        with pytest.raises(UnreadableFile, match=words):
            run(LoadTrajectory, file)


# AdaIN Latent


def test_adain_keeps_what_the_mask_leaves_out_and_the_rest_of_the_latent() -> None:
    content, style = latent(1), latent(2, size=(6, 9))
    mask = torch.cat([torch.ones(1, 64, 32), torch.zeros(1, 64, 32)], dim=2)
    made = run(AdaINLatent, {**content, "batch_index": [4]}, style, 1.0, mask)[0]
    assert torch.equal(made["samples"][..., 7:], content["samples"][..., 7:])
    assert relative_error(made["samples"][..., :3], content["samples"][..., :3]) > CHANGED
    assert made["batch_index"] == [4]
    many = run(AdaINLatent, content, latent(3, images=2), 1.0)[0]["samples"]
    assert many.shape == (2, 4, 8, 8)


def test_adain_refuses_what_does_not_fit() -> None:
    flux = {"samples": torch.randn(1, 16, 8, 8)}
    for content, style, words in (
        (latent(1), flux, "VAEs of different models"),
        (latent(1, 2), latent(2, 3), "2 content latents and 3 style latents"),
        ({"samples": torch.zeros(1, 4, 8, 8)}, latent(1), "Connect VAE Encode"),
    ):
        with pytest.raises(ValueError, match=words):
            run(AdaINLatent, content, style, 1.0)
