"""The key of an inversion in the cache: a digest of everything it depends on, or none where that is not known.

Numbers, texts and tensors can be compared, and go into the key; so do the noise schedules of ComfyUI's ModelSampling
nodes, which most flow models come with. Whatever else is found on the model or in the text is
not understood here, such as a ControlNet, a bypass LoRA or another pack's wrapper, and then nothing is cached.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, TypeGuard

import comfy.model_sampling
import torch
from torch import Tensor

from ..conditioning import Text
from ..identity import stamp_of

IN_THE_KEY = {"model", "patches", "patches_uuid"}
"""What of a MODEL is compared by its stamp and by ComfyUI's own number for its weight patches."""
BOOKKEEPING = {
    "backup",
    "backup_buffers",
    "cached_hook_patches",
    "cached_patcher_init",
    "clone_base_uuid",
    "hook_backup",
    "hook_mode",
    "hook_patches_backup",
    "is_injected",
    "is_multigpu_base_clone",
    "load_device",
    "non_dynamic_delegate_model",
    "object_patches_backup",
    "offload_device",
    "parent",
    "pinned",
    "size",
    "skip_injection",
}
"""What ComfyUI keeps on a MODEL to load and unload it. It changes no result."""


class _CannotBeCompared(Exception):
    """Something that is neither a number, a text, a tensor nor made of them."""


def cache_key(model: Any, pictures: Tensor, settings: object, text: Text) -> str | None:
    """A digest of everything that an inversion depends on, or None if it cannot be known."""
    held = {
        name: value
        for name, value in vars(model).items()
        if name not in IN_THE_KEY | BOOKKEEPING and not name.startswith("_")
    }
    negative = text.negative if text.guidance != 1 else None
    digest = hashlib.sha256()
    try:
        for part in _bytes_of((held, settings, text.guidance, text.positive, negative, pictures)):
            digest.update(part)
    except _CannotBeCompared:
        return None
    for part in _bytes_of((asdict(stamp_of(model)), str(model.patches_uuid))):
        digest.update(part)
    return digest.hexdigest()[:32]


def _bytes_of(value: object) -> Iterator[bytes]:
    """Bytes that differ where values do. Raises _CannotBeCompared."""
    if value is None or isinstance(value, bool | int | float | str):
        yield f"{value!r};".encode()
    elif isinstance(value, Tensor):
        yield f"{tuple(value.shape)} {value.dtype};".encode()
        yield value.detach().float().cpu().contiguous().numpy().tobytes()
    elif isinstance(value, dict):
        yield b"{"
        for name, entry in sorted(value.items(), key=lambda item: repr(item[0])):
            yield from _bytes_of(name)
            yield from _bytes_of(entry)
        yield b"}"
    elif isinstance(value, list | tuple):
        yield b"("
        for entry in value:
            yield from _bytes_of(entry)
        yield b")"
    elif _is_schedule(value):
        yield repr([base.__qualname__ for base in type(value).__bases__]).encode()
        yield from _bytes_of({name: entry for name, entry in vars(value).items() if not name.startswith("_")})
        yield from _bytes_of(dict(value.named_buffers()))
    else:
        raise _CannotBeCompared


def _is_schedule(value: object) -> TypeGuard[torch.nn.Module]:
    """Whether this is a noise schedule made of ComfyUI's own classes and nothing else, as its nodes put it together."""
    kind = type(value)
    own = any(callable(entry) for entry in vars(kind).values())
    return (
        isinstance(value, torch.nn.Module)
        and not own
        and all(base.__module__ == comfy.model_sampling.__name__ for base in kind.__bases__)
    )
