"""Apply Style Adapter and StyleDrop Guider: what their inputs mean."""

from __future__ import annotations

from typing import Any

import torch

from semblance.nodes.style_adapter import ApplyStyleAdapter, StyleDropGuider
from semblance.tests.support.studio import Studio, run_guider
from semblance.tests.support.style_adapters import style_adapter

SIGMAS = torch.tensor([2.0, 0.0])
ALL = {"blocks": "all"}
UNNAMED = {"blocks": "custom", "weights": " "}
STYLE = {"blocks": "style"}


def test_custom_blocks_without_a_name_are_all() -> None:
    """For every family: aMUSEd has no blocks of style that they could stand for."""
    studio = Studio.of("sd15")
    adapter = style_adapter(studio.model)
    window = {"strength": 1.0, "start": 0.0, "end": 1.0}

    def applied(blocks: dict[str, Any]) -> Any:
        made: Any = ApplyStyleAdapter.execute(
            studio.model, adapter, blocks=blocks, curve={"curve": "constant"}, **window
        )
        return studio.sample(made[0])

    def guided(blocks: dict[str, Any]) -> Any:
        given = {"positive": studio.positive, "negative": studio.negative, "style_scale": 1.0, "text_scale": 4.0}
        made: Any = StyleDropGuider.execute(studio.model, adapter, blocks=blocks, **window, **given)
        return run_guider(made[0], SIGMAS)

    for made in (applied, guided):
        assert torch.equal(made(UNNAMED), made(ALL)) and not torch.equal(made(UNNAMED), made(STYLE))
