"""What the methods take at real sizes stays below bars, and what a story tells ComfyUI of it is true."""

from __future__ import annotations

import pytest
import torch

from semblance.attention.methods.consistory.settings import KEPT_QUERIES
from semblance.bench.ip_adapter import APPLICATIONS, application
from semblance.bench.sizes import Calls, consistory, plain, sizes, styleid
from semblance.bench.styledrop import WIDTHS, adapted
from semblance.bench.weightless import Meter, Size, metered
from semblance.tests.tiny_models import Family

BARS = {"plain": 1.0, "InstantStyle": 1.02, "ConsiStory": 1.75, "Apply Subject": 1.8, "StyleID": 3.3}
"""How much more than the plain model's peak."""
OPERATIONS = {"plain": 1.0, "InstantStyle": 1.01, "ConsiStory": 2.05, "Apply Subject": 2.05, "StyleID": 3.01}


def test_a_meter_counts_what_lives_at_once_and_what_is_computed() -> None:
    weight = torch.empty(8, 4, device="meta")
    with metered(Meter()) as meter:
        meter.begin()
        first = torch.empty(16, 8, device="meta")
        second = first @ weight
        del first
        third = (second * 2).view(4, 16).transpose(0, 1)
        assert meter.size == Size(peak=4 * (16 * 8 + 16 * 4), operations=2 * 16 * 8 * 4, kernels=2)
        del second
        meter.begin()
        assert meter.size.peak == third.untyped_storage().nbytes()


def test_a_meter_counts_where_processor_and_gpu_wait_for_each_other() -> None:
    there = torch.empty(4, device="meta")
    with metered(Meter()) as meter:
        meter.begin()
        there.add(1).to(torch.half).clone()
        assert meter.size.waits == 0
        torch.zeros(4).to("meta")
        there.to("cpu")
        there.copy_(torch.zeros(4))
        assert meter.size.waits == 3


@pytest.mark.parametrize("name", APPLICATIONS)
def test_apply_ip_adapter_waits_for_nothing_and_adds_little(name: str) -> None:
    calls = Calls("sd15", 512, 4)
    size, base = application(calls, name), plain(calls)
    assert size.waits == base.waits
    assert 1.0 < size.operations / base.operations <= 1.01 and size.peak / base.peak <= 1.05


@pytest.mark.parametrize("name", WIDTHS)
def test_a_style_adapter_waits_for_nothing_and_adds_little(name: str) -> None:
    calls = Calls("sd15", 512, 4)
    size, base = adapted(calls, name), plain(calls)
    assert size.waits == base.waits
    assert 1.0 < size.operations / base.operations <= 1.01 and size.peak / base.peak <= 1.15


def test_styleid_takes_three_rows_for_one() -> None:
    alone = Calls("sd15", 512, 1, guided=False)
    size, base = styleid(alone), plain(alone)
    assert size.peak / base.peak <= BARS["StyleID"]
    assert 2.99 <= size.operations / base.operations <= OPERATIONS["StyleID"]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "pixels"), [("sd15", 512), ("sdxl", 1024)])
def test_every_method_stays_below_its_bars(kind: Family, pixels: int) -> None:
    for name, size, base in sizes(kind, pixels):
        method = name.partition(",")[0]
        assert 1.0 <= size.peak / base.peak <= BARS[method], name
        assert 1.0 <= size.operations / base.operations <= OPERATIONS[method], name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "pixels", "images"), [("sd15", 512, 4), ("sdxl", 1024, 4), ("sdxl", 1024, 12), ("sdxl", 1536, 4)]
)
def test_what_a_story_declares_is_what_it_takes(kind: Family, pixels: int, images: int) -> None:
    calls = Calls(kind, pixels, images)
    name, blending = next(consistory(calls))
    assert name == "blending"
    assert calls.declared(KEPT_QUERIES * images) / blending.peak == pytest.approx(1, abs=0.1)
