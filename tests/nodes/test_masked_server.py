"""A masked transformer over the real server: ComfyUI's own nodes around Load Masked Transformer and Masked Sampler."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor

from semblance.harness.server import ComfyUIServer, Prompt, PromptFailed
from semblance.tests.support.amused import PIXELS, Amused

SIDE = 8 * PIXELS


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


@pytest.fixture(scope="module")
def files(comfyui: ComfyUIServer) -> Iterator[dict[str, str]]:
    """Small random files in the server's model folders."""
    made = Amused.of("512").files(comfyui.base_directory / "models")
    yield {place: path.name for place, path in made.items()}
    for path in made.values():
        path.unlink()


def graph(files: dict[str, str], sampler: Prompt | None = None, **settings: Any) -> Prompt:
    tokens = {"steps": 4, "denoise": 1.0, "temperature": 2.0, "end_temperature": 0.0, "decoder": "aMUSEd"}
    return {
        "load": node(
            "SemblanceLoadMaskedTransformer",
            transformer=files["diffusion_models"],
            vq=files["vae"],
            text_encoder=files["text_encoders"],
            weight_dtype="default",
        ),
        "positive": node("CLIPTextEncode", clip=["load", 1], text="a star"),
        "negative": node("CLIPTextEncode", clip=["load", 1], text=""),
        "guider": node("CFGGuider", model=["load", 0], positive=["positive", 0], negative=["negative", 0], cfg=4.0),
        "sampler": node("SemblanceMaskedSampler", **{**tokens, **settings}),
        "noise": node("RandomNoise", noise_seed=3),
        "latent": node("EmptyLatentImage", width=SIDE, height=SIDE, batch_size=2),
        "sample": node(
            "SamplerCustomAdvanced",
            noise=["noise", 0],
            guider=["guider", 0],
            sampler=["sampler", 0],
            sigmas=["sampler", 1],
            latent_image=["latent", 0],
        ),
        "decode": node("VAEDecode", samples=["sample", 0], vae=["load", 2]),
        "picture": node("SaveImage", images=["decode", 0], filename_prefix="masked"),
        **(sampler or {}),
    }


def pictures(comfyui: ComfyUIServer, prompt: Prompt) -> Tensor:
    """(images, height, width, 3), whole numbers."""
    files = comfyui.outputs(comfyui.run(prompt))
    return torch.stack([torch.from_numpy(numpy.array(Image.open(file).convert("RGB"))) for file in files])


@pytest.fixture(scope="module")
def plain(comfyui: ComfyUIServer, files: dict[str, str]) -> Tensor:
    return pictures(comfyui, graph(files))


def test_an_empty_latent_image_becomes_pictures(plain: Tensor) -> None:
    assert plain.shape == (2, SIDE, SIDE, 3)
    assert len(plain.unique()) > 20 and not torch.equal(plain[0], plain[1])


def test_settings_of_the_sampler_change_the_picture(
    comfyui: ComfyUIServer, files: dict[str, str], plain: Tensor
) -> None:
    for settings in ({"decoder": "MUSE"}, {"temperature": 9.0}, {"steps": 7}):
        assert not torch.equal(pictures(comfyui, graph(files, **settings)), plain)


@pytest.fixture(scope="module")
def given(comfyui: ComfyUIServer, tmp_path_factory: pytest.TempPathFactory) -> Prompt:
    """A picture as the latent, with its right half masked."""
    folder = tmp_path_factory.mktemp("pictures")
    noise = torch.randint(0, 256, (SIDE, SIDE, 3), generator=torch.Generator().manual_seed(1)).byte()
    Image.fromarray(noise.numpy()).save(folder / "masked_noise.png")
    comfyui.add_input(folder / "masked_noise.png")
    return {
        "given": node("LoadImage", image="masked_noise.png"),
        "encode": node("VAEEncode", pixels=["given", 0], vae=["load", 2]),
        "again": node("VAEDecode", samples=["encode", 0], vae=["load", 2]),
        "right": node("SolidMask", value=1.0, width=SIDE // 2, height=SIDE),
        "nothing": node("SolidMask", value=0.0, width=SIDE, height=SIDE),
        "mask": node(
            "MaskComposite", destination=["nothing", 0], source=["right", 0], x=SIDE // 2, y=0, operation="add"
        ),
    }


def decoded_tokens(comfyui: ComfyUIServer, prompt: Prompt) -> Tensor:
    """The picture of the sampled tokens, and that of the tokens of the given picture."""
    both = node("ImageBatch", image1=["decode", 0], image2=["again", 0])
    return pictures(
        comfyui,
        {
            **prompt,
            "both": both,
            "picture": {**prompt["picture"], "inputs": {"images": ["both", 0], "filename_prefix": "masked"}},
        },
    )


def test_inpainting_keeps_what_is_not_masked(comfyui: ComfyUIServer, files: dict[str, str], given: Prompt) -> None:
    latent = {"latent": node("SetLatentNoiseMask", samples=["encode", 0], mask=["mask", 0])}
    made, kept = decoded_tokens(comfyui, graph(files, {**given, **latent}))
    left, right = (made.int() - kept.int()).abs().float().chunk(2, dim=1)
    # The decoder's norms see the whole picture, so the kept half is not the same to the last value.
    assert left.mean() < 0.5 * right.mean()


def test_image_to_image_keeps_a_share(comfyui: ComfyUIServer, files: dict[str, str], given: Prompt) -> None:
    errors = []
    for denoise in (0.15, 1.0):
        latent = {"latent": node("RepeatLatentBatch", samples=["encode", 0], amount=1)}
        made, kept = decoded_tokens(comfyui, graph(files, {**given, **latent}, denoise=denoise))
        errors.append(float((made.int() - kept.int()).abs().float().mean()))
    assert errors[0] < 0.9 * errors[1]


def test_a_node_of_other_packs_in_the_graph_acts_as_on_any_model(
    comfyui: ComfyUIServer, files: dict[str, str], plain: Tensor
) -> None:
    """RescaleCFG mixes the predictions in its own way."""
    changed = graph(files, {"rescale": node("RescaleCFG", model=["load", 0], multiplier=0.7)})
    changed["guider"]["inputs"]["model"] = ["rescale", 0]
    assert not torch.equal(pictures(comfyui, changed), plain)


def test_show_patches_names_the_model(comfyui: ComfyUIServer, files: dict[str, str]) -> None:
    shown = {
        "load": graph(files)["load"],
        "show": node("SemblanceShowPatches", model=["load", 0]),
        "text": node("PreviewAny", source=["show", 1]),
    }
    assert "aMUSEd: 3 blocks with attention, 6 layers" in str(comfyui.run(shown)["outputs"])


def refusal(comfyui: ComfyUIServer, prompt: Prompt) -> str:
    with pytest.raises(PromptFailed) as failed:
        comfyui.run(prompt)
    return str(failed.value)


def test_ksampler_is_refused(comfyui: ComfyUIServer, files: dict[str, str]) -> None:
    settings = {"seed": 1, "steps": 3, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    texts = {"positive": ["positive", 0], "negative": ["negative", 0]}
    sampler = node("KSampler", model=["load", 0], latent_image=["latent", 0], **texts, **settings)
    assert "cannot be sampled by 'euler'. Use Masked Sampler" in refusal(comfyui, graph(files, {"sample": sampler}))


def test_sigmas_of_another_model_are_refused(comfyui: ComfyUIServer, files: dict[str, str]) -> None:
    prompt = graph(files, {"sigmas": node("ManualSigmas", sigmas="14.6, 3.0, 0.0")})
    prompt["sample"]["inputs"]["sigmas"] = ["sigmas", 0]
    assert "Connect its output sigmas" in refusal(comfyui, prompt)


def test_methods_of_the_unet_refuse_the_model(comfyui: ComfyUIServer, files: dict[str, str], given: Prompt) -> None:
    settings = {"steps": 3, "convention": "styleid", "guidance": 1.0, "check": False}
    invert = node("SemblanceInvertImage", model=["load", 0], content=["encode", 0], **settings)
    parts = {name: given[name] for name in ("given", "encode")}
    prompt = {"load": graph(files)["load"], **parts, "invert": invert, "text": node("PreviewAny", source=["invert", 2])}
    assert "This model is a masked transformer (aMUSEd)" in refusal(comfyui, prompt)


def test_files_that_are_not_there_are_named_with_their_source(comfyui: ComfyUIServer, files: dict[str, str]) -> None:
    prompt = graph(files)
    prompt["load"]["inputs"]["vq"] = "missing.safetensors"
    message = refusal(comfyui, prompt)
    assert "missing.safetensors" in message and "vqvae/diffusion_pytorch_model.fp16.safetensors (293 MB)" in message


def test_files_in_each_others_place_are_refused(comfyui: ComfyUIServer, files: dict[str, str]) -> None:
    (comfyui.models("vae") / "swapped.safetensors").write_bytes(
        (comfyui.models("text_encoders") / files["text_encoders"]).read_bytes()
    )
    prompt = graph(files)
    prompt["load"]["inputs"]["vq"] = "swapped.safetensors"
    assert "'swapped.safetensors' is a CLIP text encoder, where the VQ model" in refusal(comfyui, prompt)
