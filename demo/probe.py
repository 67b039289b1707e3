"""Which blocks carry style, and which content: each block of a demo model alone, `python -m demo.probe`.

A block is good for style when it brings a picture near the reference's colours, texture and features, and does not
put the figure where the reference's stands.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from .metrics import Measures
    from .study import Study

STYLE_MEASURES = ("palette", "texture", "gram")
HEADINGS = {
    "palette": "colours, Delta E",
    "texture": "texture, 0..1",
    "gram": "features",
    "place_leaked": "at the reference's place",
    "place_right": "place right",
    "shape_right": "shape right",
}
"""Of a Measures' fields, in tables."""
LEAK_KEYS = ("palette", "texture", "place_leaked", "shape_right")
"""What is shown where the prompt leaves the place open."""
PLACE_KEYS = ("palette", "texture", "gram", "place_right", "shape_right")
"""What is shown where the prompt says the place."""
ROW, LABEL, BAR, MARGIN = 26, 230, 520, 24  # pixels
STYLE_COLOUR, LEAK_COLOUR, INK = "#2a7f8e", "#d9663f", "#222222"


@dataclass(frozen=True)
class Finding:
    """What a choice of blocks does, against the same pictures without a reference."""

    blocks: str
    style_gained: float
    """0 is plain, 1 is the drawing itself: the mean over colours, texture and features."""
    leaked: float
    """The share of pictures whose figure stands at the reference's place, which nobody asked for, less plain's."""
    shape_right: float
    palette: float
    texture: float
    gram: float


def style_gained(styled: Measures, plain: Measures) -> float:
    """How much of the distance to the reference's style is gone."""
    shares = [1 - styled[name].mean().item() / plain[name].mean().item() for name in STYLE_MEASURES]
    return sum(shares) / len(shares)


def style_table(found: Mapping[str, Measures], keys: Sequence[str], groups: int) -> list[list[str]]:
    """A row for each of `found`, of which the first is plain: style gained, and the means of `keys` with intervals.

    The first row holds the headings. Runs of `groups` pictures have one reference.
    """
    from .metrics import estimate

    plain = next(iter(found.values()))
    rows = [
        [name, f"{style_gained(measures, plain):.0%}", *(str(estimate(measures[key], groups)) for key in keys)]
        for name, measures in found.items()
    ]
    return [["setting", "style gained", *(HEADINGS[key] for key in keys)], *rows]


def leaked(styled: Measures, plain: Measures) -> float:
    """How much more often than by chance the figure stands where the reference's does."""
    return (styled["place_leaked"].mean() - plain["place_leaked"].mean()).item()


def find(name: str, styled: Measures, plain: Measures) -> Finding:
    return Finding(
        name,
        style_gained(styled, plain),
        leaked(styled, plain),
        styled["shape_right"].mean().item(),
        *(styled[measure].mean().item() for measure in STYLE_MEASURES),
    )


def probe(study: Study, also: Sequence[str] = (), adapter: str = "") -> list[Finding]:
    """Each block alone, all of them, the family's presets, and other choices (`output.1=1, output.2=0.5`)."""
    from semblance.host.binding.model import map_model

    from .study import Setting

    family = map_model(study.demo.model).family
    choices: Mapping[str, str] = {
        **{block: f"{block}=1" for block in family.blocks},
        **{f"preset '{preset}'": preset for preset in ("all", "style", "layout")},
        **{choice: choice for choice in also},
    }
    plain = study.plain()
    findings = [find("no reference", plain, plain)]
    for name, blocks in choices.items():
        findings.append(find(name, study.with_setting(Setting(name, blocks, adapter=adapter)), plain))
        print(line(findings[-1]), flush=True)
    return findings


def line(finding: Finding) -> str:
    return (
        f"{finding.blocks:36} style gained {finding.style_gained:6.1%}   leaked {finding.leaked:+6.1%}   "
        f"shape right {finding.shape_right:6.1%}   colours {finding.palette:5.1f}   texture {finding.texture:.2f}"
    )


def chart(findings: Sequence[Finding], title: str, path: Path) -> Path:
    """Two bars a choice of blocks: style gained, and content leaked."""
    image = Image.new("RGB", (LABEL + BAR + 2 * MARGIN + 70, (len(findings) + 3) * ROW + 2 * MARGIN), "white")
    draw, font, small = ImageDraw.Draw(image), ImageFont.load_default(size=14), ImageFont.load_default(size=11)
    draw.text((MARGIN, MARGIN), title, fill=INK, font=ImageFont.load_default(size=17))
    for place, (colour, what) in enumerate(((STYLE_COLOUR, "style gained"), (LEAK_COLOUR, "content leaked"))):
        left = MARGIN + LABEL + place * 150
        draw.rectangle((left, MARGIN + ROW + 6, left + 12, MARGIN + ROW + 18), fill=colour)
        draw.text((left + 20, MARGIN + ROW + 3), what, fill=INK, font=font)
    for place, finding in enumerate(findings):
        top = MARGIN + (place + 2) * ROW + 8
        draw.text((MARGIN, top + 2), finding.blocks, fill=INK, font=font)
        for offset, value, colour in ((1, finding.style_gained, STYLE_COLOUR), (11, finding.leaked, LEAK_COLOUR)):
            length = max(0.0, min(1.0, value)) * BAR
            left = MARGIN + LABEL
            draw.rectangle((left, top + offset, left + length, top + offset + 8), fill=colour)
            draw.text((left + length + 5, top + offset - 4), f"{value:.0%}", fill=colour, font=small)
    image.save(path)
    return path


def main() -> None:
    from harness.library import ROOT, use_library

    parser = argparse.ArgumentParser(prog="python -m demo.probe", description=__doc__)
    parser.add_argument("--topology", choices=["SDXL", "SD 1.5"], default="SDXL")
    parser.add_argument("--adapter", default="", help="a file other than the base adapter")
    parser.add_argument("--also", nargs="*", default=[], help='other choices, e.g. "output.1=1, output.2=0.5"')
    parser.add_argument("--output", type=Path, default=ROOT / "demo" / "output", help="folder for the chart")
    arguments = parser.parse_args()
    use_library()
    arguments.output.mkdir(parents=True, exist_ok=True)
    from semblance.host.demo_models import Topology

    from .run import slug
    from .study import Study

    study = Study.open(cast(Topology, arguments.topology))
    findings = probe(study, arguments.also, arguments.adapter)
    name = f"blocks_{slug(arguments.topology)}"
    record = arguments.output / f"{name}.json"
    record.write_text(json.dumps([asdict(finding) for finding in findings], indent=2) + "\n", encoding="utf-8")
    title = f"Each block of the {arguments.topology} demo model alone, {len(study.pairs)} pictures"
    print(f"The chart is {chart(findings, title, arguments.output / f'{name}.png')}, its figures are {record}.")


if __name__ == "__main__":
    main()
