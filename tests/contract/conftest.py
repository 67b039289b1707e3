"""What the host offers in the family of transformers that a test is about, and one call of its tiny model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from semblance.tests.support.transformers import SeenCall, TransformerFamily
    from semblance.tests.support.transformers.offered import Offered


@pytest.fixture(scope="session")
def offered(family: TransformerFamily) -> Offered:
    from semblance.tests.support.transformers.offered import OFFERED

    return OFFERED[family.name]


@pytest.fixture(scope="session")
def call(family: TransformerFamily) -> SeenCall:
    """One call for one image and the prompt, of latents drawn at random."""
    from semblance.tests.support.transformers.traced import drawn_noise, one_call

    return one_call(family, drawn_noise(family))
