"""A kept inversion is served for the same model, picture, settings and text, and for nothing that is not understood."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.hooks
import comfy.sd
import folder_paths
import pytest
import torch
from comfy.patcher_extension import CallbacksMP, WrappersMP
from comfy_extras.nodes_model_advanced import ModelSamplingAuraFlow, ModelSamplingSD3
from torch import Tensor

import nodes as host_nodes
from semblance.host.conditioning import Conditioning, Text
from semblance.host.inversion.cache import cached_inversion
from semblance.host.inversion.cache_key import cache_key
from semblance.host.inversion.ddim import invert
from semblance.host.inversion.runs import Inversion
from semblance.tests.support.studio import Studio
from semblance.tests.tiny_models import lora_state_dict, make_clip, make_controlnet, with_lora

STEPS = 3
HINT = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    return tmp_path / "temp"


def picture(seed: int = 1) -> Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def key_of(model: Any, positive: Conditioning, negative: Conditioning | None = None, guidance: float = 1.0) -> Any:
    return cache_key(model, picture(), (STEPS, "styleid"), Text(positive, negative or positive, guidance))


def test_the_same_inversion_has_one_key_on_every_branch_of_the_graph(sd15: Studio) -> None:
    key = key_of(sd15.model, sd15.positive)
    assert key is not None
    assert key == key_of(sd15.model.clone(), sd15.text(1))
    sd15.sample(images=1)
    assert key == key_of(sd15.model, sd15.positive), "sampling changes nothing that an inversion depends on"


def test_what_can_be_compared_goes_into_the_key(sd15: Studio) -> None:
    keys = [
        key_of(sd15.model, sd15.positive),
        key_of(sd15.model, sd15.text(9)),
        key_of(sd15.model, sd15.positive, guidance=2.0),
        key_of(sd15.model, sd15.positive, sd15.text(9), guidance=2.0),
        key_of(with_lora(sd15.model), sd15.positive),
        cache_key(sd15.model, picture(2), (STEPS, "styleid"), Text(sd15.positive, sd15.positive)),
        cache_key(sd15.model, picture(), (STEPS, "ddim"), Text(sd15.positive, sd15.positive)),
        key_of(sd15.model, [[context, {"strength": 0.5}] for context, _ in sd15.positive]),
    ]
    assert None not in keys and len(set(keys)) == len(keys)
    unused = key_of(sd15.model, sd15.positive, sd15.text(9))
    assert unused == keys[0], "at guidance 1 the negative is not used"


def test_sdxl_sizes_are_part_of_the_key(sd15: Studio) -> None:
    """On any model: the text's numbers are compared before anything is known of their meaning."""
    from comfy_extras.nodes_clip_sdxl import CLIPTextEncodeSDXL

    clip = make_clip("sdxl")
    sizes = {"width": 1024, "height": 1024, "crop_w": 0, "crop_h": 0, "target_width": 1024, "target_height": 1024}
    texts = [sizes, *({**sizes, name: 256} for name in sizes)]
    keys = [key_of(sd15.model, CLIPTextEncodeSDXL.execute(clip, **text, text_g="a", text_l="a")[0]) for text in texts]
    assert None not in keys and len(set(keys)) == len(texts)


def test_a_controlnet_is_never_served(sd15: Studio) -> None:
    net = make_controlnet("sd15")
    for strength in (0.5, 1.0):
        apply = host_nodes.ControlNetApplyAdvanced().apply_controlnet
        positive, _ = apply(sd15.positive, sd15.negative, net, HINT, strength, 0.0, 1.0)
        assert key_of(sd15.model, positive) is None


def bypass_lora(model: Any) -> Any:
    return comfy.sd.load_bypass_lora_for_models(model, None, lora_state_dict(model), 1.0, 0.0)[0]


def wrapped(model: Any) -> Any:
    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "another pack", lambda execute, *given: execute(*given))
    return model


def wrapped_in_its_options(model: Any) -> Any:
    model = model.clone()
    model.set_model_unet_function_wrapper(lambda apply, given: apply(given["input"], given["timestep"], **given["c"]))
    return model


def called_back(model: Any) -> Any:
    model = model.clone()
    model.add_callback_with_key(CallbacksMP.ON_PRE_RUN, "another pack", lambda *given: None)
    return model


def accompanied(model: Any) -> Any:
    model = model.clone()
    model.set_additional_models("another pack", [model.clone()])
    return model


def hooked(model: Any) -> Any:
    model = model.clone()
    model.forced_hooks = comfy.hooks.HookGroup()
    model.forced_hooks.add(comfy.hooks.WeightHook())
    return model


def attached(model: Any) -> Any:
    model = model.clone()
    model.set_attachments("another pack", object())
    return model


def weight_wrapped(model: Any) -> Any:
    model = model.clone()
    model.add_weight_wrapper("diffusion_model.out.2.weight", lambda weight: weight)
    return model


def object_patched(model: Any) -> Any:
    model = model.clone()
    model.add_object_patch("latent_format", model.get_model_object("latent_format"))
    return model


def of_a_later_comfyui(model: Any) -> Any:
    """A MODEL with a field that is not known here."""
    model = model.clone()
    model.steering = {"another pack": [print]}
    return model


@pytest.mark.parametrize(
    "changed",
    [
        bypass_lora,
        wrapped,
        wrapped_in_its_options,
        called_back,
        accompanied,
        hooked,
        attached,
        weight_wrapped,
        object_patched,
        of_a_later_comfyui,
    ],
)
def test_what_is_not_understood_on_the_model_is_never_served(sd15: Studio, changed: Callable[[Any], Any]) -> None:
    assert key_of(changed(sd15.model), sd15.positive) is None


def test_a_shift_of_the_schedule_is_part_of_the_key(sd15: Studio) -> None:
    """Flow models come with one in nearly every workflow."""
    shifted = [ModelSamplingSD3().patch(sd15.model, shift)[0] for shift in (1.0, 3.0, 3.0)]
    auraflow = ModelSamplingAuraFlow().patch_aura(sd15.model, 3.0)[0]
    keys = [key_of(model, sd15.positive) for model in (sd15.model, *shifted, auraflow)]
    assert None not in keys and keys[2] == keys[3] and len(set(keys)) == 4

    class Rescaled(type(shifted[0].get_model_object("model_sampling"))):
        def calculate_input(self, sigma: Tensor, noise: Tensor) -> Tensor:
            return noise * 2

    strange = sd15.model.clone()
    strange.add_object_patch("model_sampling", Rescaled(sd15.model.model.model_config))
    assert key_of(strange, sd15.positive) is None


def test_an_unknown_number_on_the_model_makes_another_key(sd15: Studio) -> None:
    model = sd15.model.clone()
    model.quantised = True
    assert key_of(model, sd15.positive) not in (None, key_of(sd15.model, sd15.positive))


def made(studio: Studio, calls: list[int]) -> Inversion:
    """An inversion through the cache; each real one adds to `calls`."""
    text = Text(studio.positive, studio.positive)

    def make() -> Inversion:
        calls.append(1)
        return invert(studio.model, picture(), STEPS, "styleid", text)

    return cached_inversion(studio.model, picture(), (STEPS, "styleid"), text, make, "0")


def test_a_temporary_folder_that_cannot_be_written_costs_the_cache_alone(
    sd15: Studio, temporary: Path, caplog: pytest.LogCaptureFixture
) -> None:
    temporary.write_text("a file where the folder should be")
    calls: list[int] = []
    with caplog.at_level(logging.WARNING):
        first, second = made(sd15, calls), made(sd15, calls)
    assert len(calls) == 2 and torch.equal(first.trajectory.latents, second.trajectory.latents)
    assert [record.message for record in caplog.records if "not kept for the next run" in record.message]


def test_a_kept_inversion_that_is_damaged_is_made_again(sd15: Studio, temporary: Path) -> None:
    calls: list[int] = []
    first = made(sd15, calls)
    (file,) = temporary.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-50])
    again = made(sd15, calls)
    assert len(calls) == 2 and torch.equal(first.trajectory.latents, again.trajectory.latents)
    made(sd15, calls)
    assert len(calls) == 2
