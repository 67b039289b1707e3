"""Tune Style: pictures or a dataset's lists in, an adapter, losses, chart and previews out, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_management
import pytest
import torch
from comfy_extras.nodes_train import LossGraphNode

from semblance.host.binding.model import add_patch, map_model
from semblance.host.styledrop.adapter_files import load_adapter
from semblance.host.styledrop.loss_chart import draw_losses, loss_map
from semblance.host.styledrop.training_copy import deep_copy
from semblance.nodes.tune_style import TuneStyle
from semblance.tests.support.graphs import picture, run
from semblance.tests.support.style_tunings import CLIP, DEFAULTS, MODEL, VAE, tune_style
from semblance.tests.support.toy_patches import Sharpen
from semblance.tests.tiny_models import make_conditioning, make_unet, make_vae, random_latent


def test_a_picture_becomes_an_adapter_with_its_losses_and_a_chart() -> None:
    adapter, losses, chart, previews = tune_style().result
    assert (adapter.form, adapter.width, adapter.content_words, adapter.style_words) == (
        "bottleneck",
        4,
        "a fox",
        "in pencil",
    )
    assert adapter.thumbnail.shape == (64, 64, 3) and adapter.settings["steps"] == 2
    assert len(losses["loss"]) == 2 and chart.shape[-1] == 3
    assert "set preview_every" in previews.message
    assert {site.split(".")[0] for site in adapter.modules} == {"output"}


def test_it_reports_parameters_share_loss_time_and_memory() -> None:
    (report,) = tune_style().ui["text"]
    assert "parameters, " in report and "% of the model's" in report and "2 steps, 2 in all; loss " in report
    assert " s a step; memory about " in report


def test_a_dataset_of_latents_and_conditionings_is_taken_as_train_lora_takes_it() -> None:
    latents = [random_latent(2, 8, 8), random_latent(1, 9, 13)]
    captions = [make_conditioning("sd15", seed=seed) for seed in range(3)]
    adapter = tune_style(pictures=None, clip=None, vae=None, latents=latents, conditioning=captions, batch=3)[0]
    assert adapter.content_words == "" and adapter.thumbnail is None
    tune_style(pictures=None, latents=latents, conditioning=captions[:1])


def test_several_pictures_share_their_words_or_have_their_own() -> None:
    pictures = [picture(1, 64, 64, images=2), picture(2, 72, 96)]
    shared = tune_style(pictures=pictures)[0]
    own = tune_style(pictures=pictures, content_words="a fox\na house\na tree")[0]
    assert shared.content_words == own.content_words == "a fox"
    assert any(not torch.equal(shared.tensors[name], own.tensors[name]) for name in shared.tensors)


def test_previews_are_sampled_on_the_way_and_at_the_end() -> None:
    previews = tune_style(steps=3, preview_every=2, preview_prompt="a house")[3]
    assert previews.shape == (4, 64, 64, 3)
    assert not torch.equal(previews[0], previews[2]) and previews.isfinite().all()
    without = tune_style(steps=3)[0]
    assert torch.equal(
        tune_style(steps=3, preview_every=1)[0].tensors["output.3.0.self.up"], without.tensors["output.3.0.self.up"]
    )


@pytest.mark.parametrize("form", ["bottleneck", "lora"])
def test_going_on_from_the_socket_equals_one_tuning(form: str) -> None:
    whole = tune_style(steps=3, form=form)[0]
    rest = tune_style(steps=2, form=form, continue_from=tune_style(steps=1, form=form)[0])[0]
    assert all(torch.equal(whole.tensors[name], rest.tensors[name]) for name in whole.tensors)
    assert rest.settings["steps"] == 3


def test_what_a_cancelled_tuning_has_learnt_is_a_file_to_go_on_from(
    models: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def cancel(self: Any, step: Any) -> bool:
        comfy.model_management.interrupt_current_processing(step.done == 2)
        return False

    with monkeypatch.context() as patched:
        patched.setattr("semblance.host.styledrop.watch.Watch.after", cancel)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            tune_style(steps=5)
    assert "stopped after 2 steps" in caplog.text and "'unfinished.safetensors'" in caplog.text
    rest = tune_style(steps=3, continue_from=load_adapter("unfinished.safetensors"))[0]
    whole = tune_style(steps=5)[0]
    assert all(torch.equal(whole.tensors[name], rest.tensors[name]) for name in whole.tensors)


@pytest.mark.parametrize("losses", [[0.5], [0.5, 0.5, 0.5], [0.2, 0.9]])
def test_comfyuis_own_loss_graph_draws_every_tuning(
    losses: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It divides by the difference of the largest and the least."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    given = loss_map(losses)
    assert given["loss"][: len(losses)] == losses
    LossGraphNode.execute(given, "loss")
    assert draw_losses(losses).size == (800, 480)


REFUSED: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "nothing": (lambda: {"pictures": None}, "There is no picture to tune on"),
    "empty batch": (lambda: {"pictures": [torch.zeros(0, 64, 64, 3)]}, "holds no picture"),
    "both": (lambda: {"latents": [random_latent()]}, "Pictures and latents are both connected"),
    "no clip": (lambda: {"clip": None}, "a CLIP is needed"),
    "no vae": (lambda: {"vae": None}, "a VAE is needed"),
    "no words": (lambda: {"content_words": " "}, "There are no lines of content words"),
    "captions": (lambda: {"content_words": "a\nb"}, "There are 2 lines of content words for 1 pictures"),
    "conditionings": (
        lambda: {"pictures": None, "latents": [random_latent(3)], "conditioning": [make_conditioning()] * 2},
        "There are 2 captions for 3 latents",
    ),
    "no caption": (lambda: {"pictures": None, "latents": [random_latent()]}, "There are no captions"),
    "NaN": (lambda: {"pictures": [torch.full((1, 64, 64, 3), torch.nan)]}, "not numbers"),
    "NaN latent": (
        lambda: {
            "pictures": None,
            "latents": [{"samples": torch.full((1, 4, 8, 8), torch.nan)}],
            "conditioning": [make_conditioning()],
        },
        "not numbers",
    ),
    "small": (lambda: {"pictures": [picture(height=40, width=90)]}, "A latent is 11x5; expected at least 8x8"),
    "channels": (
        lambda: {
            "pictures": None,
            "latents": [{"samples": torch.ones(1, 16, 8, 8)}],
            "conditioning": [make_conditioning()],
        },
        "has 16 channels, but the model's have 4",
    ),
    "no preview vae": (
        lambda: {
            "pictures": None,
            "vae": None,
            "latents": [random_latent()],
            "conditioning": [make_conditioning()],
            "preview_every": 1,
        },
        "Previews need a VAE",
    ),
    "block": (lambda: {"blocks": {"blocks": "custom", "names": "output.99"}}, "no block called 'output.99'"),
    "no block": (lambda: {"blocks": {"blocks": "custom", "names": "output.3=0"}}, "No block is chosen"),
    "form": (lambda: {"form": "lora", "continue_from": tune_style()[0]}, "is a bottleneck of width 4, but lora"),
    "width": (lambda: {"width": 8, "continue_from": tune_style()[0]}, "is a bottleneck of width 4"),
    "blocks": (
        lambda: {"blocks": {"blocks": "all"}, "continue_from": tune_style()[0]},
        "has 6 layers .blocks: output.3, output.4, output.5., but the chosen blocks have 32",
    ),
    "other model": (lambda: {"model": make_unet("sd15", seed=5), "continue_from": tune_style()[0]}, "was tuned with"),
    "carries": (
        lambda: {"model": add_patch(MODEL, Sharpen(None))},
        "The model carries Sharpen already",
    ),
    "rate": (lambda: {"learning_rate": float("nan")}, "The learning rate is nan"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_tuned_on_is_refused_in_a_sentence(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as refused:
        tune_style(**make())
    assert str(refused.value).endswith(".") and "\n" not in str(refused.value)


@pytest.mark.parametrize(("name", "value"), [("steps", 3), ("clip", CLIP), ("vae", VAE), ("model", MODEL)])
def test_a_list_is_refused_where_one_value_is_taken(name: str, value: Any) -> None:
    given = {"pictures": [picture(height=64, width=64)], **{key: [one] for key, one in DEFAULTS.items()}}
    given |= {"model": [MODEL], "blocks": {"blocks": ["style"]}, name: [value, value]}
    with pytest.raises(ValueError, match=f"The input '{name}' was given a list of 2 values"):
        run(TuneStyle, **given)


def test_a_start_without_its_state_is_told_of_on_the_node() -> None:
    start = replace(tune_style(steps=1)[0], state=None)
    (report,) = tune_style(steps=1, continue_from=start).ui["text"]
    assert "1 steps, 2 in all" in report and "holds no tuning state, so the optimiser begins anew" in report


def test_a_model_that_cannot_be_loaded_again_is_refused() -> None:
    model = MODEL.clone()
    model.cached_patcher_init = None
    with pytest.raises(ValueError, match="cannot be loaded a second time.*GGUF"):
        tune_style(model)


def test_an_inpainting_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = deep_copy(MODEL)
    model.cached_patcher_init = MODEL.cached_patcher_init
    model.model.diffusion_model.in_channels = 9
    with pytest.raises(ValueError, match="takes 9 channels .* inpainting model"):
        tune_style(model)


def test_quantised_weights_are_refused() -> None:
    model = MODEL.clone()

    def quantised(disable_dynamic: bool = False) -> Any:
        loaded = make_unet("sd15")
        layer = loaded.model.diffusion_model.output_blocks[3][0].in_layers[2]
        layer.weight = torch.nn.Parameter(layer.weight.to(torch.uint8), requires_grad=False)
        return loaded

    model.cached_patcher_init = (quantised, ())
    with pytest.raises(ValueError, match="quantised .'.*weight' is uint8."):
        tune_style(model)


def test_a_decoder_alone_is_refused() -> None:
    vae = make_vae()
    vae.first_stage_model.taesd_encoder = None
    with pytest.raises(ValueError, match="cannot encode a picture"):
        tune_style(vae=vae)


def test_a_model_without_the_blocks_of_a_known_family_is_refused() -> None:
    model = MODEL.clone()
    assert map_model(model).family.blocks
    model.model = deep_copy(MODEL).model
    model.model.diffusion_model.output_blocks = model.model.diffusion_model.output_blocks[:4]
    with pytest.raises(ValueError, match="does not have the attention blocks"):
        tune_style(model)
