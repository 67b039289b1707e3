"""The real frontend, open on the tests' server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from semblance.harness.server import ComfyUIServer
from semblance.tests.browser.frontend import Frontend, open_frontend


@pytest.fixture(scope="session")
def frontend(comfyui: ComfyUIServer) -> Iterator[Frontend]:
    with open_frontend(comfyui) as page:
        yield page
