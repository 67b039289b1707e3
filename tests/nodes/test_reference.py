"""Pictures become a reference by closed formulas; words leave it by the authors'; it survives a file."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.sd
import numpy
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from semblance.harness.server import ComfyUIServer, Prompt
from semblance.host.instantstyle.content_words import embed_phrases, parse_phrases
from semblance.host.instantstyle.encoding import EncodedStyle
from semblance.nodes.load import LoadTextTower
from semblance.nodes.reference import EncodeReference, LoadReference, SaveReference, SubtractContent
from semblance.tests.support.graphs import (
    encode,
    encode_and_show,
    load_adapter,
    picture,
    relative_error,
    run,
    sampled,
    styled,
)
from semblance.tests.tiny_models import (
    adapter_state_dict,
    make_clip,
    make_clip_vision,
    make_unet,
    register_tiny_supported_models,
    write_checkpoint,
    write_clip_vision,
)
from semblance.version import VERSION


@contextmanager
def watched(encoder: Any) -> Iterator[list[Tensor]]:
    """The pixels of each call of the image encoder."""
    calls: list[Tensor] = []
    hook = encoder.model.register_forward_pre_hook(
        lambda _module, _arguments, named: calls.append(named["pixel_values"].clone()), with_kwargs=True
    )
    try:
        yield calls
    finally:
        hook.remove()


def embeddings(models: Path, *seeds: int, variant: str = "base") -> tuple[Any, Any, list[Tensor]]:
    """An adapter, its encoder, and what each of the pictures is on its own."""
    adapter, encoder = load_adapter(models, variant=variant), make_clip_vision("h")
    alone = [encode(adapter, encoder, picture(seed)).reference.pictures[0] for seed in seeds]
    return adapter, encoder, alone


# Encode Style Reference


@pytest.mark.parametrize("variant", ["base", "plus"])
@pytest.mark.parametrize("weights", ["", "1.0, 0.5, 2"])
def test_combinations_are_the_closed_formulas(models: Path, variant: str, weights: str) -> None:
    adapter, encoder, (a, b, c) = embeddings(models, 1, 2, 3, variant=variant)
    u, v, w = (float(entry) for entry in weights.split(",")) if weights else (1.0, 1.0, 1.0)
    total = u + v + w
    length = [e.norm(dim=-1, keepdim=True) for e in (a, b, c)]
    direction = u * a / length[0] + v * b / length[1] + w * c / length[2]
    expected = {
        "add": u * a + v * b + w * c,
        "subtract": u * a - (v * b + w * c) / 2,
        "average": (u * a + v * b + w * c) / total,
        "norm average": direction
        / direction.norm(dim=-1, keepdim=True)
        * (u * length[0] + v * length[1] + w * length[2])
        / total,
    }
    pictures = [picture(seed) for seed in (1, 2, 3)]
    for combine, formula in expected.items():
        reference = encode(adapter, encoder, *pictures, combine=combine, weights=weights).reference
        assert reference.weights == (1.0,)
        torch.testing.assert_close(reference.pictures[0], formula, atol=1e-6, rtol=1e-5)
    kept = encode(adapter, encoder, *pictures, weights=weights).reference
    assert kept.weights == (u, v, w)
    assert all(torch.equal(*pair) for pair in zip(kept.pictures, (a, b, c), strict=True))


def test_norm_average_keeps_the_length_of_pictures_that_agree(models: Path) -> None:
    adapter, encoder, (a,) = embeddings(models, 1)
    reference = encode(adapter, encoder, picture(1), picture(1), combine="norm average").reference
    torch.testing.assert_close(reference.pictures[0], a, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("combine", ["average", "norm average", "add", "subtract", "concatenate"])
def test_one_picture_is_itself_whatever_the_combination(models: Path, combine: str) -> None:
    adapter, encoder, (a,) = embeddings(models, 1)
    reference = encode(adapter, encoder, picture(1), combine=combine).reference
    torch.testing.assert_close(reference.pictures[0], a, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("combine", ["concatenate", "average"])
def test_pictures_of_different_sizes_and_batches_count_one_by_one(models: Path, combine: str) -> None:
    adapter, encoder = load_adapter(models), make_clip_vision("h")
    wide, tall, batch = picture(1, 60, 90), picture(2, 300, 57), picture(3, images=2)
    alone = [encode(adapter, encoder, image).reference.pictures[0] for image in (wide, tall, batch[:1], batch[1:])]
    together = encode(adapter, encoder, wide, tall, batch, combine=combine).reference
    if combine == "concatenate":
        assert all(torch.equal(*pair) for pair in zip(together.pictures, alone, strict=True))
    else:
        torch.testing.assert_close(together.pictures[0], torch.stack(alone).mean(0), atol=1e-6, rtol=1e-5)


def test_sockets_without_a_picture_are_passed_over(models: Path) -> None:
    adapter, encoder = load_adapter(models), make_clip_vision("h")
    sockets = {"picture0": None, "picture1": picture(1), "picture2": None}
    reference = run(EncodeReference, adapter, encoder, sockets, "concatenate", "crop")[0].reference
    assert torch.equal(reference.pictures[0], encode(adapter, encoder, picture(1)).reference.pictures[0])


@pytest.mark.parametrize(("fit", "crops"), [("crop", 1), ("pad", 1), ("tile", 3), ("stretch", 1)])
def test_fitted_output_is_exactly_what_was_encoded(models: Path, fit: str, crops: int) -> None:
    adapter, encoder = load_adapter(models), make_clip_vision("h")
    with watched(encoder) as calls:
        style, fitted = encode_and_show(adapter, encoder, picture(1, 60, 130), fit=fit).result
    assert fitted.shape == (crops, 56, 56, 3) and len(style.reference.pictures[0]) == crops
    seen = torch.cat(calls).movedim(1, -1) * torch.tensor(encoder.image_std) + torch.tensor(encoder.image_mean)
    torch.testing.assert_close(seen, fitted, atol=1e-6, rtol=1e-5)


def test_fitted_pictures_are_shown_on_the_node(models: Path) -> None:
    output = encode_and_show(load_adapter(models), make_clip_vision("h"), picture(1, 56, 112), fit="tile")
    assert len(output.ui.as_dict()["images"]) == 2


def test_same_picture_is_encoded_once_through_all_nodes_of_a_graph(models: Path) -> None:
    adapter, other, encoder = load_adapter(models), load_adapter(models, "sdxl", clip_width=64), make_clip_vision("h")
    with watched(encoder) as calls:
        encode(adapter, encoder, picture(1), picture(2), picture(1))
        encode(adapter, encoder, picture(2), negative=picture(1))
        encode(other, encoder, picture(1), combine="average")
    assert sum(map(len, calls)) == 2


def test_uncond_is_a_zero_embedding_or_the_mean_colour(models: Path) -> None:
    encoder = make_clip_vision("h")
    base = encode(load_adapter(models), encoder, picture(1)).reference
    plus = encode(load_adapter(models, variant="plus"), encoder, picture(1)).reference
    assert torch.equal(base.negative, torch.zeros(1, 64))
    flat = encoder.model(pixel_values=torch.zeros(1, 3, 56, 56), intermediate_output=-2)[1]
    torch.testing.assert_close(plus.negative, flat, atol=1e-6, rtol=1e-6)


def test_uncond_tokens_of_a_global_adapter_are_the_projected_zeros_and_not_zero(models: Path) -> None:
    adapter = load_adapter(models)
    tokens = adapter.image_tokens(encode(adapter, make_clip_vision("h"), picture(1)).reference)
    projector = adapter.patcher.model.image_proj
    bias = projector.proj.bias.reshape(4, -1)
    expected = torch.nn.functional.layer_norm(bias, bias.shape[1:], projector.norm.weight, projector.norm.bias)
    torch.testing.assert_close(tokens.unconditional[0], expected, atol=1e-6, rtol=1e-5)
    assert tokens.unconditional[0].norm() > 0.1


@pytest.mark.parametrize("variant", ["base", "plus", "full-face"])
def test_negative_picture_takes_the_place_of_the_uncond(models: Path, variant: str) -> None:
    adapter, encoder, (other,) = embeddings(models, 9, variant=variant)
    plain = encode(adapter, encoder, picture(1)).reference
    reference = encode(adapter, encoder, picture(1), negative=picture(9)).reference
    assert torch.equal(reference.negative, other) and not torch.equal(reference.negative, plain.negative)
    assert torch.equal(reference.pictures[0], plain.pictures[0])


def test_several_negative_pictures_are_averaged(models: Path) -> None:
    adapter, encoder = load_adapter(models), make_clip_vision("h")
    batch = picture(5, images=2)
    parts = [encode(adapter, encoder, picture(1), negative=image[None]).reference.negative for image in batch]
    both = encode(adapter, encoder, picture(1), negative=batch).reference.negative
    torch.testing.assert_close(both, torch.stack(parts).mean(0), atol=1e-6, rtol=1e-5)


def test_connected_pictures_are_not_changed(models: Path) -> None:
    image, negative = picture(1, 80, 60), picture(2, 60, 80)
    before = image.clone(), negative.clone()
    for fit in ("crop", "pad", "tile", "stretch"):
        encode(load_adapter(models), make_clip_vision("h"), image, fit=fit, negative=negative)
    assert torch.equal(image, before[0]) and torch.equal(negative, before[1])


# Subtract Content Text


def subtracted(style: EncodedStyle, encoder: Any, text: str, strength: float) -> EncodedStyle:
    return run(SubtractContent, style, encoder, text, strength)[0]


def seen_by(models: Path, space: str) -> tuple[EncodedStyle, Any]:
    """A reference, and a stock CLIP whose text lives in its space."""
    family, tower, clip = {"bigG": ("sdxl", "g", "sdxl"), "H": ("sd15", "h", "sd2")}[space]
    return encode(load_adapter(models, family), make_clip_vision(tower), picture(1), picture(2)), make_clip(clip)


@pytest.mark.parametrize("space", ["bigG", "H"])
@pytest.mark.parametrize("strength", [0.5, 1.0, 2.0])
def test_one_phrase_is_the_authors_formula_on_every_picture(models: Path, space: str, strength: float) -> None:
    style, clip = seen_by(models, space)
    _, pooled = clip.encode_from_tokens(clip.tokenize("a rabbit"), return_pooled=True)
    freed = subtracted(style, clip, "a rabbit", strength).reference
    for before, after in zip(style.reference.pictures, freed.pictures, strict=True):
        torch.testing.assert_close(after, before - strength * pooled, atol=1e-5, rtol=1e-5)
    assert torch.equal(freed.negative, style.reference.negative)


@pytest.mark.parametrize("space", ["bigG", "H"])
def test_several_weighted_phrases_are_their_weighted_sum_over_their_number(models: Path, space: str) -> None:
    style, clip = seen_by(models, space)
    pooled = [clip.encode_from_tokens(clip.tokenize(words), return_pooled=True)[1] for words in ("a rabbit", "grass")]
    freed = subtracted(style, clip, "a rabbit\n(grass:0.5)", 0.8).reference
    expected = style.reference.pictures[0] - 0.8 * (pooled[0] + 0.5 * pooled[1]) / 2
    torch.testing.assert_close(freed.pictures[0], expected, atol=1e-5, rtol=1e-5)


def test_strength_zero_is_the_reference_itself(models: Path) -> None:
    style, clip = seen_by(models, "bigG")
    freed = subtracted(style, clip, "a rabbit", 0.0).reference
    assert all(torch.equal(*pair) for pair in zip(freed.pictures, style.reference.pictures, strict=True))


def test_subtracting_twice_adds_up_and_both_are_remembered(models: Path) -> None:
    style, clip = seen_by(models, "H")
    twice = subtracted(subtracted(style, clip, "a rabbit", 0.3), clip, "a rabbit", 0.4)
    once = subtracted(style, clip, "a rabbit", 0.7)
    torch.testing.assert_close(twice.reference.pictures[0], once.reference.pictures[0], atol=1e-5, rtol=1e-5)
    assert [(entry.words, entry.strength) for entry in twice.reference.subtracted] == [
        ("a rabbit", 0.3),
        ("a rabbit", 0.4),
    ]


def test_nothing_cached_is_changed_in_place(models: Path) -> None:
    """A node's outputs live on in ComfyUI's cache: the reference, the conditioning, and what the encoder saw."""
    style, clip = seen_by(models, "bigG")
    [[context, extras]] = clip.encode_from_tokens_scheduled(clip.tokenize("a rabbit"))
    kept = [*style.reference.pictures, style.reference.negative, context, extras["pooled_output"]]
    before = [tensor.clone() for tensor in kept]
    freed = subtracted(style, clip, "a rabbit", 1.0)
    assert all(torch.equal(*pair) for pair in zip(kept, before, strict=True))
    assert style.reference.subtracted == () and freed.reference is not style.reference
    again = subtracted(style, clip, "a rabbit", 1.0)
    assert all(torch.equal(*pair) for pair in zip(again.reference.pictures, freed.reference.pictures, strict=True))


def test_text_half_of_a_full_clip_file_serves(models: Path) -> None:
    """Load CLIP Text Tower on a file of transformers' own CLIPModel, against that model's own text features."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    ends = {"bos_token_id": 49406, "eos_token_id": 49407}
    text = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 1, "num_hidden_layers": 2, **ends}
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    sizes = {"image_size": 28, "patch_size": 14}
    config = CLIPConfig(text_config=text | {"hidden_act": "gelu"}, vision_config=vision | sizes, projection_dim=64)
    torch.manual_seed(3)
    clip = CLIPModel(config).eval()
    weights = {name: tensor.clone().contiguous() for name, tensor in clip.state_dict().items()}
    save_file(weights, models / "clip_vision" / "full.safetensors")
    tower = run(LoadTextTower, "full.safetensors")[0]
    style, _ = seen_by(models, "H")
    freed = subtracted(style, tower, "a rabbit\non grass", 0.8).reference

    tokenizer = CLIPTokenizer.from_pretrained(Path(comfy.__path__[0]) / "sd1_tokenizer")
    with torch.no_grad():
        features = [
            clip.get_text_features(**tokenizer(words, return_tensors="pt")) for words in ("a rabbit", "on grass")
        ]
    expected = style.reference.pictures[0] - 0.8 * torch.cat([entry.pooler_output for entry in features]).mean(dim=0)
    torch.testing.assert_close(freed.pictures[0], expected, atol=1e-5, rtol=1e-5)


def test_words_of_an_sdxl_checkpoint_serve_unless_its_projection_is_gone(models: Path, tmp_path: Path) -> None:
    """The file people have, in the names checkpoints have for bigG."""
    register_tiny_supported_models()
    whole, bare = write_checkpoint("sdxl", tmp_path / "whole.safetensors"), tmp_path / "bare.safetensors"
    tensors = load_file(whole)
    save_file({name: tensor for name, tensor in tensors.items() if "text_projection" not in name}, bare)
    style, clip = seen_by(models, "bigG")
    opened, without = (comfy.sd.load_checkpoint_guess_config(str(path), output_vae=False)[1] for path in (whole, bare))
    freed, expected = (subtracted(style, each, "a rabbit", 0.5).reference.pictures[0] for each in (opened, clip))
    torch.testing.assert_close(freed, expected, atol=2e-3, rtol=2e-3)  # ComfyUI keeps text encoders in half precision
    with pytest.raises(ValueError, match="no projection .text_projection. for clip_g.*Use a file that has one"):
        subtracted(style, without, "a rabbit", 0.5)


def test_subtraction_reaches_the_picture(models: Path) -> None:
    style, clip = seen_by(models, "H")
    model = make_unet("sd15")
    before = sampled(styled(model, style))
    assert relative_error(sampled(styled(model, subtracted(style, clip, "a rabbit", 0.0))), before) <= 1e-6
    assert relative_error(sampled(styled(model, subtracted(style, clip, "a rabbit", 1.0))), before) > 1e-4


# Save and Load Style


@pytest.mark.parametrize("variant", ["base", "plus"])
def test_saved_style_comes_back_bit_for_bit_and_samples_the_same(models: Path, variant: str) -> None:
    adapter, encoder = load_adapter(models, variant=variant), make_clip_vision("h")
    style = encode(adapter, encoder, picture(1, 56, 112), picture(2), fit="tile", weights="1, 0.5", negative=picture(3))
    if variant == "base":
        style = subtracted(style, make_clip("sd2"), "a rabbit", 0.5)
    name = run(SaveReference, style, "inks/blue")[0]
    loaded = run(LoadReference, adapter, name)[0]
    pairs = zip(
        (*loaded.reference.pictures, loaded.reference.negative),
        (*style.reference.pictures, style.reference.negative),
        strict=True,
    )
    assert all(torch.equal(*pair) for pair in pairs)
    assert (
        loaded.reference.weights == style.reference.weights
        and loaded.reference.subtracted == style.reference.subtracted
    )
    model = make_unet("sd15")
    assert torch.equal(sampled(styled(model, loaded)), sampled(styled(model, style)))


def test_saved_file_says_what_it_is_and_carries_its_picture(models: Path) -> None:
    style, clip = seen_by(models, "bigG")
    freed = subtracted(style, clip, "a rabbit\n(grass:0.5)", 0.5)
    name = run(SaveReference, freed, "ink")[0]
    with safe_open(models / "semblance" / "styles" / name, "pt") as file:
        metadata = file.metadata()
    assert metadata["semblance"] == VERSION and metadata["adapter"] == str(freed.adapter.layout)
    assert "a rabbit; (grass:0.5)" in metadata["subtracted"]
    content = base64.b64decode(metadata["modelspec.thumbnail"].partition(",")[2])
    shown = numpy.asarray(Image.open(io.BytesIO(content)).convert("RGB"), dtype=float) / 255
    assert Image.open(io.BytesIO(content)).format == "JPEG" and shown.shape == (56, 112, 3)
    fitted = torch.cat([picture(1)[0], picture(2)[0]], dim=1).numpy()
    assert abs(shown.mean() - fitted.mean()) < 0.02


def test_saving_and_loading_show_the_thumbnail(models: Path) -> None:
    style, _ = seen_by(models, "H")
    saved = run(SaveReference, style, "ink")
    loaded = run(LoadReference, style.adapter, saved[0])
    assert len(saved.ui.as_dict()["images"]) == len(loaded.ui.as_dict()["images"]) == 1


def test_style_saved_again_under_its_name_is_a_new_file(models: Path) -> None:
    style, _ = seen_by(models, "H")
    names = [run(SaveReference, style, "ink")[0] for _ in range(2)]
    assert names == ["ink.safetensors", "ink 2.safetensors"]


def test_saved_style_is_offered_by_its_name_at_once(models: Path) -> None:
    style, _ = seen_by(models, "H")
    names = [run(SaveReference, style, name)[0] for name in ("ink", "inks/blue")]
    file = next(entry for entry in LoadReference.define_schema().inputs if entry.id == "file")
    assert sorted(file.options) == sorted(names)


def test_replaced_style_file_is_read_anew(models: Path) -> None:
    """ComfyUI asks for the fingerprint with literal inputs only; the adapter is not there yet."""
    import os

    style, _ = seen_by(models, "H")
    name = run(SaveReference, style, "ink")[0]
    before = LoadReference.fingerprint_inputs(adapter=None, file=name)
    assert LoadReference.fingerprint_inputs(adapter=None, file=name) == before
    os.utime(models / "semblance" / "styles" / name, ns=(1, 1))
    assert LoadReference.fingerprint_inputs(adapter=None, file=name) != before


def test_words_of_the_nodes_default_are_one_phrase() -> None:
    text = next(entry for entry in SubtractContent.define_schema().inputs if entry.id == "text")
    assert [phrase.words for phrase in parse_phrases(text.default)] == ["a rabbit"]
    assert embed_phrases(make_clip("sd2"), parse_phrases(text.default), 64).shape == (64,)


# The whole on the server


def whole_graph(**settings: Any) -> Prompt:
    """Encode, subtract, save and sample, as a person wires it; `load` is the other half of it."""
    nodes = {
        "model": ("CheckpointLoaderSimple", {"ckpt_name": "reference_sdxl.safetensors"}),
        "vision": ("CLIPVisionLoader", {"clip_name": "reference_g.safetensors"}),
        "image": ("EmptyImage", {"width": 96, "height": 64, "batch_size": 1, "color": 8388863}),
        "adapter": ("SemblanceLoadAdapter", {"file": "reference_sdxl.safetensors"}),
        "reference": (
            "SemblanceEncodeReference",
            {"adapter": ["adapter", 0], "clip_vision": ["vision", 0], "pictures.picture0": ["image", 0]}
            | {"combine": "average", "fit": "tile", "pictures.picture1": ["image", 0]},
        ),
        "freed": (
            "SemblanceSubtractContent",
            {"reference": ["reference", 0], "text_encoder": ["model", 1], "text": "a rabbit", "strength": 0.5},
        ),
        "save": ("SemblanceSaveReference", {"reference": ["freed", 0], "name": "server/ink"}),
        "load": ("SemblanceLoadReference", {"adapter": ["adapter", 0], "file": "server/ink.safetensors"}),
        "styled": (
            "SemblanceInstantStyle",
            {"model": ["model", 0], "blocks": "style", "strength": 1.0, "start": 0.0, "end": 1.0, "curve": "fade out"},
        ),
        "text": ("CLIPTextEncode", {"clip": ["model", 1], "text": "a fox"}),
        "latent": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 2}),
        "sampler": (
            "KSampler",
            {"model": ["styled", 0], "positive": ["text", 0], "negative": ["text", 0], "latent_image": ["latent", 0]}
            | {"seed": 1, "steps": 2, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0},
        ),
        "pixels": ("VAEDecode", {"samples": ["sampler", 0], "vae": ["model", 2]}),
        "picture": ("SaveImage", {"images": ["pixels", 0], "filename_prefix": "reference"}),
    }
    prompt = {name: {"class_type": kind, "inputs": dict(inputs)} for name, (kind, inputs) in nodes.items()}
    for name, inputs in settings.items():
        prompt[name]["inputs"] |= inputs
    return prompt


def test_style_made_saved_and_loaded_on_the_server_gives_the_same_pictures(comfyui: ComfyUIServer) -> None:
    write_checkpoint("sdxl", comfyui.models("checkpoints") / "reference_sdxl.safetensors")
    write_clip_vision("g", comfyui.models("clip_vision") / "reference_g.safetensors")
    save_file(adapter_state_dict("sdxl"), comfyui.models("ipadapter") / "reference_sdxl.safetensors")
    making = whole_graph(styled={"reference": ["freed", 0]})
    del making["load"]
    made = comfyui.run(making)
    assert len(comfyui.outputs(made, "temp")) == 5  # two crops of each picture, and the thumbnail
    loading = whole_graph(styled={"reference": ["load", 0]})
    for unused in ("vision", "image", "reference", "freed", "save"):
        del loading[unused]
    loaded = comfyui.run(loading)
    pairs = zip(comfyui.outputs(made), comfyui.outputs(loaded), strict=True)
    differences = [
        numpy.abs(numpy.asarray(Image.open(one), dtype=int) - numpy.asarray(Image.open(other), dtype=int)).max()
        for one, other in pairs
    ]
    assert len(differences) == 2 and max(differences) <= 1
