"""What chance decides in a tuning. All of it follows from the seed and a name, so that nothing need be kept."""

from __future__ import annotations

import hashlib

import torch


def generator_for(seed: int, name: str) -> torch.Generator:
    """A generator on the CPU, whose draws are those of `seed` and `name` alone, on every device and in any order."""
    digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def draws_of_step(seed: int, step: int) -> torch.Generator:
    """The generator of one step, counted from 0."""
    return generator_for(seed, f"step {step}")
