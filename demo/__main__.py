"""`nox -s demo`: runs the InstantStyle template on a real ComfyUI and shows what each setting does."""

from __future__ import annotations

import argparse
from pathlib import Path

from hosting.library import ROOT, use_library
from hosting.server import ComfyUIServer

from .contact_sheet import contact_sheet
from .picture import draw_style_picture
from .run import Shot, compare, report, template_with


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "demo" / "output", help="folder for the pictures")
    output: Path = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    use_library()
    from .stand_ins import write_models

    print("The models are tiny and random until trained ones ship: the pictures are noise by construction.")
    style_picture = draw_style_picture(output / "reference.png")
    with ComfyUIServer(extra_nodes=[ROOT / "tests" / "tiny_models"]) as server:
        print(f"ComfyUI is up at {server.url}.")
        files = write_models(server)
        prompt = template_with("instantstyle_content_subtraction", files, server.add_input(style_picture))
        shots = compare(server, prompt, output)
    sheet = contact_sheet([Shot("reference", style_picture), *shots], output / "contact_sheet.png")
    print(report(shots))
    print(f"The pictures are in {output}, side by side in {sheet}.")


if __name__ == "__main__":
    main()
