"""Replacements are told to a ComfyUI that runs as a server, once; elsewhere nothing happens."""

from __future__ import annotations

import asyncio
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from semblance.host.replacement.prompts import on_prompt
from semblance.host.replacement.register import listen_to_prompts
from semblance.host.replacement.table import REPLACEMENTS
from semblance.nodes import comfy_entrypoint


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Any:
    """As much of ComfyUI's server as packs register at."""
    from app.node_replace_manager import NodeReplaceManager

    handlers: list[Any] = []
    made = SimpleNamespace(
        node_replace_manager=NodeReplaceManager(), on_prompt_handlers=handlers, add_on_prompt_handler=handlers.append
    )
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=made)))
    return made


def load_pack() -> None:
    async def load() -> None:
        await (await comfy_entrypoint()).on_load()

    asyncio.run(load())


def test_every_entry_is_registered_once_with_all_its_mappings(server: Any) -> None:
    load_pack()
    load_pack()
    assert server.on_prompt_handlers == [on_prompt]
    known = server.node_replace_manager.as_dict()
    assert set(known) == set(REPLACEMENTS)
    for old_id, (entry,) in known.items():
        assert entry["new_node_id"] == REPLACEMENTS[old_id].node
        assert entry["old_widget_ids"] == list(REPLACEMENTS[old_id].widgets)
        assert entry["input_mapping"], "without one the frontend would guess"
        assert entry["output_mapping"], "without one the frontend would guess"


@pytest.mark.parametrize("module", [None, SimpleNamespace(PromptServer=SimpleNamespace())])
def test_without_a_server_nothing_happens(monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
    if module is None:
        monkeypatch.delitem(sys.modules, "server", raising=False)
    else:
        monkeypatch.setitem(sys.modules, "server", module)
    assert not listen_to_prompts()
    load_pack()
    assert sys.modules.get("server") is module
