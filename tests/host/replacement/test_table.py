"""Every input of an old node reaches ours or is left out knowingly, in the order in which workflows keep them."""

from __future__ import annotations

from typing import Any

import pytest

from semblance.host.replacement.table import REPLACEMENTS, Replacement
from semblance.nodes import NODES
from semblance.tests.support.old_schemas import NOT_REPLACED, OLD_NODES, OldNode

SCHEMAS = {schema.node_id: schema for schema in (node.define_schema() for node in NODES)}

each_entry = pytest.mark.parametrize(
    ("entry", "old"), [(entry, OLD_NODES[name]) for name, entry in REPLACEMENTS.items()], ids=list(REPLACEMENTS)
)


def inputs_of(entry: Replacement) -> dict[str, Any]:
    return {declared.id: declared for declared in SCHEMAS[entry.node].inputs}


def test_all_nodes_are_replaced_but_those_for_faces_saved_embeds_and_animations() -> None:
    assert set(REPLACEMENTS) == set(OLD_NODES)
    assert not set(REPLACEMENTS) & set(NOT_REPLACED)


@each_entry
def test_nothing_is_dropped_unknowingly(entry: Replacement, old: OldNode) -> None:
    taken, left_out = set(entry.inputs.values()), set(entry.left_out)
    assert taken | left_out == old.inputs
    assert not taken & left_out


@each_entry
def test_widgets_and_outputs_are_in_the_order_of_the_old_node(entry: Replacement, old: OldNode) -> None:
    assert entry.widgets == old.widgets
    assert entry.outputs == old.outputs <= len(SCHEMAS[entry.node].outputs)


@each_entry
def test_our_node_gets_what_it_requires_and_nothing_it_does_not_know(entry: Replacement, old: OldNode) -> None:
    known = inputs_of(entry)
    required = {name for name, declared in known.items() if not declared.optional}
    assert required <= {*entry.inputs, *entry.values} <= set(known)
    assert not set(entry.inputs) & set(entry.values)


@each_entry
def test_what_the_old_node_demanded_has_no_silent_default(entry: Replacement, old: OldNode) -> None:
    optional = {name for name, declared in inputs_of(entry).items() if declared.optional}
    demanded = {ours for ours, theirs in entry.inputs.items() if theirs in old.demanded}
    assert set(entry.demanded) == demanded & optional


@each_entry
def test_set_values_are_among_the_choices_and_ids_are_plain(entry: Replacement, old: OldNode) -> None:
    """The frontend skips ids with a dot: it cannot fill inputs that come and go."""
    known = inputs_of(entry)
    for name, value in entry.values.items():
        assert value in (getattr(known[name], "options", None) or [value])
    assert not [name for name in [*entry.inputs, *entry.values] if "." in name]
