"""The wrappers by which ComfyUI's sampler and model calls reach the patches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import comfy.sampler_helpers
from torch import Tensor

from .carried import carried_patches
from .findings import findings_of, with_findings
from .plan import check, plan_of
from .run import RUN, PassFinished, Run, open_run


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
    """OUTER_SAMPLE wrapper: opens the run, lets the patches refuse it, and samples in as many passes as they need."""
    guider = executor.class_obj
    model_sampling = guider.model_patcher.get_model_object("model_sampling")
    options = guider.model_options["transformer_options"]
    height, width = noise.shape[-2:]
    with open_run(model_sampling, sigmas, (height, width), lambda: guider.conds) as run:
        plan = plan_of(guider, run, sampler, sigmas, noise, inpaints=denoise_mask is not None)
        patches = carried_patches(options)
        run.passes = check(patches, plan)
        if not noise.any():
            run.resume(patches, findings_of(latent_image))
        options[RUN] = run
        conds = guider.conds
        try:
            for pass_number in range(1, run.passes + 1):
                run.pass_number = pass_number
                guider.conds = {name: [dict(cond) for cond in group] for name, group in conds.items()}
                progress = _progress(callback, pass_number, run.passes)
                with ended_early(guider) if pass_number < run.passes else nullcontext():
                    made = executor(noise, latent_image, sampler, sigmas, denoise_mask, progress, *rest, **named)
            return with_findings(made, run.findings(patches, replace(plan, passes=run.passes)))
        finally:
            options.pop(RUN, None)


@contextmanager
def ended_early(guider: Any) -> Iterator[None]:
    """Lets a pass end by PassFinished, with the tidying that ComfyUI does after a whole one."""
    try:
        yield
    except PassFinished:
        comfy.sampler_helpers.cleanup_models(guider.conds, guider.loaded_models)


def _progress(callback: Callable[..., None] | None, pass_number: int, passes: int) -> Callable[..., None] | None:
    """The callback of one pass out of several: its steps count on from those of the passes before."""
    if callback is None or passes == 1:
        return callback

    def counted(step: int, denoised: Tensor, x: Tensor, steps: int) -> None:
        callback((pass_number - 1) * steps + step, denoised, x, passes * steps)

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
    """CALC_COND_BATCH wrapper: the only place where the conditionings' roles and crops can be seen."""
    run: Run | None = model_options.get("transformer_options", {}).get(RUN)
    if run is None:
        return executor(model, conds, x_in, timestep, model_options)
    # Known to the run, not written into a copy of the options, where what others note for later calls would be lost.
    with run.reading(conds, x_in):
        found = executor(model, conds, x_in, timestep, model_options)
        return found if run.pinned is None else [run.pinned.into_denoised(denoised) for denoised in found]
