"""On a model that Torch Compile compiled, before a patch or after it, a patch does what it does on the plain one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_torch_compile import TorchCompileModel
from torch import Tensor
from torch._dynamo.utils import counters

from semblance.tests.support.pretend_gpu import attention_of_gpus
from semblance.tests.support.speeds import slow, slow_but
from semblance.tests.support.studio import PATCHES, Studio, relative_error


def compiled(model: ModelPatcher) -> ModelPatcher:
    """As the stock node compiles it, guards dropped as there, by a backend that needs no C compiler."""
    return TorchCompileModel.execute(model, "eager")[0]


def compiled_as_object(model: ModelPatcher) -> ModelPatcher:
    """As packs did before the host had a node for it."""
    exchanged, unet = model.clone(), model.model.diffusion_model
    unet = getattr(unet, "_orig_mod", unet)  # what an earlier run exchanged stays in its place until another is loaded
    exchanged.add_object_patch("diffusion_model", torch.compile(unet, backend="eager"))
    return exchanged


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


@pytest.fixture(scope="module", autouse=True)
def the_attention_of_gpus() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    with attention_of_gpus():
        yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def own() -> Studio:
    """With results of this attention alone."""
    return Studio.of("sd15")


@pytest.mark.parametrize("compiling", [compiled, slow(compiled_as_object)])
@pytest.mark.parametrize("name", slow_but(PATCHES, ("instantstyle masked", "consistory")))
def test_a_patch_on_a_compiled_model_is_never_recorded(
    own: Studio, name: str, compiling: Callable[[ModelPatcher], ModelPatcher]
) -> None:
    before = graphs()
    for model in (own.with_patch(name, compiling(own.model)), compiling(own.with_patch(name))):
        assert torch.equal(own.sample(model), own.patched(name))
    assert graphs() == before


def test_the_compiler_goes_on_after_a_patched_run_and_after_a_failed_one(own: Studio) -> None:
    def answer(tensor: Tensor) -> Tensor:
        return tensor + 42

    model = compiled(own.with_patch("edits output"))
    own.sample(model, steps=1)
    with pytest.raises(RuntimeError):
        own.sample(model, steps=1, positive=[[torch.zeros(1, 77, 3), {}]])
    before = graphs()
    assert torch.compile(answer, backend="eager")(torch.zeros(1)) == 42
    assert graphs() == before + 1


@pytest.mark.slow
def test_branches_of_one_compiled_model_do_not_meet(own: Studio) -> None:
    """The node's guards do not look at what lies on a model, so a recording would answer for any branch."""
    torch._dynamo.reset()
    branches = {(name, first): branch(own, name, first) for name in PATCHES for first in (True, False)}
    before = graphs()

    def each_is_right(*chosen: str) -> None:
        for (name, first), model in branches.items():
            if name in chosen:
                assert torch.equal(own.sample(model), own.patched(name)), (name, first)

    each_is_right("styleid", "consistory fast")
    assert graphs() == before
    assert relative_error(own.sample(compiled(own.model)), own.plain) < 1e-5
    assert graphs() == before + 1
    each_is_right(*PATCHES)
    assert relative_error(own.sample(compiled(own.model)), own.plain) < 1e-5
    assert graphs() == before + 1


def branch(studio: Studio, name: str, compiled_first: bool) -> ModelPatcher:
    return studio.with_patch(name, compiled(studio.model)) if compiled_first else compiled(studio.with_patch(name))
