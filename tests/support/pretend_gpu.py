"""A GPU that is not there: tensors that say they lie on CUDA, and a count of what crosses between it and the CPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.ldm.modules.attention as host_attention
import comfy.ops
import pytest
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from semblance.host.binding.run import RUN, Run
from semblance.host.binding.unet import BoundSite
from semblance.tests.support.studio import BOTH_AT_ONCE, Studio
from semblance.tests.tiny_models import CONTEXT_WIDTH, UNET_CONFIGS
from semblance.tests.tiny_models.unets import SDXL_VECTOR_WIDTH

READ_BACK = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
COPYING = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class Crossings(TorchDispatchMode):
    """Counts the operations in which the GPU and the CPU wait for each other."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()
        """By the operation's name, all of them."""
        self.inside: Counter[str] = Counter()
        """Those inside an attention with patches of ours."""
        self.attending = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func is torch.ops.aten.nonzero.default:  # how many there are is not known here: every second one
            (tensor,) = args
            made = tensor.new_empty((tensor.numel() // 2, tensor.dim()), dtype=torch.long)
        else:
            made = func(*args, **named)
        given, gotten = (_devices(tree, func in COPYING) for tree in ((args, named), made))
        if len(given | gotten) > 1 or (func in READ_BACK and "cuda" in given):
            self.seen[func.__name__] += 1
            self.inside[func.__name__] += int(self.attending)
        return made

    def attend(self, site: BoundSite, *arguments: Any) -> Tensor:
        """An attention of ours, during which crossings count as inside."""
        self.attending = True
        try:
            return ATTEND(site, *arguments)
        finally:
            self.attending = False


ATTEND = BoundSite.__call__


def _devices(tree: Any, numbers: bool) -> set[str]:
    """Where the tensors lie; a number by itself on the CPU travels with the launch of any kernel but a copy."""
    tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
    return {tensor.device.type for tensor in tensors if numbers or tensor.dim() or tensor.device.type != "cpu"}


class PretendGPU:
    """A UNet whose weights and inputs say they lie on a GPU, called as the host calls it."""

    def __init__(self, studio: Studio, size: tuple[int, int] = (16, 16)) -> None:
        self.studio, self.size = studio, size
        self.schedule: Any = studio.model.get_model_object("model_sampling")
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        # The count of heads stands beside the widths, as the host's list of models has it.
        config = {**UNET_CONFIGS[studio.kind], **type(studio.model.model.model_config).unet_extra_config}
        with self._fake:
            self._unet = UNetModel(
                **config, dtype=torch.float16, device="cuda", operations=comfy.ops.disable_weight_init
            )

    def run(self, sigmas: Sequence[float], passes: int) -> Run:
        run = Run(self.schedule, sigmas, self.size)
        run.passes = passes
        run.models[torch.device("cuda", 0)] = self.studio.model.model  # as the host's call around the UNet notes it
        return run

    def call(self, model: Any, run: Run, sigma: float, images: int = 2) -> Crossings:
        """What crossed in one call of the UNet with both sides of the guidance. Raises where two devices meet."""
        rows, kind = len(BOTH_AT_ONCE) * images, self.studio.kind
        options = {**model.model_options["transformer_options"], RUN: run}
        # The host's own tensor of sigmas is read back once a call, before any attention.
        options |= {"cond_or_uncond": list(BOTH_AT_ONCE), "sigmas": [sigma] * images}

        def inputs(*shape: int) -> Tensor:
            return torch.empty(rows, *shape, dtype=torch.float16, device="cuda")

        crossings = Crossings()
        with pytest.MonkeyPatch.context() as watched, self._fake, crossings:
            watched.setattr(BoundSite, "__call__", lambda site, *arguments: crossings.attend(site, *arguments))
            output = self._unet(
                inputs(4, *self.size),
                timesteps=torch.empty(rows, device="cuda"),
                context=inputs(77, CONTEXT_WIDTH[kind]),
                y=inputs(SDXL_VECTOR_WIDTH) if kind == "sdxl" else None,
                transformer_options=options,
            )
        assert output.device.type == "cuda" and len(output) == rows
        return crossings


@contextmanager
def attention_of_gpus() -> Iterator[None]:
    """PyTorch's attention, which most GPUs use, in place of the one that ComfyUI takes on a CPU."""
    with pytest.MonkeyPatch.context() as exchanged:
        for name in ("optimized_attention", "optimized_attention_masked"):
            exchanged.setattr(host_attention, name, host_attention.attention_pytorch)
        yield
