"""IP-Adapters for Flux: told by their tensors, equal to the published modules, read with the right image encoder."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from semblance.attention.adapters.checkpoint import UnknownAdapter, flatten
from semblance.attention.adapters.flux_checkpoint import is_for_flux, named_alike, recognise_flux
from semblance.attention.adapters.siglip import PoolingHead
from semblance.host.files import UnreadableFile, load_tensors, shapes_in
from semblance.host.instantstyle.adapter import load_adapter, manage_adapter
from semblance.host.instantstyle.style_files import load_style, save_style
from semblance.host.instantstyle.vision import check_encoder, encode_crops
from semblance.tests.support.graphs import encode, picture
from semblance.tests.tiny_models import (
    FLUX_FORMS,
    adapter_state_dict,
    flux_adapter_state_dict,
    make_clip_vision,
    make_siglip,
    siglip_config,
    siglip_head,
    write_siglip,
)
from semblance.tests.tiny_models.adapters import nested
from semblance.tests.tiny_models.flux_adapters import SIGLIP_HEADS, FluxForm

EXACT = 1e-6


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty folders for adapters and image encoders."""
    import folder_paths

    from semblance.host.files import register_folders

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {})
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    register_folders()
    for folder in ("ipadapter", "clip_vision"):
        (tmp_path / folder).mkdir(exist_ok=True)
    folder_paths.folder_names_and_paths["clip_vision"] = ([str(tmp_path / "clip_vision")], {".safetensors", ".bin"})
    return tmp_path


def published(form: FluxForm, tokens: int) -> dict[str, Tensor]:
    """A file of the published sizes, without memory."""
    text, width, clip_width = 4096, 3072, {"InstantX": 1152, "XLabs": 768}[form]
    shapes: dict[str, tuple[int, ...]] = {}
    if form == "InstantX":
        shapes |= {
            "image_proj.proj.0.weight": (2 * clip_width, clip_width),
            "image_proj.proj.0.bias": (2 * clip_width,),
        }
        shapes |= {
            "image_proj.proj.2.weight": (tokens * text, 2 * clip_width),
            "image_proj.proj.2.bias": (tokens * text,),
        }
        shapes |= {f"image_proj.norm.{leaf}": (text,) for leaf in ("weight", "bias")}
        shapes |= {f"ip_adapter.{number}.to_{part}_ip.weight": (width, text) for number in range(57) for part in "kv"}
    else:
        projector = "ip_adapter_proj_model"
        shapes |= {f"{projector}.proj.weight": (tokens * text, clip_width), f"{projector}.proj.bias": (tokens * text,)}
        shapes |= {f"{projector}.norm.{leaf}": (text,) for leaf in ("weight", "bias")}
        for number, part in itertools.product(range(19), "kv"):
            layer = f"double_blocks.{number}.processor.ip_adapter_double_stream_{part}_proj"
            shapes |= {f"{layer}.weight": (width, text), f"{layer}.bias": (width,)}
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("form", "tokens", "says"),
    [
        ("InstantX", 128, "InstantX for Flux, 128 image tokens, 57 blocks, needs SigLIP so400m (1152-wide embeddings)"),
        ("XLabs", 4, "XLabs for Flux, 4 image tokens, 19 double blocks, needs CLIP ViT-L (768-wide embeddings)"),
        ("XLabs", 16, "XLabs for Flux, 16 image tokens, 19 double blocks, needs CLIP ViT-L (768-wide embeddings)"),
    ],
)
def test_the_published_files_are_told_by_their_shapes(form: FluxForm, tokens: int, says: str) -> None:
    tensors = published(form, tokens)
    assert is_for_flux(tensors)
    layout = recognise_flux(named_alike(tensors))
    assert (str(layout), layout.text_width, set(layout.widths.values())) == (says, 4096, {3072})


@pytest.mark.parametrize("form", FLUX_FORMS)
def test_a_nested_bin_and_a_flat_file_are_one_adapter(form: FluxForm, models: Path) -> None:
    tensors = flux_adapter_state_dict(form)
    torch.save(nested(tensors) if form == "InstantX" else tensors, models / "ipadapter" / "any name.bin")
    loaded = load_adapter("any name.bin")
    assert loaded.layout == manage_adapter("flat", flatten(tensors)).layout
    assert (loaded.layout.form, loaded.layout.tokens) == (form, {"InstantX": 8, "XLabs": 4}[form])
    assert len(loaded.layout.widths) == {"InstantX": 5, "XLabs": 2}[form]
    weights = loaded.patcher.model.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in named_alike(flatten(tensors)).items())


def test_a_nested_bin_of_the_published_sizes_is_told_by_its_shapes(models: Path) -> None:
    """InstantX's file of 5 GB: here each tensor is one number, spread over its shape, as pickles can have it."""
    tensors = {name: torch.zeros(1).expand(tensor.shape) for name, tensor in published("InstantX", 128).items()}
    path = models / "ipadapter" / "ip-adapter.bin"
    torch.save(nested(tensors), path)
    assert path.stat().st_size < 1e6
    for opened in (load_tensors(path), shapes_in(path)):
        layout = recognise_flux(named_alike(flatten(opened)))
        assert (layout.form, layout.tokens, layout.clip_width, layout.text_width) == ("InstantX", 128, 1152, 4096)
        assert layout.widths == dict.fromkeys(range(57), 3072)


def test_a_pickle_with_program_code_is_not_opened(models: Path) -> None:
    class Runs:
        def __reduce__(self) -> Any:
            return (print, ("run",))

    torch.save({"image_proj": Runs()}, models / "ipadapter" / "ip-adapter.bin")
    with pytest.raises(UnreadableFile, match="holds program code or is damaged"):
        load_adapter("ip-adapter.bin")


@pytest.mark.parametrize("form", FLUX_FORMS)
def test_a_file_with_any_tensor_missing_is_refused_by_its_name(form: FluxForm) -> None:
    tensors = flux_adapter_state_dict(form)
    for name in tensors:
        rest = {other: tensor for other, tensor in tensors.items() if other != name}
        with pytest.raises(UnknownAdapter, match="incomplete or of an unknown layout.*Download .*again"):
            manage_adapter("adapter", flatten(rest))


@pytest.mark.parametrize("form", FLUX_FORMS)
@pytest.mark.parametrize(("kept", "lacks"), [("projector", "attention weights are"), ("attention", "projector is")])
def test_half_of_a_file_is_called_so(form: FluxForm, kept: str, lacks: str) -> None:
    tensors = named_alike(flux_adapter_state_dict(form))
    half = {name: t for name, t in tensors.items() if name.startswith("image_proj.") == (kept == "projector")}
    family = "Flux or SD 3.5" if (form, kept) == ("InstantX", "attention") else "Flux"  # whose names are the same
    with pytest.raises(UnknownAdapter, match=f"half of an IP-Adapter for {family}: its {lacks} missing"):
        recognise_flux(half)


@pytest.mark.parametrize(("form", "blocks"), [("InstantX", 57), ("XLabs", 19)])
def test_a_file_of_fewer_blocks_says_how_many_the_published_one_has(form: FluxForm, blocks: int) -> None:
    layout = manage_adapter("adapter", flatten(flux_adapter_state_dict(form))).layout
    assert f"blocks (the published file has {blocks}), needs" in str(layout)


@pytest.mark.parametrize("form", FLUX_FORMS)
@pytest.mark.parametrize(
    "name",
    [
        "image_proj.new.weight",
        "ip_adapter.1.norm_added_k.weight",
        "double_blocks.1.processor.ip_adapter_double_stream_k_norm.weight",
    ],
)
def test_a_tensor_too_many_is_named_and_another_download_not_advised(form: FluxForm, name: str) -> None:
    """A file of another program is whole: to download it again mends nothing, and to leave a norm out draws wrongly."""
    tensors = flatten(flux_adapter_state_dict(form) | {name: torch.ones(16)})
    with pytest.raises(UnknownAdapter) as refused:
        manage_adapter("adapter", tensors)
    assert f"no published one does ('{name}'), so it is of a form" in str(refused.value)
    assert "or load an adapter of huggingface.co/InstantX/" in str(refused.value)
    assert "again" not in str(refused.value)


def test_of_many_tensors_too_many_one_is_named_and_the_rest_counted() -> None:
    norms = {f"ip_adapter.{number}.norm_added_k.weight": torch.ones(16) for number in range(5)}
    with pytest.raises(UnknownAdapter, match=r"\('ip_adapter.0.norm_added_k.weight' and 4 more\)"):
        manage_adapter("adapter", flatten(flux_adapter_state_dict("InstantX") | norms))


@pytest.mark.parametrize("form", FLUX_FORMS)
@pytest.mark.parametrize("prefix", ["model.", "module.", "module.model.", "state_dict."])
def test_a_prefix_before_all_names_is_taken_off(form: FluxForm, prefix: str) -> None:
    """As training programs leave it. Such a file was said to be half of an adapter, or of an unknown kind."""
    tensors = flux_adapter_state_dict(form)
    wrapped = manage_adapter("adapter", flatten({f"{prefix}{name}": tensor for name, tensor in tensors.items()}))
    plain = manage_adapter("adapter", flatten(tensors)).patcher.model.state_dict()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in wrapped.patcher.model.state_dict().items())


def test_a_prefix_before_some_names_alone_stays() -> None:
    tensors = flux_adapter_state_dict("InstantX") | {"model.ip_adapter.0.to_k_ip.weight": torch.ones(4, 4)}
    assert "model.ip_adapter.0.to_k_ip.weight" in flatten(tensors)


def test_a_whole_checkpoint_is_still_called_one() -> None:
    with pytest.raises(UnknownAdapter, match="This file is a whole checkpoint"):
        manage_adapter("adapter", flatten({"model.diffusion_model.input_blocks.0.0.weight": torch.ones(4)}))


@pytest.mark.parametrize("variant", ["base", "plus", "full-face"])
def test_adapters_for_unets_are_not_for_flux(variant: Any) -> None:
    assert not is_for_flux(adapter_state_dict("sd15", variant))


def test_the_adapter_for_sd_35_is_called_by_its_name() -> None:
    layers = {f"ip_adapter.{number}.to_{part}_ip.weight": torch.empty(8, 8) for number in range(4) for part in "kv"}
    with pytest.raises(UnknownAdapter, match="This file is an IP-Adapter for SD 3.5, not an IP-Adapter that Semblance"):
        manage_adapter("adapter", flatten(layers | {"image_proj.latents": torch.empty(1, 4, 8)}))


# The modules against the published ones


@torch.no_grad()
def test_xlabs_tokens_keys_and_values_equal_those_of_diffusers() -> None:
    from diffusers.models.embeddings import ImageProjection
    from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor

    tensors = flux_adapter_state_dict("XLabs")
    projector = ImageProjection(cross_attention_dim=20, image_embed_dim=48, num_image_text_embeds=4)
    prefix = "ip_adapter_proj_model."
    own = {
        n.removeprefix(prefix).replace("proj", "image_embeds"): t for n, t in tensors.items() if n.startswith(prefix)
    }
    projector.load_state_dict(own)
    adapter = manage_adapter("adapter", flatten(tensors))
    seen = torch.randn(2, 48)
    tokens = adapter.patcher.model.tokens(seen)
    torch.testing.assert_close(tokens, projector(seen), atol=EXACT, rtol=EXACT)
    for number in (0, 1):
        processor = FluxIPAdapterAttnProcessor(32, 20)
        stream = f"double_blocks.{number}.processor.ip_adapter_double_stream_"
        for part, layer in (("k", processor.to_k_ip[0]), ("v", processor.to_v_ip[0])):
            layer.load_state_dict({leaf: tensors[f"{stream}{part}_proj.{leaf}"] for leaf in ("weight", "bias")})
        key, value = adapter.keys_values(number, tokens)
        torch.testing.assert_close(key, processor.to_k_ip[0](tokens), atol=EXACT, rtol=EXACT)
        torch.testing.assert_close(value, processor.to_v_ip[0](tokens), atol=EXACT, rtol=EXACT)


@torch.no_grad()
def test_instantx_tokens_are_a_hidden_layer_reshaped_and_normalised() -> None:
    tensors = flux_adapter_state_dict("InstantX")
    seen = torch.randn(2, 72)
    hidden = nn.functional.gelu(seen @ tensors["image_proj.proj.0.weight"].T + tensors["image_proj.proj.0.bias"])
    flat = hidden @ tensors["image_proj.proj.2.weight"].T + tensors["image_proj.proj.2.bias"]
    scale, shift = tensors["image_proj.norm.weight"], tensors["image_proj.norm.bias"]
    expected = nn.functional.layer_norm(flat.reshape(2, 8, 20), (20,), scale, shift)
    tokens = manage_adapter("adapter", flatten(tensors)).patcher.model.tokens(seen)
    torch.testing.assert_close(tokens, expected, atol=EXACT, rtol=EXACT)


# The image encoder


@torch.no_grad()
def test_siglips_embedding_equals_that_of_transformers(models: Path) -> None:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    path = write_siglip(models / "clip_vision" / "any name.safetensors")
    encoder = make_siglip()
    config = {
        name: entry for name, entry in siglip_config().items() if name not in ("model_type", "image_mean", "image_std")
    }
    # ComfyUI's last norm has an epsilon of 1e-5.
    theirs = SiglipVisionModel(SiglipVisionConfig(**config, layer_norm_eps=1e-5)).eval()
    saved = encoder.model.state_dict() | siglip_head()
    known = set(theirs.state_dict())
    if "vision_model.head.probe" not in known:
        saved = {name.removeprefix("vision_model."): tensor for name, tensor in saved.items()}
    theirs.load_state_dict(saved, strict=False)
    assert known <= set(saved)
    crops = torch.rand(2, 56, 56, 3)
    expected = theirs(pixel_values=((crops - 0.5) / 0.5).movedim(-1, 1)).pooler_output
    torch.testing.assert_close(encode_crops(encoder, crops, is_global=True), expected, atol=1e-5, rtol=1e-4)
    assert path.exists()


def test_the_head_is_that_of_the_encoder_connected(models: Path) -> None:
    for seed in (1, 2):
        write_siglip(models / "clip_vision" / f"siglip {seed}.safetensors", seed)
    crops = torch.rand(1, 56, 56, 3)
    for seed in (2, 1):
        encoder = make_siglip(seed)
        states = encoder.model(pixel_values=(2 * crops - 1).movedim(-1, 1), intermediate_output=-2)[2]
        expected = PoolingHead.of(siglip_head(seed), SIGLIP_HEADS)(states.float())
        torch.testing.assert_close(encode_crops(encoder, crops, is_global=True), expected)


def test_an_encoder_without_its_file_is_refused_with_the_file_to_get(models: Path) -> None:
    write_siglip(models / "clip_vision" / "headless.safetensors", with_head=False)
    write_siglip(models / "clip_vision" / "another.safetensors", seed=5)
    layout = manage_adapter("adapter", flatten(flux_adapter_state_dict("InstantX"))).layout
    with pytest.raises(
        ValueError, match="no file in models/clip_vision has them for the encoder connected.*Load sigclip_"
    ):
        check_encoder(make_siglip(), layout)


def test_a_file_with_a_part_of_the_head_is_to_be_downloaded_again(models: Path) -> None:
    path = write_siglip(models / "clip_vision" / "siglip.safetensors")
    layout = manage_adapter("adapter", flatten(flux_adapter_state_dict("InstantX"))).layout
    whole = load_file(path)
    for name in siglip_head():
        if not name.endswith("probe"):  # by which a head is known
            save_file({other: tensor for other, tensor in whole.items() if other != name}, path)
            with pytest.raises(ValueError, match=r"'siglip.safetensors' has only a part .*Download it again: sigclip_"):
                check_encoder(make_siglip(), layout)


def test_a_siglip_for_pictures_of_another_size_is_refused_with_the_file_to_get() -> None:
    layout = recognise_flux(named_alike(published("InstantX", 128)))
    config = {"hidden_size": 1152, "num_attention_heads": 16}
    encoder = SimpleNamespace(model_type="siglip_vision_model", image_size=512, config=config)
    sentence = r"SigLIP so400m for pictures of 512 pixels, .*for 384. Load sigclip_vision_patch14_384"
    with pytest.raises(ValueError, match=sentence):
        check_encoder(encoder, layout)


@pytest.mark.parametrize("size", [224, 336])
def test_a_clip_l_of_336_pixels_is_refused_by_xlabs_with_the_file_to_get(size: int) -> None:
    """Its embedding is as wide as that of the one for 224, so it was taken without a word."""
    layout = recognise_flux(named_alike(published("XLabs", 4)))
    model = SimpleNamespace(visual_projection=SimpleNamespace(weight=torch.randn(8, 8)))
    config = {"projection_dim": 768, "hidden_size": 1024}
    encoder = SimpleNamespace(model_type="clip_vision_model", image_size=size, config=config, model=model)
    if size == 224:
        check_encoder(encoder, layout)
        return
    sentence = r"CLIP ViT-L for pictures of 336 pixels, but .* for 224. Load clip_vision_l.safetensors .*openai/clip"
    with pytest.raises(ValueError, match=sentence):
        check_encoder(encoder, layout)


@pytest.mark.parametrize(
    ("form", "encoder", "sentence"),
    [
        (
            "InstantX",
            lambda: make_clip_vision("h"),
            r"needs an image encoder \(72-wide embeddings\), but .*connected is the demo image encoder \(64-wide\)",
        ),
        ("XLabs", make_siglip, r"needs an image encoder \(48-wide embeddings\), but .*connected is 72-wide"),
    ],
)
def test_the_other_forms_encoder_is_refused(form: FluxForm, encoder: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        check_encoder(encoder(), manage_adapter("adapter", flatten(flux_adapter_state_dict(form))).layout)


@torch.no_grad()
def test_a_picture_is_set_against_black_with_xlabs_and_against_zeros_with_instantx(models: Path) -> None:
    write_siglip(models / "clip_vision" / "siglip.safetensors")
    against = encode(manage_adapter("x", flatten(flux_adapter_state_dict("XLabs"))), make_clip_vision("l"), picture(1))
    black = encode_crops(make_clip_vision("l"), torch.zeros(1, 56, 56, 3), is_global=True)
    assert torch.equal(against.reference.negative, black) and black.abs().max() > 0
    zeros = encode(manage_adapter("i", flatten(flux_adapter_state_dict("InstantX"))), make_siglip(), picture(1))
    assert torch.equal(zeros.reference.negative, torch.zeros(1, 72))


@torch.no_grad()
def test_a_style_for_flux_is_saved_and_opened_again(models: Path) -> None:
    write_siglip(models / "clip_vision" / "siglip.safetensors")
    adapter = manage_adapter("adapter", flatten(flux_adapter_state_dict("InstantX")))
    style = encode(adapter, make_siglip(), picture(1), picture(2))
    again = load_style(save_style(style, "flux style", "0"), adapter)
    assert all(torch.equal(a, b) for a, b in zip(again.reference.pictures, style.reference.pictures, strict=True))
