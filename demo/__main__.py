"""`nox -s demo`: the templates on a real ComfyUI with the demo models, a contact sheet each, and what they measure."""

from __future__ import annotations

import argparse
from pathlib import Path

from hosting.library import ROOT, use_library


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "demo" / "output", help="folder for pictures and page")
    output: Path = parser.parse_args().output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    use_library()
    from hosting.server import ComfyUIServer
    from semblance.attention.host.demo_models import TOPOLOGIES

    from . import instantstyle
    from .page import Section, text_table, write_page
    from .study import ADAPTERS, Study

    sections: list[Section] = []
    with ComfyUIServer() as server:
        print(f"ComfyUI is up at {server.url}.")
        for topology in ADAPTERS:
            sheet = instantstyle.sheet(server, topology, output)
            sections.append(Section(f"InstantStyle, {topology} demo model", instantstyle.CAPTION, sheet))
    for topology in TOPOLOGIES:
        study = Study.open(topology)
        tables = [(instantstyle.text_table(study), instantstyle.TEXT_CAPTION)]
        if topology in ADAPTERS:
            tables.append((instantstyle.table(study), instantstyle.TABLE_CAPTION))
        for table, caption in tables:
            print(f"\n{topology} demo model\n{text_table(table)}")
            sections.append(Section(f"Measured, {topology} demo model", caption, table=table))
    print(f"\nThe page with the pictures: {write_page(sections, output / 'index.html')}")


if __name__ == "__main__":
    main()
