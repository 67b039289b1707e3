"""Load IP-Adapter by Kind finds files by what they hold, names what is missing, and refuses what there is not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import semblance.host.files
import semblance.host.ip_adapter.finding as finding
from semblance.host.demo_models import load_demo
from semblance.nodes.adapter_kind import LoadAdapterKind
from semblance.tests.support.graphs import run
from semblance.tests.tiny_models import (
    adapter_state_dict,
    make_unet,
    register_tiny_supported_models,
    write_clip_vision,
)
from semblance.tests.tiny_models.adapters import nested

STANDARD, PLUS = "STANDARD (medium strength)", "PLUS (high strength)"
LIGHT, FACE = "LIGHT - SD1.5 only (low strength)", "PLUS FACE (portraits)"
LETTER = {"base": "a", "plus": "b", "full-face": "c"}
FULL = "FULL FACE - SD1.5 only (portraits stronger)"


@pytest.fixture
def stocked(models: Path) -> Path:
    """Folders with the tiny image encoders, under names that say nothing, and files of other kinds."""
    register_tiny_supported_models()
    write_clip_vision("h", models / "clip_vision" / "model (2).safetensors")
    write_clip_vision("g", models / "clip_vision" / "big.safetensors")
    save_file({"a": torch.zeros(1)}, models / "clip_vision" / "a.safetensors")
    (models / "ipadapter" / "broken.safetensors").write_bytes(b"nothing")
    save_file({"lora_up.weight": torch.zeros(1)}, models / "ipadapter" / "a lora.safetensors")
    return models


def put(models: Path, name: str, kind: Any = "sd15", variant: Any = "base", **options: Any) -> None:
    path = models / "ipadapter" / name
    tensors = adapter_state_dict(kind, variant, **options)
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".bin":
        torch.save(nested(tensors), path)
    else:
        save_file(tensors, path)


def load(model: Any, preset: str) -> tuple[Any, str]:
    """The adapter, and the report."""
    output = run(LoadAdapterKind, model, preset)
    assert output[0] is model
    return output[1], output.ui.as_dict()["text"][0]


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
@pytest.mark.parametrize(
    ("preset", "variant"), [(STANDARD, "base"), (PLUS, "plus"), (FULL, "full-face")], ids=["standard", "plus", "full"]
)
def test_an_adapter_is_found_by_what_its_file_holds(stocked: Path, preset: str, variant: Any, ending: str) -> None:
    for kind in ("sd15", "sdxl"):
        for other in ("base", "plus", "full-face"):
            put(stocked, f"deep/{kind} {LETTER[other]}.{ending}", kind, other)
    found, report = load(make_unet("sd15"), preset)
    assert found.name == f"deep/sd15 {LETTER[variant]}.{ending}"
    assert found.layout.family == "48-wide" and found.encoder is not None
    assert report.startswith(str(found)) and "Image encoder: model (2).safetensors" in report


def test_what_only_a_name_tells_is_told_by_the_name_and_said(stocked: Path) -> None:
    put(stocked, "IP-Adapter_SD15_light.safetensors")
    put(stocked, "ip-adapter_sd15.safetensors")
    put(stocked, "a.safetensors")
    found, report = load(make_unet("sd15"), LIGHT)
    assert found.name == "IP-Adapter_SD15_light.safetensors"
    assert "Only its name says that it is light: an adapter that is standard" in report
    found, report = load(make_unet("sd15"), STANDARD)
    assert found.name == "ip-adapter_sd15.safetensors"
    assert "Chosen because its name is the published one." in report and "a.safetensors" in report


def test_the_published_name_counts_more_than_order_and_a_mark_more_than_none(stocked: Path) -> None:
    for name in ("a.safetensors", "my face.safetensors", "my composition.safetensors"):
        put(stocked, name, variant="plus")
    model = make_unet("sd15")
    assert load(model, PLUS)[0].name == "a.safetensors"
    assert load(model, FACE)[0].name == "my face.safetensors"
    assert load(model, "Composition")[0].name == "my composition.safetensors"
    put(stocked, "ip-adapter-plus_sd15.safetensors", variant="plus")
    assert load(model, PLUS)[0].name == "ip-adapter-plus_sd15.safetensors"


def test_a_file_that_nothing_tells_from_its_twins_is_not_taken_for_the_special_one(stocked: Path) -> None:
    put(stocked, "a.safetensors", variant="plus")
    with pytest.raises(ValueError, match="No plus-face IP-Adapter for SD 1.5 is in models/ipadapter"):
        load(make_unet("sd15"), FACE)
    assert load(make_unet("sd15"), PLUS)[0].name == "a.safetensors"


def test_the_published_file_of_another_kind_is_not_taken(stocked: Path) -> None:
    put(stocked, "ip-adapter-plus_sd15.safetensors", variant="plus")
    with pytest.raises(ValueError) as refused:
        load(make_unet("sd15"), FACE)
    assert str(refused.value) == (
        "No plus-face IP-Adapter for SD 1.5 is in models/ipadapter. Put ip-adapter-plus-face_sd15.safetensors there "
        "(huggingface.co/h94/IP-Adapter) and press R."
    )


def test_what_is_missing_is_named_with_its_file_folder_and_source(models: Path) -> None:
    with pytest.raises(ValueError) as refused:
        load(make_unet("sdxl"), PLUS)
    assert str(refused.value) == (
        "No plus IP-Adapter for SDXL is in models/ipadapter. Put ip-adapter-plus_sdxl_vit-h.safetensors there "
        "(huggingface.co/h94/IP-Adapter) and press R."
    )
    put(models, "a.safetensors", variant="plus")
    with pytest.raises(ValueError, match=r"needs .*, and none is in models/clip_vision\. Put "):
        load(make_unet("sd15"), PLUS)


@pytest.mark.parametrize(
    ("kind", "preset", "sentence"),
    [
        ("sdxl", LIGHT, "There is no light IP-Adapter for SDXL. Choose STANDARD, or an SD 1.5 model."),
        ("sdxl", FULL, "There is no full-face IP-Adapter for SDXL. Choose PLUS FACE, or an SD 1.5 model."),
        (
            "sd15",
            "Kolors",
            "This preset is for Kolors, which Semblance does not know. Choose an SD 1.5 or SDXL preset and model.",
        ),
    ],
)
def test_a_kind_that_a_family_does_not_have_is_refused(models: Path, kind: Any, preset: str, sentence: str) -> None:
    with pytest.raises(ValueError) as refused:
        load(make_unet(kind), preset)
    assert str(refused.value) == sentence


@pytest.mark.parametrize(
    ("topology", "preset", "file"),
    [
        ("SD 1.5", STANDARD, "semblance_demo_sd15.safetensors"),
        ("SDXL", STANDARD, "semblance_demo_sdxl.safetensors"),
        ("SDXL", PLUS, "semblance_demo_sdxl_plus.safetensors"),
    ],
)
def test_the_demo_models_find_what_comes_with_them(models: Path, topology: Any, preset: str, file: str) -> None:
    found, report = load(load_demo(topology).model, preset)
    assert found.name == file and found.encoder is not None and "the demo image encoder" in report


def test_a_kind_without_a_demo_adapter_names_one_that_there_is(models: Path) -> None:
    with pytest.raises(ValueError, match=r"There is no light IP-Adapter for Semblance demo \(SDXL\)\. Choose STANDARD"):
        load(load_demo("SDXL").model, LIGHT)


def test_a_file_is_opened_again_only_when_it_changes(stocked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def counting(path: Path) -> Any:
        opened.append(path.name)
        return semblance.host.files.shapes_in(path)

    monkeypatch.setattr(finding, "shapes_in", counting)
    put(stocked, "a.safetensors", variant="plus")
    put(stocked, "b.safetensors")
    model = make_unet("sd15")
    load(model, STANDARD)
    assert {"a.safetensors", "b.safetensors", "broken.safetensors", "a lora.safetensors"} <= set(opened)
    opened.clear()
    load(model, PLUS)
    assert opened == []
    put(stocked, "a.safetensors")
    os.utime(stocked / "ipadapter" / "a.safetensors", ns=(1, 1))
    assert load(model, STANDARD)[0].name == "a.safetensors"
    assert opened == ["a.safetensors"]


def test_a_file_that_comes_in_makes_the_node_look_again(stocked: Path) -> None:
    before = LoadAdapterKind.fingerprint_inputs(None, PLUS)
    assert LoadAdapterKind.fingerprint_inputs(None, PLUS) == before
    put(stocked, "a.safetensors")
    assert LoadAdapterKind.fingerprint_inputs(None, PLUS) != before


def test_weights_of_a_safetensors_file_are_not_read_to_know_it(stocked: Path) -> None:
    put(stocked, "a.safetensors")
    shapes = semblance.host.files.shapes_in(stocked / "ipadapter" / "a.safetensors")
    assert all(tensor.is_meta for tensor in shapes.values())
