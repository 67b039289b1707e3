"""Gradient checkpointing: a block's activations are computed a second time for its gradients, rather than kept.

The host's own helper (`comfy_extras.nodes_train.patch`) is not used, because it hands the transformer options to the
second computation as the model left them, in which every block finds the number of the last one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def checkpointed(network: nn.Module) -> Iterator[None]:
    """Checkpoints every block of `network` until the block ends."""
    changed = blocks_of(network)
    for module in changed:
        module.forward = partial(_checkpoint, module.forward)
    try:
        yield
    finally:
        for module in changed:
            del module.forward  # the class's own shows again


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The parts that are computed twice: residual blocks and transformer blocks, of which none holds another."""
    named = [module for module in network.modules() if type(module).__name__.endswith("Block")]
    inner = {id(part) for module in named for part in module.modules() if part is not module}
    return [module for module in named if id(module) not in inner]


def _checkpoint(forward: Any, *args: Any, **named: Any) -> Any:
    # The host writes the number of the block at work into one dictionary that all blocks share.
    own = [dict(value) if isinstance(value, dict) else value for value in args]
    own_named: Any = {name: dict(value) if isinstance(value, dict) else value for name, value in named.items()}
    return checkpoint(forward, *own, use_reentrant=False, preserve_rng_state=False, **own_named)
