"""Which of the scored pictures are taken: those that a person names, or the best by a rule."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from ...metrics.picks import best
from ...metrics.scores import Scores, fingerprint
from ..pictures import check_picture
from .contact_sheet import SheetLayout, draw_sheet
from .figures import shown_alike

NO_LATENTS = "Pick Images has no latents to pick from. Connect the LATENT of the scored pictures to its 'latents'."

NO_PROMPTS = "These scores hold no prompts to pick from: they compare pictures. Connect the scores of CLIP Score."


@dataclass(frozen=True)
class PickRule:
    """The best `count` by one measure, among those that reach the floors of others."""

    count: int
    by: str
    floors: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Picks:
    """What was picked. Places are numbers of pictures in the batch, rows are numbers of scores."""

    places: tuple[int, ...]
    rows: tuple[int, ...]
    images: Tensor
    scores: Scores
    sheet: Tensor
    """All pictures with their numbers and scores; (1, height, width, 3)."""
    layout: SheetLayout


def pick_images(images: Tensor, scores: Scores, numbers: Sequence[int], rule: PickRule) -> Picks:
    """Takes the pictures called by `numbers`, or the best by `rule` where there are none.

    `images` (images, height, width, 3) are found in `scores` by what they show, so their order is free. Raises
    ValueError for pictures that were not scored, numbers that no picture has, and a rule that nothing meets.
    """
    check_picture(images, "The image at 'images'", "too small for the sheet")
    rows = rows_of(images, scores)
    shown = select(scores, rows)
    _check_numbers(numbers, len(images))
    places = list(numbers) or best(shown, rule.count, rule.by, rule.floors)
    columns = [[f"{measure.name} {value}" for value in shown_alike(measure.values)] for measure in shown.measures]
    captions = list(zip(*columns, strict=True))  # -> for each picture a line for each measure
    sheet, layout = draw_sheet(images, captions, places)
    picked = tuple(rows[place] for place in places)
    return Picks(tuple(places), picked, images[places], select(scores, picked), sheet, layout)


def rows_of(images: Tensor, scores: Scores) -> list[int]:
    """The row of each picture in `scores`. Raises ValueError if one was not scored."""
    if not scores.pictures:
        raise ValueError("These scores belong to no pictures of this graph. Connect the scores of CLIP Score.")
    known: defaultdict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(scores.pictures):
        known[name].append(row)
    seen: Counter[str] = Counter()
    rows: list[int] = []
    for place, image in enumerate(images):
        name = fingerprint(image)
        if name not in known:
            raise ValueError(
                f"Picture {place} of {len(images)} was not scored; the scores are of {len(scores.rows)} other pictures "
                "or sizes. Connect the images that went into CLIP Score, or those that came out of it."
            )
        # Equal pictures may have prompts of their own: the second one takes the second row.
        rows.append(known[name][min(seen[name], len(known[name]) - 1)])
        seen[name] += 1
    return rows


def select(scores: Scores, rows: Sequence[int]) -> Scores:
    """Some rows of `scores`, in the order of `rows`."""

    def of(values: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(values[row] for row in rows)

    measures = tuple(replace(measure, values=of(measure.values)) for measure in scores.measures)
    pictures = of(scores.pictures) if scores.pictures else ()
    return replace(scores, rows=of(scores.rows), measures=measures, pictures=pictures)


def pick_latents(latents: Mapping[str, Any] | None, rows: Sequence[int], scored: int) -> Any:
    """Some latents of a LATENT, which has one for each of the `scored` pictures, in the order of scoring.

    Their noise stays that of their places, as ComfyUI's own nodes keep it. Without latents, what says so on the node
    that asks for them. Raises ValueError for another number.
    """
    if latents is None:
        return ExecutionBlocker(NO_LATENTS)
    samples: Tensor = latents["samples"]
    if len(samples) != scored:
        raise ValueError(
            f"There are {len(samples)} latents, but {scored} pictures were scored. Connect the LATENT from which the "
            "scored pictures were decoded, with all its latents."
        )
    chosen = list(rows)
    picked = {**latents, "samples": samples[chosen]}
    numbers = latents.get("batch_index") or list(range(scored))
    picked["batch_index"] = [numbers[row] for row in chosen]
    mask = latents.get("noise_mask")
    if mask is not None and len(mask) > 1:
        picked["noise_mask"] = mask[[row % len(mask) for row in chosen]]
    return picked


def prompts_of(scores: Scores) -> list[Any]:
    """The prompt of each row, or what says on the node that asks for them that these scores have none."""
    return list(scores.rows) if scores.of_prompts else [ExecutionBlocker(NO_PROMPTS)]


def _check_numbers(numbers: Sequence[int], count: int) -> None:
    missing = [number for number in numbers if number >= count]
    if missing:
        raise ValueError(
            f"There is no picture {', '.join(map(str, missing))} on the sheet: its {count} pictures are numbered 0 to "
            f"{count - 1}. Correct 'picked', or empty it for the best by the rule."
        )
