"""Small aMUSEd models as files, opened once."""

from __future__ import annotations

from pathlib import Path

import comfy.model_management
import pytest

from semblance.host.masked.loading import MaskedFiles, MaskedParts, load_masked
from semblance.tests.support.amused import SIZES, Amused, Size

Pair = tuple[Amused, MaskedParts]


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[Size, Pair]:
    """By size, the networks of diffusers and our MODEL, CLIP and VAE from their files."""
    return {size: opened(size, tmp_path_factory.mktemp(size)) for size in SIZES}


@pytest.fixture(params=SIZES)
def pair(request: pytest.FixtureRequest, pairs: dict[Size, Pair]) -> Pair:
    comfy.model_management.unload_all_models()  # ComfyUI leaves a test's LoRA in the weights until it loads anew
    return pairs[request.param]


def opened(size: Size, folder: Path) -> Pair:
    amused = Amused.of(size)
    files = amused.files(folder)
    return amused, load_masked(MaskedFiles(files["diffusion_models"], files["vae"], files["text_encoders"]))
