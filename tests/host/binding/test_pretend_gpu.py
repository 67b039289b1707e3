"""Whole calls of the UNet on a GPU that is not there: no two devices meet, and what lies there is not fetched again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from semblance.attention.engine.bank import FeatureBank
from semblance.attention.engine.call import AttentionCall
from semblance.attention.engine.patch import Attend
from semblance.attention.engine.scope import Scope
from semblance.attention.families import CONSISTORY
from semblance.attention.methods.consistory.applied import applied_subject
from semblance.attention.methods.consistory.features import features_step
from semblance.attention.methods.consistory.method import ConsiStory
from semblance.attention.methods.consistory.settings import FreeU, Injection, QueryBlend, StepRange
from semblance.attention.methods.instantstyle import InstantStyle
from semblance.attention.subjects.user_masks import UserMasks
from semblance.host.binding.model import add_patch, patches_on
from semblance.host.subjects.subject import record
from semblance.tests.support.pretend_gpu import PretendGPU, attention_of_gpus
from semblance.tests.support.speeds import slow_but
from semblance.tests.support.studio import STORY, Studio, ladder, painted, trajectory
from semblance.tests.support.toy_patches import ToyPatch

STEPS, SIZE = 10, (16, 16)
ALWAYS = {"injection": Injection(window=StepRange(0.0, 1.0)), "blend": QueryBlend(until=0.6)}


def story(studio: Studio, **settings: object) -> ModelPatcher:
    told = {**ALWAYS, **settings}
    return add_patch(studio.model, ConsiStory(STORY, studio.model_map.family.choice(CONSISTORY), **told))


def with_free_u(studio: Studio) -> ModelPatcher:
    return story(studio, free_u=FreeU())


def with_drawn_masks(studio: Studio) -> ModelPatcher:
    return story(studio, masks=UserMasks(painted(2, 40, 56)))


def with_pictures(studio: Studio) -> ModelPatcher:
    return story(studio, pictures=trajectory(studio, SIZE, 1))


def with_a_recorded_subject(studio: Studio) -> ModelPatcher:
    def sampled(model: ModelPatcher) -> Tensor:
        return studio.sample(model, steps=STEPS, size=SIZE)

    _, subject = record(story(studio), sampled)
    return add_patch(
        studio.model, applied_subject(STORY, studio.model_map.family.choice(CONSISTORY), subject, **ALWAYS)
    )


def of_the_studio(name: str) -> Callable[[Studio], ModelPatcher]:
    return lambda studio: studio.with_patch(name, size=SIZE)


ONE_PASS = [(1, 2), (1, 3)]
"""Passes and steps."""
TWO_PASSES = [(1, 0), (1, 2), (1, "features"), (2, 2)]
CASES = {
    "several references": (of_the_studio("instantstyle plus"), ONE_PASS),
    "a mask": (of_the_studio("instantstyle masked"), ONE_PASS),
    "regions": (of_the_studio("instantstyle regions"), ONE_PASS),
    "pictures pushed away": (of_the_studio("ip-adapter swapped"), ONE_PASS),
    "a picture for each image": (of_the_studio("ip-adapter per image"), ONE_PASS),
    "styleid": (of_the_studio("styleid"), [(1, 2)]),
    "styleid with a mask": (of_the_studio("styleid masked"), ONE_PASS),
    "references": (of_the_studio("reference style"), ONE_PASS),
    "references with a mask": (of_the_studio("reference style masked"), ONE_PASS),
    "a story with FreeU": (with_free_u, TWO_PASSES),
    "a story with pictures": (with_pictures, ONE_PASS),
    # A conditioning that starts later leaves no maps for the steps before it.
    "own masks and a story that starts later": (with_drawn_masks, [(1, 3), (1, "features"), (2, 3)]),
    "a recorded subject": (with_a_recorded_subject, [(1, 0), (1, 2), (2, 2)]),
}


@pytest.fixture(scope="module", autouse=True)
def the_attention_of_gpus() -> Iterator[None]:
    with attention_of_gpus():
        yield


@pytest.fixture(scope="module")
def gpu(sd15: Studio) -> PretendGPU:
    return PretendGPU(sd15, SIZE)


@pytest.mark.parametrize("case", slow_but(CASES, ("styleid", "a picture for each image", "references")))
def test_a_method_meets_no_second_device_and_fetches_nothing_twice(gpu: PretendGPU, case: str) -> None:
    make, calls = CASES[case]
    fetches_nothing_twice(gpu, make(gpu.studio), calls)


@pytest.mark.slow
def test_so_does_it_on_sdxl(studio_of: Callable[[str], Studio]) -> None:
    make, calls = CASES["styleid"]
    fetches_nothing_twice(PretendGPU(studio_of("sdxl"), SIZE), make(studio_of("sdxl")), calls)


def fetches_nothing_twice(gpu: PretendGPU, model: ModelPatcher, calls: Sequence[tuple[int, int | str]]) -> None:
    """The first call of a run brings what stays; the first of a step, outside attention, what that step needs."""
    for patch in patches_on(model):
        if isinstance(patch, InstantStyle):
            assert patch.tokens.weight_mask is None or patch.tokens.weight_mask.dim()  # found on the CPU, once a patch
    sigmas = ladder(gpu.studio, STEPS).tolist()
    run = gpu.run(sigmas, calls[-1][0])
    features = features_step(run.moment(sigmas[0]))
    for number, (pass_number, step) in enumerate(calls):
        run.pass_number = pass_number
        sigma = sigmas[features if isinstance(step, str) else step]
        first = gpu.call(model, run, sigma)
        assert number == 0 or not +first.inside, (pass_number, step)
        assert not gpu.call(model, run, sigma).seen, (pass_number, step)


@dataclass(frozen=True, eq=False, repr=False)
class Fetch(ToyPatch):
    """Asks in every attention how large the output is, as a number."""

    def edit_output(self, call: AttentionCall, output: Tensor, attend: Attend, bank: FeatureBank) -> Tensor:
        return output / output.abs().amax().cpu()


@dataclass(frozen=True, eq=False, repr=False)
class Stray(ToyPatch):
    """Multiplies by numbers that stayed on the CPU."""

    def edit_output(self, call: AttentionCall, output: Tensor, attend: Attend, bank: FeatureBank) -> Tensor:
        return output * torch.ones(output.shape[-1])


@pytest.mark.slow
def test_the_pretence_sees_what_a_gpu_would_wait_for_and_what_it_would_refuse(gpu: PretendGPU) -> None:
    somewhere, sigmas = Scope({"output.5": 1.0}), ladder(gpu.studio, STEPS).tolist()
    fetching = add_patch(gpu.studio.model, Fetch(somewhere))
    crossings = gpu.call(fetching, gpu.run(sigmas, 1), sigmas[2])
    assert crossings.inside == crossings.seen == {"_to_copy.default": 2}  # one in each attention of the block
    with pytest.raises(RuntimeError, match="cuda:0, cpu"):
        gpu.call(add_patch(gpu.studio.model, Stray(somewhere)), gpu.run(sigmas, 1), sigmas[2])
