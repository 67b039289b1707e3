"""How well pictures show their prompts and keep a style: cosines between the embeddings of one CLIP.

torchmetrics prints a CLIP score of max(100 cos, 0), with cos the mean; the paper's is 2.5 max(cos, 0)
(arXiv:2104.08718).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.utils
import torch
from torch import Tensor

from ...attention.adapters.encoders import ENCODER_OF_EMBEDDING
from ...metrics.clip_score import cosines
from ...metrics.scores import Measure, Scores, fingerprint
from ..instantstyle.text_towers import LONGEST, embed_text
from ..instantstyle.vision import BATCH, embedding_width, encode_crops
from ..pictures import check_picture, fit_picture

TEXT, STYLE = "text", "style"
"""The names of both measures."""


@dataclass(frozen=True, eq=False)
class ClipScores:
    """The scores of pictures, and what was left unread of their prompts."""

    scores: Scores
    cut: tuple[str, ...]
    """The prompts of which only the beginning was read."""

    def best_first(self) -> list[int]:
        """Row numbers, the best by text first."""
        return self.scores[TEXT].ranking()


def score_pictures(
    images: Tensor, prompts: str, text_encoder: Any, image_encoder: Any, style: Tensor | None = None
) -> ClipScores:
    """Measures pictures (images, height, width, 3) against their prompts, and against style pictures if there are any.

    `prompts` is one line for all pictures, or one line for each. `text_encoder` is a CLIP or a TextTower, and
    `image_encoder` the CLIP_VISION of the same space. The style of several pictures is the mean of their cosines.
    Raises ValueError for encoders of two spaces, encoders without a projection, another number of prompts than of
    pictures, and unusable pictures.
    """
    check_picture(images, "The image at 'images'")
    if style is not None:
        check_picture(style, "The image at 'style'")
    lines = read_prompts(prompts, len(images))
    width = embedding_width(image_encoder)
    read = {line: embed_text(text_encoder, line, width, "The pictures were") for line in dict.fromkeys(lines)}
    seen = _embedded(image_encoder, images)
    texts = torch.cat([read[line].embedding for line in lines])
    measures = [Measure(TEXT, tuple(cosines(seen, texts).tolist()), higher_is_better=True)]
    if style is not None:
        kept = torch.stack([cosines(seen, one[None]) for one in _embedded(image_encoder, style)]).mean(dim=0)
        measures.append(Measure(STYLE, tuple(kept.tolist()), higher_is_better=True))
    protocol = _protocol(image_encoder, width, 0 if style is None else len(style))
    scores = Scores(tuple(lines), tuple(measures), protocol, tuple(map(fingerprint, images)), of_prompts=True)
    return ClipScores(scores, tuple(line for line, text in read.items() if not text.whole))


def read_prompts(prompts: str, pictures: int) -> list[str]:
    """The prompt of each picture, from one line for all or one line for each; empty lines do not count.

    Raises ValueError for any other number of lines.
    """
    lines = [line.strip() for line in prompts.splitlines() if line.strip()]
    if not lines:
        raise ValueError("There is no prompt to score the pictures by. Write what they were to show.")
    if len(lines) not in (1, pictures):
        raise ValueError(
            f"There are {len(lines)} prompts for {pictures} pictures. Write one prompt for all of them, or one for "
            "each, every prompt on a line of its own."
        )
    return lines if len(lines) == pictures else lines * pictures


def report_of(found: ClipScores) -> str:
    """A table of the pictures, best first, with their scores and prompts; below it what was cut and the protocol."""
    scores = found.scores
    same = len(set(scores.rows)) == 1
    table = [["picture", *(measure.name for measure in scores.measures), *([] if same else ["prompt"])]]
    table.append(["---"] * len(table[0]))
    for row in found.best_first():
        values = [f"{measure.values[row]:.4f}" for measure in scores.measures]
        table.append([str(row), *values, *([] if same else [shortened(scores.rows[row])])])
    table.append(["mean", *(f"{measure.mean:.4f}" for measure in scores.measures), *([] if same else [""])])
    lines = [f"Prompt: {shortened(scores.rows[0])}", ""] if same else []
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |" for cells in table]
    lines += ["", *(f"Only the first {LONGEST} tokens were read of: {shortened(prompt)}" for prompt in found.cut)]
    return "\n".join([*lines, scores.protocol])


def shortened(prompt: str, most: int = 60) -> str:
    """The beginning of a long prompt."""
    return prompt if len(prompt) <= most else f"{prompt[: most - 3]}..."


def _embedded(encoder: Any, images: Tensor) -> Tensor:
    """The projected embeddings of pictures, (images, width) in float32: the middle square of each, as CLIP sees it."""
    bar = comfy.utils.ProgressBar(len(images))
    parts: list[Tensor] = []
    for batch in images.split(BATCH):
        crops = [fit_picture(picture, encoder.image_size, "crop", encoder.image_mean) for picture in batch]
        parts.append(encode_crops(encoder, torch.cat(crops), is_global=True))
        bar.update(len(batch))
    return torch.cat(parts)


def _protocol(encoder: Any, width: int, styles: int) -> str:
    known = ENCODER_OF_EMBEDDING.get(width)
    name = known.name if known else "a CLIP"
    text = (
        f"Cosines in float32 of embeddings of {name} ({width}-wide); each picture's middle square at "
        f"{encoder.image_size} pixels; the first {LONGEST} tokens of each prompt, without weights. As a CLIP score, "
        "torchmetrics prints max(100 x the mean of text, 0) and the paper 2.5 x max(text, 0)."
    )
    against = "one style picture" if styles == 1 else f"{styles} style pictures, the mean of their cosines"
    return f"{text} Style: against {against}." if styles else text
