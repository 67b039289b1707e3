"""Regions, references, tiles and weights over frames, wired and sent to the server as a person does it."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
from PIL import Image
from safetensors.torch import save_file

from semblance.harness.server import ComfyUIServer, History, Prompt
from semblance.tests.tiny_models import adapter_state_dict, write_checkpoint, write_clip_vision

LISTENING = {"weight_type": "linear", "combine_embeds": "concat", "start_at": 0.0, "end_at": 1.0}
APPLIED = {"ipadapter": ["adapter", 0], "clip_vision": ["vision", 0], **LISTENING, "embeds_scaling": "V only"}
WINDOW = {"start_at": 0.0, "end_at": 1.0}


@pytest.fixture(scope="module")
def server(comfyui: ComfyUIServer) -> ComfyUIServer:
    write_checkpoint("sd15", comfyui.models("checkpoints") / "parts_sd15.safetensors")
    write_clip_vision("h", comfyui.models("clip_vision") / "parts_h.safetensors")
    save_file(adapter_state_dict("sd15"), comfyui.models("ipadapter") / "parts_base.safetensors")
    return comfyui


def wired(**nodes: tuple[str, dict[str, Any]]) -> Prompt:
    """A prompt of these nodes beside the files, two pictures and two prompts that all of them may use."""
    stock = {
        "checkpoint": ("CheckpointLoaderSimple", {"ckpt_name": "parts_sd15.safetensors"}),
        "vision": ("CLIPVisionLoader", {"clip_name": "parts_h.safetensors"}),
        "adapter": ("SemblanceLoadAdapter", {"file": "parts_base.safetensors"}),
        "red": ("EmptyImage", {"width": 160, "height": 64, "batch_size": 1, "color": 0xFF2010}),
        "blue": ("EmptyImage", {"width": 64, "height": 64, "batch_size": 1, "color": 0x1020FF}),
        "fox": ("CLIPTextEncode", {"clip": ["checkpoint", 1], "text": "a fox"}),
        "lake": ("CLIPTextEncode", {"clip": ["checkpoint", 1], "text": "a lake"}),
        "latent": ("EmptyLatentImage", {"width": 128, "height": 128, "batch_size": 2}),
    }
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in {**stock, **nodes}.items()}


def sampled(name: str, model: str, positive: str = "fox") -> dict[str, tuple[str, dict[str, Any]]]:
    """Nodes that sample with `model` and save the pictures under a name."""
    settings = {"seed": 1, "steps": 2, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    wires = {"model": [model, 0], "positive": [positive, 0], "negative": ["lake", 0], "latent_image": ["latent", 0]}
    return {
        f"{name} sampler": ("KSampler", settings | wires),
        f"{name} pixels": ("VAEDecode", {"samples": [f"{name} sampler", 0], "vae": ["checkpoint", 2]}),
        name: ("SaveImage", {"images": [f"{name} pixels", 0], "filename_prefix": name}),
    }


def saved(server: ComfyUIServer, history: History, name: str) -> list[Any]:
    """The pictures of one SaveImage, as levels."""
    paths = [path for path in server.outputs(history) if path.name.startswith(name)]
    return [numpy.asarray(Image.open(path), dtype=int) for path in paths]


def furthest(some: list[Any], others: list[Any]) -> int:
    assert len(some) == len(others) > 0
    return max(int(numpy.abs(one - other).max()) for one, other in zip(some, others, strict=True))


def test_regions_equal_a_chain_of_masks(server: ComfyUIServer) -> None:
    left = {"left": ("SolidMask", {"value": 1.0, "width": 64, "height": 128})}
    black = {"black": ("SolidMask", {"value": 0.0, "width": 128, "height": 128})}
    place = {"destination": ["black", 0], "source": ["left", 0], "y": 0, "operation": "add"}
    masks = {side: ("MaskComposite", place | {"x": x}) for side, x in (("on the left", 0), ("on the right", 64))}
    nodes: dict[str, Any] = {**left, **black, **masks}
    places = (("on the left", "red", "fox", 0.8), ("on the right", "blue", "lake", 1.4))
    model = "checkpoint"
    for side, picture, words, weight in places:
        own = {"image": [picture, 0], "mask": [side, 0], "positive": [words, 0], "prompt_weight": 1.0, **WINDOW}
        nodes[f"region {side}"] = ("SemblanceRegion", own | {"image_weight": weight, "weight_type": "linear"})
        masked = {"conditioning": [words, 0], "mask": [side, 0], "strength": 1.0, "set_cond_area": "default"}
        nodes[f"words {side}"] = ("ConditioningSetMask", masked)
        one = {"model": [model, 0], "image": [picture, 0], "attn_mask": [side, 0], "weight": weight}
        nodes[f"applied {side}"] = ("SemblanceApplyAdapter", APPLIED | one)
        model = f"applied {side}"
    both = {"params_1": ["region on the left", 0], "params_2": ["region on the right", 0]}
    nodes["regions"] = ("SemblanceCombineRegions", both)
    at_once = {"model": ["checkpoint", 0], "image": ["regions", 0], "weight": 1.0}
    nodes["applied"] = ("SemblanceApplyAdapter", APPLIED | at_once)
    for name, prefix, output in (("words of regions", "region", 1), ("masked words", "words", 0)):
        two = {f"conditioning_{number}": [f"{prefix} {side}", output] for number, (side, *_) in enumerate(places, 1)}
        nodes[name] = ("ConditioningCombine", two)
    nodes |= sampled("regions_at_once", "applied", "words of regions")
    nodes |= sampled("regions_in_a_chain", model, "masked words") | sampled(
        "regions_none", "checkpoint", "masked words"
    )
    history = server.run(wired(**nodes))
    one, other, none = (saved(server, history, f"regions_{name}") for name in ("at_once", "in_a_chain", "none"))
    assert furthest(one, other) == 0 < furthest(one, none)


def test_tiles_act_and_are_shown(server: ComfyUIServer) -> None:
    settings = APPLIED | {"model": ["checkpoint", 0], "image": ["red", 0], "weight": 1.2, "sharpening": 0.2}
    nodes: dict[str, Any] = {
        "tiled": ("SemblanceApplyAdapterTiles", settings),
        "tiles": ("PreviewImage", {"images": ["tiled", 1]}),
        "as a picture": ("MaskToImage", {"mask": ["tiled", 2]}),
        "masks": ("PreviewImage", {"images": ["as a picture", 0]}),
    }
    history = server.run(wired(**nodes, **sampled("tiles_on", "tiled"), **sampled("tiles_off", "checkpoint")))
    assert furthest(saved(server, history, "tiles_on"), saved(server, history, "tiles_off")) > 0
    assert (
        sorted(Image.open(path).size for path in server.outputs(history, "temp")) == [(256, 256)] * 3 + [(640, 256)] * 3
    )


def test_a_list_of_weights_gives_each_image_its_own(server: ComfyUIServer) -> None:
    over = {"weights": "0.0, 1.5", "timing": "linear", "frames": 2, "start_frame": 0, "end_frame": 9999}
    over |= {"add_starting_frames": 0, "add_ending_frames": 0, "method": "full batch", "image": ["red", 0]}
    listed = {"model": ["checkpoint", 0], "image": ["over", 3], "weight": ["over", 0], "per_image": True}
    single = {"model": ["checkpoint", 0], "image": ["red", 0], "weight": 1.5}
    nodes: dict[str, Any] = {
        "over": ("SemblanceWeightsOverFrames", over),
        "listed": ("SemblanceApplyAdapter", APPLIED | listed),
        "single": ("SemblanceApplyAdapter", APPLIED | single),
    }
    for name, model in (("list_each", "listed"), ("list_plain", "checkpoint"), ("list_all", "single")):
        nodes |= sampled(name, model)
    history = server.run(wired(**nodes))
    each, plain, everywhere = (saved(server, history, f"list_{name}") for name in ("each", "plain", "all"))
    assert furthest(each[:1], plain[:1]) <= 1 and furthest(each[1:], everywhere[1:]) <= 1
    assert furthest(each[1:], plain[1:]) > 1


def test_combined_references_and_noise_act_on_both_sides(server: ComfyUIServer) -> None:
    encoder = {"ipadapter": ["adapter", 0], "clip_vision": ["vision", 0]}
    applied = APPLIED | {"model": ["checkpoint", 0], "weight": 1.0}
    nodes: dict[str, Any] = {
        "first": ("SemblanceEncodePicture", encoder | {"image": ["red", 0], "weight": 0.8}),
        "second": ("SemblanceEncodePicture", encoder | {"image": ["blue", 0], "weight": 1.4}),
        "sum": (
            "SemblanceCombineReferences",
            {"embed1": ["first", 0], "embed2": ["second", 0], "method": "average"},
        ),
        "nothing": (
            "SemblanceCombineReferences",
            {"embed1": ["first", 1], "embed2": ["second", 1], "method": "norm average"},
        ),
        "noise": ("SemblanceNoisePicture", {"type": "fade", "strength": 0.5, "blur": 3, "image": ["red", 0]}),
        "against nothing": (
            "SemblanceApplyAdapter",
            applied | {"image": ["sum", 0], "image_negative": ["nothing", 0]},
        ),
        "by itself": ("SemblanceApplyAdapter", applied | {"image": ["sum", 0]}),
        "against noise": ("SemblanceApplyAdapter", applied | {"image": ["sum", 0], "image_negative": ["noise", 0]}),
    }
    for name in ("against nothing", "by itself", "against noise"):
        nodes |= sampled(name.replace(" ", "_"), name)
    history = server.run(wired(**nodes))
    names = ("against_nothing", "by_itself", "against_noise")
    nothing, itself, noise = (saved(server, history, name) for name in names)
    assert furthest(nothing, itself) == 0 < furthest(nothing, noise)


def test_a_prompt_that_a_region_did_not_get_stops_what_asks_for_it_alone(server: ComfyUIServer) -> None:
    own = {"image": ["red", 0], "image_weight": 1.0, "prompt_weight": 1.0, "weight_type": "linear", **WINDOW}
    nodes: dict[str, Any] = {
        "region": ("SemblanceRegion", own | {"positive": ["fox", 0]}),
        "applied": (
            "SemblanceApplyAdapter",
            APPLIED | {"model": ["checkpoint", 0], "image": ["region", 0], "weight": 1},
        ),
    }
    nodes |= sampled("stops_not", "applied", "region") | sampled("stops", "applied", "region")
    for name, output in (("stops_not", 1), ("stops", 2)):
        nodes[f"{name} sampler"][1]["positive"] = ["region", output]
    history = server.run(wired(**nodes))
    assert "stops_not" in history["outputs"] and "stops" not in history["outputs"]
