"""The frozen cases in tests/references: inputs and outputs of the authors' code, with the numbers they were made by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

REFERENCES = Path(__file__).resolve().parent.parent / "references"


def load_reference(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of one reference file; every parameter of a case stands in its metadata."""
    path = REFERENCES / f"{name}.safetensors"
    with safe_open(path, "pt") as file:
        metadata = json.loads(file.metadata()["json"])
    return load_file(path), metadata


def furthest(found: Tensor, expected: Tensor) -> float:
    """The largest absolute error, which is what the authors' cases are given a tolerance of."""
    assert found.shape == expected.shape
    return float((found - expected).abs().max())
