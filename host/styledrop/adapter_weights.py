"""The weights of an adapter while they are tuned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...attention.adapters.style_adapter import StyleAdapter, TuningState
from ...attention.references.trajectory import ModelStamp
from .examples import Examples
from .going_on import OPTIMISER_FROM, optimiser_began, steps_behind
from .recipe import BETAS, TuningRecipe

LARGEST_GRADIENT = 1.0
"""The norm to which the gradient of a step, over all of the adapter, is shortened."""


class AdapterWeights:
    """The weights of an adapter while it is tuned, and AdamW's moments of them."""

    def __init__(self, tensors: dict[str, Tensor], recipe: TuningRecipe, done: int) -> None:
        self.tensors = tensors
        self.done = done
        self._optimiser = torch.optim.AdamW(
            tensors.values(), lr=recipe.rate, betas=BETAS, weight_decay=recipe.weight_decay
        )

    @classmethod
    def on(cls, device: torch.device, tensors: Any, recipe: TuningRecipe, start: StyleAdapter | None) -> AdapterWeights:
        """Copies of `tensors` on `device`, with the number of steps that `start` has behind it, and its moments if any.

        Steps are counted on also without moments: else the steps to come would repeat the draws of those behind.
        """
        own = {name: tensor.detach().clone().float().to(device).requires_grad_() for name, tensor in tensors.items()}
        state = start.state if start else None
        made = cls(own, recipe, steps_behind(start))
        if state is not None:
            taken = float(state.step - optimiser_began(start))
            for name, tensor in own.items():
                made._optimiser.state[tensor] = {
                    "step": torch.tensor(taken),
                    "exp_avg": state.first_moments[name].detach().clone().to(device),
                    "exp_avg_sq": state.second_moments[name].detach().clone().to(device),
                }
        return made

    def step(self, rate: float) -> None:
        """Moves the weights by their gradients, and forgets these. Raises ValueError if one is not a number."""
        norms = torch.stack([tensor.grad.norm() for tensor in self.tensors.values() if tensor.grad is not None])
        if not torch.isfinite(norms).all():
            raise not_a_number("gradient", self.done + 1, rate)
        if not norms.any():
            raise ValueError(
                "No gradient comes through this model, so nothing can be learnt: its weights are quantised, or another "
                "node computes its layers. Load the model in fp16, bf16 or fp32 and connect it straight to Tune Style."
            )
        # Gradients at much noise are many times those of others, and AdamW would slow all steps down for them.
        torch.nn.utils.clip_grad_norm_(self.tensors.values(), LARGEST_GRADIENT)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        self.done += 1

    def adapter(
        self, recipe: TuningRecipe, stamp: ModelStamp, start: StyleAdapter | None, examples: Examples
    ) -> StyleAdapter:
        """What was learnt so far, on the CPU."""
        settings = {**(start.settings if start else {}), **recipe.settings(), "steps": self.done}
        if began := optimiser_began(start):
            settings[OPTIMISER_FROM] = began
        return StyleAdapter(
            recipe.form,
            {name: _kept(tensor) for name, tensor in self.tensors.items()},
            stamp,
            examples.content_words,
            examples.style_words,
            settings,
            TuningState(self.done, recipe.seed, self._moments("exp_avg"), self._moments("exp_avg_sq")),
            examples.thumbnail,
        )

    def _moments(self, name: str) -> dict[str, Tensor]:
        state = self._optimiser.state
        return {key: _kept(state[tensor][name]) for key, tensor in self.tensors.items() if tensor in state}


def not_a_number(what: str, step: int, rate: float) -> ValueError:
    """The sentence for a step that was not taken."""
    return ValueError(
        f"At step {step} the {what} is not a number (NaN or infinite), at learning rate {rate:g}; the step was not "
        f"taken. Tune again with a lower rate, such as {rate / 3:.1g}, or with the model in bf16 or fp32."
    )


def _kept(tensor: Tensor) -> Tensor:
    return tensor.detach().float().cpu().clone()
