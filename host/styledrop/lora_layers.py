"""A LoRA that is being tuned, on linear layers of a model that nobody else uses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn import functional


@contextmanager
def lora_on(linears: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Adds x -> up(down(x)) to each linear layer until the block ends.

    It is added to the result and not to the weight: what a step changes would be rounded away in a weight in bf16.
    """
    handles = [
        linear.register_forward_hook(partial(_added, tensors[f"{name}.down"], tensors[f"{name}.up"]))
        for name, linear in linears.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _added(down: Tensor, up: Tensor, module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    hidden = inputs[0]
    return output + functional.linear(functional.linear(hidden, down.to(hidden)), up.to(hidden)).to(output.dtype)
