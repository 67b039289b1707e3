"""Reference Style as a person connects it: on UNets and transformers, with presets, prompts, masks and refusals."""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import comfy.sample
import comfy.utils
import pytest
import torch
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from comfy_extras.nodes_hypertile import HyperTile
from comfy_extras.nodes_tomesd import TomePatchModel
from torch import Tensor

import nodes as host_nodes
from semblance.attention.engine.moment import Moment, RunPlan
from semblance.attention.families.reference_styles import STYLE_PRESETS, krea2_style
from semblance.attention.methods.reference_style import ReferenceStyle as ReferenceStylePatch
from semblance.host.binding.model import map_unet, patches_on
from semblance.host.masked.loading import MaskedFiles, load_masked
from semblance.host.reference_style import family_for_reference, style_preset
from semblance.nodes.reference_style import ReferenceStyle
from semblance.nodes.reference_style_inputs import read_style_settings
from semblance.tests.support.amused import Amused
from semblance.tests.support.graphs import relative_error, run
from semblance.tests.support.speeds import slow_but
from semblance.tests.support.transformers import HUNYUAN_DIT, TRANSFORMERS, sample
from semblance.tests.tiny_models import ksampler, make_conditioning, make_unet
from semblance.tests.tiny_models.unets import UNET_CONFIGS, base_model, patcher_around
from semblance.tests.tiny_models.weights import seed_weights

CHANGED = 1e-3
UNETS = ("sd15", "sdxl")
FAMILIES = (*UNETS, "flux", "qwen_image", "z_image")
HAS = {"StyleAligned": "sd15", "Visual Style Prompting": "sd15", "Untwisting RoPE": "flux", "Krea 2": "krea2"}
"""A family that has the preset."""
HELP = Path(__file__).parents[2] / "web" / "docs" / "SemblanceReferenceStyle"
NUMBERS: dict[str, Any] = {
    "preset": "custom",
    "reference_tokens": "beside",
    "structure": 0.5,
    "detail": 1.2,
    "statistics": 0.5,
    "value_statistics": 0.0,
    "structure_start": 0.0,
    "detail_start": 1.0,
    "falloff": 2.5,
}


@dataclass(frozen=True)
class Family:
    """A tiny model of one family and what it is sampled with."""

    name: str

    def model(self, **changed: Any) -> Any:
        return make_unet(self.name) if self.name in UNETS else TRANSFORMERS[self.name].model(**changed)

    def text(self, seed: int) -> Any:
        of_unet = self.name in UNETS
        return make_conditioning(self.name, seed=seed) if of_unet else TRANSFORMERS[self.name].conditioning(seed=seed)

    def latent(self, seed: int | None, images: int = 1, height: int = 8, width: int = 8) -> dict[str, Tensor]:
        if self.name not in UNETS:
            return TRANSFORMERS[self.name].latent(images, height, width, seed)
        shape = (images, 4, height, width)
        if seed is None:
            return {"samples": torch.zeros(shape)}
        return {"samples": torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 4}

    def sampled(self, model: Any, images: int = 1, cfg: float = 3.0, texts: Any = None, **settings: Any) -> Tensor:
        positive, negative = texts or (self.text(1), self.text(2))
        latent = self.latent(None, images)
        if self.name in UNETS:
            return ksampler(model, positive, negative, latent, **{"steps": 2, "cfg": cfg, "seed": 1, **settings})
        return sample(model, positive, negative, latent, cfg=cfg, **settings)


@pytest.fixture(scope="module", params=slow_but(FAMILIES, [name for name in FAMILIES if name != "sdxl"]))
def family(request: pytest.FixtureRequest) -> Family:
    return Family(request.param)


@pytest.fixture(scope="module")
def sd15() -> Family:
    return Family("sd15")


def styled(model: Any, reference: Any, **settings: Any) -> Any:
    """MODEL with Reference Style on it."""
    chosen = {
        "preset": {"preset": "auto"},
        "strength": 1.0,
        "blocks": {"blocks": "preset"},
        "start": 0.0,
        "end": 1.0,
        "curve": {"curve": "constant"},
        "reference_seed": 0,
    }
    return run(ReferenceStyle, model, reference, **(chosen | settings))[0]


def patch_on(model: Any) -> ReferenceStylePatch:
    (patch,) = patches_on(model)
    assert isinstance(patch, ReferenceStylePatch)
    return patch


def custom(**numbers: Any) -> dict[str, Any]:
    return {"preset": {**NUMBERS, **numbers}}


# What it does


def test_the_reference_changes_the_picture_and_strength_zero_does_not(family: Family) -> None:
    model, reference = family.model(), family.latent(seed=5)
    plain = family.sampled(model)
    made = family.sampled(styled(model, reference))
    assert relative_error(made, plain) > CHANGED
    assert torch.equal(family.sampled(styled(model, reference, strength=0.0)), plain)
    assert torch.equal(family.sampled(styled(model, reference)), made)
    assert torch.equal(family.sampled(model), plain)


def test_another_picture_another_size_and_two_references_make_other_pictures(family: Family) -> None:
    model = family.model()
    references = (
        family.latent(seed=5),
        family.latent(seed=6),
        family.latent(seed=5, height=6, width=12),
        family.latent(seed=5, images=2),
    )
    made = [family.sampled(styled(model, reference)) for reference in references]
    for place, one in enumerate(made):
        assert torch.isfinite(one).all()
        for other in made[place + 1 :]:
            assert relative_error(one, other) > CHANGED


def test_every_picture_of_a_batch_is_a_reference_as_the_model_holds_latents(family: Family) -> None:
    model, latent = family.model(), family.latent(seed=5, images=3)
    references = patch_on(styled(model, latent)).references
    expected = model.model.process_latent_in(latent["samples"])
    assert len({reference.name for reference in references}) == 3
    for number, reference in enumerate(references):
        assert torch.equal(reference.clean, expected[number : number + 1])
        assert reference.noise.shape == reference.clean.shape
    assert not torch.equal(references[0].noise, references[1].noise)


def test_a_picture_without_frames_gets_one_where_the_family_has_frames() -> None:
    qwen = Family("qwen_image")
    model, latent = qwen.model(), qwen.latent(seed=5)
    flat = {"samples": latent["samples"].squeeze(2)}
    made = [patch_on(styled(model, given)).references[0].clean for given in (flat, latent)]
    assert made[0].shape == (1, 16, 1, 8, 8) and torch.equal(*made)


def test_the_seed_draws_the_noise_of_the_reference_and_leaves_the_hosts_alone(sd15: Family) -> None:
    model, reference = sd15.model(), sd15.latent(seed=5)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    made = [patch_on(styled(model, reference, reference_seed=seed)).references[0].noise for seed in (0, 0, 2**64 - 1)]
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])
    assert not torch.equal(made[0], comfy.sample.prepare_noise(made[0], 0)), "the noise a sampler of seed 0 begins with"


def test_statistics_of_a_reference_of_another_size_are_told_of_where_places_are_rotated(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name, height, told in (("flux", 12, True), ("flux", 8, False), ("sd15", 12, False)):
        family = Family(name)
        caplog.clear()
        family.sampled(styled(family.model(), family.latent(seed=5, height=height)))
        assert ("The reference has another size than the images" in caplog.text) is told


def test_every_input_changes_the_picture(family: Family) -> None:
    model, reference = family.model(), family.latent(seed=5)
    first = next(iter(patch_on(styled(model, reference)).scope.blocks))
    ways: dict[str, dict[str, Any]] = {
        "custom": custom(),
        "instead": custom(reference_tokens="instead"),
        "detail": custom(detail=2.0),
        "early detail": custom(detail_start=2.0),
        "statistics": custom(statistics=1.0),
        "statistics of values": custom(value_statistics=1.0),
        "strength": {**custom(), "strength": 0.5},
        "one block": {**custom(), "blocks": {"blocks": "custom", "weights": f"{first}=1"}},
        "half a block": {**custom(), "blocks": {"blocks": "custom", "weights": f"{first}=0.5"}},
        "early": {**custom(), "end": 0.1},
        "fading": {**custom(), "curve": {"curve": "custom", "points": "0:0.8, 1:0.4"}},
        "seed": {**custom(), "reference_seed": 1},
        "weight": {**custom(), "reference_weight": 3},
        "prompt": {**custom(), "reference_prompt": family.text(9)},
        "mask": {**custom(), "mask": torch.cat([torch.ones(1, 64, 32), torch.zeros(1, 64, 32)], dim=2)},
    }
    if family.name not in UNETS:
        ways |= {"structure": custom(structure=2.0), "early structure": custom(structure_start=2.0)}
        ways |= {"falloff": custom(falloff=0.5)}
    made = {name: family.sampled(styled(model, reference, **way)) for name, way in ways.items()}
    names = list(made)
    for place, one in enumerate(names):
        for other in names[place + 1 :]:
            assert relative_error(made[one], made[other]) > 1e-5, (one, other)


# Presets and blocks


@pytest.mark.parametrize(
    ("name", "preset", "own"),
    [
        ("sdxl", "StyleAligned", None),
        ("sd15", "StyleAligned", None),
        ("krea2", "Krea 2", None),
        ("flux", "Untwisting RoPE", None),
        ("sd35", "Untwisting RoPE", None),
        ("sdxl", "Visual Style Prompting", ["output.3", "output.4", "output.5"]),
    ],
)
def test_presets_are_what_their_sources_say(name: str, preset: str, own: list[str] | None) -> None:
    family = Family(name)
    model, reference = family.model(), family.latent(seed=5)
    patch = patch_on(styled(model, reference, preset={"preset": preset}))
    if own is None:
        assert repr(patch_on(styled(model, reference))) == repr(patch)  # 'auto' is the family's first
    key = next(key for key in STYLE_PRESETS if key.name == preset)
    settings = family_for_reference(model).choice(key)
    assert settings.source
    assert patch.scope.blocks == dict.fromkeys(settings.blocks, 1.0)
    assert (patch.frequencies, patch.statistics, patch.instead) == (
        settings.frequencies, settings.statistics, settings.instead,
    )  # fmt: skip
    assert own is None or list(patch.scope.blocks) == own
    everywhere = patch_on(styled(model, reference, preset={"preset": preset}, blocks={"blocks": "all"}))
    assert set(everywhere.scope.blocks) == set(family_for_reference(model).blocks)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_help_tells_the_numbers_of_every_preset(language: str) -> None:
    """'custom' begins with those of Untwisting RoPE, whatever the model; a user can type the others."""
    text = (HELP / f"{language}.md").read_text(encoding="utf-8")
    rows = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in text.splitlines() if "    | *" in line]
    assert {row[0] for row in rows} == {key.name for key in STYLE_PRESETS}
    names = ("structure", "detail", "structure_start", "detail_start", "falloff", "statistics")
    for preset, tokens, *numbers in rows:
        family = family_for_reference(Family(HAS[preset]).model())
        told = {"reference_tokens": tokens, **dict(zip(names, map(float, numbers), strict=True))}
        custom, own = read_style_settings(NUMBERS | told, family), style_preset(family, preset)
        assert (custom.instead, custom.statistics) == (own.instead, own.statistics)
        for found, expected in zip(astuple(custom.frequencies), astuple(own.frequencies), strict=True):
            assert found == pytest.approx(expected, abs=0.005)


def test_krea_2_leaves_out_its_first_quarter_as_the_recipe_says() -> None:
    blocks = tuple(f"single.{number}" for number in range(28))
    assert krea2_style(blocks).blocks == blocks[7:]


def test_presets_of_other_families_are_refused_by_name() -> None:
    for name, preset, words in (
        ("flux", "StyleAligned", "'StyleAligned' is not for Flux models, for which there is 'Untwisting RoPE'. Choose"),
        ("z_image", "Krea 2", "'Krea 2' is not for Z-Image models, for which there is 'Untwisting RoPE'"),
        ("sd15", "Untwisting RoPE", "SD 1.5 models, for which there is 'StyleAligned' and 'Visual Style Prompting'"),
    ):
        family = Family(name)
        with pytest.raises(ValueError, match=words):
            styled(family.model(), family.latent(seed=5), preset={"preset": preset})


def test_a_choice_that_is_not_on_offer_is_refused_in_a_sentence() -> None:
    given = {"model": 1, "preset": {}, "blocks": {}, "curve": {}}
    assert ReferenceStyle.validate_inputs(**given) is True
    for name in ("preset", "blocks", "curve"):
        said = ReferenceStyle.validate_inputs(**{**given, name: None})
        assert isinstance(said, str) and f"The choice for {name} is missing" in said


def test_the_window_that_meets_no_step_is_told(sd15: Family, caplog: pytest.LogCaptureFixture) -> None:
    model = styled(sd15.model(), sd15.latent(seed=5), start=0.9, end=0.95)
    sd15.sampled(model)
    assert "Reference Style does nothing in this run" in caplog.text


def test_on_a_unet_structure_changes_nothing(sd15: Family) -> None:
    model, reference = sd15.model(), sd15.latent(seed=5)
    one, other = (sd15.sampled(styled(model, reference, **custom(structure=share))) for share in (0.0, 2.0))
    assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["sd15", "flux"])
def test_the_mask_keeps_the_style_to_its_side(name: str) -> None:
    """Attention mixes places, so the other side moves too, but from the first step on by far less."""
    family = Family(name)
    model, reference = family.model(), family.latent(seed=5)
    left = torch.cat([torch.ones(1, 64, 32), torch.zeros(1, 64, 32)], dim=2)
    plain, half, whole = (
        family.sampled(one, steps=1)
        for one in (
            model,
            styled(model, reference, mask=left),
            styled(model, reference, mask=torch.ones(1, 64, 64)),
        )
    )
    change = (half - plain).abs().mean(dim=(0, 1, 2))
    assert change[:4].mean() > 1.2 * change[4:].mean()
    # White everywhere is no mask: in neither do the words of a transformer look at the reference.
    assert relative_error(whole, family.sampled(styled(model, reference), steps=1)) < 1e-4


@pytest.mark.parametrize("name", ["sd15", "flux"])
def test_two_nodes_give_two_references_and_each_image_comes_out_as_alone(name: str) -> None:
    family = Family(name)
    model, first, second = family.model(), family.latent(seed=5), family.latent(seed=6)
    once = styled(model, first)
    twice = styled(once, second)
    assert relative_error(family.sampled(twice), family.sampled(once)) > CHANGED
    batch = family.sampled(once, images=2)
    assert batch.shape[0] == 2
    assert relative_error(batch[:1], family.sampled(once)) < 1e-3


@pytest.mark.parametrize("name", ["sd15", "flux"])
def test_with_a_prompt_of_its_own_a_reference_is_the_same_beside_every_prompt_of_a_batch(name: str) -> None:
    family = Family(name)
    one, other, negative, own = (family.text(seed) for seed in (1, 8, 2, 9))
    both = [[torch.cat([one[0][0], other[0][0]]), joined(one[0][1], other[0][1])]]
    patched = styled(family.model(), family.latent(seed=5), reference_prompt=own)
    batch = family.sampled(patched, images=2, texts=(both, negative))
    images = [
        family.sampled(patched, images=2, texts=(text, negative))[number] for number, text in enumerate((one, other))
    ]
    assert relative_error(batch, torch.stack(images)) < 1e-3
    unprompted = styled(family.model(), family.latent(seed=5))
    batch = family.sampled(unprompted, images=2, texts=(both, negative))
    assert relative_error(batch[:1], family.sampled(unprompted, images=2, texts=(one, negative))[:1]) < 1e-3


def joined(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """What two conditionings have besides text, for both as one batch."""
    return {key: torch.cat([part, other[key]]) if isinstance(part, Tensor) else part for key, part in one.items()}


# Memory and refusals


def test_the_memory_of_the_references_is_declared(family: Family) -> None:
    model = family.model()
    beside, apart, large = (
        patch_on(styled(model, family.latent(seed=5, images=2, height=height))) for height in (8, 12, 48)
    )
    plan = RunPlan("sample_euler", (moment(),), 1, (8, 8), False, frozenset())
    assert beside.extra_images(plan) == 2 < apart.extra_images(plan)
    assert large.extra_images(plan) == pytest.approx(4 * apart.extra_images(plan))
    assert beside.extra_images(replace(plan, frames=21, pictures_apart=True)) < 1  # of videos of 21 frames
    assert patch_on(styled(model, family.latent(seed=5), strength=0.0)).extra_images(plan) == 0
    assert patch_on(styled(model, family.latent(seed=5), reference_weight=4)).extra_images(plan) > 1


def moment() -> Moment:
    return Moment(1.0, 0, 1, 0.0, lambda place: 2.0 * (1 - place))


@pytest.mark.parametrize("name", ["sd15", "flux"])
@pytest.mark.parametrize(("node", "cache"), [(EasyCacheNode, "EasyCache"), (LazyCacheNode, "LazyCache")])
def test_caches_that_answer_without_the_references_are_refused(name: str, node: Any, cache: str) -> None:
    family = Family(name)
    cached = node.execute(family.model(), 0.2, 0.15, 0.95, False)[0]
    with pytest.raises(ValueError, match=f"{cache} on the same model answers some steps without looking"):
        family.sampled(styled(cached, family.latent(seed=5)))


@pytest.mark.parametrize(
    ("merger", "name"),
    [
        (lambda model: HyperTile.execute(model, 128, 2, 2, False)[0], "HyperTile"),
        (lambda model: TomePatchModel.execute(model, 0.5)[0], "ToMe"),
    ],
)
@pytest.mark.parametrize("height", [8, 12])
def test_nodes_that_merge_tokens_are_refused_with_references_of_any_size(
    sd15: Family, merger: Any, name: str, height: int
) -> None:
    with pytest.raises(ValueError, match=f"{name} on the same model changes which tokens there are"):
        sd15.sampled(styled(merger(sd15.model()), sd15.latent(seed=5, height=height)))


def test_a_masked_transformer_is_refused_by_name(tmp_path: Path) -> None:
    files = Amused.of("256").files(tmp_path)
    parts = load_masked(MaskedFiles(files["diffusion_models"], files["vae"], files["text_encoders"]))
    with pytest.raises(ValueError, match="a masked transformer .aMUSEd., to which no reference can be shown"):
        styled(parts.model, {"samples": torch.ones(1, 4, 8, 8)})


def test_a_transformer_that_no_patch_can_reach_is_refused_by_name() -> None:
    model = HUNYUAN_DIT.model()
    with pytest.raises(ValueError, match="This model is a HunyuanDiT, whose attention ComfyUI lets no node reach"):
        styled(model, HUNYUAN_DIT.latent(seed=5))


def test_a_family_that_nobody_knows_is_refused_by_name() -> None:
    model = TRANSFORMERS["flux"].model()
    model.model.diffusion_model = torch.nn.Identity()
    with pytest.raises(ValueError, match="Flux.*is of a family that Semblance does not know. Load a UNet"):
        styled(model, Family("flux").latent(seed=5))


def test_an_inpainting_unet_is_served_and_one_of_unknown_channels_refused_before_sampling(sd15: Family) -> None:
    model = patcher_around(base_model("sd15", {**UNET_CONFIGS["sd15"], "in_channels": 9}))
    seed_weights(model.model.diffusion_model, 0)
    with pytest.raises(ValueError, match="takes 9 channels where a picture's latent has 4.*ordinary checkpoint"):
        styled(model, sd15.latent(seed=5))
    model.model.set_inpaint()
    plain, made = (sd15.sampled(one) for one in (model, styled(model, sd15.latent(seed=5))))
    assert relative_error(made, plain) > CHANGED


@pytest.mark.parametrize("name", ["sd15", "flux", "qwen_image"])
def test_latents_that_are_no_picture_of_this_model_are_refused_in_a_sentence(name: str) -> None:
    family = Family(name)
    model, latent = family.model(), family.latent(seed=5)
    samples = latent["samples"]
    frames = samples.unsqueeze(2) if samples.ndim == 4 else samples
    for given, words in (
        ({"samples": torch.cat([samples, samples], dim=1)}, "a latent of .* channels, and this model works on"),
        (
            {"samples": torch.cat([frames, frames], dim=2)},
            "a video of 2 latent frames.*one Reference Style node for each",
        ),
        ({"samples": samples[0, 0]}, "is not that of this model's pictures"),
        ({"samples": samples * 0}, "The latent is empty"),
        ({"samples": samples * float("nan")}, "not numbers"),
        ({**latent, "noise_mask": torch.ones(1, 8, 8)}, "carries a noise mask.*connect a mask to this node"),
    ):
        with pytest.raises(ValueError, match=words):
            styled(model, given)


def test_several_reference_prompts_and_areas_are_refused(sd15: Family) -> None:
    model, reference, text = sd15.model(), sd15.latent(seed=5), sd15.text(9)
    (area,) = host_nodes.ConditioningSetAreaPercentage().append(text, 0.5, 0.5, 0.0, 0.0, 1.0)
    for prompt in (text + text, make_conditioning("sd15", rows=2), area, []):
        with pytest.raises(ValueError, match="The reference prompt (holds . prompts, and|has an area set)"):
            styled(model, reference, reference_prompt=prompt)


@pytest.mark.parametrize(
    ("given", "name"),
    [({"start_percent": 0.5, "end_percent": 0.6}, "a timestep range"), ({"control": object()}, "a ControlNet")],
)
def test_reference_prompts_for_a_part_of_the_run_or_with_a_controlnet_are_refused(
    sd15: Family, given: dict[str, Any], name: str
) -> None:
    ((text, more),) = sd15.text(9)
    with pytest.raises(ValueError, match=f"The reference prompt has {name} set"):
        styled(sd15.model(), sd15.latent(seed=5), reference_prompt=[[text, {**more, **given}]])


def test_a_prompt_of_another_text_encoder_is_refused_before_the_first_step(sd15: Family) -> None:
    wide = Family("sdxl").text(9)
    with pytest.raises(ValueError, match="The reference prompt is text of 136 channels, and .* have 48"):
        sd15.sampled(styled(sd15.model(), sd15.latent(seed=5), reference_prompt=wide))


def test_a_number_that_is_none_is_refused(sd15: Family) -> None:
    for way in ({"strength": float("nan")}, custom(detail=float("inf"))):
        with pytest.raises(ValueError, match="not a number to calculate with"):
            styled(sd15.model(), sd15.latent(seed=5), **way)


def test_methods_of_unets_name_reference_style_on_a_transformer() -> None:
    with pytest.raises(ValueError, match="Flux transformer.*Semblance has Reference Style"):
        map_unet(TRANSFORMERS["flux"].model())
