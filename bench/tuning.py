"""Tune Style on UNets of the real widths: what a step takes beside a plain call, and how large an adapter is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import comfy.conds
import torch

from semblance.attention.adapters.style_adapter import FORMS, AdapterForm
from semblance.host.binding.model import map_model
from semblance.host.binding.run import RUN
from semblance.host.styledrop.adapter_layers import adapted_layers, fresh_tensors
from semblance.host.styledrop.adapter_weights import AdapterWeights
from semblance.host.styledrop.checkpointing import checkpointed
from semblance.host.styledrop.examples import PreparedExample
from semblance.host.styledrop.memory import ADAPTER_BYTES, values_of_pixel
from semblance.host.styledrop.objective import diffusion_loss
from semblance.host.styledrop.recipe import TuningRecipe
from semblance.host.styledrop.tuning import adapted, take_step
from semblance.tests.tiny_models.unets import SIZE_CONDITIONING_WIDTH, Family

from .cost import Run, table
from .models import POOLED_WIDTH, TEXT_WIDTH
from .sizes import MIB, TITLES, Calls, plain, weightless
from .weightless import Meter, Size, metered

WIDTH = 32
SIZES: tuple[tuple[Family, int], ...] = (("sd15", 512), ("sd15", 768), ("sdxl", 512), ("sdxl", 1024))


def recipe(model: Any, form: AdapterForm = "bottleneck", checkpointing: bool = True) -> TuningRecipe:
    """An adapter at every attention, of the width of StyleDrop's second round."""
    blocks = map_model(model).family.blocks
    return TuningRecipe(blocks, form, WIDTH, gradient_checkpointing=checkpointing)


def parameters(kind: Family, form: AdapterForm) -> tuple[int, int]:
    """How many an adapter has, and the model it is for."""
    model = weightless(kind)
    layers = adapted_layers(model, recipe(model, form)).values()
    adapter = sum(WIDTH * (layer.channels_in + layer.channels_out) for layer in layers)
    return adapter, sum(weight.numel() for weight in model.model.diffusion_model.parameters())


def step(kind: Family, pixels: int, form: AdapterForm, checkpointing: bool) -> Size:
    """One step on one picture, in half precision, without the adapter's own tensors."""
    model, calls = weightless(kind), Calls(kind, pixels, 1, guided=False)
    asked = recipe(model, form, checkpointing)
    fresh = fresh_tensors(adapted_layers(model, asked), WIDTH, seed=0)
    tensors = {name: tensor.to("meta").requires_grad_() for name, tensor in fresh.items()}
    unet = model.model.diffusion_model.requires_grad_(False)
    run, meter = calls.run(), Meter()
    with metered(meter, gradients=True), checkpointed(unet) if checkpointing else nullcontext():
        for tensor in tensors.values():
            tensor.grad = torch.zeros_like(tensor)
        held = 4 * sum(tensor.numel() for tensor in tensors.values())
        with adapted(model, tensors, asked) as tuned:
            options = {**tuned.model_options["transformer_options"], RUN: run}
            options |= {"cond_or_uncond": [0], "sigmas": [1.0]}
            predicted = called(tuned, calls, options, meter)
            predicted.float().square().mean().backward()
    return Size(meter.size.peak - held, meter.size.operations, meter.size.kernels, meter.size.waits)


def called(model: Any, calls: Calls, options: dict[str, Any], meter: Meter) -> torch.Tensor:
    """The model's prediction, from where the meter begins."""
    side = calls.pixels // 8

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(1, *shape, dtype=torch.float16, device="meta")

    meter.begin()
    return model.model.diffusion_model(
        empty(4, side, side),
        timesteps=torch.empty(1, device="meta"),
        context=empty(77, TEXT_WIDTH[calls.kind]),
        y=empty(POOLED_WIDTH + SIZE_CONDITIONING_WIDTH) if calls.kind == "sdxl" else None,
        transformer_options=options,
    )


def foretold(kind: Family, pixels: int, form: AdapterForm, checkpointing: bool) -> float:
    """Bytes of the step's tensors, as Tune Style estimates them before it starts."""
    model = weightless(kind)
    values = values_of_pixel(model.model.diffusion_model, recipe(model, form, checkpointing))
    return 2 * values * (pixels // 8) ** 2


def report_tuning_sizes() -> None:
    """Prints what an adapter and a step of its tuning take at real sizes."""
    print(f"\nTune Style, every attention, width {WIDTH}\n")
    table(["model", "form", "parameters", "share", "file, MB", "with its optimiser's state"], list(_adapters()))
    print("\nTune Style, one step on one picture, half precision\n")
    heads = ["model", "form", "checkpointing", "peak, MiB", "foretold", "operations / plain", "with weights, GB"]
    table(heads, list(_steps()))


def _adapters() -> Iterator[list[object]]:
    for kind in ("sd15", "sdxl"):
        for form in FORMS:
            adapter, model = parameters(kind, form)
            size = 4 * adapter / MIB
            yield [
                TITLES[kind],
                form,
                f"{adapter / 1e6:.2f} M",
                f"{adapter / model:.2%}",
                f"{size:.1f}",
                f"{3 * size:.1f}",
            ]


def _steps() -> Iterator[list[object]]:
    for kind, pixels in SIZES:
        base = plain(Calls(kind, pixels, 1, guided=False))
        for form in FORMS:
            adapter, model = parameters(kind, form)
            for checkpointing in (False, True):
                size = step(kind, pixels, form, checkpointing)
                total = size.peak + ADAPTER_BYTES * adapter + 2 * model
                yield [
                    f"{TITLES[kind]}, {pixels} px",
                    form,
                    "on" if checkpointing else "off",
                    f"{size.peak / MIB:.0f}",
                    f"{foretold(kind, pixels, form, checkpointing) / size.peak:.2f}",
                    f"{size.operations / base.operations:.2f}",
                    f"{total / 2**30:.1f}",
                ]


def tuning_runs(model: Any, kind: Family, pixels: int) -> dict[str, Run]:
    """A plain call of the model, and steps of tuning on one picture."""
    runs: dict[str, Run] = {"plain call": partial(_plain_call, model, kind, pixels)}
    for form in FORMS:
        for checkpointing in (False, True):
            name = f"{form}{', checkpointing' if checkpointing else ''}"
            runs[name] = partial(_steps_of, model, kind, pixels, recipe(model, form, checkpointing))
    return runs


def _example(model: Any, kind: Family, pixels: int) -> PreparedExample:
    side, device = pixels // 8, model.load_device
    conds: dict[str, Any] = {"c_crossattn": comfy.conds.CONDCrossAttn(torch.randn(1, 77, TEXT_WIDTH[kind]).to(device))}
    if kind == "sdxl":
        vector = torch.randn(1, POOLED_WIDTH + SIZE_CONDITIONING_WIDTH)
        conds["y"] = comfy.conds.CONDRegular(vector.to(device))
    return PreparedExample(torch.randn(1, 4, side, side, device=device), None, conds)


def _plain_call(model: Any, kind: Family, pixels: int) -> None:
    example = _example(model, kind, pixels)
    given = {name: cond.cond for name, cond in example.conds.items()}
    diffusion_loss(model.model, example.latent, given, {}, torch.Generator().manual_seed(0))


def _steps_of(model: Any, kind: Family, pixels: int, asked: TuningRecipe) -> None:
    model.model.diffusion_model.requires_grad_(False)
    weights = AdapterWeights.on(
        model.load_device, fresh_tensors(adapted_layers(model, asked), WIDTH, seed=0), asked, None
    )
    checkpoints = checkpointed(model.model.diffusion_model) if asked.gradient_checkpointing else nullcontext()
    with torch.enable_grad(), adapted(model, weights.tensors, asked) as tuned, checkpoints:
        take_step(weights, tuned, [_example(model, kind, pixels)], asked, diffusion_loss)
