"""Apply IP-Adapter gives the numbers of ComfyUI_IPAdapter_plus, chains with all else, and refuses what it cannot do."""

from __future__ import annotations

import pytest

from semblance.tests.host.ip_adapter.frozen_applications import predicted_noise
from semblance.tests.support.frozen_cases import furthest
from semblance.tests.support.graphs import relative_error
from semblance.tests.support.old_nodes import FACTS, TENSORS, applied, frozen_sample
from semblance.tests.support.oracles import oracle_unet
from semblance.tests.support.speeds import slow_but

FORWARDS = [name for name, nodes in FACTS["forward"].items() if not any("Tiled" in node["node"] for node in nodes)]
QUICK_FORWARDS = {
    *("sd15.simple.prompt_is_more_important", "sd15.embeds.weighted_average", "sd15.precise_style.negative_boost"),
    *("sd15.layers.1.style_precise", "sd15.batch.weights", "sd15.enhancer.one", "sdxl.style_composition.plus"),
    *("sd15.params.two_regions", "sdxl.negative.two_and_one", "sd15.list_without_batch"),
}
QUICK_RUNS = {"sd15.window.1", "sd15.params_windows", "sd15.batch_weights", "sdxl.style_then_composition"}


@pytest.mark.parametrize("name", slow_but(FORWARDS, QUICK_FORWARDS))
def test_a_forward_through_the_node_equals_that_of_ipadapter_plus(name: str) -> None:
    kind = name.partition(".")[0]
    model = oracle_unet(kind)
    for node in FACTS["forward"][name]:
        model = applied(model, kind, node)
    assert furthest(predicted_noise(model, kind), TENSORS[f"out.{name}"]) <= 5e-5


@pytest.mark.parametrize("name", slow_but(FACTS["sampling"], QUICK_RUNS))
def test_a_sampling_equals_that_of_ipadapter_plus(name: str) -> None:
    kind = name.partition(".")[0]
    model = oracle_unet(kind)
    for node in FACTS["sampling"][name]:
        model = applied(model, kind, node)
    assert relative_error(frozen_sample(model, kind), TENSORS[f"run.{name}"]) <= 1e-4
