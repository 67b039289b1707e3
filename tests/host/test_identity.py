"""A model is known by its weights, whatever they are stored in; what was made with one is refused on another."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

import comfy.model_management
import comfy.sd
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy.quant_ops import QuantizedTensor
from comfy_extras.nodes_attention_multiply import UNetSelfAttentionMultiply
from comfy_extras.nodes_model_merging import ModelAdd, ModelMergeBlocks, ModelMergeSimple, ModelSubtract
from torch import Tensor, nn

from semblance.attention.references.trajectory import ModelStamp
from semblance.attention.references.weight_samples import WeightSamples
from semblance.host.identity import check_model, stamp_of, subject_stamp
from semblance.host.weight_values import sample_weights
from semblance.tests.support.speeds import slow, slow_but
from semblance.tests.tiny_models import make_unet

REMEDY = "Do this."
TO_Q = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
Change = Callable[[ModelPatcher], ModelPatcher]


def is_one(made: ModelPatcher, here: ModelPatcher, stamp: Callable[[Any], ModelStamp] = stamp_of) -> bool:
    """Whether what was made with one model may be used on the other, after a file."""
    read = ModelStamp.read(json.loads(json.dumps(asdict(stamp(made)))))
    try:
        check_model(read, stamp(here), here, "It was made", REMEDY)
    except ValueError as refused:
        assert str(refused).startswith("It was made with another SD") and str(refused).endswith(REMEDY)
        return False
    return True


@pytest.fixture(scope="module")
def plain() -> ModelPatcher:
    return make_unet("sd15")


@pytest.fixture(scope="module")
def other() -> ModelPatcher:
    return make_unet("sd15", seed=99)


def linear_layers(model: ModelPatcher) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    for parent in list(model.model.diffusion_model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear):
                yield parent, name, layer


class Packed(nn.Module):
    """A layer as GGUF packs have it: 4 bits a value in blocks of 32, and a `state_dict()` of empty tensors."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        blocks = layer.weight.detach().reshape(-1, 32)
        self.scale = blocks.abs().amax(dim=1, keepdim=True) / 7
        levels = ((blocks / self.scale).round() + 8).to(torch.uint8)
        self.weight = nn.Parameter(levels[:, ::2] * 16 + levels[:, 1::2], requires_grad=False)

    def get_weight(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        levels = torch.stack((tensor // 16, tensor % 16), dim=-1).flatten(1).to(dtype) - 8
        return (levels * self.scale).reshape(self.out_features, self.in_features)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[prefix + "weight"] = torch.zeros_like(self.weight, device="meta")


class Silent(Packed):
    """A layer that no way is known to unpack."""

    get_weight = None  # pyright: ignore[reportAssignmentType]


def packed(kind: type[Packed], seed: int = 0) -> ModelPatcher:
    model = make_unet("sd15", seed=seed)
    for parent, name, layer in linear_layers(model):
        if layer.weight.numel() % 32 == 0:
            setattr(parent, name, kind(layer))
    return model


def quantised(seed: int = 0) -> ModelPatcher:
    """The host's own scaled fp8, as its quantised checkpoints bring it."""
    import comfy.ops

    operations = comfy.ops.mixed_precision_ops()
    model = make_unet("sd15", seed=seed)
    for parent, name, layer in linear_layers(model):
        made = operations.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        weight = QuantizedTensor.from_float(layer.weight.detach(), "TensorCoreFP8Layout")
        made.weight, made.bias = nn.Parameter(weight, requires_grad=False), layer.bias
        setattr(parent, name, made)
    return model


STORED: dict[str, Callable[[int], ModelPatcher]] = {
    "fp32": lambda seed: make_unet("sd15", seed),
    "fp16": lambda seed: make_unet("sd15", seed, torch.float16),
    "bf16": lambda seed: make_unet("sd15", seed, torch.bfloat16),
    "fp8": lambda seed: make_unet("sd15", seed, torch.float8_e4m3fn),
    "fp8, coarser": lambda seed: make_unet("sd15", seed, torch.float8_e5m2),
    "scaled fp8": quantised,
    "packed in 4 bits": lambda seed: packed(Packed, seed),
}


@pytest.mark.parametrize("stored", STORED)
def test_one_checkpoint_is_one_model_whatever_it_is_stored_in(
    plain: ModelPatcher, other: ModelPatcher, stored: str
) -> None:
    """FAULTS A1.6 and F3: each dtype was a checkpoint of its own, and packed layers crashed."""
    model = STORED[stored](0)
    for stamp in (stamp_of, subject_stamp):
        assert is_one(plain, model, stamp) and is_one(model, plain, stamp) and is_one(model, model, stamp)
        assert not is_one(other, model, stamp) and not is_one(model, other, stamp)


def test_small_weights_in_fp8_are_still_known() -> None:
    """Below fp8's smallest normal number the steps grow no finer: weights of 0.005 lose a tenth."""

    def small(dtype: torch.dtype, seed: int = 0) -> ModelPatcher:
        model = make_unet("sd15", seed=seed)
        for _, _, layer in linear_layers(model):
            layer.weight.data = (layer.weight.data * 0.005 / layer.weight.data.std()).to(dtype)
        return model

    assert is_one(small(torch.float32), small(torch.float8_e4m3fn))
    assert not is_one(small(torch.float32, seed=99), small(torch.float8_e4m3fn))


def test_a_layer_that_cannot_be_read_stands_for_its_name_and_shape(plain: ModelPatcher) -> None:
    silent = packed(Silent)
    assert is_one(plain, silent) and is_one(silent, plain)
    samples = sample_weights(silent)
    assert all(group.values is None for group in samples.groups.values())
    shapes = {name: replace(group, shapes=((1, 1),)) for name, group in samples.groups.items()}
    assert not samples.is_same(replace(samples, groups=shapes))


def merged(model: ModelPatcher, with_model: ModelPatcher, ratio: float) -> ModelPatcher:
    (made,) = ModelMergeSimple().merge(model, with_model, ratio)
    return made


MERGES: dict[str, Callable[[ModelPatcher, ModelPatcher], ModelPatcher]] = {
    "all of the other": lambda plain, other: merged(plain, other, 0.0),
    "half of each": lambda plain, other: merged(plain, other, 0.5),
    "a tenth of the other": lambda plain, other: merged(plain, other, 0.9),
    "the first half's blocks": lambda plain, other: ModelMergeBlocks().merge(
        plain, other, input=0.0, middle=1.0, out=1.0
    )[0],
    "added": lambda plain, other: ModelAdd().merge(plain, other)[0],
    "subtracted": lambda plain, other: ModelSubtract().merge(plain, other, 0.5)[0],
}


@pytest.mark.parametrize(
    ("name", "loaded"),
    slow_but(itertools.product(MERGES, [False, True]), [("all of the other", True), ("half of each", False)]),
)
def test_a_merge_in_the_graph_is_another_model(
    plain: ModelPatcher, other: ModelPatcher, name: str, loaded: bool
) -> None:
    """FAULTS F7: a merge passed for the model it began with, with a gap of 1.68 at ratio 0."""
    merge = MERGES[name](plain, other)
    if loaded:
        comfy.model_management.load_models_gpu([merge])
    for stamp in (stamp_of, subject_stamp):
        assert not is_one(plain, merge, stamp) and not is_one(merge, plain, stamp) and is_one(merge, merge, stamp)
    comfy.model_management.load_models_gpu([plain])


@pytest.mark.slow
def test_a_merge_is_measured_as_the_model_it_makes(plain: ModelPatcher, other: ModelPatcher) -> None:
    """All of one model is that one; and a merge saved to a file is the merge in the graph."""
    assert is_one(other, merged(plain, other, 0.0)) and is_one(plain, merged(plain, other, 1.0))
    merge, saved = merged(plain, other, 0.4), make_unet("sd15")
    comfy.model_management.load_models_gpu([merge])
    saved.model.diffusion_model.load_state_dict(merge.model.diffusion_model.state_dict())
    comfy.model_management.load_models_gpu([plain])
    assert is_one(merge, saved) and is_one(saved, merge) and not is_one(saved, plain)


def with_lora(model: ModelPatcher, strength: float = 1.0) -> ModelPatcher:
    """Every kind of change that a LoRA's file may hold, by ComfyUI's own loader."""
    generator = torch.Generator().manual_seed(1)
    lora: dict[str, Tensor] = {}
    for block in ("input_blocks_1_1", "output_blocks_3_1"):
        key = f"lora_unet_{block}_transformer_blocks_0_attn1_to"
        width = (
            model.model.diffusion_model.get_submodule("input_blocks.1.1" if "input" in block else "output_blocks.3.1")
            .transformer_blocks[0]
            .attn1.to_q.weight.shape[0]
        )
        lora[f"{key}_q.lora_up.weight"] = torch.randn(width, 2, generator=generator)
        lora[f"{key}_q.lora_down.weight"] = torch.randn(2, width, generator=generator)
        lora[f"{key}_v.diff"] = torch.randn(width, width, generator=generator)
    return comfy.sd.load_lora_for_models(model, None, lora, strength, 0.0)[0]


@pytest.mark.parametrize("loaded", [slow(False), True])
def test_a_lora_is_no_other_model(plain: ModelPatcher, other: ModelPatcher, loaded: bool) -> None:
    lora = with_lora(plain)
    assert len(lora.patches) == 4
    change = lora.clone()
    change.add_patches(
        {
            TO_Q: (
                torch.ones_like(plain.model.diffusion_model.input_blocks[1][1].transformer_blocks[0].attn1.to_q.weight),
            )
        }
    )
    weaker = UNetSelfAttentionMultiply().execute(plain, 0.5, 1.0, 1.0, 1.0)[0]
    for patched in (lora, change, weaker):
        if loaded:
            comfy.model_management.load_models_gpu([patched])
        assert stamp_of(patched) == stamp_of(plain)
    merge = merged(plain, with_lora(other), 0.5)
    assert stamp_of(merge) == stamp_of(merged(plain, other, 0.5)) == stamp_of(with_lora(merge))
    comfy.model_management.load_models_gpu([plain])


@pytest.mark.parametrize("block", ["output_blocks.3", "output_blocks.5", "middle_block"])
@pytest.mark.parametrize("attention", ["attn1", "attn2"])
def test_a_checkpoint_with_the_attention_of_one_block_changed_is_another(
    plain: ModelPatcher, block: str, attention: str
) -> None:
    """FAULTS A1.6: the digest sampled one attention matrix, so a B-LoRA merged into a file was not seen."""
    changed = make_unet("sd15")
    generator = torch.Generator().manual_seed(1)
    for name, weight in changed.model.diffusion_model.named_parameters():
        if name.startswith(block) and f".{attention}." in name and name.endswith("weight"):
            size = weight.std() * 0.2 / 2  # a fifth of the weight, by a product of rank 4
            up, down = (torch.randn(s, generator=generator) for s in ((weight.shape[0], 4), (4, weight.shape[1])))
            weight.data += size * up @ down
    assert not is_one(plain, changed) and not is_one(changed, plain)


def test_another_noise_schedule_is_another_model(plain: ModelPatcher) -> None:
    samples = sample_weights(plain)
    assert samples.is_same(replace(samples, schedule=tuple(1.001 * level for level in samples.schedule)))
    assert not samples.is_same(replace(samples, schedule=tuple(1.05 * level for level in samples.schedule)))


def test_files_of_version_0_1_are_known_by_their_digest(plain: ModelPatcher, other: ModelPatcher) -> None:
    """Digests of this model as version 0.1 wrote them; a merge on the model they cannot see, so it is refused."""
    old = replace(stamp_of(plain), weights="fe40648b8029f3f3")

    def fits(model: ModelPatcher) -> bool:
        try:
            check_model(old, stamp_of(model), model, "It was made", REMEDY)
        except ValueError:
            return False
        return True

    assert fits(plain) and fits(with_lora(plain))
    assert not fits(other) and not fits(merged(plain, other, 0.0)) and not fits(packed(Packed))
    comfy.model_management.load_models_gpu([plain])


def test_the_samples_are_small_and_a_damaged_text_is_told(plain: ModelPatcher) -> None:
    text = stamp_of(plain).weights
    assert len(text) < 20_000
    read = WeightSamples.read(text)
    assert read is not None and read.text() == text
    for damaged in (text[:-3], text.replace('"values":"', '"values":"?'), text.replace('"schedule"', '"levels"')):
        with pytest.raises(ValueError, match="samples of its model's weights cannot be read"):
            ModelStamp.read({"family": "SD 1.5", "prediction": "eps", "weights": damaged})
    with pytest.raises(TypeError):
        ModelStamp.read({"family": "SD 1.5", "prediction": "eps", "weights": 7})
