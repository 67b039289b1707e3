"""Both families' tiny models, made once for all tests of the host binding."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from semblance.tests.support.speeds import FAMILIES, slow_but
from semblance.tests.support.studio import Studio
from semblance.tests.tiny_models import Family


@pytest.fixture(scope="session")
def studio_of() -> Callable[[Family], Studio]:
    studios: dict[Family, Studio] = {}

    def studio(kind: Family) -> Studio:
        if kind not in studios:
            studios[kind] = Studio.of(kind)
        return studios[kind]

    return studio


@pytest.fixture(params=slow_but(FAMILIES, ("sd15",)), scope="session")
def studio(request: pytest.FixtureRequest, studio_of: Callable[[Family], Studio]) -> Studio:
    """Each family in turn, SDXL by `nox -s laws`."""
    return studio_of(request.param)


@pytest.fixture(scope="session")
def sd15(studio_of: Callable[[Family], Studio]) -> Studio:
    return studio_of("sd15")


@pytest.fixture
def one_conditioning_a_call(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """So little free memory that every conditioning goes through the model alone."""
    from comfy.model_patcher import ModelPatcher

    monkeypatch.setattr(ModelPatcher, "get_free_memory", lambda self, device: 1)
    yield
