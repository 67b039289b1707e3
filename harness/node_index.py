"""The index of the nodes in docs/nodes.md, written from their schemas: `python -m harness.node_index` rewrites it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from .library import use_library
from .pinned import ROOT

if TYPE_CHECKING:
    from comfy_api.latest import io

PAGE = ROOT / "docs" / "nodes.md"
HEAD = """# The nodes

Every node has a help page in English and Chinese. In ComfyUI, select the node and click the info button above it.

| node | id | what it does | help |
|---|---|---|---|
"""


def main() -> None:
    use_library()
    from semblance.nodes import NODES

    PAGE.write_text(index(node.define_schema() for node in NODES), encoding="utf-8")
    print(PAGE)


def index(schemas: Iterable[io.Schema]) -> str:
    """The page, with one row for each node in the order of the menu."""
    return HEAD + "".join(_row(schema) for schema in schemas)


def _row(schema: io.Schema) -> str:
    page = f"../web/docs/{schema.node_id}"
    summary = _first_sentence(schema.description)
    return f"| {schema.display_name} | `{schema.node_id}` | {summary} | [en]({page}/en.md) [中文]({page}/zh.md) |\n"


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=\.)\s+(?=[A-Z])", text, maxsplit=1)[0]


if __name__ == "__main__":
    main()
