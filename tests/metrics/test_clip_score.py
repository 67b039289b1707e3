"""Cosines of embeddings row by row, and the CLIP score as torchmetrics gives it."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.multimodal import clip_score as torchmetrics_clip_score

from semblance.metrics.clip_score import clip_score, cosines


def embeddings(rows: int, seed: int, width: int = 16) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def torchmetrics_score(pictures: Tensor, texts: Tensor) -> Tensor:
    """torchmetrics' score with a model whose towers give these embeddings."""
    model = SimpleNamespace(
        config=SimpleNamespace(),
        to=lambda device: model,
        get_image_features=lambda pixels: pictures,
        get_text_features=lambda ids, mask: texts,
    )

    def processor(**asked: object) -> dict[str, Tensor]:
        return {name: torch.zeros(1) for name in ("pixel_values", "input_ids", "attention_mask")}

    blank = [torch.zeros(3, 2, 2) for _ in pictures]
    return torchmetrics_clip_score(blank, ["a heart"] * len(texts), lambda: (model, processor))


@pytest.mark.parametrize("sign", [1, -1])
def test_the_score_is_that_of_torchmetrics(sign: int) -> None:
    pictures = embeddings(5, 0)
    texts = sign * (pictures + 0.7 * embeddings(5, 1))
    ours = clip_score(cosines(pictures, texts))
    assert ours == pytest.approx(float(torchmetrics_score(pictures, texts)), abs=1e-4)
    assert (ours > 0) == (sign > 0)


def test_a_cosine_knows_direction_alone() -> None:
    one = torch.tensor([[3.0, 0.0], [0.0, 2.0], [1.0, 1.0], [1.0, 0.0]])
    other = torch.tensor([[9.0, 0.0], [0.0, -1.0], [0.0, 5.0], [0.0, 1.0]])
    assert cosines(one, other).tolist() == pytest.approx([1, -1, 0.5**0.5, 0])


def test_one_prompt_or_one_style_picture_stands_for_all() -> None:
    pictures, one = embeddings(4, 0), embeddings(1, 1)
    assert torch.equal(cosines(pictures, one), cosines(pictures, one.expand(4, -1)))
    assert torch.equal(cosines(one, pictures), cosines(pictures, one))


def test_half_precision_embeddings_are_compared_in_single() -> None:
    one = embeddings(3, 0).half()
    assert cosines(one, one).dtype == torch.float32
    assert cosines(one, one).tolist() == pytest.approx([1] * 3)


def test_what_cannot_be_compared_is_refused() -> None:
    one = embeddings(3, 0)
    with pytest.raises(ValueError, match="16 and 8 wide, so they are of two spaces"):
        cosines(one, embeddings(3, 1, width=8))
    with pytest.raises(ValueError, match="3 embeddings to compare with 2"):
        cosines(one, embeddings(2, 1))
    for broken in (0.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="zero or holds values that are not numbers"):
            cosines(one, torch.full((3, 16), broken))
    with pytest.raises(ValueError, match=r"\(0, 16\), expected \(rows, width\)"):
        cosines(one[:0], one)
