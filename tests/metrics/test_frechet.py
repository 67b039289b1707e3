"""The Frechet distance of the authors' frozen features, merged, of few pictures, and for endless sets."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import reduce

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from semblance.metrics.frechet import (
    FeatureStatistics,
    frechet_distance,
    frechet_infinity,
    subset_sizes,
)
from semblance.tests.support.frozen_cases import furthest, load_reference

TENSORS, CASE = load_reference("metrics")
A, B = TENSORS["fid.features_a"], TENSORS["fid.features_b"]


def distance(first: Tensor, second: Tensor) -> float:
    return frechet_distance(FeatureStatistics.of(first), FeatureStatistics.of(second))


def features(count: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_statistics_are_those_of_the_authors() -> None:
    statistics = FeatureStatistics.of(A)
    assert furthest(statistics.mean, TENSORS["fid.mu_a"]) <= 1e-12
    assert furthest(statistics.covariance, TENSORS["fid.cov_a"]) <= 1e-12


def test_the_distance_is_the_authors() -> None:
    assert distance(A, B) == pytest.approx(CASE["fid_full_rank"], rel=1e-6)
    assert distance(A, A) == pytest.approx(CASE["fid_same"], abs=1e-6)


def test_the_distance_of_fewer_pictures_than_features_is_the_authors() -> None:
    few = CASE["fid_rank_deficient"]
    assert distance(A[: few["rows"]], B[: few["rows"]]) == pytest.approx(few["value"], rel=1e-3)
    repeated = CASE["fid_duplicated_style_rows"]
    rows = repeated["a_rows"]
    assert distance(A[:rows], B[:8].repeat_interleave(rows // 8, dim=0)) == pytest.approx(repeated["value"], rel=1e-3)


def test_the_distance_is_that_of_torch_fidelity() -> None:
    first, second = features(60, 24), 1.5 * features(50, 24, seed=1) + 0.3
    theirs = fid_statistics_to_metric(
        fid_features_to_statistics(first), fid_features_to_statistics(second), verbose=False
    )
    assert distance(first, second) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-9)


def test_the_distance_of_independent_features_is_a_closed_form() -> None:
    """Where both covariances are diagonal: sum of (m1 - m2)^2 + (s1 - s2)^2."""
    first = FeatureStatistics(11, torch.tensor([1.0, 2.0]).double(), torch.diag(torch.tensor([40.0, 90.0]).double()))
    second = FeatureStatistics(11, torch.tensor([1.0, 5.0]).double(), torch.diag(torch.tensor([10.0, 0.0]).double()))
    assert frechet_distance(first, second) == pytest.approx(9 + (2 - 1) ** 2 + 3**2, rel=1e-12)
    assert frechet_distance(second, first) == pytest.approx(frechet_distance(first, second), rel=1e-12)


def test_a_set_is_no_distance_from_itself_though_most_features_never_vary() -> None:
    few = features(5, 200)
    assert distance(few, few) <= 1e-10


def together(batches: Iterator[Tensor]) -> FeatureStatistics:
    return reduce(FeatureStatistics.merged, map(FeatureStatistics.of, batches))


@pytest.mark.parametrize("sizes", [[1] * 80, [7, 1, 32, 40], [80]])
def test_merged_statistics_are_those_of_all_at_once(sizes: list[int]) -> None:
    shifted = A + 1000  # products of raw features would lose half of the digits
    merged, whole = together(iter(shifted.split(sizes))), FeatureStatistics.of(shifted)
    assert merged.count == len(A)
    assert furthest(merged.mean, whole.mean) <= 1e-9
    assert furthest(merged.covariance, whole.covariance) <= 1e-9


def test_statistics_take_as_much_memory_for_many_pictures_as_for_few() -> None:
    def entries(pictures: int) -> int:
        batches = (features(4, 6, seed) for seed in range(pictures // 4))
        return sum(tensor.numel() for tensor in together(batches).state().values())

    assert entries(8) == entries(400)


def test_saved_statistics_are_read_again() -> None:
    saved = FeatureStatistics.of(A).state()
    assert frechet_distance(FeatureStatistics.from_state(saved), FeatureStatistics.of(A)) <= 1e-10
    assert repr(FeatureStatistics.from_state(saved)) == "statistics of 80 pictures, 12 features"
    with pytest.raises(ValueError, match="no saved statistics: found \\['count', 'mu'\\]"):
        FeatureStatistics.from_state({"mu": A, "count": A})
    with pytest.raises(ValueError, match="of one width"):
        FeatureStatistics.from_state(saved | {"mean": saved["mean"][:5]})


def test_half_precision_features_are_summed_in_double() -> None:
    statistics = FeatureStatistics.of(torch.full((4096, 1), 1.0).half())
    assert statistics.mean.dtype == statistics.covariance.dtype == torch.float64
    assert statistics.mean.item() == 1


@pytest.mark.parametrize("points", [15, 8])
def test_up_to_5000_pictures_fid_infinity_is_the_plain_distance(points: int) -> None:
    first, second = A[:40], B[:8].repeat_interleave(5, dim=0)
    found = frechet_infinity(first, second, points)
    assert found == pytest.approx(CASE[f"fid_infinity_{points}_points_N40"], rel=1e-6)
    assert found == pytest.approx(distance(first, second), rel=1e-6)


def test_fid_infinity_of_more_pictures_is_the_authors_in_their_order() -> None:
    first, second = TENSORS["fid_infinity.a"].double(), TENSORS["fid_infinity.b"].double()
    shuffle, rows = np.random.RandomState(5), np.arange(len(first))
    orders = []
    for _ in range(15):
        shuffle.shuffle(rows)
        orders.append(torch.from_numpy(rows.copy()))
    found = frechet_infinity(first, second, 15, orders=orders)
    assert found == pytest.approx(CASE["fid_infinity_5200_rows_numpy_seed5"], rel=1e-6)


def test_fid_infinity_is_the_same_twice_with_one_seed() -> None:
    first, second = features(5100, 3), features(5100, 3, seed=1)
    found = [frechet_infinity(first, second, 4, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("pictures", [40, 800, 4999, 5000, 5013, 5200, 77777])
@pytest.mark.parametrize("points", [2, 8, 15])
def test_subset_sizes_are_those_of_numpy(pictures: int, points: int) -> None:
    theirs = np.linspace(5000, pictures, points).astype("int32")
    assert subset_sizes(pictures, points) == theirs.tolist()


def test_with_exactly_5000_pictures_no_line_is_needed() -> None:
    first, second = features(5000, 2), features(5000, 2, seed=1)
    assert frechet_infinity(first, second, 3) == pytest.approx(distance(first, second), rel=1e-9)


def test_what_has_no_distance_is_refused() -> None:
    one = FeatureStatistics.of(A[:1])
    with pytest.raises(ValueError, match="one picture differs from none. Give at least two"):
        frechet_distance(one, FeatureStatistics.of(B))
    with pytest.raises(ValueError, match="12 features a picture and the other 5. Take both with the same network"):
        frechet_distance(FeatureStatistics.of(A), FeatureStatistics.of(B[:, :5]))
    with pytest.raises(ValueError, match="12 features"):
        one.merged(FeatureStatistics.of(B[:, :5]))
    for broken in (math.nan, math.inf):
        with pytest.raises(ValueError, match="not numbers"):
            FeatureStatistics.of(torch.full((3, 2), broken))
    with pytest.raises(ValueError, match=r"shape \(0, 2\)"):
        FeatureStatistics.of(torch.zeros(0, 2))
    with pytest.raises(ValueError, match="there are 80 and 64"):
        frechet_infinity(A, B)
    with pytest.raises(ValueError, match="at least 2 points, found 1"):
        frechet_infinity(A, A, points=1)
