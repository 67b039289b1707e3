"""ConsiStory and Subject Masks as a person connects them: a story on the server, sentences, neighbours on the MODEL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.utils  # noqa: F401  (puts ComfyUI on the path)
import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor

import nodes as host_nodes
from semblance.attention.subjects.words import SubjectWords
from semblance.harness.server import ComfyUIServer, Prompt, PromptFailed
from semblance.host.binding.model import patches_on
from semblance.nodes.consistory import ConsiStory
from semblance.nodes.inspect import ShowPatches
from semblance.nodes.masks import SubjectMasks
from semblance.nodes.prompts import StoryPrompts
from semblance.tests.support.graphs import encode, load_adapter, picture, relative_error, run, styled
from semblance.tests.support.speeds import FAMILIES, slow, slow_but
from semblance.tests.tiny_models import (
    Family,
    empty_latent,
    ksampler,
    make_clip,
    make_clip_vision,
    make_conditioning,
    make_controlnet,
    make_unet,
    with_lora,
    write_checkpoint,
)

CHANGED = 1e-3
SETTINGS: dict[str, Any] = {
    "mode": "official",
    "anchors": 2,
    "sharing": 1.0,
    "dropout": 0.5,
    "query_blend": 1.0,
    "injection": 0.8,
    "blend_until": 0.6,
    "inject_from": 0.0,
    "inject_until": 1.0,
    "free_u": False,
    "dropout_seed": 0,
    "mask_use": "replace",
}
SCENES = "in the snow\nby a lake\nasleep"


def telling(model: Any, words: SubjectWords, **settings: Any) -> Any:
    """MODEL with ConsiStory on it."""
    return run(ConsiStory, model, words, **(SETTINGS | settings))[0]


@pytest.fixture(params=slow_but(FAMILIES, ("sd15",)))
def kind(request: pytest.FixtureRequest) -> Family:
    return request.param


class Storyteller:
    """A model, the prompts of three scenes, and a sampler for them."""

    def __init__(self, kind: Family = "sd15") -> None:
        self.kind = kind
        self.model = make_unet(kind)
        story = run(StoryPrompts, make_clip(kind), "a red fox", "ink,", SCENES)
        self.positive, self.words, self.count, _ = story.result

    def sample(self, model: Any, **settings: Any) -> Tensor:
        negative = make_conditioning(self.kind, seed=2)
        chosen = {"positive": self.positive, "negative": negative, "latent": empty_latent(self.count)} | settings
        return ksampler(model, **({"steps": 3, "scheduler": "simple"} | chosen))

    def told(self, **settings: Any) -> Tensor:
        return self.sample(telling(self.model, self.words, **settings))


@pytest.fixture(scope="module")
def teller() -> Storyteller:
    return Storyteller()


def test_a_story_moves_the_pictures_and_not_the_model(kind: Family) -> None:
    teller = Storyteller(kind)
    plain = teller.sample(teller.model)
    assert relative_error(teller.told(), plain) > CHANGED
    assert torch.equal(teller.told(sharing=0.0, injection=0.0), plain)
    assert torch.equal(teller.told(sharing=0.0, injection=0.0, free_u=True), plain)
    assert torch.equal(teller.sample(teller.model), plain) and patches_on(teller.model) == ()


def test_new_nodes_have_the_authors_free_u_and_saved_ones_what_they_say(teller: Storyteller) -> None:
    inputs: dict[str, Any] = {entry.id: entry for entry in ConsiStory.define_schema().inputs}
    chosen = {name: inputs[name].default for name in SETTINGS if name not in ("mode", "mask_use")}
    assert "FreeU" in repr(patches_on(telling(teller.model, teller.words, **chosen))[0])
    assert "FreeU" not in repr(patches_on(telling(teller.model, teller.words, **(chosen | {"free_u": False})))[0])


@pytest.mark.slow
def test_every_setting_acts(teller: Storyteller) -> None:
    left = torch.zeros(1, 64, 64)
    left[..., :32] = 1
    ways: dict[str, dict[str, Any]] = {
        "official": {},
        "clean": {"mode": "clean"},
        "one anchor": {"anchors": 1},
        "all anchors": {"anchors": 0},
        "sharing": {"sharing": 0.5},
        "no sharing": {"sharing": 0.0},
        "dropout": {"dropout": 0.0},
        "dropout seed": {"dropout_seed": 7},
        "query blend": {"query_blend": 0.3},
        "blend until": {"blend_until": 0.0},
        "injection": {"injection": 0.4},
        "no injection": {"injection": 0.0},
        "injected later": {"inject_from": 0.4},
        "injected earlier": {"inject_until": 0.3},
        "free u": {"free_u": True},
        "masked": {"mask": left},
        "limited": {"mask": left, "mask_use": "limit"},
    }
    settings = {"latent": empty_latent(teller.count, 16, 16), "cfg": 1.0}  # enough tokens for all masks to differ
    made = {name: teller.sample(telling(teller.model, teller.words, **way), **settings) for name, way in ways.items()}
    names = list(made)
    for place, one in enumerate(names):
        for other in names[place + 1 :]:
            assert relative_error(made[one], made[other]) > 1e-5, (one, other)


def test_the_fast_mode_changes_little_of_what_is_found(teller: Storyteller) -> None:
    fast, clean = teller.told(mode="fast"), teller.told(mode="clean")
    assert torch.isfinite(fast).all() and relative_error(fast, clean) < 0.5


@pytest.mark.slow
def test_lora_controlnet_and_instantstyle_act_beside_it(models: Path) -> None:
    teller = Storyteller()
    masks = {"mask": torch.ones(1, 64, 64)}  # so that no mask hides what another patch changes
    patched = telling(teller.model, teller.words, **masks)
    alone = teller.sample(patched)

    before = teller.sample(telling(with_lora(teller.model), teller.words, **masks))
    after = teller.sample(with_lora(patched))
    assert relative_error(before, alone) > CHANGED and torch.equal(before, after)
    assert relative_error(before, teller.sample(with_lora(teller.model))) > CHANGED

    positive, negative = host_nodes.ControlNetApplyAdvanced().apply_controlnet(
        teller.positive, make_conditioning("sd15", seed=2), make_controlnet("sd15"), picture(3, 64, 64), 1.0, 0.0, 1.0
    )
    controlled = {"positive": positive, "negative": negative}
    assert relative_error(teller.sample(patched, **controlled), alone) > CHANGED
    assert relative_error(teller.sample(patched, **controlled), teller.sample(teller.model, **controlled)) > CHANGED

    reference = encode(load_adapter(models), make_clip_vision("h"), picture(1))
    first, last = styled(patched, reference), telling(styled(teller.model, reference), teller.words, **masks)
    assert relative_error(teller.sample(first), alone) > CHANGED
    assert relative_error(teller.sample(first), teller.sample(styled(teller.model, reference))) > CHANGED
    assert torch.equal(teller.sample(first), teller.sample(last))

    everything = with_lora(styled(patched, reference))
    assert relative_error(teller.sample(everything, **controlled), teller.sample(everything)) > CHANGED


@pytest.mark.parametrize("apart", [slow(False), True], ids=["both conditionings in a call", "each in its own"])
def test_each_image_keeps_to_its_own_hint_of_a_controlnet(
    teller: Storyteller, monkeypatch: pytest.MonkeyPatch, apart: bool
) -> None:
    if apart:
        monkeypatch.setattr("comfy.model_patcher.ModelPatcher.get_free_memory", lambda self, device: 1)
    control, negative = make_controlnet("sd15"), make_conditioning("sd15", seed=2)

    def guided(seeds: tuple[int, ...]) -> Tensor:
        hints = torch.cat([picture(seed, 64, 64) for seed in seeds])
        given = (teller.positive, negative, control, hints, 20.0, 0.0, 1.0)
        positive, avoided = host_nodes.ControlNetApplyAdvanced().apply_controlnet(*given)
        settings = {"positive": positive, "negative": avoided, "latent": empty_latent(teller.count, 8, 8)}
        return teller.sample(telling(teller.model, teller.words), **settings)

    made, last_changed, anchor_changed = guided((3, 4, 5)), guided((3, 4, 6)), guided((6, 4, 5))
    assert relative_error(last_changed[:2], made[:2]) < 1e-6
    assert relative_error(last_changed[2], made[2]) > CHANGED
    assert relative_error(anchor_changed[0], made[0]) > CHANGED
    # The other images see of the hint what the anchor makes of it.
    assert all(relative_error(anchor_changed[image], made[image]) > 1e-5 for image in (1, 2))


def test_show_patches_tells_of_it(teller: Storyteller) -> None:
    text = run(ShowPatches, telling(teller.model, teller.words, anchors=0, mode="fast"))[0]
    assert "1. ConsiStory of 3 scenes of a red fox, all anchors, sharing 1" in text and text.endswith("fast")


# Subject Masks


def test_masks_are_as_large_as_the_pictures_and_the_preview_is_dark_outside(teller: Storyteller) -> None:
    latent = {"samples": teller.sample(telling(teller.model, teller.words), latent=empty_latent(3, 12, 16))}
    masks, shown = run(SubjectMasks, latent).result
    assert masks.shape == (3, 96, 128) and set(masks.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(shown, masks.unsqueeze(3).repeat(1, 1, 1, 3))
    pictures = picture(4, 96, 128, images=3) * 0.5 + 0.5
    masks, shown = run(SubjectMasks, latent, pictures).result
    inside = masks.bool()
    assert torch.equal(shown[inside], pictures[inside])
    assert torch.allclose(shown[~inside], pictures[~inside] / 4)
    small = run(SubjectMasks, latent, picture(4, 48, 64, images=3)).result
    assert torch.equal(small[0], masks[:, ::2, ::2])


def test_preview_stands_on_the_node(teller: Storyteller, models: Path) -> None:
    output = run(SubjectMasks, {"samples": teller.told()})
    assert len(output.ui.as_dict()["images"]) == 3


def test_masks_serve_as_the_users_own(teller: Storyteller) -> None:
    latent = {"samples": teller.sample(telling(teller.model, teller.words), latent=empty_latent(3, 16, 16))}
    masks, _ = run(SubjectMasks, latent).result
    again = teller.sample(telling(teller.model, teller.words, mask=masks), latent=empty_latent(3, 16, 16))
    assert torch.equal(run(SubjectMasks, {"samples": again})[0], masks)


def test_what_carries_no_masks_is_refused_in_a_sentence(teller: Storyteller) -> None:
    sampled = teller.told()
    for latent in (empty_latent(3), {"samples": sampled * 1.0}, {"samples": teller.sample(teller.model)}):
        with pytest.raises(
            ValueError, match="carries no subject masks. Connect it from the sampler itself, .* above 0"
        ):
            run(SubjectMasks, latent)
    with pytest.raises(ValueError, match="There are 2 pictures for 3 masks. Connect the VAE Decode of the same latent"):
        run(SubjectMasks, {"samples": sampled}, picture(1, images=2))


# On the server


@pytest.fixture(scope="module")
def server(comfyui: ComfyUIServer) -> ComfyUIServer:
    write_checkpoint("sd15", comfyui.models("checkpoints") / "consistory_sd15.safetensors")
    return comfyui


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def prompt_with(scenes: str = SCENES, count: Any = ("story", 2), **changed: Any) -> Prompt:
    """A story as the graph on the help page has it."""
    tale = SETTINGS | {"model": ["model", 0], "subject_words": ["story", 1]} | changed.pop("tale", {})
    settings = {"seed": 1, "steps": 2, "cfg": 5.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    prompt = {
        "model": node("CheckpointLoaderSimple", ckpt_name="consistory_sd15.safetensors"),
        "story": node("SemblanceStoryPrompts", clip=["model", 1], subjects="a red fox", style="ink,", scenes=scenes),
        "negative": node("CLIPTextEncode", clip=["model", 1], text="blurred"),
        "tale": node("SemblanceConsiStory", **tale),
        "empty": node("EmptyLatentImage", width=96, height=64, batch_size=count),
        "sampler": node(
            "KSampler",
            model=["tale", 0],
            positive=["story", 0],
            negative=["negative", 0],
            latent_image=["empty", 0],
            **settings,
        ),
        "decode": node("VAEDecode", samples=["sampler", 0], vae=["model", 2]),
        "masks": node("SemblanceSubjectMasks", latent=["sampler", 0], image=["decode", 0]),
        "mask picture": node("MaskToImage", mask=["masks", 0]),
        "save": node("SaveImage", images=["mask picture", 0], filename_prefix="story"),
    }
    return prompt | changed


def test_a_story_runs_on_the_server_and_shows_its_masks(server: ComfyUIServer) -> None:
    steps: list[float] = []

    def note(progress: Any) -> None:
        if progress.node_id == "sampler":
            steps.append(progress.value)

    history = server.run(prompt_with(), note)
    pictures = [numpy.asarray(Image.open(path)) for path in server.outputs(history)]
    assert len(pictures) == 3 and {pixels.shape for pixels in pictures} == {(64, 96, 3)}
    assert all(set(numpy.unique(pixels)) <= {0, 255} for pixels in pictures) and any(p.any() for p in pictures)
    assert len(server.outputs(history, "temp")) == 3
    assert max(steps) == 4  # two samplings of two steps


def test_masks_are_shown_again_without_sampling_again(server: ComfyUIServer) -> None:
    server.run(prompt_with())
    prompt = prompt_with(masks=node("SemblanceSubjectMasks", latent=["sampler", 0]))
    ran: list[str] = []
    history = server.run(prompt, lambda progress: ran.append(progress.node_id))
    assert "sampler" not in ran and len(server.outputs(history, "temp")) == 3


LONG = ", ".join(["a very long list of trees and stones"] * 9)
AREA = node("ConditioningSetArea", conditioning=["story", 0], width=64, height=64, x=0, y=0, strength=1.0)
TILES = node("HyperTile", model=["tale", 0], tile_size=32, swap_size=2, max_depth=0, scale_depth=False)
MERGED = node("TomePatchModel", model=["tale", 0], ratio=0.3)
CACHED = node("EasyCache", model=["tale", 0], reuse_threshold=0.2, start_percent=0.15, end_percent=0.95, verbose=False)
WHITE = node("SolidMask", value=1.0, width=64, height=64)


def sampler_with(**inputs: Any) -> dict[str, Any]:
    sampler = prompt_with()["sampler"]
    return {**sampler, "inputs": sampler["inputs"] | inputs}


@pytest.mark.parametrize(
    ("changed", "where", "sentence"),
    [
        ({"scenes": "{subject}s in the snow"}, "story", "names no subject ('a red fox'). Every scene needs one"),
        ({"scenes": "in the snow"}, "sampler", "A story of one scene has no other image to be alike. Write two scenes"),
        ({"count": 2}, "sampler", "The story has 3 scenes but the latent 2 images. Set the batch size of Empty Latent"),
        ({"tiles": TILES, "sampler": sampler_with(model=["tiles", 0])}, "sampler", "HyperTile on the same model"),
        ({"merged": MERGED, "sampler": sampler_with(model=["merged", 0])}, "sampler", "ToMe on the same model changes"),
        ({"cached": CACHED, "sampler": sampler_with(model=["cached", 0])}, "sampler", "EasyCache on the same model"),
        ({"area": AREA, "sampler": sampler_with(positive=["area", 0])}, "sampler", "Remove Conditioning (Set Area)"),
        (
            {"tale": {"sharing": 0.0, "injection": 0.0}},
            "masks",
            "sharing or injection is above 0, or from Apply Subject",
        ),
        (
            {
                "white": WHITE,
                "two": node("RepeatImageBatch", image=["white picture", 0], amount=2),
                "white picture": node("MaskToImage", mask=["white", 0]),
                "two masks": node("ImageToMask", image=["two", 0], channel="red"),
                "tale": {"mask": ["two masks", 0]},
            },
            "sampler",
            "There are 2 subject masks for 3 images. Connect one mask, or one for each image.",
        ),
    ],
    ids=["no word", "one scene", "counts", "HyperTile", "ToMe", "EasyCache", "area", "no masks", "mask count"],
)
def test_what_makes_no_story_turns_a_node_red_with_a_sentence(
    server: ComfyUIServer, changed: dict[str, Any], where: str, sentence: str
) -> None:
    with pytest.raises(PromptFailed) as refusal:
        server.run(prompt_with(**changed))
    assert refusal.value.node_id == where
    assert sentence in refusal.value.reason and "\n" not in refusal.value.reason
