"""How well pictures fit texts or other pictures, by CLIP embeddings of one space (CLIPScore, arXiv:2104.08718)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def cosines(first: Tensor, second: Tensor) -> Tensor:
    """The cosine of each row of embeddings (rows, width) with the same row of the other, float32 (rows,) in [-1, 1].

    A side of one row is compared with every row of the other: one prompt, or one style picture, for all.
    Raises ValueError where widths or numbers of rows differ, or a row has no direction.
    """
    first, second = _checked(first), _checked(second)
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"The embeddings are {first.shape[1]} and {second.shape[1]} wide, so they are of two spaces. Use the text "
            "and the image encoder of one CLIP."
        )
    if len(first) != len(second) and 1 not in (len(first), len(second)):
        raise ValueError(
            f"There are {len(first)} embeddings to compare with {len(second)}. Give one for each, or one for all."
        )
    return (functional.normalize(first, dim=1) * functional.normalize(second, dim=1)).sum(dim=1)


def clip_score(similarity: Tensor) -> Tensor:
    """100 times the mean of cosines (rows,), at least 0: one number, as torchmetrics' `CLIPScore` gives it.

    The paper's own scale is 2.5 max(cosine, 0) for each picture.
    """
    return (100 * similarity).mean().clamp(min=0)


def _checked(embeddings: Tensor) -> Tensor:
    if embeddings.dim() != 2 or 0 in embeddings.shape:
        raise ValueError(f"Embeddings have the shape {tuple(embeddings.shape)}, expected (rows, width) with a row.")
    embeddings = embeddings.float()
    lengths = embeddings.square().sum(dim=1).sqrt()
    # False for NaN as well.
    if not bool(((lengths > 0) & lengths.isfinite()).all()):
        raise ValueError(
            "An embedding is zero or holds values that are not numbers (NaN or infinity). The encoder's weights or "
            "a picture are broken; check both."
        )
    return embeddings
