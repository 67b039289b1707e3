"""Each Block hands out a model for every block that the last patch acts in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from semblance.host.binding.model import patches_on
from semblance.host.masked.loading import MaskedFiles, load_masked
from semblance.host.masked.sampler import MaskSchedule
from semblance.nodes.each_block import EachBlock
from semblance.nodes.reference_style import ReferenceStyle
from semblance.nodes.style_adapter import ApplyStyleAdapter
from semblance.tests.support.amused import Amused
from semblance.tests.support.amused_runs import sampled as sampled_tokens
from semblance.tests.support.graphs import encode, load_adapter, picture, relative_error, run, styled
from semblance.tests.support.style_adapters import style_adapter
from semblance.tests.support.transformers import TRANSFORMERS, sample
from semblance.tests.tiny_models import empty_latent, ksampler, make_clip_vision, make_conditioning, make_unet


@pytest.fixture
def model(models: Path) -> Any:
    style = encode(load_adapter(models), make_clip_vision("h"), picture(1))
    return styled(make_unet("sd15"), style, blocks={"blocks": "custom", "weights": "output.3=0.5, output.4, input.8"})


def blocks_of(model: Any) -> dict[str, float]:
    patch: Any = patches_on(model)[-1]
    return {block: weight for block, weight in patch.scope.blocks.items() if weight}


def test_each_block_acts_alone_with_the_weight_it_had(model: Any) -> None:
    models, captions = run(EachBlock, model, "each alone", 1)
    assert captions == ["input.8", "output.3", "output.4"]
    assert [blocks_of(one) for one in models] == [{"input.8": 1.0}, {"output.3": 0.5}, {"output.4": 1.0}]
    assert len(blocks_of(model)) == 3, "the model that came in is as it was"


def test_each_block_is_left_out(model: Any) -> None:
    models, _ = run(EachBlock, model, "all but each", 1)
    assert [sorted(blocks_of(one)) for one in models] == [
        ["output.3", "output.4"],
        ["input.8", "output.4"],
        ["input.8", "output.3"],
    ]


def test_the_models_of_the_list_share_the_image_keys_of_the_one_that_came_in(model: Any) -> None:
    """For each model anew, those of a large adapter on Flux would fill tens of gigabytes."""
    whole: Any = patches_on(model)[-1]
    for way, blocks in (("each alone", 1), ("all but each", 2)):
        models, _ = run(EachBlock, model, way, 1)
        for narrowed in (patches_on(one)[-1] for one in models):
            assert len({site.block for site in narrowed.image_keys}) == blocks
            for site, keys in narrowed.image_keys.items():
                assert all(one is other for one, other in zip(keys, whole.image_keys[site], strict=True))


def test_a_patch_of_other_pictures_makes_image_keys_of_its_own(model: Any) -> None:
    whole: Any = patches_on(model)[-1]
    other = replace(whole, tokens=replace(whole.tokens))
    assert other.image_keys.keys() == whole.image_keys.keys()
    assert not any(other.image_keys[site] is whole.image_keys[site] for site in whole.image_keys)


def test_neighbours_are_tried_together(model: Any) -> None:
    models, captions = run(EachBlock, model, "each alone", 2)
    assert captions == ["input.8 to output.3", "output.4"]
    assert [len(blocks_of(one)) for one in models] == [2, 1]


def test_blocks_alone_make_other_pictures(model: Any) -> None:
    models, _ = run(EachBlock, model, "each alone", 1)
    prompts = make_conditioning("sd15", seed=1), make_conditioning("sd15", seed=2)
    made = [ksampler(one, *prompts, empty_latent()) for one in models]
    assert all(not torch.equal(one, other) for one, other in zip(made, made[1:], strict=False))


def test_a_model_without_a_patch_that_has_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing whose blocks can be tried one by one"):
        run(EachBlock, make_unet("sd15"), "each alone", 1)


def test_blocks_that_leave_one_picture_are_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="leaves nothing to compare"):
        run(EachBlock, model, "each alone", 3)


# On transformers


FLUX = TRANSFORMERS["flux"]
NUMBERS = {"strength": 1.0, "start": 0.0, "end": 1.0, "curve": {"curve": "constant"}}


def test_the_blocks_of_a_transformer_are_tried_with_reference_style() -> None:
    def shown(blocks: dict[str, Any]) -> Any:
        settings = {"preset": {"preset": "auto"}, "blocks": blocks, "reference_seed": 0, **NUMBERS}
        return run(ReferenceStyle, FLUX.model(), FLUX.latent(seed=5), **settings)[0]

    def made(model: Any) -> Any:
        return sample(model, FLUX.conditioning(), FLUX.conditioning(seed=2), FLUX.latent())

    models, captions = run(EachBlock, shown({"blocks": "all"}), "each alone", 1)
    assert captions == ["double.0", "double.1", "single.0", "single.1", "single.2"]
    plain = made(FLUX.model())
    for caption, model in zip(captions, models, strict=True):
        assert torch.equal(made(model), made(shown({"blocks": "custom", "weights": caption})))
        assert relative_error(made(model), plain) > 1e-4
    without, _ = run(EachBlock, shown({"blocks": "all"}), "all but each", 1)
    rest = {"blocks": "custom", "weights": "double.0, double.1, single.0, single.1"}
    assert torch.equal(made(without[-1]), made(shown(rest)))


def test_the_blocks_of_a_transformer_are_tried_with_a_style_adapter(tmp_path: Path) -> None:
    """aMUSEd, the transformer that style adapters are tuned for."""
    files = Amused.of("256").files(tmp_path)
    parts = load_masked(MaskedFiles(files["diffusion_models"], files["vae"], files["text_encoders"]))
    adapter = style_adapter(parts.model, size=0.5)

    def applied(blocks: dict[str, Any]) -> Any:
        return run(ApplyStyleAdapter, parts.model, adapter, blocks=blocks, **NUMBERS)[0]

    def made(model: Any) -> Any:
        return sampled_tokens(replace(parts, model=model), 4.0, MaskSchedule(4, (2.0, 0.0)), 4)

    models, captions = run(EachBlock, applied({"blocks": "all"}), "each alone", 1)
    assert captions == ["middle.0", "middle.1", "middle.2"]
    assert [list(blocks_of(model)) for model in models] == [[caption] for caption in captions]
    pictures = [made(model) for model in models]
    for caption, one in zip(captions, pictures, strict=True):
        assert torch.equal(one, made(applied({"blocks": "custom", "weights": caption})))
    assert any(not torch.equal(one, made(parts.model)) for one in pictures)
