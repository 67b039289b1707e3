"""A copy of a MODEL to tune on: its own modules, frozen, outside of inference mode, in a precision with gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import torch
from comfy.patcher_extension import WrappersMP

from ..binding.model import map_model, patches_on

COMPILED = "torch.compile"
"""By this name ComfyUI keeps what Torch Compile puts around the modules of a model."""


@contextmanager
def training_copy(model: Any, memory: float) -> Iterator[Any]:
    """A frozen copy of MODEL on its device, for as long as the block lasts.

    The host makes room for `memory` bytes beside the weights. MODEL itself and its modules stay as they are.
    """
    management: Any = comfy.model_management
    before = management.in_training
    with torch.inference_mode(False), torch.enable_grad():
        copy = deep_copy(model)
        try:
            ready(copy, memory)
            management.in_training = True
            yield copy
        finally:
            management.in_training = before
            copy.cleanup()


def ready(copy: Any, memory: float) -> None:
    """Puts a copy on its device, all of it: gradients need every weight where it was, until they are taken."""
    comfy.model_management.load_models_gpu([copy], memory_required=round(memory), force_full_load=True)
    copy.pre_run()


def check_tunable(model: Any) -> None:
    """Raises ValueError for a MODEL that nothing can be tuned on."""
    _check_copied(model)
    carried = patches_on(model)
    if carried:
        raise ValueError(
            f"The model carries {type(carried[0]).__name__} already, which would be tuned against. Connect the model "
            "from before that node; the nodes of Semblance can be put on the model after Tune Style."
        )
    map_model(model)  # names another family, whose layers may count channels in their own way
    network, latent = model.model.diffusion_model, model.model.latent_format.latent_channels
    taken = getattr(network, "in_channels", latent)
    if taken != latent:
        raise ValueError(
            f"The model takes {taken} channels where a picture's latent has {latent}: it is an inpainting model, whose "
            "further channels Tune Style cannot fill. Load an ordinary checkpoint."
        )


def deep_copy(model: Any) -> Any:
    """A copy of MODEL with modules of its own, without gradients, in a precision that can be tuned beside.

    Raises ValueError for a MODEL that ComfyUI cannot load a second time, and for weights without gradients.
    """
    _check_copied(model)
    # Never with dynamic VRAM, which hands weights out and takes them back while gradients still need them.
    copy = model.clone(disable_dynamic=True, force_deepcopy=True)
    _uncompile(copy)
    network = copy.model.diffusion_model
    network.requires_grad_(False).eval()
    _check_weights(network)
    _widen(copy)
    return copy


def _check_copied(model: Any) -> None:
    if getattr(model, "cached_patcher_init", None) is None:
        raise ValueError(
            "This model cannot be loaded a second time, which tuning needs so that the model itself stays as it is. "
            "Load it with a loader of ComfyUI (Load Checkpoint, Load Diffusion Model) instead of another pack's, such "
            "as GGUF."
        )


def _uncompile(copy: Any) -> None:
    """Takes off what stands for the modules of the model that was copied: they are compiled around those."""
    copy.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, COMPILED)
    for name, replaced in list(copy.object_patches.items()):
        if hasattr(replaced, "_orig_mod"):
            del copy.object_patches[name]


def _check_weights(network: Any) -> None:
    """Refuses layers that compute in numbers through which no gradient passes."""
    for name, weight in network.named_parameters():
        whole = not weight.dtype.is_floating_point
        if whole or hasattr(weight, "tensor_type"):
            raise ValueError(
                f"The model's weights are quantised ('{name}' is {str(weight.dtype).removeprefix('torch.')}), and no "
                "gradient passes through them. Load the same model in fp16, bf16 or fp8."
            )


def training_dtype(model: Any) -> torch.dtype:
    """In what a copy of MODEL computes: as MODEL does, but not in fp16, which rounds small gradients to nothing.

    Then it is bf16, or fp32 where the device has none.
    """
    given: torch.dtype = model.model.get_dtype_inference()
    if given != torch.float16:
        return given
    return torch.bfloat16 if comfy.model_management.should_use_bf16(model.load_device) else torch.float32


def _widen(copy: Any) -> None:
    """Lets a copy compute in its training_dtype."""
    base, wide = copy.model, training_dtype(copy)
    if wide == base.get_dtype_inference():
        return
    if base.manual_cast_dtype is not None:
        base.manual_cast_dtype = wide
        return
    base.diffusion_model.to(wide)
    base.diffusion_model.dtype = wide
    comfy.model_management.archive_model_dtypes(base.diffusion_model)
    copy.size = 0  # the host counts it anew
