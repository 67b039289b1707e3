"""What people read holds: links, the example of a method, the index of the nodes, and the messages it quotes."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from semblance.harness.node_index import PAGE, index
from semblance.harness.pinned import ROOT
from semblance.nodes import NODES
from semblance.tests.support.documents import code_blocks, links, quoted_messages
from semblance.tests.support.messages import is_said, sentences
from semblance.tests.tiny_models import empty_latent, ksampler, make_conditioning, make_unet

README = ROOT / "README.md"
LONGEST_README = 130
"""Lines."""
DOCUMENTS = (
    README,
    ROOT / "ARCHITECTURE.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "bench" / "README.md",
    ROOT / "demo" / "models" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
)
QUOTING = (README, *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "web" / "docs").glob("*/*.md")))
"""The documents that a user searches for the words of a red node."""
SAID = sentences([ROOT / "nodes", ROOT / "attention", ROOT / "host", ROOT / "metrics"])


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_lead_to_files_of_the_checkout(document: Path) -> None:
    inside = [link.partition("#")[0] for link in links(read(document)) if not link.startswith("https://")]
    assert [link for link in inside if link and not (document.parent / link).exists()] == []


def test_the_architecture_names_files_that_exist() -> None:
    named = re.findall(r"`((?:attention|host|nodes|tests)/[\w/.]*)`(, new)?", read(ROOT / "ARCHITECTURE.md"))
    assert [path for path, new in named if not new and not (ROOT / path).exists()] == []


def test_the_readme_is_short() -> None:
    assert len(read(README).splitlines()) <= LONGEST_README


def test_the_readme_names_every_template() -> None:
    templates = [path.stem for path in (ROOT / "workflows").glob("*.json")]
    assert [template for template in templates if f"`{template}`" not in read(README)] == []


def test_the_index_of_the_nodes_says_what_the_schemas_say() -> None:
    assert read(PAGE) == index(node.define_schema() for node in NODES)


@pytest.mark.parametrize("document", QUOTING, ids=name)
def test_quoted_messages_are_those_of_the_code(document: Path) -> None:
    """A user searches the page for what the red node says."""
    assert [message for message in quoted_messages(read(document)) if not is_said(message, SAID)] == []


def test_a_quotation_leaves_out_words_and_fills_in_values() -> None:
    said = ["There are \0 masks for \0 images. Connect one mask, or one for each image of the batch."]
    assert is_said("There are 3 masks for 2 images", said)
    assert is_said("There are ... masks ... Connect one mask", said)
    assert not is_said("There are 3 masks, but 2 images", said)
    assert not is_said("Connect one mask. There are 3 masks", said)
    assert not is_said("There ...", said)


def test_messages_are_read_off_tables_bold_items_and_quotation_marks() -> None:
    page = (
        "| the node says | what to do |\n|---|---|\n| The mask is empty | Paint it. |\n\n"
        '## Other\n\n- **no message**: it says "this is one" and `"this is not"`.\n\n'
        "## When something goes wrong\n\n- **A first** or **a second**: do **this**.\n"
    )
    assert quoted_messages(page) == ["The mask is empty", "A first", "a second", "this is one"]


def module_from(code: str, name: str, folder: Path) -> ModuleType:
    """A module of the pack, from `code`, as if its file lay where the name says."""
    path = folder / f"{name}.py"
    path.write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_method_that_contributing_adds_works(tmp_path: Path) -> None:
    method, node = code_blocks(read(ROOT / "CONTRIBUTING.md").partition("## Add a method")[2])[:2]
    module_from(method, "semblance.attention.methods.contrast", tmp_path)
    added = module_from(node, "semblance.nodes.contrast", tmp_path)
    model = make_unet("sd15")

    def sampled(strength: float) -> torch.Tensor:
        patched = added.Contrast.execute(model, {"blocks": "style"}, strength)[0]
        return ksampler(patched, make_conditioning(), make_conditioning(seed=1), empty_latent())

    plain = ksampler(model, make_conditioning(), make_conditioning(seed=1), empty_latent())
    assert torch.equal(sampled(0.0), plain)
    assert not torch.equal(sampled(0.5), plain)
