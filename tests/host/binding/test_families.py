"""The maps of the families agree with real networks and with published adapter files."""

from __future__ import annotations

from typing import Any

import pytest

from semblance.attention.engine.call import AttentionSite
from semblance.attention.families import FAMILIES, PRESETS, SD15, SDXL, ModelFamily, adapter_numbers, family_of
from semblance.attention.families.amused import amused_of
from semblance.attention.families.family import LAYOUT, STYLE, BlockChoice, ChoiceKey
from semblance.host.binding.model import map_model
from semblance.host.binding.unet_sites import attention_sites
from semblance.tests.support.frozen_cases import load_reference
from semblance.tests.support.oracles import oracle_unet
from semblance.tests.tiny_models import UNET_CONFIGS, Family, make_unet

FAMILY: dict[Family, ModelFamily] = {"sd15": SD15, "sdxl": SDXL}
REAL_SITES = {"sd15": 32, "sdxl": 140}
both = pytest.mark.parametrize("kind", FAMILY)


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {kind: make_unet(kind) for kind in FAMILY} | {f"oracle {kind}": oracle_unet(kind) for kind in FAMILY}


def sites_of(table: list[dict[str, Any]]) -> dict[AttentionSite, int]:
    return {AttentionSite("cross", *entry["comfy"]): entry["key"] for entry in table}


@both
def test_the_blocks_are_those_of_the_network_in_the_order_it_runs_them(kind: Family, models: dict[str, Any]) -> None:
    sites = attention_sites(models[kind].model.diffusion_model)
    assert tuple(dict.fromkeys(site.block for site in sites)) == FAMILY[kind].blocks
    assert len(set(sites)) == len(sites) == REAL_SITES[kind]
    assert [site.kind for site in sites] == ["self", "cross"] * (REAL_SITES[kind] // 2)


@both
def test_a_model_is_recognised_as_its_family_and_no_other(kind: Family, models: dict[str, Any]) -> None:
    for model in (models[kind], models[f"oracle {kind}"]):
        assert map_model(model).family is FAMILY[kind]


def test_blocks_of_no_family_are_not_recognised(models: dict[str, Any]) -> None:
    sites = attention_sites(models["sd15"].model.diffusion_model)
    assert family_of(sites, FAMILIES) is SD15
    assert family_of(sites[2:], FAMILIES) is None
    assert family_of((*sites, AttentionSite("cross", "output", 12)), FAMILIES) is None
    assert family_of((), FAMILIES) is None


@both
def test_the_map_tells_the_width_of_every_attention(kind: Family, models: dict[str, Any]) -> None:
    model_map = map_model(models[kind])
    config = UNET_CONFIGS[kind]
    assert model_map.text_width == config["context_dim"]
    widest = config["model_channels"] * config["channel_mult"][-1]
    assert model_map.widths[AttentionSite("cross", "middle", 0)] == widest
    assert set(model_map.widths) == set(attention_sites(models[kind].model.diffusion_model))


@both
def test_adapter_numbers_are_those_of_the_reference_files_on_tiny_networks(
    kind: Family, models: dict[str, Any]
) -> None:
    _, metadata = load_reference(f"ip_adapter_{kind}")
    sites = attention_sites(models[f"oracle {kind}"].model.diffusion_model)
    assert adapter_numbers(sites) == sites_of(metadata["ip_key_table_tiny"])


@both
def test_adapter_numbers_are_those_of_published_files_on_real_depths(kind: Family, models: dict[str, Any]) -> None:
    _, metadata = load_reference(f"ip_adapter_{kind}")
    sites = attention_sites(models[kind].model.diffusion_model)
    assert adapter_numbers(sites) == sites_of(metadata["ip_key_table_real"])


@both
def test_adapter_numbers_do_not_depend_on_the_order_of_the_sites(kind: Family, models: dict[str, Any]) -> None:
    sites = attention_sites(models[kind].model.diffusion_model)
    assert adapter_numbers(reversed(sites)) == adapter_numbers(sites)


@both
def test_presets_name_blocks_of_the_family(kind: Family) -> None:
    family = FAMILY[kind]
    for preset in PRESETS:
        assert set(family.preset(preset)) <= set(family.blocks)
        assert set(family.preset(preset).values()) == {1.0}
    assert tuple(family.preset("all")) == family.blocks
    assert set(family.preset("style + layout")) == {*family.weights(STYLE), *family.weights(LAYOUT)}
    assert not set(family.weights(STYLE)) & set(family.weights(LAYOUT))


@both
def test_presets_are_the_authors_target_blocks(kind: Family) -> None:
    """The authors name diffusers' modules; the reference files say which of ComfyUI's blocks those are."""
    _, metadata = load_reference(f"ip_adapter_{kind}")
    for preset, name in (("style", "style"), ("style + layout", "style_layout")):
        targets = metadata["instantstyle_target_blocks"][name]
        chosen = {
            "{}.{}".format(*entry["comfy"])
            for entry in metadata["ip_key_table_real"]
            if any(target in entry["diffusers"] for target in targets)
        }
        assert set(FAMILY[kind].preset(preset)) == chosen


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no preset called 'mood'.*style, layout, style . layout, all"):
        SDXL.preset("mood")


def test_a_choice_that_a_family_lacks_is_refused_with_those_it_has() -> None:
    with pytest.raises(ValueError, match="no blocks for tiling in SDXL models, only for style, .*Load a model"):
        SDXL.choice(ChoiceKey("tiling", BlockChoice))


def test_a_preset_that_a_family_lacks_is_refused_with_what_works_there() -> None:
    for preset in ("style", "layout", "style + layout"):
        with pytest.raises(ValueError, match="in aMUSEd models. Set blocks to 'all', or name them under 'custom'"):
            amused_of(2).preset(preset)


def test_every_choice_names_blocks_of_its_family_and_a_source() -> None:
    for family in FAMILIES:
        assert all(choice.source and isinstance(choice, key.form) for key, choice in family.choices.items())
        chosen = {block for c in family.choices.values() if isinstance(c, BlockChoice) for block in c.blocks}
        assert chosen <= set(family.blocks)


def test_a_model_of_another_kind_is_refused_in_a_sentence(models: dict[str, Any]) -> None:
    class Flux:
        diffusion_model = object()

    class Patcher:
        model = Flux()

    with pytest.raises(
        ValueError, match="This model .Flux. does not have the attention blocks.*Load an SD 1.5 or SDXL checkpoint"
    ):
        map_model(Patcher())


def test_an_inpaint_or_cut_down_unet_is_judged_by_its_blocks(models: dict[str, Any]) -> None:
    model = models["sd15"].clone()
    block = model.model.diffusion_model.output_blocks[11]
    transformer = block[1]
    try:
        del block[1]
        with pytest.raises(ValueError, match="does not have the attention blocks of SD 1.5 or SDXL"):
            map_model(model)
    finally:
        block.insert(1, transformer)
    assert map_model(model).family is SD15
