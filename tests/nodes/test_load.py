"""Load IP-Adapter recognises files by their contents and finds them where ComfyUI's users keep them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.utils  # noqa: F401  (puts ComfyUI on the path)
import folder_paths
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from semblance.attention.adapters.checkpoint import flatten, recognise
from semblance.host.files import ADAPTERS, STYLES, file_names, register_folders
from semblance.host.instantstyle.adapter import LoadedAdapter
from semblance.nodes.inversion import LoadTrajectory
from semblance.nodes.load import LoadAdapter, LoadTextTower
from semblance.nodes.reference import LoadReference
from semblance.nodes.subject import LoadSubject
from semblance.tests.support.graphs import COME_WITH_THE_PACK, run
from semblance.tests.tiny_models import adapter_state_dict
from semblance.tests.tiny_models.adapters import nested

VARIANTS = ("base", "plus", "full-face")
SD15_WIDTHS = [320] * 2 + [640] * 2 + [1280] * 2 + [1280] * 3 + [640] * 3 + [320] * 3 + [1280]
SDXL_WIDTHS = [640] * 4 + [1280] * 20 + [1280] * 30 + [640] * 6 + [1280] * 10


def loaded(file: str) -> LoadedAdapter:
    return run(LoadAdapter, file)[0]


def weights_of(adapter: LoadedAdapter) -> dict[str, Tensor]:
    return adapter.patcher.model.state_dict()


@pytest.mark.parametrize("variant", VARIANTS)
def test_bin_and_safetensors_load_to_the_same_weights(models: Path, variant: str) -> None:
    tensors = adapter_state_dict("sd15", variant)
    save_file(tensors, models / "ipadapter" / "a.safetensors")
    torch.save(nested(tensors), models / "ipadapter" / "a.bin")
    flat, pickled = weights_of(loaded("a.safetensors")), weights_of(loaded("a.bin"))
    assert flat.keys() == pickled.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(flat[name], tensor) and torch.equal(pickled[name], tensor)


def test_half_precision_files_stay_half_and_still_give_float_tokens(models: Path) -> None:
    tensors = {name: tensor.half() for name, tensor in adapter_state_dict("sd15", "plus").items()}
    save_file(tensors, models / "ipadapter" / "half.safetensors")
    adapter = loaded("half.safetensors")
    assert {tensor.dtype for tensor in weights_of(adapter).values()} == {torch.float16}
    patches = torch.randn(1, 17, adapter.layout.clip_width, generator=torch.Generator().manual_seed(0))
    tokens = adapter.patcher.model.tokens(patches)
    assert tokens.dtype == torch.float32 and torch.isfinite(tokens).all()


def test_community_prefix_of_attention_weights_is_understood(models: Path) -> None:
    tensors = adapter_state_dict("sd15")
    renamed = {name.replace("ip_adapter.", "adapter_modules."): tensor for name, tensor in tensors.items()}
    save_file(renamed, models / "ipadapter" / "community.safetensors")
    assert torch.equal(
        weights_of(loaded("community.safetensors"))["ip_adapter.1.to_k_ip.weight"],
        tensors["ip_adapter.1.to_k_ip.weight"],
    )


def test_file_is_found_in_a_folder_of_extra_model_paths_yaml(models: Path, tmp_path: Path) -> None:
    from utils.extra_config import load_extra_path_config  # ComfyUI's

    shelf = tmp_path / "shelf" / "adapters"
    shelf.mkdir(parents=True)
    save_file(adapter_state_dict("sd15"), shelf / "elsewhere.safetensors")
    (tmp_path / "extra.yaml").write_text(f"comfyui:\n  base_path: {tmp_path / 'shelf'}\n  ipadapter: adapters\n")
    load_extra_path_config(str(tmp_path / "extra.yaml"))
    assert file_names(ADAPTERS) == ["elsewhere.safetensors"]
    assert loaded("elsewhere.safetensors").layout.tokens == 4


def test_folder_known_from_extra_model_paths_alone_lists_no_read_me_files(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ComfyUI reads the yaml before the packs, and gives a folder it does not know no extensions at all."""
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {})
    folder_paths.add_model_folder_path(ADAPTERS, str(tmp_path))
    register_folders()
    (tmp_path / "README.md").touch()
    (tmp_path / "a.bin").touch()
    assert file_names(ADAPTERS) == ["a.bin"]
    assert folder_paths.get_folder_paths(ADAPTERS) == [str(tmp_path), str(models / "ipadapter")]


def test_folder_another_pack_registered_first_is_kept(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = ([str(tmp_path / "theirs"), str(models / "ipadapter")], {".bin", ".their"})
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {ADAPTERS: theirs})
    register_folders()
    paths, extensions = folder_paths.folder_names_and_paths[ADAPTERS]
    assert paths == [str(tmp_path / "theirs"), str(models / "ipadapter")]
    assert extensions == {".bin", ".their"}


def test_registering_twice_changes_nothing(models: Path) -> None:
    before = {name: (list(paths), set(ext)) for name, (paths, ext) in folder_paths.folder_names_and_paths.items()}
    register_folders()
    assert folder_paths.folder_names_and_paths == before
    assert folder_paths.get_folder_paths(STYLES) == [str(models / "semblance" / "styles")]


def attention(widths: list[int], text_width: int) -> dict[str, tuple[int, ...]]:
    return {
        f"ip_adapter.{2 * place + 1}.to_{side}_ip.weight": (width, text_width)
        for place, width in enumerate(widths)
        for side in "kv"
    }


def linear(rows: int, clip_width: int, text_width: int) -> dict[str, tuple[int, ...]]:
    return {
        "image_proj.proj.weight": (rows, clip_width),
        "image_proj.proj.bias": (rows,),
        "image_proj.norm.weight": (text_width,),
        "image_proj.norm.bias": (text_width,),
    }


def perceiver(width: int, text_width: int) -> dict[str, tuple[int, ...]]:
    layers = {
        f"image_proj.layers.{layer}.0.{name}.weight": shape
        for layer in range(4)
        for name, shape in {"to_q": (width, width), "to_kv": (2 * width, width), "to_out": (width, width)}.items()
    }
    return {
        "image_proj.latents": (1, 16, width),
        "image_proj.proj_in.weight": (width, 1280),
        "image_proj.proj_out.weight": (text_width, width),
        "image_proj.norm_out.weight": (text_width,),
        **layers,
    }


FULL_FACE = {"image_proj.proj.0.weight": (1280, 1280), "image_proj.proj.2.weight": (768, 1280)} | {
    "image_proj.proj.3.weight": (768,)
}
SD15, SDXL = attention(SD15_WIDTHS, 768), attention(SDXL_WIDTHS, 2048)
BASE = "base (or light) for {}, 4 image tokens, {} layers, needs {} embeddings)"
PLUS = (
    "plus (or plus-face, composition) for {}, 16 image tokens, {} layers, needs OpenCLIP ViT-H (1280-wide patch states)"
)
PUBLISHED = {
    "sd15": (linear(3072, 1024, 768) | SD15, BASE.format("SD 1.5", 16, "OpenCLIP ViT-H (1024-wide")),
    "sd15_vit-G": (linear(3072, 1280, 768) | SD15, BASE.format("SD 1.5", 16, "OpenCLIP ViT-bigG (1280-wide")),
    "plus_sd15": (perceiver(768, 768) | SD15, PLUS.format("SD 1.5", 16)),
    "full-face_sd15": (
        FULL_FACE | SD15,
        "full-face for SD 1.5, one image token per patch, 16 layers, needs OpenCLIP ViT-H (1280-wide patch states)",
    ),
    "sdxl": (linear(8192, 1280, 2048) | SDXL, BASE.format("SDXL", 70, "OpenCLIP ViT-bigG (1280-wide")),
    "sdxl_vit-h": (linear(8192, 1024, 2048) | SDXL, BASE.format("SDXL", 70, "OpenCLIP ViT-H (1024-wide")),
    "plus_sdxl_vit-h": (perceiver(1280, 2048) | SDXL, PLUS.format("SDXL", 70)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_are_recognised_by_their_shapes(name: str) -> None:
    shapes, kind = PUBLISHED[name]
    tensors = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    assert str(recognise(tensors)) == str(recognise(flatten(nested(tensors)))) == kind


def test_perceivers_of_both_families_have_heads_of_64() -> None:
    heads = {
        name: recognise(
            {key: torch.empty(shape, device="meta") for key, shape in PUBLISHED[name][0].items()}
        ).resampler_heads
        for name in ("plus_sd15", "plus_sdxl_vit-h")
    }
    assert heads == {"plus_sd15": 12, "plus_sdxl_vit-h": 20}


def test_kind_is_an_output_and_stands_on_the_node(models: Path) -> None:
    save_file(adapter_state_dict("sdxl", "plus"), models / "ipadapter" / "misleading name sd15.safetensors")
    output = run(LoadAdapter, "misleading name sd15.safetensors")
    assert output[1] == str(output[0].layout)
    assert output.ui.as_dict() == {"text": (output[1],)}
    assert "plus" in output[1] and "16 image tokens" in output[1] and "70 layers" in output[1]


def test_files_in_subfolders_are_offered_and_found(models: Path) -> None:
    (models / "ipadapter" / "sdxl").mkdir()
    save_file(adapter_state_dict("sd15"), models / "ipadapter" / "sdxl" / "deep.safetensors")
    name = str(Path("sdxl") / "deep.safetensors")
    file = next(entry for entry in LoadAdapter.define_schema().inputs if entry.id == "file")
    assert file.options == [name, *COME_WITH_THE_PACK]
    assert loaded(name).name == name


@pytest.mark.parametrize(
    ("node", "folder"),
    [
        (LoadAdapter, "ipadapter"),
        (LoadTextTower, "text_encoders"),
        (LoadReference, "semblance/styles"),
        (LoadTrajectory, "semblance/trajectories"),
        (LoadSubject, "semblance/subjects"),
    ],
)
def test_every_loader_finds_a_name_with_backslashes_from_windows(models: Path, node: Any, folder: str) -> None:
    path = models / folder / "mine" / "a.safetensors"
    path.parent.mkdir(parents=True)
    path.touch()
    assert node.validate_inputs(file="mine\\a.safetensors") is True
    assert "is not in" in node.validate_inputs(file="mine\\b.safetensors")
