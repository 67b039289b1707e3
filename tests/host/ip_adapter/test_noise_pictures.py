"""Noise pictures equal those of ComfyUI_IPAdapter_plus, number by number."""

from __future__ import annotations

import pytest
import torch

from semblance.host.ip_adapter.noise_pictures import NOISES, Noise, noise_picture
from semblance.tests.support.frozen_cases import furthest, load_reference

TENSORS, _ = load_reference("ipadapter_plus")
CASES = [name.removeprefix("unit.noise.") for name in TENSORS if name.startswith("unit.noise.")]
PICTURE = TENSORS["in.images_u8"][:1].float() / 255


@pytest.mark.parametrize("case", CASES)
def test_noise_equals_that_of_ipadapter_plus(case: str) -> None:
    kind, _, numbers = case.partition(".")
    if numbers == "none":
        found = noise_picture("fade", 1.0, 0)
    else:
        strength, _, blur = numbers.rpartition(".")
        found = noise_picture(kind, float(strength), int(blur), PICTURE)  # pyright: ignore[reportArgumentType]
    assert furthest(found[0, 3::14, 3::14], TENSORS[f"unit.noise.{case}"]) <= 1e-5


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_noise_is_the_same_each_time_and_takes_no_numbers_from_others(kind: Noise, strength: float) -> None:
    tall = TENSORS["in.tall_u8"].float() / 255
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second = (noise_picture(kind, strength, 4, tall) for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first, second)
    assert first.shape == (1, 224, 224, 3) and 0 <= first.min() <= first.max() <= 1


def test_without_strength_nothing_but_shuffle_changes_a_picture() -> None:
    square = TENSORS["in.images_u8"][:3, :, :96].float() / 255
    fade, dissolve, gaussian = (noise_picture(kind, 0.0, 0, square) for kind in ("fade", "dissolve", "gaussian"))
    assert torch.equal(fade, dissolve) and torch.equal(dissolve, gaussian) and len(fade) == 3
    assert not torch.equal(fade, noise_picture("shuffle", 0.0, 0, square))


def test_an_image_that_cannot_be_used_is_refused_with_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"The image holds pixels that are not numbers \(NaN or infinite\)"):
        noise_picture("fade", 0.5, 0, torch.full((1, 64, 64, 3), torch.nan))
