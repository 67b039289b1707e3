"""Edit-friendly inversion as a person connects it: into SamplerCustom, with prompts of one's own, kept in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.utils  # noqa: F401  (puts ComfyUI on the path)
import folder_paths
import pytest
import torch
from torch import Tensor

from semblance.host.inversion import edit_friendly
from semblance.host.inversion.edit_friendly import sample_replay
from semblance.nodes.edit_friendly import InvertEditFriendly
from semblance.nodes.inversion import InvertImage, LoadTrajectory, SaveTrajectory
from semblance.nodes.styleid import StyleID
from semblance.tests.support.graphs import relative_error, run
from semblance.tests.support.speeds import FAMILIES, slow_but
from semblance.tests.tiny_models import (
    Family,
    make_clip,
    make_conditioning,
    make_unet,
    make_vae,
    random_latent,
)

STEPS = 6


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of the test's own, so that no test finds another's inversions."""
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    return tmp_path / "temp"


@pytest.fixture(params=slow_but(FAMILIES, ("sd15",)))
def kind(request: pytest.FixtureRequest) -> Family:
    return request.param


def latent(images: int = 1, seed: int = 1) -> dict[str, Any]:
    return random_latent(images, 8, 8, seed)


def inverted(model: Any, pictures: dict[str, Any], **settings: Any) -> Any:
    """The outputs of the node: trajectory, latent, sampler, sigmas, report."""
    settings = {"steps": STEPS, "seed": 0, "guidance": 3.5, "skip": 0.36, "check": False} | settings
    return run(InvertEditFriendly, model, pictures, **settings).result


def sampled(model: Any, made: Any, positive: Any, negative: Any, cfg: float = 3.5) -> Tensor:
    """What SamplerCustom makes of the node's latent, sampler and sigmas."""
    from comfy_extras.nodes_custom_sampler import SamplerCustom

    _, start, sampler, sigmas, _ = made
    return SamplerCustom.execute(model, False, 1, cfg, positive, negative, sampler, sigmas, start)[0]["samples"]


def test_its_own_prompt_brings_the_picture_back_and_another_edits_it(kind: Family) -> None:
    model, pictures = make_unet(kind), latent(2)
    source, target, empty = (make_conditioning(kind, seed=seed) for seed in (1, 2, 3))
    made = inverted(model, pictures, text=source, negative=empty)
    assert made[2].sampler_function is sample_replay and made[0].convention == "edit-friendly"
    assert len(made[3]) == STEPS + 1 - 2 and made[1]["samples"].shape == pictures["samples"].shape
    back = sampled(model, made, source, empty)
    assert relative_error(back, pictures["samples"]) < 0.1
    edited = sampled(model, made, target, empty, cfg=7.0)
    assert relative_error(edited, back) > 1e-3


@pytest.mark.parametrize(("skip", "steps_left"), [(0.0, 6), (0.36, 4), (0.5, 3), (1.0, 1)])
def test_skipping_leaves_out_that_share_but_never_all(skip: float, steps_left: int) -> None:
    model = make_unet("sd15")
    trajectory, start, _, sigmas, _ = inverted(model, latent(), skip=skip)
    assert len(sigmas) == steps_left + 1
    scaled = model.model.process_latent_in(start["samples"]) / (1 + sigmas[0] ** 2) ** 0.5
    assert torch.allclose(scaled, trajectory.at(float(sigmas[0])), atol=1e-4)


def test_the_report_says_how_well_the_picture_comes_back() -> None:
    text = make_conditioning("sd15", seed=1)
    words = inverted(make_unet("sd15"), latent(), text=text, check=True, vae=make_vae())[4]
    assert "relative error of" in words and words.endswith("dB.")
    assert inverted(make_unet("sd15"), latent(), text=text)[4] == "Not checked."


def test_a_clip_stands_for_the_empty_prompt_and_is_not_guided(kind: Family) -> None:
    model, clip = make_unet(kind), make_clip(kind)
    context, pooled = clip.encode_from_tokens(clip.tokenize(""), return_pooled=True)
    empty = [[context, {"pooled_output": pooled}]]
    by_clip, by_prompt = (inverted(model, latent(), text=text)[0] for text in (clip, empty))
    assert by_clip.guidance == 1.0 and by_prompt.guidance == 3.5
    assert torch.equal(by_clip.context, by_prompt.context)
    unguided = inverted(model, latent(), text=empty, guidance=1.0)[0]
    assert relative_error(by_clip.noises, unguided.noises) < 1e-5
    other = inverted(model, latent(), text=clip, negative=make_conditioning(kind, seed=4))[0]
    assert other.guidance == 3.5 and relative_error(other.noises, by_clip.noises) > 1e-4


def test_a_picture_out_of_a_batch_keeps_its_noises() -> None:
    model, both = make_unet("sd15"), latent(2)
    second = {"samples": both["samples"][1:], "batch_index": [1]}
    together, alone = inverted(model, both)[0], inverted(model, second)[0]
    assert relative_error(alone.noises[:, 0], together.noises[:, 1]) < 1e-3


def test_the_same_inversion_is_not_made_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    model, made = make_unet("sd15"), []
    original = edit_friendly.invert_edit_friendly
    monkeypatch.setattr(
        "semblance.nodes.edit_friendly.invert_edit_friendly", lambda *given: made.append(given) or original(*given)
    )
    first = inverted(model, latent())
    again = inverted(model, latent(), skip=0.0)
    assert len(made) == 1 and torch.equal(first[0].noises, again[0].noises) and len(again[3]) > len(first[3])
    for changes in ({"seed": 1}, {"steps": 5}, {"text": make_conditioning("sd15", seed=9)}):
        count = len(made)
        inverted(model, latent(), **changes)
        assert len(made) == count + 1


def test_an_interrupted_inversion_is_not_kept(temporary: Path) -> None:
    model = make_unet("sd15")

    def stop(*_: Any) -> None:
        raise comfy.model_management.InterruptProcessingException

    handle = model.model.diffusion_model.register_forward_hook(stop)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        inverted(model, latent())
    handle.remove()
    assert list(temporary.rglob("*.safetensors")) == [] and list(temporary.rglob("*.part")) == []
    assert torch.isfinite(inverted(model, latent())[0].noises).all()


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_saved_trajectory_keeps_its_noises(models: Path, precision: str) -> None:
    trajectory = inverted(make_unet("sd15"), latent(2))[0]
    output = run(SaveTrajectory, trajectory, "places/house", precision)
    again = run(LoadTrajectory, output[0])[0]
    bound = 1e-9 if precision == "float32" else 1e-3
    assert relative_error(again.latents, trajectory.latents) < bound
    assert relative_error(again.noises, trajectory.noises) < bound
    assert (again.convention, again.guidance, again.steps) == ("edit-friendly", trajectory.guidance, STEPS)
    assert ("relative error" in str(output.ui.as_dict())) == (precision == "float16")


def test_noises_are_chosen_with_their_pictures() -> None:
    trajectory = inverted(make_unet("sd15"), latent(3))[0]
    chosen = trajectory.select([2, 0])
    assert torch.equal(chosen.noises, trajectory.noises[:, [2, 0]]) and chosen.images == 2


def test_what_is_no_picture_or_goes_to_styleid_is_refused() -> None:
    model = make_unet("sd15")
    with pytest.raises(ValueError, match="Connect VAE Encode, not Empty Latent"):
        inverted(model, {"samples": torch.zeros(1, 4, 8, 8)})
    with pytest.raises(ValueError, match="not numbers"):
        inverted(model, {"samples": torch.full((1, 4, 8, 8), float("nan"))})
    trajectory = inverted(model, latent())[0]
    chosen = {"preset": {"preset": "balanced"}, "blocks": {"blocks": "family"}, "strength": 1.0, "adain": 1.0}
    with pytest.raises(ValueError, match="StyleID cannot keep it. Use Invert Image .DDIM"):
        run(StyleID, model, trajectory, trajectory, **chosen, start_mode="exact", start=0.0, end=1.0)


def test_the_ddim_node_offers_the_ddim_conventions_alone() -> None:
    offered = {found.id: found for found in InvertImage.define_schema().inputs}["convention"]
    assert list(offered.options) == ["styleid", "ddim"]
