"""The wrappers by which ComfyUI's sampler and model calls reach the patches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import comfy.sampler_helpers
from torch import Tensor

from ...attention.engine.moment import Moment
from ...attention.engine.patch import AttentionPatch
from ..display import tell
from .attendance import in_time, wants
from .carried import carried_patches
from .conditions import Conditions
from .dit import called
from .eager import uncompiled
from .findings import findings_of, with_findings
from .fitting import check_fit
from .neighbours import also_on
from .plan import advice, check, extra_images, plan_of
from .run import RUN, PassFinished, Run, open_run
from .transformer import transformer_of
from .unet_sites import attention_sites


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
    others = partial(also_on, guider.model_patcher, guider.model_options)
    with open_run(model_sampling, sigmas, (height, width), lambda: guider.conds, others) as run:
        patches = carried_patches(options)
        if not noise.any():
            run.resume(patches, findings_of(latent_image))
        plan = plan_of(guider, run, sampler, sigmas, noise, latent_image, inpaints=denoise_mask is not None)
        run.passes = check(patches, plan)
        transformer = run.read(guider.model_patcher.model, transformer_of)
        if transformer is not None:
            check_fit(transformer, patches, plan, guider.conds)
        run.extra_images = extra_images(patches, plan)
        if told := advice(patches, plan):
            tell(told)
        options[RUN] = run
        conds = guider.conds
        try:
            for pass_number in range(1, run.passes + 1):
                run.pass_number = pass_number
                guider.conds = {name: [dict(cond) for cond in group] for name, group in conds.items()}
                progress = _progress(callback, pass_number, run.passes)
                with ended_early(guider) if pass_number < run.passes else nullcontext():
                    made = executor(noise, latent_image, sampler, sigmas, denoise_mask, progress, *rest, **named)
            if not run.attendance.called:
                _check_uncalled(run, guider.model_patcher.model, patches, plan.moments)
            return with_findings(made, run.findings(patches, replace(plan, passes=run.passes)))
        finally:
            options.pop(RUN, None)


def prepare_sampling(
    executor: Any, model: Any, noise_shape: Sequence[float], conds: Any, *rest: Any, **named: Any
) -> Any:
    """PREPARE_SAMPLING wrapper: lets ComfyUI make room for what the patches need beside the model and its images."""
    run: Run | None = _options_in(rest, named).get(RUN)
    if run is not None and run.extra_images:
        noise_shape = [noise_shape[0] + run.extra_images, *noise_shape[1:]]
    return executor(model, noise_shape, conds, *rest, **named)


def _options_in(rest: Sequence[Any], named: Mapping[str, Any]) -> Mapping[str, Any]:
    model_options = named.get("model_options", rest[0] if rest else None) or {}
    return model_options.get("transformer_options", {})


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
    conditions = Conditions(c_concat, c_crossattn, control, named)
    model = executor.class_obj
    if RUN in options:
        with uncompiled():
            return _applied(executor, options[RUN], x, t, conditions, options)
    height, width = x.shape[-2:]
    others = partial(also_on, model.current_patcher, {"transformer_options": options}) if model.current_patcher else str
    with open_run(model.model_sampling, t[:1], (height, width), others=others) as run, uncompiled():
        output = _applied(executor, run, x, t, conditions, {**options, RUN: run})
        run.attendance.check(run.others)
        return output


def _applied(executor: Any, run: Run, x: Tensor, t: Tensor, conditions: Conditions, options: dict[str, Any]) -> Tensor:
    """The model's answer; the patches bind here to a transformer, and to a UNet once the host calls that."""
    model = executor.class_obj
    run.models[x.device] = model
    transformer = run.read(model, transformer_of)
    if transformer is None:
        return conditions.call(executor, x, t, options)
    return called(executor, transformer, x, t, conditions, options)


def predict_noise(executor: Any, x: Tensor, timestep: Tensor, *rest: Any, **named: Any) -> Tensor:
    """PREDICT_NOISE wrapper: tells the run where a prediction begins and ends."""
    run: Run | None = _options_in(rest, named).get(RUN)
    with nullcontext() if run is None else run.step():
        return executor(x, timestep, *rest, **named)


def calc_cond_batch(
    executor: Any, model: Any, conds: Any, x_in: Tensor, timestep: Tensor, model_options: dict[str, Any]
) -> Any:
    """CALC_COND_BATCH wrapper: the only place where the conditionings' roles and crops can be seen."""
    run: Run | None = model_options.get("transformer_options", {}).get(RUN)
    if run is None:
        return executor(model, conds, x_in, timestep, model_options)
    # Known to the run, not written into a copy of the options, where what others note for later calls would be lost.
    with run.reading(conds, x_in, model_options):
        found = executor(model, conds, x_in, timestep, model_options)
        if run.attendance.called:
            run.attendance.check(run.others)
        elif in_time(conds, sigma := float(timestep[0])):
            patches = carried_patches(model_options["transformer_options"])
            _check_uncalled(run, model, patches, [run.moment(sigma)])
        return found if run.pinned is None else [run.pinned.into_denoised(denoised, run.shown) for denoised in found]


def _check_uncalled(run: Run, model: Any, patches: Sequence[AttentionPatch], moments: Sequence[Moment]) -> None:
    """Refuses a run that never called the model, if a patch wanted to act at one of these moments."""
    transformer = run.read(model, transformer_of)
    sites = run.read(model.diffusion_model, attention_sites) if transformer is None else transformer.sites
    for moment in moments:
        run.attendance.want(wants(patches, sites, moment))
    run.attendance.check(run.others)
