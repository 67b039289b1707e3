"""The right image encoder is asked for by name, and asked once for each picture."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from semblance.attention.adapters.checkpoint import AdapterLayout
from semblance.host.instantstyle import vision
from semblance.host.instantstyle.vision import check_encoder, encode_crops, encode_nothing
from semblance.tests.tiny_models import make_clip_vision

L, H, BIGG = (768, 1024), (1024, 1280), (1280, 1664)  # projected embedding, patch states


def encoder_of(widths: tuple[int, int]) -> Any:
    """What tells one published encoder from another; the encoders themselves are too large for a test."""
    config = {"projection_dim": widths[0], "hidden_size": widths[1]}
    projection = SimpleNamespace(weight=torch.randn(8, 8))
    model = SimpleNamespace(visual_projection=projection)
    return SimpleNamespace(config=config, model_type="clip_vision_model", image_size=224, model=model)


def layout(variant: str, clip_width: int) -> AdapterLayout:
    return AdapterLayout(variant, 4, clip_width, 768, {1: 320})


def crops(*seeds: int) -> Tensor:
    pictures = [torch.rand((56, 56, 3), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return (torch.stack(pictures) * 255).round() / 255


@contextmanager
def counted(encoder: Any) -> Iterator[list[int]]:
    """The number of pictures in each call of the encoder."""
    calls: list[int] = []
    hook = encoder.model.register_forward_pre_hook(
        lambda _module, _arguments, named: calls.append(len(named["pixel_values"])), with_kwargs=True
    )
    try:
        yield calls
    finally:
        hook.remove()


@pytest.mark.parametrize(
    ("variant", "needed", "given", "sentence"),
    [
        ("base", H[0], L, r"needs OpenCLIP ViT-H \(1024-wide embeddings\).*is CLIP ViT-L \(768-wide\).*CLIP-ViT-H-14"),
        ("base", BIGG[0], H, r"needs OpenCLIP ViT-bigG .*is OpenCLIP ViT-H \(1024-wide\).*sdxl_models/image_encoder"),
        ("base", H[0], BIGG, r"needs OpenCLIP ViT-H .*is OpenCLIP ViT-bigG \(1280-wide\).*models/image_encoder"),
        ("plus", H[1], L, r"needs OpenCLIP ViT-H \(1280-wide patch states\).*is CLIP ViT-L \(1024-wide\)"),
        ("plus", H[1], BIGG, r"needs OpenCLIP ViT-H .*is OpenCLIP ViT-bigG \(1664-wide\)"),
        ("full", H[1], L, r"needs OpenCLIP ViT-H .*is CLIP ViT-L"),
        ("base", H[0], (99, 99), r"is 99-wide\. Load CLIP-ViT-H-14"),
        ("base", 555, H, r"needs an image encoder \(555-wide embeddings\).*published with the adapter"),
    ],
)
def test_wrong_encoder_is_refused_and_the_right_one_named(
    variant: str, needed: int, given: tuple[int, int], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        check_encoder(encoder_of(given), layout(variant, needed))


@pytest.mark.parametrize(
    ("variant", "needed", "given"),
    [("base", 1024, H), ("base", 1280, BIGG), ("plus", 1280, H), ("full", 1280, H), ("base", 768, L)],
)
def test_the_right_encoder_passes(variant: str, needed: int, given: tuple[int, int]) -> None:
    check_encoder(encoder_of(given), layout(variant, needed))


@pytest.mark.parametrize("garbage", [0.0, 5e24, float("nan")])
def test_encoder_whose_file_has_no_projection_is_refused_where_one_is_needed(garbage: float) -> None:
    """ComfyUI opens such a file without an error and leaves the matrix as raw memory."""
    encoder = make_clip_vision("h")
    with torch.no_grad():
        encoder.model.visual_projection.weight.fill_(garbage)
    with pytest.raises(ValueError, match="has no projection .visual_projection..*Download the image encoder again"):
        check_encoder(encoder, layout("base", 64))
    check_encoder(encoder, layout("plus", 80))


@pytest.mark.parametrize("config", ["clip_vision_siglip_384.json", "image_encoders/dino2_large.json"])
@pytest.mark.parametrize("variant", ["base", "plus"])
def test_encoders_that_are_not_clip_are_refused_by_kind(config: str, variant: str) -> None:
    """SigLIP's 1152 and DINOv2's 1024 may coincide with a CLIP width; the kind decides."""
    import json
    from pathlib import Path

    import comfy

    entries = json.loads((Path(comfy.__path__[0]) / config).read_text())
    encoder = SimpleNamespace(config=entries, model_type=entries["model_type"])
    by_embedding = variant == "base" and "siglip" in config  # which adapters for Flux read
    given = r"SigLIP so400m \(1152-wide\)" if by_embedding else f"a {entries['model_type']}"
    with pytest.raises(ValueError, match=f"needs OpenCLIP ViT-H .*connected is {given}.*CLIP-ViT-H-14"):
        check_encoder(encoder, layout(variant, H[0] if variant == "base" else H[1]))


@pytest.mark.parametrize("is_global", [True, False])
def test_encoding_equals_comfyuis_own(is_global: bool) -> None:
    encoder, pictures = make_clip_vision("h"), crops(1, 2)
    host = encoder.encode_image(pictures, crop=True)
    expected = host["image_embeds"] if is_global else host["penultimate_hidden_states"]
    torch.testing.assert_close(encode_crops(encoder, pictures, is_global), expected, atol=1e-5, rtol=1e-5)


def test_same_picture_is_encoded_once() -> None:
    encoder = make_clip_vision("h")
    with counted(encoder) as calls:
        first = encode_crops(encoder, crops(1, 2), True)
        again = encode_crops(encoder, crops(2, 3, 2), True)
    assert calls == [2, 1]
    assert torch.equal(again[0], first[1]) and torch.equal(again[2], first[1])


def test_embedding_and_patch_states_of_one_picture_are_not_mixed_up() -> None:
    encoder = make_clip_vision("h")
    embedding, states = encode_crops(encoder, crops(1), True), encode_crops(encoder, crops(1), False)
    assert embedding.shape == (1, 64) and states.shape == (1, 17, 80)


def test_two_encoders_do_not_share_what_they_remember() -> None:
    first, second = make_clip_vision("h", seed=1), make_clip_vision("h", seed=2)
    assert not torch.equal(encode_crops(first, crops(1), True), encode_crops(second, crops(1), True))


def test_many_pictures_go_in_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision, "BATCH", 2)
    encoder = make_clip_vision("h")
    with counted(encoder) as calls:
        found = encode_crops(encoder, crops(*range(5)), True)
    assert calls == [2, 2, 1]
    torch.testing.assert_close(found, encoder.encode_image(crops(*range(5)))["image_embeds"], atol=1e-5, rtol=1e-5)


def test_memory_keeps_the_latest_and_forgets_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision, "REMEMBERED", 2)
    encoder = make_clip_vision("h")
    more_than_it_holds = encode_crops(encoder, crops(1, 2, 3), True)
    assert len(more_than_it_holds) == 3
    with counted(encoder) as calls:
        encode_crops(encoder, crops(2, 3), True)
        encode_crops(encoder, crops(1), True)
    assert calls == [1]


def test_remembered_encodings_do_not_hold_on_to_whole_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision, "REMEMBERED", 1)
    encoder = make_clip_vision("h")
    encode_crops(encoder, crops(*range(6)), False)
    (kept,) = encoder.patcher.get_attachment("semblance_encoded").values()
    assert kept.untyped_storage().nbytes() == kept.numel() * kept.element_size()


def test_nothing_is_a_zero_embedding_for_global_adapters() -> None:
    assert torch.equal(encode_nothing(make_clip_vision("h"), True), torch.zeros(1, 64))


def test_nothing_is_the_mean_colour_and_not_black_for_patch_adapters() -> None:
    encoder = make_clip_vision("h")
    _, expected, _, _ = encoder.model(pixel_values=torch.zeros(1, 3, 56, 56), intermediate_output=-2)
    nothing = encode_nothing(encoder, False)
    torch.testing.assert_close(nothing, expected, atol=1e-6, rtol=1e-6)
    black = encode_crops(encoder, torch.zeros(1, 56, 56, 3), False)
    assert not torch.allclose(nothing, black, atol=1e-3)


def test_interrupt_stops_between_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.model_management as management

    encoder = make_clip_vision("h")
    management.interrupt_current_processing()
    with pytest.raises(management.InterruptProcessingException):
        encode_crops(encoder, crops(1), True)
    assert encode_crops(encoder, crops(1), True).shape == (1, 64)
