"""A text encoder's embedding with the rows of the words it knows: most of CLIP's vocabulary names nothing here."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

EMBEDDING = "text_model.embeddings.token_embedding.weight"
ROWS = "text_model.embeddings.token_embedding.rows"
VOCABULARY = 49408


def known_alone(weights: Mapping[str, Tensor], known: Tensor) -> dict[str, Tensor]:
    """The weights with the embeddings of the tokens `known` (tokens,) alone, and which they are under ROWS."""
    rows = known.unique()
    return {**weights, EMBEDDING: weights[EMBEDDING][rows], ROWS: rows.int()}


def whole_vocabulary(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights in CLIP's layout: an unknown word is zeros. Weights that are whole already stay as they are."""
    whole = dict(weights)
    rows = whole.pop(ROWS, None)
    if rows is not None:
        known = whole[EMBEDDING]
        whole[EMBEDDING] = known.new_zeros(VOCABULARY, known.shape[1]).index_copy_(0, rows.long(), known)
    return whole
