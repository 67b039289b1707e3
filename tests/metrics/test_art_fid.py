"""ArtFID in both forms, and which one a number is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from semblance.metrics.art_fid import PUBLISHED_POINTS, ArtFID, art_fid
from semblance.metrics.frechet import FeatureStatistics, frechet_distance, frechet_infinity
from semblance.tests.support.frozen_cases import load_reference

TENSORS, CASE = load_reference("metrics")


def features(count: int, seed: int) -> Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))


def test_the_formula_is_the_authors() -> None:
    for case in CASE["art_fid"]:
        assert art_fid(case["lpips"], case["fid"]) == pytest.approx(case["art_fid"], rel=1e-12)


def test_both_forms_are_the_same_up_to_5000_pictures() -> None:
    stylised, style = TENSORS["fid.features_a"][:64], TENSORS["fid.features_b"]
    content = torch.linspace(0.2, 0.6, 64)
    measured = ArtFID.of(content, stylised, style)
    fid = frechet_distance(FeatureStatistics.of(stylised), FeatureStatistics.of(style))
    assert measured.published == measured.plain == pytest.approx(1.4 * (1 + fid), rel=1e-6)
    assert measured.published == pytest.approx(1.4 * (1 + frechet_infinity(stylised, style)), rel=1e-6)
    assert measured == ArtFID(measured.content, fid, 64)
    assert "are the same for 64 pictures" in measured.meaning


def test_above_5000_pictures_the_published_form_takes_fid_infinity() -> None:
    stylised, style = features(5200, 0), features(5200, 1) + 0.1
    measured = ArtFID.of(torch.full((5200,), 0.5), stylised, style, torch.Generator().manual_seed(3))
    endless = frechet_infinity(stylised, style, PUBLISHED_POINTS, torch.Generator().manual_seed(3))
    assert measured.published == pytest.approx(1.5 * (1 + endless))
    assert measured.plain == pytest.approx(1.5 * (1 + measured.fid))
    assert measured.published != measured.plain
    assert measured.meaning == f"ArtFID as published takes FID-infinity; with the plain FID it is {measured.plain:.4g}."


def test_each_stylised_picture_needs_its_content() -> None:
    with pytest.raises(ValueError, match="There are 3 content distances for 5 stylised pictures"):
        ArtFID.of(torch.zeros(3), features(5, 0), features(5, 1))
