"""A patch that wants to act and meets no attention is refused in a sentence, never passed over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from semblance.attention.engine.scope import ScheduleWindow, Scope
from semblance.host.binding.plan import conflicting_nodes
from semblance.tests.support.studio import Studio, wrap


def walks_the_blocks(model: ModelPatcher) -> ModelPatcher:
    """As DeepCache does: a function around the model that runs the UNet's blocks itself."""
    unet, sampling = model.model.diffusion_model, model.model.model_sampling

    def walk(apply_model: Callable[..., Tensor], args: dict[str, Any]) -> Tensor:
        x, sigma, c = args["input"], args["timestep"], args["c"]
        options = {**c["transformer_options"], "wrappers": {}}
        seen = unet(sampling.calculate_input(sigma, x), sampling.timestep(sigma).float(), c["c_crossattn"],
                    c.get("y"), transformer_options=options)  # fmt: skip
        return sampling.calculate_denoised(sigma, seen, x)

    walked = model.clone()
    walked.set_model_unet_function_wrapper(walk)
    return walked


def exchanges_forward(model: ModelPatcher) -> ModelPatcher:
    """As some variants of FreeU do: the UNet's own forward, without the wrappers of other packs."""
    exchanged, unet = model.clone(), model.model.diffusion_model

    def forward(x: Tensor, timesteps: Tensor, context: Tensor, y: Tensor | None = None, **named: Any) -> Tensor:
        return unet._forward(x, timesteps, context, y, **named)

    exchanged.add_object_patch("diffusion_model.forward", forward)
    return exchanged


def answers_the_second_of_two(model: ModelPatcher) -> ModelPatcher:
    """As First Block Cache does: what comes again is answered without the blocks. It sits within our wrapper."""
    cached, unet, kept = model.clone(), model.model.diffusion_model, dict[str, Tensor]()

    def forward(x: Tensor, *arguments: Any, **named: Any) -> Tensor:
        if "x" in kept and kept["x"].shape == x.shape and torch.equal(kept["x"], x):
            return kept["output"]
        kept["output"], kept["x"] = type(unet)._forward(unet, x, *arguments, **named), x
        return kept["output"]

    cached.add_object_patch("diffusion_model._forward", forward)
    return cached


@pytest.mark.parametrize(
    ("runs_it", "names"),
    [(walks_the_blocks, "model_function_wrapper: .*walk"), (exchanges_forward, r"diffusion_model\.forward: .*forward")],
)
@pytest.mark.parametrize("ours_first", [True, False])
@pytest.mark.parametrize("name", ["instantstyle", "styleid", "consistory"])
def test_another_node_that_runs_the_model_is_named(
    sd15: Studio, runs_it: Callable[[ModelPatcher], ModelPatcher], names: str, ours_first: bool, name: str
) -> None:
    model = runs_it(sd15.with_patch(name)) if ours_first else sd15.with_patch(name, runs_it(sd15.model))
    with pytest.raises(ValueError, match=rf"no attention of the model came through it.*{names}.*Bypass that node"):
        sd15.sample(model)


@pytest.mark.parametrize("runs_it", [walks_the_blocks, exchanges_forward])
def test_a_patch_that_does_not_want_to_act_is_not_missed(
    sd15: Studio, runs_it: Callable[[ModelPatcher], ModelPatcher]
) -> None:
    alone = sd15.sample(runs_it(sd15.model))
    outside = sd15.everywhere(window=ScheduleWindow(0.99, 1.0))
    for settings in ({"strength": 0.0}, {"scope": Scope({})}, {"scope": outside}):
        model = runs_it(sd15.with_patch("instantstyle", **settings))
        assert torch.equal(sd15.sample(model), alone)


def test_steps_in_which_no_conditioning_is_active_are_no_fault(sd15: Studio) -> None:
    import nodes

    late = [
        nodes.ConditioningSetTimestepRange().set_range(text, 0.5, 1.0)[0] for text in (sd15.positive, sd15.negative)
    ]
    texts = dict(zip(("positive", "negative"), late, strict=True))
    assert torch.isfinite(sd15.sample(sd15.with_patch("instantstyle"), steps=4, **texts)).all()


@pytest.mark.parametrize("ours_first", [True, False])
def test_a_cache_that_answers_the_call_after_a_rehearsal_is_named(sd15: Studio, ours_first: bool) -> None:
    cache = answers_the_second_of_two
    model = cache(sd15.with_patch("consistory")) if ours_first else sd15.with_patch("consistory", cache(sd15.model))
    with pytest.raises(ValueError, match=r"calls the model twice.*as a cache does.*diffusion_model\._forward: "):
        sd15.sample(model, steps=4)


def test_easy_cache_and_lazy_cache_are_told_apart(sd15: Studio) -> None:
    from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode

    for node, name in ((EasyCacheNode, "EasyCache"), (LazyCacheNode, "LazyCache")):
        model = node.execute(sd15.model, 0.2, 0.15, 0.95, False)[0]
        assert conflicting_nodes(model.model_options) == [name]
        assert torch.isfinite(sd15.sample(sd15.with_patch("instantstyle", model), steps=6)).all()


@pytest.mark.parametrize("name", ["instantstyle", "styleid", "consistory"])
def test_options_without_a_precision_do(sd15: Studio, name: str) -> None:
    """As the block that Advanced-ControlNet puts in place of the host's gives them."""

    def forget(*arguments: Any) -> tuple[Tensor, ...]:
        *sources, extra = arguments
        extra.pop("attn_precision")
        return tuple(sources)

    def within_ours(executor: Any, *arguments: Any, **named: Any) -> Tensor:
        *inputs, options = arguments
        given = options["patches"]
        return executor(
            *inputs, {**options, "patches": {**given, "attn1_patch": [*given.get("attn1_patch", ()), forget]}}
        )

    model = wrap(sd15.with_patch(name), WrappersMP.DIFFUSION_MODEL, within_ours)
    assert torch.equal(sd15.sample(model), sd15.patched(name))
