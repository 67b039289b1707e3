"""The demo models on the real host, and what was measured on them, once for all tests of a topology with a UNet."""

from __future__ import annotations

import pytest

from semblance.demo.study import ADAPTERS, Study


@pytest.fixture(scope="session", params=ADAPTERS)
def study(request: pytest.FixtureRequest) -> Study:
    return Study.open(request.param)
