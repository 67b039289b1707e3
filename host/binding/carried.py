"""How a MODEL carries our patches: as plain values in its options, in the order of the nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...attention.engine.patch import AttentionPatch

KEY = "semblance"


@dataclass(frozen=True, eq=False)
class CarriedPatch:
    """A patch and the model weights it needs, where ComfyUI looks for both.

    It lies in `transformer_options["patches"]` under a name of ours that the UNet never calls; ComfyUI asks every
    object there for `models()` and loads, offloads and frees those with the MODEL.
    """

    patch: AttentionPatch
    weights: Sequence[Any] = ()

    def models(self) -> list[Any]:
        return list(self.weights)


def carried_patches(transformer_options: Mapping[str, Any]) -> tuple[AttentionPatch, ...]:
    """The patches in these options, in the order their nodes were applied."""
    carried: Sequence[CarriedPatch] = transformer_options.get("patches", {}).get(KEY, ())
    return tuple(carrier.patch for carrier in carried)
