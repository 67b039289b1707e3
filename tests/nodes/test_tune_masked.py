"""Tune Style on a masked transformer."""

from __future__ import annotations

from pathlib import Path

import pytest

from semblance.host.masked.loading import MaskedFiles, MaskedParts, load_masked
from semblance.tests.support.amused import PIXELS, Amused
from semblance.tests.support.graphs import picture
from semblance.tests.support.style_tunings import tune_style


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> MaskedParts:
    files: dict[str, Path] = Amused.of("256").files(tmp_path_factory.mktemp("amused"))
    return load_masked(MaskedFiles(files["diffusion_models"], files["vae"], files["text_encoders"]))


def test_previews_of_a_masked_transformer_are_sampled_as_tokens(parts: MaskedParts) -> None:
    side = 8 * PIXELS
    adapter, losses, _, previews = tune_style(
        parts.model,
        clip=parts.clip,
        vae=parts.vae,
        pictures=[picture(height=side, width=side)],
        blocks={"blocks": "all"},
        preview_every=1,
        preview_prompt="a house",
    )
    assert previews.shape == (4, side, side, 3) and previews.isfinite().all()
    assert len(losses["loss"]) == 2 and adapter.stamp.family == "aMUSEd"


@pytest.mark.parametrize("blocks", [{"blocks": "style"}, {"blocks": "custom", "names": ""}])
def test_blocks_that_nobody_has_found_are_named_with_those_to_choose(
    parts: MaskedParts, blocks: dict[str, str]
) -> None:
    with pytest.raises(ValueError, match="aMUSEd hold 'style'. Set blocks to 'all', or to 'custom' .*middle"):
        tune_style(parts.model, clip=parts.clip, vae=parts.vae, blocks=blocks)
