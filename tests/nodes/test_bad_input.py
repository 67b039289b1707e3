"""Whatever a person connects by mistake, the red node says what was found, what was expected and what to do."""

from __future__ import annotations

import math
import pickle
import re
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.model_base
import comfy.supported_models
import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor

from semblance.attention.adapters.checkpoint import AdapterLayout
from semblance.attention.references.style import StyleReference
from semblance.harness.server import ComfyUIServer, Prompt, PromptFailed
from semblance.host.binding.model import map_model
from semblance.host.instantstyle.adapter import LoadedAdapter
from semblance.host.instantstyle.encoding import EncodedStyle
from semblance.nodes.inspect import ShowPatches
from semblance.nodes.load import LoadAdapter, LoadTextTower
from semblance.nodes.reference import LoadReference, SaveReference, SubtractContent
from semblance.tests.support.graphs import COME_WITH_THE_PACK, encode, load_adapter, picture, run, sampled, styled
from semblance.tests.tiny_models import (
    UNET_CONFIGS,
    adapter_state_dict,
    controlnet_state_dict,
    lora_state_dict,
    make_clip,
    make_clip_vision,
    make_unet,
)
from semblance.tests.tiny_models.unets import base_model

FITTING = "Choose a base, light, plus.*e.g. ip-adapter_sdxl_vit-h.safetensors"


def refusal(action: Any) -> str:
    """What a person reads in the red node."""
    with pytest.raises(ValueError) as fault:
        action()
    message = str(fault.value)
    assert message[0] == "'" or message[0].isupper(), message
    assert message.rstrip().endswith((".", ")")) and "\n" not in message and len(message) < 700, message
    return message


# Files given as adapters


def face_id() -> dict[str, Tensor]:
    base = {name: tensor for name, tensor in adapter_state_dict("sd15").items() if name.startswith("ip_adapter.")}
    lora = {
        "ip_adapter.0.to_q_lora.down.weight": torch.ones(4, 32),
        "ip_adapter.0.to_q_lora.up.weight": torch.ones(32, 4),
    }
    projector = {f"image_proj.proj.{n}.weight": torch.ones(8, 8) for n in (0, 2)}
    return base | lora | projector | {"image_proj.norm.weight": torch.ones(48)}


def face_id_plus() -> dict[str, Tensor]:
    return face_id() | {"image_proj.perceiver_resampler.proj_in.weight": torch.ones(8, 8)}


def portrait() -> dict[str, Tensor]:
    return {name: tensor for name, tensor in face_id().items() if "lora" not in name}


def checkpoint() -> dict[str, Tensor]:
    return {
        f"model.diffusion_model.{name}": t for name, t in make_unet("sd15").model.diffusion_model.state_dict().items()
    }


def half(part: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in adapter_state_dict("sd15").items() if name.startswith(part)}


FOREIGN: dict[str, tuple[Any, str]] = {
    "FaceID": (face_id, "a FaceID IP-Adapter, which needs face recognition"),
    "FaceID plus": (face_id_plus, "a FaceID IP-Adapter, which needs face recognition"),
    "portrait": (portrait, "a FaceID or Portrait IP-Adapter, which needs face recognition"),
    "checkpoint": (checkpoint, "a whole checkpoint"),
    "diffusion model": (lambda: make_unet("sd15").model.diffusion_model.state_dict(), "a diffusion model"),
    "image encoder": (lambda: make_clip_vision("h").model.state_dict(), "a CLIP image encoder"),
    "text encoder": (lambda: make_clip("sd2").cond_stage_model.clip_h.transformer.state_dict(), "a text encoder"),
    "lora": (lambda: lora_state_dict(make_unet("sd15")), "a LoRA"),
    "old lora": (lambda: {"lora_unet_down_blocks_0.lora_up.weight": torch.ones(2, 2)}, "a LoRA"),
    "vae": (lambda: {"decoder.conv_in.weight": torch.ones(2, 2)}, "a VAE"),
    "flux": (lambda: {"double_blocks.0.img_attn.qkv.weight": torch.ones(2, 2)}, "a diffusion model"),
    "flux lora": (lambda: {"double_blocks.0.processor.qkv_lora1.down.weight": torch.ones(2, 2)}, "a LoRA"),
    "projector": (lambda: half("image_proj."), "half of an IP-Adapter"),
    "attention": (lambda: half("ip_adapter."), "half of an IP-Adapter"),
    "strange": (
        lambda: {"nothing.we.know": torch.ones(2)},
        "of an unknown kind .its first tensor is 'nothing.we.know'.",
    ),
    "empty": (dict, "empty of tensors"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_file_of_another_kind_is_called_by_its_name(models: Path, kind: str) -> None:
    make, found = FOREIGN[kind]
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in make().items()}
    save_file(tensors, models / "ipadapter" / "wrong.safetensors")
    message = refusal(lambda: run(LoadAdapter, "wrong.safetensors"))
    assert_matches(message, f"'wrong.safetensors': This file is {found}.*, not an IP-Adapter.*{FITTING}")


def assert_matches(message: str, pattern: str) -> None:
    assert re.search(pattern, message), message


def test_controlnet_is_no_adapter(models: Path) -> None:
    tensors = {f"control_model.{name}": tensor for name, tensor in controlnet_state_dict("sd15").items()}
    save_file(
        {name: tensor.clone().contiguous() for name, tensor in tensors.items()}, models / "ipadapter" / "c.safetensors"
    )
    assert_matches(
        refusal(lambda: run(LoadAdapter, "c.safetensors")), f"'c.safetensors': This file is a ControlNet.*{FITTING}"
    )


@pytest.mark.parametrize("variant", ["base", "plus", "full-face"])
def test_every_tensor_of_an_adapter_is_needed(models: Path, variant: str) -> None:
    tensors = adapter_state_dict("sd15", variant)
    projector = [name for name in tensors if name.startswith("image_proj.")]
    for missing in [*projector, "ip_adapter.7.to_v_ip.weight", "ip_adapter.31.to_k_ip.weight"]:
        holed = {name: tensor for name, tensor in tensors.items() if name != missing}
        save_file(holed, models / "ipadapter" / "holed.safetensors")
        message = refusal(lambda: run(LoadAdapter, "holed.safetensors"))
        assert_matches(message, "'holed.safetensors': This .*(incomplete|FaceID|unknown|half of)")


@pytest.mark.parametrize("name", ["image_proj.proj.weight", "image_proj.norm.weight", "ip_adapter.1.to_k_ip.weight"])
def test_adapter_with_a_tensor_of_another_shape_is_refused(models: Path, name: str) -> None:
    tensors = adapter_state_dict("sd15")
    tensors[name] = torch.ones(7, *tensors[name].shape[1:])
    save_file(tensors, models / "ipadapter" / "bent.safetensors")
    assert_matches(
        refusal(lambda: run(LoadAdapter, "bent.safetensors")),
        "'bent.safetensors': .*incomplete or of an unknown layout",
    )


@pytest.mark.parametrize("tensor", [torch.tensor(1.0), torch.ones(0)], ids=["one number", "none at all"])
@pytest.mark.parametrize("name", ["image_proj.proj.weight", "image_proj.norm.weight", "ip_adapter.1.to_k_ip.weight"])
def test_adapter_with_a_tensor_without_dimensions_is_refused(models: Path, name: str, tensor: Tensor) -> None:
    save_file(adapter_state_dict("sd15") | {name: tensor}, models / "ipadapter" / "flat.safetensors")
    assert_matches(
        refusal(lambda: run(LoadAdapter, "flat.safetensors")),
        "'flat.safetensors': .*incomplete or of an unknown layout",
    )


def test_adapter_with_strange_numbers_of_layers_is_refused(models: Path) -> None:
    tensors = adapter_state_dict("sd15")
    tensors["ip_adapter.one.to_k_ip.weight"] = tensors.pop("ip_adapter.1.to_k_ip.weight")
    save_file(tensors, models / "ipadapter" / "odd.safetensors")
    assert_matches(
        refusal(lambda: run(LoadAdapter, "odd.safetensors")), "'odd.safetensors': .*incomplete or of an unknown layout"
    )


def test_truncated_adapter_is_called_damaged(models: Path) -> None:
    content = save(adapter_state_dict("sd15"))
    (models / "ipadapter" / "cut.safetensors").write_bytes(content[: len(content) // 2])
    message = refusal(lambda: run(LoadAdapter, "cut.safetensors"))
    assert_matches(message, "'cut.safetensors' cannot be read: the file is damaged .*incomplete.*Download it again")


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_adapter_with_code_in_it_does_not_run_it(models: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    torch.save({"image_proj": {"x": Bomb(mark)}, "ip_adapter": {}}, models / "ipadapter" / "evil.bin")
    message = refusal(lambda: run(LoadAdapter, "evil.bin"))
    assert_matches(message, "'evil.bin' was not opened: it holds program code .*Download")
    assert not mark.exists()
    pickle.loads(pickle.dumps(Bomb(mark)))
    assert mark.exists()


# Pairs that do not fit


def real_model(kind: str) -> Any:
    """A MODEL of the real widths, without memory for its weights."""
    supported, base = {
        "sd15": (comfy.supported_models.SD15, comfy.model_base.BaseModel),
        "sdxl": (comfy.supported_models.SDXL, comfy.model_base.SDXL),
        "sd2": (comfy.supported_models.SD20, comfy.model_base.BaseModel),
    }[kind]
    topology = UNET_CONFIGS["sdxl" if kind == "sdxl" else "sd15"]
    config = supported(deepcopy({**topology, **supported.unet_config, **supported.unet_extra_config}))
    config.set_inference_dtype(torch.float32, None)
    return SimpleNamespace(model=base(config, device=torch.device("meta")))


def style_for(kind: str, name: str) -> EncodedStyle:
    """A REFERENCE for an adapter of the real widths."""
    real = map_model(real_model(kind))
    widths = {number: width for number, width in zip(range(1, 999, 2), file_order(real), strict=False)}
    adapter = LoadedAdapter(name, AdapterLayout("base", 4, 1024, real.text_width, widths), None)
    return EncodedStyle(StyleReference((torch.zeros(1, 1024),), torch.zeros(1, 1024), (1.0,)), adapter, "")


def file_order(real: Any) -> list[int]:
    cross = {
        part: [w for site, w in real.widths.items() if (site.kind, site.part) == ("cross", part)]
        for part in ("input", "output", "middle")
    }
    return cross["input"] + cross["output"] + cross["middle"]


def test_sdxl_adapter_on_an_sd15_model_is_refused_with_one_that_fits() -> None:
    style, model = style_for("sdxl", "ip-adapter_sdxl.safetensors"), real_model("sd15")
    message = refusal(lambda: styled(model, style))
    assert_matches(
        message, r"'ip-adapter_sdxl.safetensors' is made for SDXL \(2048-wide text, 70 layers\), but the model"
    )
    assert_matches(
        message, r"is SD 1.5 \(768-wide text, 16 layers\). Load an adapter for SD 1.5, e.g. ip-adapter_sd15.saf"
    )


def test_sd15_adapter_on_an_sdxl_model_is_refused_with_one_that_fits() -> None:
    style, model = style_for("sd15", "ip-adapter_sd15.bin"), real_model("sdxl")
    message = refusal(lambda: styled(model, style))
    assert_matches(
        message, r"'ip-adapter_sd15.bin' is made for SD 1.5 \(768-wide text, 16 layers\), but the model is SDXL"
    )
    assert_matches(message, r"Load an adapter for SDXL, e.g. ip-adapter_sdxl_vit-h.safetensors")


def test_sd2_model_is_told_from_sd15() -> None:
    message = refusal(lambda: styled(real_model("sd2"), style_for("sd15", "ip-adapter_sd15.safetensors")))
    assert_matches(message, r"but the model is SD 2.x \(1024-wide text, 16 layers\)")


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_adapter_of_the_models_own_family_passes_the_check(kind: str) -> None:
    style, model = style_for(kind, "own.safetensors"), real_model(kind)
    assert len(style.adapter.numbers_for(map_model(model))) == {"sd15": 16, "sdxl": 70}[kind]


def test_wrong_encoder_is_refused_at_the_node_before_anything_is_encoded() -> None:
    adapter = LoadedAdapter("ip-adapter_sdxl.safetensors", AdapterLayout("base", 4, 1280, 2048, {1: 640}), None)
    config = {"projection_dim": 1024, "hidden_size": 1280}
    vit_h = SimpleNamespace(config=config, model_type="clip_vision_model")
    message = refusal(lambda: encode(adapter, vit_h, picture()))
    assert_matches(
        message, r"needs OpenCLIP ViT-bigG \(1280-wide embeddings\), but the image encoder connected is OpenCLIP"
    )
    assert_matches(
        message, r"Load CLIP-ViT-bigG.* with Load CLIP Vision from models/clip_vision; it is published at hugg"
    )


@pytest.mark.parametrize("given", ["l", "g"])
@pytest.mark.parametrize("variant", ["base", "plus", "full-face"])
def test_tiny_wrong_encoders_are_refused_by_width(models: Path, variant: str, given: str) -> None:
    adapter = load_adapter(models, variant=variant)
    message = refusal(lambda: encode(adapter, make_clip_vision(given), picture()))
    assert_matches(
        message,
        # The tiny base adapter is as wide as the demo's.
        "This adapter needs .*-wide.*, but the image encoder connected is .*-wide.*(Load the image|Load Demo Model)",
    )


# Pictures and weights

NAN = float("nan")
BAD_PICTURES = {
    "no image": (torch.zeros(0, 64, 64, 3), "holds no picture .*Connect an image"),
    "zero height": (torch.zeros(1, 0, 64, 3), "holds no picture"),
    "a mask": (torch.zeros(1, 64, 64), "holds no picture"),
    "NaN": (torch.full((1, 64, 64, 3), NAN), "holds pixels that are not numbers .*Check the node that made it"),
    "four channels": (torch.zeros(1, 64, 64, 4), "has 4 channels; expected 3 .*convert it to RGB"),
    "one pixel": (torch.zeros(1, 1, 1, 3), "is 1x1 pixels, too small .*Choose a larger picture"),
}


@pytest.mark.parametrize("kind", BAD_PICTURES)
def test_bad_picture_is_refused_with_its_socket(models: Path, kind: str) -> None:
    bad, sentence = BAD_PICTURES[kind]
    adapter, encoder = load_adapter(models), make_clip_vision("h")
    assert_matches(refusal(lambda: encode(adapter, encoder, picture(), bad)), f"The image at 'picture1' {sentence}")
    assert_matches(
        refusal(lambda: encode(adapter, encoder, picture(), negative=bad)), f"The image at 'negative' {sentence}"
    )


def test_no_picture_at_all_is_refused(models: Path) -> None:
    message = refusal(lambda: encode(load_adapter(models), make_clip_vision("h")))
    assert_matches(message, "There is no style picture. Connect one to 'picture0', e.g. from Load Image")


@pytest.mark.parametrize(
    ("weights", "combine", "sentence"),
    [
        ("1", "concatenate", "There are 2 pictures but 1 weights. Write one weight a picture, or none"),
        ("1, 2, 3", "average", "There are 2 pictures but 3 weights"),
        ("one, two", "average", "'one, two' is not a list of weights. Write one number a picture, e.g. 1.0, 0.5"),
        ("1, nan", "average", "'1, nan' is not a list of weights"),
        ("1, inf", "add", "'1, inf' is not a list of weights"),
        ("1, 0", "concatenate", "With 'concatenate' every weight must be above 0. Leave a picture out"),
        ("1, -1", "concatenate", "every weight must be above 0"),
        ("1, -1", "average", "The weights sum to 0, so there is no average. Change one of them"),
        ("1, -1", "norm average", "The weights sum to 0"),
    ],
)
def test_bad_weights_are_refused(models: Path, weights: str, combine: str, sentence: str) -> None:
    adapter, encoder = load_adapter(models), make_clip_vision("h")
    action = lambda: encode(adapter, encoder, picture(1), picture(2), weights=weights, combine=combine)  # noqa: E731
    assert_matches(refusal(action), sentence)


# Settings of InstantStyle


@pytest.fixture
def style(models: Path) -> EncodedStyle:
    return encode(load_adapter(models), make_clip_vision("h"), picture(1))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"strength": NAN}, "The strength is nan, which is not a number to calculate with. Enter a finite one"),
        ({"strength": math.inf}, "The strength is inf"),
        ({"start": 0.7, "end": 0.3}, r"Start \(0.7\) must come before end \(0.3\). Swap them or widen the window"),
        ({"start": 0.5, "end": 0.5}, r"Start \(0.5\) must come before end \(0.5\)"),
        ({"start": NAN}, "Start is nan and end 1; both must lie between 0 and 1"),
        ({"end": 1.5}, "both must lie between 0 and 1"),
        ({"mask": torch.zeros(1, 64, 64)}, r"The mask is empty \(all black\).*Paint the area to change in white"),
        ({"mask": torch.full((1, 8, 8), NAN)}, "The mask holds values that are not numbers .*Repaint it"),
        ({"mask": torch.ones(0, 64, 64)}, r"The mask has shape \(0, 64, 64\); expected \(masks, height, width\)"),
        ({"mask": torch.ones(1, 0, 64)}, "none of them 0"),
    ],
)
def test_bad_setting_is_refused(style: EncodedStyle, settings: dict[str, Any], sentence: str) -> None:
    assert_matches(refusal(lambda: styled(make_unet("sd15"), style, **settings)), sentence)


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ("output.1=1", "no block called 'output.1' in this model. Its blocks are: input.1, .*middle.0, .*output.11"),
        ("middle.1=1", "no block called 'middle.1'"),
        ("Output.3=1", "no block called 'Output.3'"),
        (" , ,", "No block is named. Write for example: input.1=1.0. The blocks are: input.1"),
        ("output.3=much", "'much' is not a number .the weight of 'output.3'.. Write for example 0.5"),
        ("output.3=", "'' is not a number"),
        ("output.3=nan", "'nan' is not a number"),
        ("output.3=1=2", "'1=2' is not a number"),
    ],
)
def test_bad_block_weights_are_refused(style: EncodedStyle, weights: str, sentence: str) -> None:
    blocks = {"blocks": "custom", "weights": weights}
    assert_matches(refusal(lambda: styled(make_unet("sd15"), style, blocks=blocks)), sentence)


def test_wrong_block_of_sdxl_lists_sdxls_blocks(models: Path) -> None:
    style = encode(load_adapter(models, "sdxl"), make_clip_vision("g"), picture(1))
    blocks = {"blocks": "custom", "weights": "output.11=1"}
    message = refusal(lambda: styled(make_unet("sdxl"), style, blocks=blocks))
    assert_matches(
        message, "'output.11' in this model. Its blocks are: input.4, input.5, input.7, input.8, middle.0, output.0"
    )


@pytest.mark.parametrize(
    ("points", "sentence"),
    [
        ("", "The curve has no points. Write place:weight pairs, for example 0:1, 0.5:0.3, 1:0"),
        ("0.5", "'0.5' is not a point of a curve. Write place:weight"),
        ("0:1, 1.5:0", "places of a curve's points must lie between 0 .* and 1"),
        ("-0.1:1", "places of a curve's points must lie between 0"),
        ("0:high", "'high' is not a number .the weight."),
        ("here:1", "'here' is not a number .the place."),
        ("nan:1", "'nan' is not a number .the place."),
        ("0:1:2", "'1:2' is not a number .the weight."),
    ],
)
def test_bad_curve_points_are_refused(style: EncodedStyle, points: str, sentence: str) -> None:
    curve = {"curve": "custom", "points": points}
    assert_matches(refusal(lambda: styled(make_unet("sd15"), style, curve=curve)), sentence)


# Words


@pytest.mark.parametrize("text", ["", "  \n ", "( :1.0)"])
def test_empty_content_words_are_refused(style: EncodedStyle, text: str) -> None:
    message = refusal(lambda: run(SubtractContent, style, make_clip("sd2"), text, 0.5))
    assert_matches(message, "There are no content words to subtract. Write what the reference shows, e.g. a rabbit")


def test_content_words_too_long_are_refused(style: EncodedStyle) -> None:
    message = refusal(lambda: run(SubtractContent, style, make_clip("sd2"), "a rabbit " * 60, 0.5))
    assert_matches(message, "'a rabbit .* are too long: CLIP reads 75 tokens. Name the content briefly")


@pytest.mark.parametrize("variant", ["plus", "full-face"])
def test_content_words_are_refused_for_patch_adapters(models: Path, variant: str) -> None:
    style = encode(load_adapter(models, variant=variant), make_clip_vision("h"), picture(1))
    message = refusal(lambda: run(SubtractContent, style, make_clip("sd2"), "a rabbit", 0.5))
    assert_matches(message, "made for a plus, full-face or composition adapter.*Use a base, light or vit-G adapter")


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_text_encoder_of_another_space_is_refused(style: EncodedStyle, kind: str) -> None:
    message = refusal(lambda: run(SubtractContent, style, make_clip(kind), "a rabbit", 0.5))
    assert_matches(message, "64-wide.*but the text encoder connected .clip_[lg]. is .*cannot be compared")


def test_strength_of_words_that_is_no_number_is_refused(style: EncodedStyle) -> None:
    message = refusal(lambda: run(SubtractContent, style, make_clip("sd2"), "a rabbit", NAN))
    assert_matches(message, "The strength is nan")


# Models of other families


def ssd_1b() -> Any:
    """Segmind's SSD-1B: SDXL with the middle attention taken out and the rest thinned."""
    depths = {"transformer_depth": [0, 0, 2, 2, 4, 4], "transformer_depth_output": [0, 0, 0, 1, 1, 2, 10, 4, 4]}
    return base_model("sdxl", UNET_CONFIGS["sdxl"] | depths | {"transformer_depth_middle": -1})


def sdxs() -> Any:
    """SDXS: SD 1.5 without a middle block at all."""
    return base_model("sd15", UNET_CONFIGS["sd15"] | {"transformer_depth_middle": -2})


@pytest.mark.parametrize("make", [ssd_1b, sdxs])
def test_model_of_another_family_is_refused_where_it_is_patched(style: EncodedStyle, make: Any) -> None:
    model = stranger(make)
    message = refusal(lambda: styled(model, style))
    kind = type(model.model).__name__
    assert_matches(message, f"This model .{kind}. does not have the attention blocks of SD 1.5 or SDXL: it is of ano")
    assert_matches(message, "thinned copy such as SSD-1B. Load an SD 1.5 or SDXL checkpoint")


@pytest.mark.parametrize("make", [ssd_1b, sdxs])
def test_what_is_on_a_model_of_another_family_is_shown_all_the_same(make: Any) -> None:
    model = stranger(make)
    model.model_options["transformer_options"]["patches"] = {"attn1_patch": [min]}
    kind, ours, theirs = run(ShowPatches, model)[0].split("\n")
    assert kind == f"{type(model.model).__name__}: a family that Semblance does not know"
    assert ours == "No Semblance patch."
    assert theirs == "Another node patches attn1_patch: builtins.min"


def stranger(make: Any) -> Any:
    options: dict[str, Any] = {"transformer_options": {}}
    return SimpleNamespace(model=make(), model_options=options, wrappers={}, patches={}, object_patches={})


# Files that are not there

LOADERS = [
    (LoadAdapter, "ipadapter", "huggingface.co/h94/IP-Adapter"),
    (LoadTextTower, "clip_vision", "huggingface.co/laion/CLIP-ViT-H-14"),
    (LoadReference, "styles", "Put it there"),
]


@pytest.mark.parametrize(("node", "folder", "published"), LOADERS)
def test_missing_file_is_refused_before_anything_runs(models: Path, node: Any, folder: str, published: str) -> None:
    message = node.validate_inputs(file="gone.safetensors")
    assert isinstance(message, str)
    for part in ("The file 'gone.safetensors' is not in ", str(models), folder, "press R to refresh", published):
        assert part in message


@pytest.mark.parametrize(("node", "folder", "published"), LOADERS)
def test_empty_folder_is_said_so(models: Path, node: Any, folder: str, published: str) -> None:
    file = next(entry for entry in node.define_schema().inputs if entry.id == "file")
    assert file.options == (COME_WITH_THE_PACK if node is LoadAdapter else [""])
    assert_matches(node.validate_inputs(file=""), f"No file is in .*{folder}.*{published}")


@pytest.mark.parametrize(("node", "folder", "published"), LOADERS)
def test_file_named_by_another_node_is_looked_for_when_it_is_known(
    models: Path, node: Any, folder: str, published: str
) -> None:
    """ComfyUI validates such an input as None."""
    assert node.validate_inputs(file=None) is True
    adapter = (load_adapter(models),) if node is LoadReference else ()
    assert_matches(refusal(lambda: run(node, *adapter, None)), f"No file is in .*{folder}")


def loader_prompt(node: str, file: Any, **inputs: Any) -> Prompt:
    given = {"file": file} if file is not None else {}
    prompt = {"load": {"class_type": node, "inputs": {**given, **inputs}}}
    shown = {
        "SemblanceLoadAdapter": {"class_type": "PreviewAny", "inputs": {"source": ["load", 1]}},
        "SemblanceLoadTextTower": {"class_type": "PreviewAny", "inputs": {"source": ["load", 0]}},
        "SemblanceLoadReference": {"class_type": "PreviewAny", "inputs": {"source": ["load", 0]}},
    }
    return prompt | {"show": shown[node]}


@pytest.fixture(scope="module")
def server(comfyui: ComfyUIServer) -> ComfyUIServer:
    save_file(adapter_state_dict("sd15"), comfyui.models("ipadapter") / "bad_input.safetensors")
    comfyui.models("clip_vision").joinpath("bad_input_h.safetensors").write_bytes(save({"x": torch.ones(1)}))
    return comfyui


ADAPTER = {"adapter": ["adapter", 0]}
ADAPTER_NODE = {"adapter": {"class_type": "SemblanceLoadAdapter", "inputs": {"file": "bad_input.safetensors"}}}


@pytest.mark.parametrize("file", ["gone.safetensors", ""])
@pytest.mark.parametrize(
    ("node", "sentence"),
    [
        ("SemblanceLoadAdapter", "is (not )?in .*ipadapter. Put it there and press R.*published at huggingface.co/h94"),
        (
            "SemblanceLoadTextTower",
            "is (not )?in .*clip_vision or .*text_encoders.*published at huggingface.co/laion/CL",
        ),
        ("SemblanceLoadReference", "is (not )?in .*semblance.styles. Put it there"),
    ],
)
def test_server_refuses_a_missing_file_with_our_sentence(
    server: ComfyUIServer, node: str, sentence: str, file: str
) -> None:
    prompt = loader_prompt(node, file, **(ADAPTER if node == "SemblanceLoadReference" else {})) | ADAPTER_NODE
    with pytest.raises(PromptFailed, match=sentence) as failure:
        server.queue(prompt)
    assert failure.value.node_id == "load" and failure.value.node_type == node


def test_input_left_out_of_a_prompt_is_named_by_the_server(server: ComfyUIServer) -> None:
    with pytest.raises(PromptFailed, match="Required input is missing: file"):
        server.queue(loader_prompt("SemblanceLoadAdapter", None))


def test_red_node_on_the_server_carries_our_sentence(server: ComfyUIServer) -> None:
    (server.models("ipadapter") / "bad_input_lora.safetensors").write_bytes(save(lora_state_dict(make_unet("sd15"))))
    with pytest.raises(PromptFailed, match=f"This file is a LoRA, not an IP-Adapter.*{FITTING}") as failure:
        server.run(loader_prompt("SemblanceLoadAdapter", "bad_input_lora.safetensors"))
    assert failure.value.node_id == "load"


def test_image_encoder_given_as_text_tower_turns_the_node_red(server: ComfyUIServer) -> None:
    with pytest.raises(PromptFailed, match="has no CLIP text tower with a projection.*Use a full CLIP file"):
        server.run(loader_prompt("SemblanceLoadTextTower", "bad_input_h.safetensors"))


def test_file_put_into_the_folder_is_offered_without_a_restart(server: ComfyUIServer) -> None:
    save_file(adapter_state_dict("sd15"), server.models("ipadapter") / "bad_input_new.safetensors")
    options = server.get("/object_info/SemblanceLoadAdapter")["SemblanceLoadAdapter"]["input"]["required"]["file"]
    assert "bad_input_new.safetensors" in options[1]["options"]
    history = server.run(loader_prompt("SemblanceLoadAdapter", "bad_input_new.safetensors"))
    assert "4 image tokens" in history["outputs"]["show"]["text"][0]


# Styles


def test_style_made_for_another_adapter_is_refused_at_the_node(models: Path, style: EncodedStyle) -> None:
    name = run(SaveReference, style, "ink")[0]
    other = load_adapter(models, variant="plus")
    message = refusal(lambda: run(LoadReference, other, name))
    assert_matches(
        message, "The style 'ink.safetensors' was made for an adapter of the kind 'base .*Load an adapter of the"
    )


@pytest.mark.parametrize("name", ["../ink", "/tmp/ink", "C:\\ink", ""])
def test_style_name_that_leads_elsewhere_is_refused_at_the_node(style: EncodedStyle, name: str) -> None:
    assert_matches(refusal(lambda: run(SaveReference, style, name)), "is not a name for a style. Use letters, digits")


def test_refused_styling_leaves_the_model_as_it_was(style: EncodedStyle) -> None:
    model = make_unet("sd15")
    plain = sampled(model)
    refusal(lambda: styled(model, style, strength=NAN))
    assert torch.equal(sampled(model), plain)
