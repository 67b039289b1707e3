"""Every node explains itself: schemas, translations and help pages say the same, and the host finds them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from comfy_api.latest import io

from semblance.harness.server import ComfyUIServer
from semblance.nodes import NODES
from semblance.tests.support.documents import links

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "web" / "docs"
LANGUAGES = ("en", "zh")
SCHEMAS = {schema.node_id: schema for schema in (node.define_schema() for node in NODES)}
OTHERS_LISTS = {"file", "transformer", "vq", "text_encoder", "sampler_name", "scheduler"}
"""Combos whose choices are the user's own files, or ComfyUI's."""

each_node = pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
each_language = pytest.mark.parametrize("language", LANGUAGES)


def inputs_of(schema: io.Schema) -> dict[str, Any]:
    """Every input by its path, the nested ones after their parent: `blocks`, `blocks.weights`, ..."""
    return {path: found for declared in schema.inputs for path, found in nested(declared)}


def nested(declared: Any, parent: str = "") -> Iterator[tuple[str, Any]]:
    path = parent + declared.id
    yield path, declared
    if isinstance(declared, io.DynamicCombo.Input):
        children = [child for option in declared.options for child in option.inputs]
    elif isinstance(declared, io.Autogrow.Input):
        children = declared.template.get_all()
    else:
        return
    for child in children:
        yield from nested(child, f"{path}.")


def choices_of(declared: Any) -> list[str]:
    if isinstance(declared, io.DynamicCombo.Input):
        return [option.key for option in declared.options]
    if isinstance(declared, io.Combo.Input) and declared.id not in OTHERS_LISTS:
        return list(declared.options or ())
    return []


def named(entry: Any) -> dict[str, str]:
    return {"name": entry.display_name or entry.id, "tooltip": entry.tooltip}


def as_locale(schema: io.Schema) -> dict[str, Any]:
    """The schema as the frontend looks it up: dots in input names become underscores, outputs are numbered."""
    return {
        "display_name": schema.display_name,
        "description": schema.description,
        "inputs": {path.replace(".", "_"): named(found) for path, found in inputs_of(schema).items()},
        "outputs": {str(place): named(output) for place, output in enumerate(schema.outputs)},
    }


def locale(language: str, name: str = "nodeDefs") -> dict[str, Any]:
    return json.loads((ROOT / "locales" / language / f"{name}.json").read_text(encoding="utf-8"))


def page(schema: io.Schema, language: str) -> str:
    return (PAGES / schema.node_id / f"{language}.md").read_text(encoding="utf-8")


def words_of_a_page(schema: io.Schema, translated: dict[str, Any]) -> Iterator[str]:
    """Ids, choices and translated names; of sockets that grow, the first stands for all."""
    for path, found in inputs_of(schema).items():
        if not re.search(r"\.\D+[1-9]\d*$", path):
            yield f"`{found.id}`"
            yield translated["inputs"][path.replace(".", "_")]["name"]
        yield from (f"*{choice}*" for choice in choices_of(found))
    for place, output in enumerate(schema.outputs):
        yield f"`{output.id}`"
        yield translated["outputs"][str(place)]["name"]


def keys(tree: Any) -> Any:
    return {key: keys(branch) for key, branch in tree.items()} if isinstance(tree, dict) else None


def texts(tree: Any) -> Iterator[str]:
    for branch in tree.values():
        yield from texts(branch) if isinstance(branch, dict) else [branch]


@each_node
def test_schema_explains_every_input_and_output(schema: io.Schema) -> None:
    assert schema.display_name and schema.description and schema.search_aliases
    silent = [path for path, found in inputs_of(schema).items() if not found.tooltip]
    silent += [output.id for output in schema.outputs if not output.tooltip]
    assert silent == []


@each_node
def test_english_locale_says_what_the_schema_says(schema: io.Schema) -> None:
    assert locale("en")[schema.node_id] == as_locale(schema)


@each_node
def test_chinese_locale_translates_what_the_schema_says(schema: io.Schema) -> None:
    translated = locale("zh")[schema.node_id]
    assert keys(translated) == keys(as_locale(schema))
    explained = [translated["description"], *(entry["tooltip"] for entry in translated["inputs"].values())]
    assert [text for text in explained if not re.search(r"[\u4e00-\u9fff]", text)] == []


@each_language
def test_locale_has_no_node_that_does_not_exist(language: str) -> None:
    assert set(locale(language)) == set(SCHEMAS)


@each_language
def test_categories_have_a_name(language: str) -> None:
    parts = {part for schema in SCHEMAS.values() for part in schema.category.split("/")}
    assert set(locale(language, "main")["nodeCategories"]) == parts


@each_language
def test_locale_is_plain_text(language: str) -> None:
    """The frontend takes these for places to fill in, plurals and links to other texts."""
    assert [text for text in texts(locale(language)) if not text or re.search(r"[@{}|]", text)] == []


def test_every_node_has_its_pages_and_no_page_is_left_over() -> None:
    found = {str(path.relative_to(PAGES)) for path in PAGES.rglob("*") if path.is_file()}
    assert found == {str(Path(node) / f"{language}.md") for node in SCHEMAS for language in LANGUAGES}


@each_node
@each_language
def test_page_names_every_input_choice_and_output(schema: io.Schema, language: str) -> None:
    text, translated = page(schema, language), locale(language)[schema.node_id]
    assert text.startswith(f"# {translated['display_name']}\n")
    assert [words for words in words_of_a_page(schema, translated) if words not in text] == []


@each_node
@each_language
def test_links_of_a_page_are_whole_addresses(schema: io.Schema, language: str) -> None:
    """ComfyUI shows pages inside its own, so a link to a neighbouring file would lead nowhere."""
    assert [link for link in links(page(schema, language)) if not link.startswith("https://")] == []


def test_host_serves_pages_and_translations(comfyui: ComfyUIServer) -> None:
    served = comfyui.get("/i18n")
    for language in LANGUAGES:
        assert served[language]["nodeDefs"].items() >= locale(language).items()
        for schema in SCHEMAS.values():
            with urlopen(f"{comfyui.url}/extensions/semblance/docs/{schema.node_id}/{language}.md") as answer:
                assert answer.read().decode() == page(schema, language)


@each_language
@each_node
def test_a_mask_on_a_model_says_what_passes_by_tiles_cannot_know(schema: io.Schema, language: str) -> None:
    """Such a pass samples each tile as a picture of its own; no node can know which part of the whole it is."""
    inputs = inputs_of(schema).keys()
    masks = [name for name in ("mask", "attn_mask") if name in inputs]
    masks_a_model = "model" in inputs and bool(masks)
    page = (PAGES / schema.node_id / f"{language}.md").read_text(encoding="utf-8")
    locale = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    tooltips = " ".join(locale[schema.node_id]["inputs"][name]["tooltip"] for name in masks)
    assert ("Ultimate SD Upscale" in page) == ("Ultimate SD Upscale" in tooltips) == masks_a_model
