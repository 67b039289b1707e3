"""What one run of a sampler remembers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import TypeVar, cast

from torch import Tensor

Remembered = TypeVar("Remembered", bound=Tensor | tuple[Tensor, ...])


class FeatureBank:
    """The tensors one patch keeps during one run. The run makes it and empties it; nothing outlives the run."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, Tensor | tuple[Tensor, ...]] = {}

    def once(self, name: Hashable, make: Callable[[], Remembered]) -> Remembered:
        """What `make` returned when `name` was first asked for in this run."""
        if name in self._kept:
            return cast(Remembered, self._kept[name])
        made = self._kept[name] = make()
        return made  # not looked up again: on several GPUs another thread may have dropped it

    def remember(self, name: Hashable, tensor: Tensor | tuple[Tensor, ...]) -> None:
        """Keeps `tensor` under `name`, in place of what was there."""
        self._kept[name] = tensor

    def recall(self, name: Hashable) -> Tensor:
        """The tensor remembered under `name` (KeyError when there is none)."""
        return cast(Tensor, self._kept[name])

    def recall_all(self, name: Hashable) -> tuple[Tensor, ...]:
        """The tensors remembered under `name` (KeyError when there are none)."""
        return _tensors(self._kept[name])

    def forget(self, outdated: Callable[[Hashable], bool]) -> None:
        """Drops what is kept under every name that is `outdated`."""
        for name in self:
            if outdated(name):
                self._kept.pop(name, None)  # on several GPUs the calls of a step run in threads of their own

    def forget_all(self, *beginning: Hashable) -> None:
        """Drops what is kept under every name that is, or begins with, `beginning`."""
        self.forget(lambda name: (name if isinstance(name, tuple) else (name,))[: len(beginning)] == beginning)

    def clear(self) -> None:
        """Forgets everything."""
        self._kept.clear()

    @property
    def bytes(self) -> int:
        """Memory of all that is kept."""
        return sum(tensor.numel() * tensor.element_size() for kept in self._kept.values() for tensor in _tensors(kept))

    def __contains__(self, name: Hashable) -> bool:
        return name in self._kept

    def __iter__(self) -> Iterator[Hashable]:
        """The names of all that is kept."""
        return iter(tuple(self._kept))

    def __len__(self) -> int:
        return len(self._kept)

    def __repr__(self) -> str:
        shapes = [
            f"  {name}: {', '.join(str(tuple(tensor.shape)) for tensor in _tensors(kept))}"
            for name, kept in self._kept.items()
        ]
        return "\n".join([f"FeatureBank of {len(self)} entries, {self.bytes / 2**20:.1f} MB", *shapes])


def _tensors(kept: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return kept if isinstance(kept, tuple) else (kept,)
