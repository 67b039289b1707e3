"""`nox -s demo`: the templates on a real ComfyUI with the demo models, a contact sheet each, and what they measure."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from harness.library import ROOT, use_library

from .page import Section, text_table, write_page

if TYPE_CHECKING:
    from .tables import Extent


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "demo" / "output", help="folder for pictures and page")
    parser.add_argument("--full", action="store_true", help="figures over as many pictures as docs/evaluation.md has")
    parser.add_argument(
        "--keep", type=Path, help="folder to keep the contact sheets in as JPEG, for docs/evaluation.md"
    )
    arguments = parser.parse_args()
    output: Path = arguments.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    use_library()
    from semblance.host.demo_models import TOPOLOGIES

    from .tables import FULL, QUICK, tables

    sections: list[Section] = []
    with ProcessPoolExecutor(1, get_context("spawn"), use_library) as beside:  # the server takes the other core
        extent = FULL if arguments.full else QUICK
        measured = [beside.submit(tables, topology, extent, output) for topology in TOPOLOGIES]
        sections += _sheets(output, extent)
        for section in (section for tables_made in measured for section in tables_made.result()):
            print(f"\n{section.title}\n{text_table(section.table)}")
            sections.append(section)
    if arguments.keep is not None:
        _keep(sections, arguments.keep)
    print(f"\nThe page with the pictures: {write_page(sections, output / 'index.html')}")


def _sheets(output: Path, extent: Extent) -> Iterator[Section]:
    """A contact sheet a method and topology, made by the templates over the HTTP API."""
    from harness.server import ComfyUIServer

    from . import consistory, evaluation, instantstyle, reference_style, styleid
    from .study import ADAPTERS
    from .tables import STORY_TOPOLOGY

    with ComfyUIServer() as server:
        print(f"ComfyUI is up at {server.url}.")
        for topology in ADAPTERS:
            sheet = instantstyle.sheet(server, topology, output)
            yield Section(f"InstantStyle, {topology} demo model", instantstyle.CAPTION, sheet)
        yield from evaluation.sections(server, "SD 1.5", output)  # its style blocks carry the colours
        sheet = reference_style.sheet(server, output)
        yield Section(f"Reference Style, {reference_style.TOPOLOGY} demo model", reference_style.CAPTION, sheet)
        for topology in extent.styleid_topologies:
            sheet = styleid.sheet(server, topology, output)
            yield Section(f"StyleID, {topology} demo model", styleid.CAPTION, sheet)
        sheet = consistory.sheet(server, STORY_TOPOLOGY, output)
        yield Section(f"ConsiStory, {STORY_TOPOLOGY} demo model", consistory.CAPTION, sheet)


def _keep(sections: Sequence[Section], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for section in sections:
        if section.picture is not None:
            with Image.open(section.picture) as picture:
                picture.save(folder / f"{section.picture.stem}.jpg", quality=85)


if __name__ == "__main__":
    main()
