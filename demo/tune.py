"""What StyleDrop does on held-out drawings: a table and a contact sheet, `python -m demo.tune`."""

from __future__ import annotations

import argparse
from pathlib import Path


def main() -> None:
    from harness.library import ROOT, use_library

    from .page import text_table

    parser = argparse.ArgumentParser(prog="python -m demo.tune", description=__doc__)
    parser.add_argument("--topology", choices=["SD 1.5", "aMUSEd"], default="SD 1.5")
    parser.add_argument("--references", type=int, default=16, help="how many drawings, a tuning and a round each")
    parser.add_argument("--output", type=Path, default=ROOT / "demo" / "output", help="folder for the sheet")
    arguments = parser.parse_args()
    use_library()
    arguments.output.mkdir(parents=True, exist_ok=True)
    from .styledrop import TUNINGS, Adapters, sheet, table

    tuning = next(tuning for tuning in TUNINGS if tuning.topology == arguments.topology)
    adapters = Adapters.over(arguments.references, tuning)
    print(text_table(table(adapters)))
    print(f"The contact sheet is {sheet(adapters, arguments.output)}.")


if __name__ == "__main__":
    main()
