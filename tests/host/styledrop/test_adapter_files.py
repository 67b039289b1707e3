"""A style adapter on disk is read back bit for bit, goes to other loaders as a LoRA, and strangers are named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.utils  # noqa: F401  (puts ComfyUI on the path)
import folder_paths
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from nodes import LoraLoaderModelOnly
from semblance.attention.adapters.style_adapter import AdapterForm, StyleAdapter, TuningState
from semblance.attention.engine.scope import Scope
from semblance.host.files import LORAS, STYLE_ADAPTERS, UnreadableFile, UnwritableFile
from semblance.host.styledrop.adapter_files import CONTENTS, described, load_adapter, save_adapter, save_lora
from semblance.host.styledrop.applying import apply_adapter
from semblance.tests.support.studio import Studio, relative_error
from semblance.tests.support.style_adapters import style_adapter

each_form = pytest.mark.parametrize("form", ["bottleneck", "lora"])


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    models = tmp_path / "models"
    known = {name: ([str(models / name)], {".safetensors"}) for name in (STYLE_ADAPTERS, LORAS)}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", known)
    return models


def tuned(studio: Studio, form: AdapterForm = "bottleneck") -> StyleAdapter:
    adapter = style_adapter(studio.model, form)
    first, second = ({key: factor * tensor for key, tensor in adapter.tensors.items()} for factor in (0.5, 0.25))
    return replace(
        adapter,
        settings={"steps": 250, "learning_rate": 0.001, "blocks": ["output.3"], "words": "草"},
        state=TuningState(250, 7, first, second),
        thumbnail=torch.full((64, 96, 3), 128, dtype=torch.uint8),
    )


@each_form
def test_an_adapter_is_read_back_bit_for_bit_with_all_that_a_tuning_needs(
    folders: Path, sd15: Studio, form: AdapterForm
) -> None:
    saved = tuned(sd15, form)
    loaded = load_adapter(save_adapter(saved, "inks/chalk", "1.2.3", "adapter and tuning state").name)
    assert loaded.tensors.keys() == saved.tensors.keys()
    assert all(torch.equal(loaded.tensors[key], tensor) for key, tensor in saved.tensors.items())
    assert (loaded.form, loaded.stamp, loaded.settings) == (form, saved.stamp, saved.settings)
    assert (loaded.content_words, loaded.style_words) == ("a cat", "in the style of chalk")
    assert loaded.state is not None and saved.state is not None
    assert (loaded.state.step, loaded.state.seed) == (250, 7)
    for there, here in (
        (loaded.state.first_moments, saved.state.first_moments),
        (loaded.state.second_moments, saved.state.second_moments),
    ):
        assert there.keys() == here.keys() and all(torch.equal(there[key], here[key]) for key in here)
    assert loaded.thumbnail is not None and loaded.thumbnail.shape == (64, 96, 3)
    assert (loaded.thumbnail.int() - 128).abs().max() <= 2


def test_a_file_for_sharing_is_smaller(folders: Path, sd15: Studio) -> None:
    saved = [save_adapter(tuned(sd15), "chalk", "1", contents) for contents in CONTENTS]
    assert [one.name for one in saved] == [f"chalk{number}.safetensors" for number in ("", " 2", " 3")]
    assert saved[0].bytes == 3 * saved[1].bytes == 6 * saved[2].bytes
    whole, bare, half = (load_adapter(one.name) for one in saved)
    assert bare.state is None and "cannot be tuned on" in described(bare)
    assert "can be tuned on from step 250" in described(whole)
    assert {tensor.dtype for tensor in half.tensors.values()} == {torch.float32}
    assert all(relative_error(half.tensors[key], tensor) < 1e-3 for key, tensor in bare.tensors.items())


@pytest.mark.parametrize("name", ["../chalk", "/tmp/chalk", "", "a/../../chalk"])
def test_an_adapter_is_not_saved_elsewhere(folders: Path, sd15: Studio, name: str) -> None:
    with pytest.raises(UnwritableFile, match="is not a name for a style adapter"):
        save_adapter(tuned(sd15), name, "1", "adapter")
    with pytest.raises(UnwritableFile, match="is not a name for a LoRA"):
        save_lora(tuned(sd15, "lora"), name, "1")
    assert list(folders.parent.rglob("*.safetensors")) == []


def test_a_lora_is_loaded_whole_by_the_hosts_loader_and_does_the_same(
    folders: Path, studio: Studio, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = tuned(studio, "lora")
    saved = save_lora(adapter, "chalk", "1")
    (loaded,) = LoraLoaderModelOnly().load_lora_model_only(studio.model, saved.name, 1.0)
    assert "lora key not loaded" not in caplog.text and "NOT LOADED" not in caplog.text
    assert len(loaded.patches) == len(adapter.modules)
    mine = apply_adapter(studio.model, adapter, 1.0, lambda known: Scope(known.family.preset("all")))
    assert relative_error(studio.sample(mine), studio.sample(loaded)) <= 1e-5


def test_a_lora_has_kohyas_keys_and_says_what_it_is(folders: Path, sd15: Studio) -> None:
    saved = save_lora(tuned(sd15, "lora"), "chalk", "1")
    tensors, metadata = contents_of(folders / LORAS / saved.name)
    name = "lora_unet_up_blocks_1_attentions_2_transformer_blocks_0_attn2_to_out_0"
    assert {f"{name}.lora_down.weight", f"{name}.lora_up.weight", f"{name}.alpha"} <= set(tensors)
    assert float(tensors[f"{name}.alpha"]) == len(tensors[f"{name}.lora_down.weight"])
    assert metadata["modelspec.trigger_phrase"] == "in the style of chalk"
    assert metadata["ss_network_module"] == "networks.lora" and metadata["ss_network_dim"] == "4"


def test_a_lora_is_read_by_diffusers(folders: Path, sd15: Studio) -> None:
    """Its converter takes the file's names for layers of the UNet, every one."""
    from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_lora_to_diffusers

    adapter = tuned(sd15, "lora")
    saved = save_lora(adapter, "chalk", "1")
    converted, alphas = _convert_non_diffusers_lora_to_diffusers(load_file(folders / LORAS / saved.name))
    assert len(converted) == 2 * len(adapter.modules) and len(alphas) == len(adapter.modules)
    assert any(key.startswith("unet.up_blocks.1.attentions.2.transformer_blocks.0.attn2") for key in converted)


def test_a_bottleneck_has_no_lora(folders: Path, sd15: Studio) -> None:
    with pytest.raises(ValueError, match="A bottleneck is no change of weights"):
        save_lora(tuned(sd15), "chalk", "1")


STRANGERS: dict[str, tuple[list[str], dict[str, str], str]] = {
    "lora": (["lora_unet_mid_block.lora_down.weight"], {}, "is a LoRA and not .*Load LoRA"),
    "peft": (["unet.mid.to_q.lora_A.weight"], {}, "is a LoRA and not .*Load LoRA"),
    "ip-adapter": (["image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"], {}, "is an IP-Adapter .*Load IP-Adapter"),
    "checkpoint": (["model.diffusion_model.out.weight"], {}, "is a checkpoint .*Load Checkpoint"),
    "subject": (["states.0.output.3.0"], {"format": "semblance.subject.1"}, "is a recorded subject .*Load Subject"),
    "style": (["picture.0"], {"format": "semblance style 1"}, "is a style and .*Load Style;"),
    "trajectory": (["latents"], {"format": "semblance.trajectory.1"}, "is an inverted picture .*Load Trajectory"),
    "unknown": (["weights"], {}, "is not a style adapter saved by Semblance .*Save Style Adapter"),
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_a_file_of_another_kind_is_named_with_the_node_that_takes_it(folders: Path, kind: str) -> None:
    names, metadata, sentence = STRANGERS[kind]
    (folders / STYLE_ADAPTERS).mkdir(parents=True)
    save_file({name: torch.ones(2) for name in names}, folders / STYLE_ADAPTERS / "other.safetensors", metadata)
    with pytest.raises(UnreadableFile, match=sentence):
        load_adapter("other.safetensors")


def test_a_file_without_tensors_is_refused(folders: Path, sd15: Studio) -> None:
    adapter = tuned(sd15)
    path = folders / STYLE_ADAPTERS / save_adapter(adapter, "chalk", "1", "adapter").name
    save_file({}, path, contents_of(path)[1])
    with pytest.raises(UnreadableFile, match=r"is damaged \(it holds no tensors\)"):
        load_adapter(path.name)
    with pytest.raises(ValueError, match="it holds no tensors"):
        replace(adapter, tensors={})


def contents_of(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


def rewritten(folders: Path, name: str, tensors: Any = None, **entries: str | None) -> None:
    path = folders / STYLE_ADAPTERS / name
    held, metadata = contents_of(path)
    changed = {key: value for key, value in {**metadata, **entries}.items() if value is not None}
    save_file(dict(tensors or held), path, changed)


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ({"stamp": "no json"}, "is damaged"),
        ({"stamp": None}, "is damaged"),
        ({"form": "loha"}, "its form is 'loha'"),
        ({"position": "after the output projection"}, "its bottlenecks stand at another position"),
        ({"state": json.dumps({"step": "many", "seed": 1})}, "is damaged"),
        ({"settings": "7"}, "is damaged"),
    ],
)
def test_a_damaged_file_says_so(folders: Path, sd15: Studio, entries: dict[str, str | None], why: str) -> None:
    name = save_adapter(tuned(sd15), "chalk", "1", "adapter and tuning state").name
    rewritten(folders, name, **entries)
    with pytest.raises(UnreadableFile, match=f"{why}.*Save the style adapter again"):
        load_adapter(name)


def test_tensors_that_do_not_belong_together_say_so(folders: Path, sd15: Studio) -> None:
    saved = tuned(sd15)
    name = save_adapter(saved, "chalk", "1", "adapter").name
    some = next(iter(saved.tensors))
    rewritten(folders, name, {**saved.tensors, some: torch.full_like(saved.tensors[some], float("nan"))})
    with pytest.raises(UnreadableFile, match="hold values that are not numbers"):
        load_adapter(name)
    rewritten(folders, name, {key: tensor for key, tensor in saved.tensors.items() if key != some})
    with pytest.raises(UnreadableFile, match="do not form a pair"):
        load_adapter(name)


def test_a_truncated_file_says_so(folders: Path, sd15: Studio) -> None:
    path = folders / STYLE_ADAPTERS / save_adapter(tuned(sd15), "chalk", "1", "adapter").name
    path.write_bytes(path.read_bytes()[:-64])
    with pytest.raises(UnreadableFile, match="cannot be read: the file is damaged"):
        load_adapter(path.name)
