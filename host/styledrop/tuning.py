"""The tuning of StyleDrop (arXiv:2306.00983): a few new weights beside a frozen model, learnt from one picture or few.

Each step looks at some pictures at random noise levels, takes the gradient of the objective in the adapter's weights
alone, and moves these by AdamW. All chance of a step comes from the seed and the step's number, so a tuning that goes
on from its adapter equals one that never stopped.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ...attention.adapters.style_adapter import StyleAdapter
from ...attention.engine.scope import Scope
from ...attention.methods.styledrop import StyleDrop
from ..binding.model import add_patch, map_model
from ..identity import check_model, subject_stamp
from .adapter_layers import adapted_layers, check_start, fresh_tensors, lora_linears
from .adapter_weights import AdapterWeights, not_a_number
from .checkpointing import checkpointed
from .draws import draws_of_step
from .examples import Examples, PreparedExample, check_examples, in_calls, prepare
from .lora_layers import lora_on
from .memory import estimate
from .objective import Objective, objective_of
from .recipe import TuningRecipe
from .training_copy import check_tunable, ready, training_copy


@dataclass(frozen=True, eq=False)
class Tuned:
    """What a tuning gives."""

    adapter: StyleAdapter
    losses: tuple[float, ...]
    """Of each step of this tuning, in order."""
    seconds: float
    """Of one step, on average, without what was done between steps."""
    peak: int = 0
    """Bytes taken on the GPU at most, 0 where that is not known."""

    @property
    def done(self) -> int:
        """Steps that the adapter has behind it, those before this tuning among them."""
        assert self.adapter.state is not None
        return self.adapter.state.step


@dataclass(frozen=True, eq=False)
class TuningStep:
    """What is told after each step."""

    done: int
    """Steps of this tuning."""
    steps: int
    loss: float
    model: Any
    """A MODEL that samples with the adapter as it is now. It is good until the next step."""


OnStep = Callable[[TuningStep], bool | None]
"""Returns whether it ran models on the device, among them perhaps this one."""


def tune(
    model: Any,
    examples: Examples,
    recipe: TuningRecipe,
    start: StyleAdapter | None = None,
    on_step: OnStep | None = None,
    keep: Callable[[StyleAdapter], None] | None = None,
) -> Tuned:
    """Tunes an adapter for MODEL on `examples`, from nothing or going on from `start`.

    MODEL and `start` stay as they are. `on_step` is told of every step. If the tuning is interrupted or fails, `keep`
    is given what was learnt until then; what it raises is logged. Raises ValueError for what cannot be tuned, and for a
    loss that is no number.
    """
    check_tunable(model)
    objective, stamp = objective_of(model), subject_stamp(model)
    layers = adapted_layers(model, recipe)
    check_examples(model, examples.each)
    if start is not None:
        check_model(start.stamp, stamp, model, "The adapter to continue from was tuned", CONTINUE)
        check_start(start, layers, recipe)
    tensors = start.tensors if start else fresh_tensors(layers, recipe.width, recipe.seed)
    memory = estimate(model, examples.each, recipe).beside_weights
    with training_copy(model, memory) as copy:
        weights = AdapterWeights.on(copy.load_device, tensors, recipe, start)
        prepared = prepare(copy, examples.each, copy.load_device)
        losses: list[float] = []
        clock = Clock(copy.load_device)
        try:
            with adapted(copy, weights.tensors, recipe) as tuned, _checkpointing(copy, recipe):
                for _ in range(recipe.steps):
                    comfy.model_management.throw_exception_if_processing_interrupted()
                    with clock:
                        losses.append(take_step(weights, tuned, prepared, recipe, objective))
                    if on_step is not None and on_step(TuningStep(len(losses), recipe.steps, losses[-1], tuned)):
                        ready(copy, memory)
        except BaseException:
            if keep is not None and losses:
                _hand_over(lambda: weights.adapter(recipe, stamp, start, examples), keep)
            raise
        adapter = weights.adapter(recipe, stamp, start, examples)
        return Tuned(adapter, tuple(losses), clock.mean, clock.peak)


CONTINUE = "Load the model it was tuned on, or tune a new adapter."


def take_step(
    weights: AdapterWeights,
    tuned: Any,
    examples: Sequence[PreparedExample],
    recipe: TuningRecipe,
    objective: Objective,
) -> float:
    """One step of tuning on the MODEL `tuned`. Returns its loss. Raises ValueError if that is not a number."""
    draws = draws_of_step(recipe.seed, weights.done)
    chosen = torch.randint(len(examples), (recipe.batch,), generator=draws).tolist()
    mirrored = (torch.rand(recipe.batch, generator=draws) < 0.5).tolist()
    options = tuned.model_options["transformer_options"]
    total = 0.0
    for call in in_calls([(examples[i], recipe.flips and m) for i, m in zip(chosen, mirrored, strict=True)]):
        loss = objective(tuned.model, call.latents, call.conditioning, options, draws)
        loss = loss * (len(call.latents) / recipe.batch)
        if not math.isfinite(value := float(loss.detach())):
            raise not_a_number("loss", weights.done + 1, recipe.rate)
        if not loss.requires_grad:
            raise ValueError(
                "The model's prediction does not depend on the adapter: another node or pack computes its attention "
                "layers. Connect the model straight from its loader."
            )
        loss.backward()
        total += value
    weights.step(recipe.rate)
    return total


@contextmanager
def adapted(copy: Any, tensors: dict[str, Tensor], recipe: TuningRecipe) -> Iterator[Any]:
    """A MODEL of the copy's modules that computes with these weights until the block ends."""
    if recipe.form == "bottleneck":
        yield add_patch(copy, StyleDrop(tensors, Scope(dict.fromkeys(recipe.blocks, 1.0))))
        return
    linears = lora_linears(copy.model, map_model(copy), recipe.blocks)
    with lora_on(linears, tensors):
        yield copy


class Clock:
    """Seconds that steps take, and the memory they take at most."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._spent: list[float] = []
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    @property
    def mean(self) -> float:
        return sum(self._spent) / max(len(self._spent), 1)

    @property
    def peak(self) -> int:
        return torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else 0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: Any) -> None:
        self._spent.append(time.perf_counter() - self._began)


def _hand_over(made: Callable[[], StyleAdapter], keep: Callable[[StyleAdapter], None]) -> None:
    """Gives what was learnt to `keep`. Whatever fails here must not hide why the tuning ended."""
    try:
        keep(made())
    except Exception as fault:
        logging.warning("Semblance: what was learnt until now could not be kept: %s", fault)


def _checkpointing(copy: Any, recipe: TuningRecipe) -> Any:
    return checkpointed(copy.model.diffusion_model) if recipe.gradient_checkpointing else nullcontext()
