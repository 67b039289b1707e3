"""The demo models on the real host, and what was measured on them, once for all tests of a topology."""

from __future__ import annotations

import pytest

from semblance.demo.study import Study
from semblance.host.demo_models import TOPOLOGIES


@pytest.fixture(scope="session", params=TOPOLOGIES)
def study(request: pytest.FixtureRequest) -> Study:
    return Study.open(request.param)
