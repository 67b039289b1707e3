"""Calls of real UNets whose tensors have sizes and no contents: what they hold at once, and what they compute.

Everything lies on PyTorch's meta device, so SDXL at 1536 pixels takes a second and no memory.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.ldm.modules.attention as host_attention
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

aten: Any = torch.ops.aten
READS = {aten._local_scalar_dense, aten.nonzero, aten.equal}
COPIES = {aten._to_copy, aten.copy_}
ALLOCATIONS = {aten.empty, aten.empty_like, aten.new_empty, aten.empty_strided, aten.new_empty_strided}


@dataclass(frozen=True)
class Size:
    """What one call of a model takes, its weights left out."""

    peak: int
    """Bytes of all tensors that live at once, at most."""
    operations: int
    """Floating-point operations of its matrix products, convolutions and attentions."""
    kernels: int
    """How many operations write to a tensor."""
    waits: int = 0
    """How many operations the processor and the GPU wait for each other at: copies between them, and contents read."""


class Meter(TorchDispatchMode):
    """Sees every operation of a call. Tensors that were there before it are not counted."""

    def __init__(self) -> None:
        super().__init__()
        self._live: dict[int, int] = {}
        self._held = 0
        self.size = Size(0, 0, 0)

    def begin(self) -> None:
        """Starts a call anew: what is still held counts, what was done does not."""
        self.size = Size(self._held, 0, 0)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        for given in _tensors((*args, *named.values())):
            self._hold(given, counted=False)  # it was there before, as weights were
        made = _without_contents(func, args, named)
        count = flop_registry.get(func._overloadpacket)
        operations = count(*args, **named, out_val=made) if count else 0
        fresh = [self._hold(tensor) for tensor in _tensors((made,))]
        writes = (any(fresh) or func._schema.is_mutable) and func._overloadpacket not in ALLOCATIONS
        known = self.size
        self.size = Size(
            max(known.peak, self._held),
            known.operations + operations,
            known.kernels + int(writes),
            known.waits + int(_waits(func, args, made)),
        )
        return made

    def _hold(self, tensor: Tensor, counted: bool = True) -> bool:
        """Knows the memory of a tensor until it is freed. Returns whether it is new."""
        if not tensor.is_meta:
            return False
        storage = tensor.untyped_storage()
        if storage._cdata in self._live:
            return False
        self._live[storage._cdata] = storage.nbytes() if counted else 0
        self._held += self._live[storage._cdata]
        weakref.finalize(storage, self._free, storage._cdata)
        return True

    def _free(self, storage: int) -> None:
        self._held -= self._live.pop(storage)


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """Those among an operation's arguments or results, which hold them one by one or in lists."""
    flat = (part for value in values for part in (value if isinstance(value, (list, tuple)) else (value,)))
    return [part for part in flat if isinstance(part, Tensor)]


def _waits(func: Any, args: Sequence[Any], made: Any) -> bool:
    """Whether contents go from the GPU to the processor or back."""
    if func._overloadpacket in COPIES:
        given = args[1] if func._overloadpacket == aten.copy_ else args[0]
        return given.device != made.device
    return func._overloadpacket in READS and any(tensor.is_meta for tensor in _tensors(args))


def _without_contents(func: Any, args: Sequence[Any], named: Mapping[str, Any]) -> Any:
    """What an operation gives; where it would need contents, something of a likely size."""
    if func is aten._to_copy.default and args[0].device.type == "meta" and named.get("device") == torch.device("cpu"):
        return torch.zeros(args[0].shape, dtype=named.get("dtype") or args[0].dtype)
    if func is aten._local_scalar_dense.default and args[0].device.type == "meta":
        return 0.5  # the noise level of a call
    if func is aten.nonzero.default:  # a subject that covers a quarter of the picture
        (tensor,) = args
        return tensor.new_zeros((tensor.numel() // 4, tensor.dim()), dtype=torch.long)
    return func(*args, **named)


def fused_attention(query: Tensor, key: Tensor, value: Tensor, heads: int, *_: Any, **named: Any) -> Tensor:
    """As GPUs attend: one kernel, and no matrix of all tokens by all tokens."""
    parts = (query, key, value)
    by_head = parts if named.get("skip_reshape") else (torch.unflatten(part, 2, (heads, -1)) for part in parts)
    split = by_head if named.get("skip_reshape") else (part.transpose(1, 2) for part in by_head)
    with_gradients = torch.is_grad_enabled()
    made = aten._scaled_dot_product_efficient_attention(*split, None, with_gradients)[0]
    return made.transpose(1, 2).flatten(2)


@contextmanager
def metered(meter: Meter, gradients: bool = False) -> Iterator[Meter]:
    """Meters a block, in which the host attends as on a GPU. What is kept from block to block counts on.

    What waits for its `gradients` is held too, if there are any.
    """
    names = ("optimized_attention", "optimized_attention_masked")
    before = {name: getattr(host_attention, name) for name in names}
    for name in names:
        setattr(host_attention, name, fused_attention)
    try:
        with torch.set_grad_enabled(gradients), meter:
            yield meter
    finally:
        for name, attention in before.items():
            setattr(host_attention, name, attention)
