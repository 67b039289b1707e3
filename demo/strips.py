"""The README's strips, one for each method, sampled on the demo models: `python -m demo.strips [METHOD ...]`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from harness.library import ROOT, use_library

from .world import draw, single_shapes

SIDE, GAP, GROUP_GAP, LINE = 168, 8, 28, 22  # pixels
INK = "#222222"
DIMMED = 0.2
"""How bright a picture stays outside a subject mask."""
REFERENCES, REFERENCE_COUNT = (4, 2), 20
"""Which of so many held-out drawings of REFERENCE_SEED: one on olive stripes, one on blue waves."""
LOOKED_AT = (3, 1)
"""Which of them the flow transformer looks at: one outlined in black on yellow waves, one on pink with stars."""
REFERENCE_SEED, NOISE_SEED = 77, 5
PAIRS, PAIR_COUNT = (2, 4), 12
"""Which of so many of StyleID's held-out pairs."""
PROMPTS = ("a heart", "a star")
PLACED = ("a house on the right", "a moon on the right")
"""For the flow transformer, which draws figures where it is told their place."""
STORY, SCENES = 2, 3
"""Which story of `stories_of`, and how many of its scenes: a fish at three places."""
TUNED = (1, 3)
"""Which of the drawings of `Pairs.draw` StyleDrop is tuned on."""


@dataclass(frozen=True)
class Tile:
    """A picture (3, height, width) in 0..1 and what is written under it."""

    label: str
    picture: Tensor


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.strips", description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "pictures", help="folder for the strips")
    parser.add_argument("methods", nargs="*", help="which of them (default: all)")
    arguments = parser.parse_args()
    output: Path = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    use_library()
    strips: dict[str, Callable[[], list[list[Tile]]]] = {
        "instantstyle": instantstyle_groups,
        "reference_style": reference_style_groups,
        "styleid": styleid_groups,
        "consistory": consistory_groups,
        "styledrop": styledrop_groups,
    }
    for name in arguments.methods or strips:
        strip(strips[name]()).save(output / f"{name}.jpg", quality=88)


def instantstyle_groups() -> list[list[Tile]]:
    """Two references, and the same two prompts from the same noise in the style of each."""
    from .study import Setting, Study

    study = Study.open("SDXL", torch.float32)
    references = single_shapes(REFERENCE_COUNT, REFERENCE_SEED, "held_out")
    groups = []
    for number in REFERENCES:
        reference = references.take(torch.tensor([number]))
        made = study.sample(PROMPTS, NOISE_SEED, study.styled(Setting("style blocks"), reference), steps=20)
        tiles = [Tile(f'prompt "{prompt}"', picture) for prompt, picture in zip(PROMPTS, made, strict=True)]
        groups.append([Tile("reference", draw(reference, 256).pictures[0]), *tiles])
    return groups


def reference_style_groups() -> list[list[Tile]]:
    """Two references, and the same two prompts as a flow transformer draws them while it looks at each."""
    from .reference_style import FOUR_TIMES, TOPOLOGY, styled
    from .study import Study

    study, references = Study.open(TOPOLOGY), single_shapes(REFERENCE_COUNT, REFERENCE_SEED, "held_out")
    groups = []
    for number in LOOKED_AT:
        reference = references.take(torch.tensor([number]))
        made = study.sample(PLACED, NOISE_SEED, styled(study, FOUR_TIMES, reference), steps=20)
        tiles = [Tile(f'"{prompt}"', picture) for prompt, picture in zip(PLACED, made, strict=True)]
        groups.append([Tile("reference", draw(reference, 256).pictures[0]), *tiles])
    return groups


def styleid_groups() -> list[list[Tile]]:
    """Two pairs: the content, the style, and the content painted in it."""
    from . import styleid
    from .study import Study

    study = Study.open("SDXL", torch.float32)
    pairs = styleid.pairs_of(PAIR_COUNT).take(torch.tensor(PAIRS))
    way = styleid.Way("StyleID", gamma=0.3)
    made = styleid.paint(study, pairs, [way])[way.name]
    shown = (draw(pairs.asked, 256).pictures, draw(pairs.references, 256).pictures, made)
    return [
        [Tile(*tile) for tile in zip(("content", "style", "result"), row, strict=True)]
        for row in zip(*shown, strict=True)
    ]


def consistory_groups() -> list[list[Tile]]:
    """The first scenes of a story, each beside where the run found the subject."""
    from .consistory import LORA, OFFICIAL, stories_of, tell
    from .study import Study

    study = Study.open("SDXL", torch.float32)
    nodes: Any = import_module("nodes")
    story = stories_of(STORY + 1)[STORY]
    (model,) = nodes.LoraLoaderModelOnly().load_lora_model_only(study.demo.model, LORA, 1.0)
    pictures, masks = tell(study, model, story, OFFICIAL)
    assert masks is not None
    seen = torch.nn.functional.interpolate(masks[:, None].float(), pictures.shape[-2:])
    dimmed = pictures * (DIMMED + (1 - DIMMED) * seen)
    scenes = story.scenes.split("\n")[:SCENES]
    return [
        [Tile(scene, picture), Tile("subject mask", mask)]
        for scene, picture, mask in zip(scenes, pictures, dimmed, strict=False)
    ]


def styledrop_groups() -> list[list[Tile]]:
    """References, each with two prompts as an adapter tuned on it makes them."""
    from .styledrop import ROUND_SCALE, Adapters, sample

    adapters = Adapters.over(max(TUNED) + 1)
    pairs, groups = adapters.study.pairs, []
    for number in TUNED:
        row = number * pairs.per_reference
        made = sample(adapters.study, adapters.first(row), PROMPTS, NOISE_SEED, ROUND_SCALE)
        tiles = [Tile(f'prompt "{prompt}"', picture) for prompt, picture in zip(PROMPTS, made, strict=True)]
        groups.append([Tile("reference", draw(adapters.reference(row), 256).pictures[0]), *tiles])
    return groups


def strip(groups: Sequence[Sequence[Tile]]) -> Image.Image:
    """Tiles in a row, those of a group closer together, each over its label."""
    tiles = sum(map(len, groups))
    width = tiles * SIDE + (tiles - len(groups)) * GAP + (len(groups) + 1) * GROUP_GAP
    image = Image.new("RGB", (width, SIDE + LINE + 2 * GAP), "white")
    drawing, font = ImageDraw.Draw(image), ImageFont.load_default(size=15)
    left = GROUP_GAP
    for group in groups:
        for tile in group:
            image.paste(_shown(tile.picture), (left, GAP))
            drawing.text((left + SIDE // 2, GAP + SIDE + 4), tile.label, fill=INK, font=font, anchor="ma")
            left += SIDE + GAP
        left += GROUP_GAP - GAP
    return image


def _shown(picture: Tensor) -> Image.Image:
    levels = (picture.float().clamp(0, 1).movedim(0, -1) * 255).round().byte().numpy()
    return Image.fromarray(levels).resize((SIDE, SIDE), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    main()
