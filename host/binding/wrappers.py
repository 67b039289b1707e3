"""The wrappers by which ComfyUI's sampler and model calls reach the patches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import comfy.sampler_helpers
from torch import Tensor

from .carried import carried_patches
from .findings import with_findings
from .plan import plan_of, require
from .run import RUN, Run, SamplingEnough, open_run


def outer_sample(
    executor: Any,
    noise: Tensor,
    latent_image: Tensor,
    sampler: Any,
    sigmas: Tensor,
    denoise_mask: Tensor | None = None,
    callback: Callable[..., None] | None = None,
    *rest: Any,
    **named: Any,
) -> Tensor:
    """OUTER_SAMPLE wrapper: the run lasts exactly as long as the sampler, which runs as often as the patches ask."""
    guider = executor.class_obj
    model_sampling = guider.model_patcher.get_model_object("model_sampling")
    options = guider.model_options["transformer_options"]
    height, width = noise.shape[-2:]
    with open_run(model_sampling, sigmas, (height, width), lambda: guider.conds) as run:
        plan = plan_of(guider, run, sampler, sigmas, noise, inpaints=denoise_mask is not None)
        patches = carried_patches(options)
        samplings = require(patches, plan)
        options[RUN] = run
        conds = guider.conds
        try:
            for number in range(samplings):
                run.samplings_left = samplings - 1 - number
                guider.conds = {name: [dict(cond) for cond in group] for name, group in conds.items()}
                progress = _progress(callback, number, samplings)
                with ended_early(guider) if run.samplings_left else nullcontext():
                    made = executor(noise, latent_image, sampler, sigmas, denoise_mask, progress, *rest, **named)
            return with_findings(made, run.findings(patches, plan))
        finally:
            options.pop(RUN, None)


@contextmanager
def ended_early(guider: Any) -> Iterator[None]:
    """Lets a sampling end by SamplingEnough, with the tidying that ComfyUI does after a whole one."""
    try:
        yield
    except SamplingEnough:
        comfy.sampler_helpers.cleanup_models(guider.conds, guider.loaded_models)


def _progress(callback: Callable[..., None] | None, number: int, samplings: int) -> Callable[..., None] | None:
    """The callback of one sampling out of several, whose steps count on."""
    if callback is None or samplings == 1:
        return callback

    def counted(step: int, denoised: Tensor, x: Tensor, steps: int) -> None:
        callback(number * steps + step, denoised, x, samplings * steps)

    return counted


def apply_model(
    executor: Any,
    x: Tensor,
    t: Tensor,
    c_concat: Tensor | None,
    c_crossattn: Tensor | None,
    control: Any,
    transformer_options: dict[str, Any],
    **named: Any,
) -> Tensor:
    """APPLY_MODEL wrapper: a model called without a sampler gets a run as long as the call."""
    # Packs that call the model themselves, during a run or without one, do not name the noise level.
    options = {"sigmas": t, **transformer_options}
    if RUN in options:
        return executor(x, t, c_concat, c_crossattn, control, options, **named)
    height, width = x.shape[-2:]
    with open_run(executor.class_obj.model_sampling, t[:1], (height, width)) as run:
        return executor(x, t, c_concat, c_crossattn, control, {**options, RUN: run}, **named)


def calc_cond_batch(
    executor: Any, model: Any, conds: Any, x_in: Tensor, timestep: Tensor, model_options: dict[str, Any]
) -> Any:
    """CALC_COND_BATCH wrapper: the only place where the conditionings' roles and areas can be seen."""
    run: Run | None = model_options.get("transformer_options", {}).get(RUN)
    if run is None:
        return executor(model, conds, x_in, timestep, model_options)
    # Known to the run, not written into a copy of the options, where what others note for later calls would be lost.
    with run.reading(conds, x_in):
        found = executor(model, conds, x_in, timestep, model_options)
        return found if run.pinned is None else [run.pinned.found_in(denoised) for denoised in found]
