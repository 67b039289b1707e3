"""A recorded subject obeys the laws of a patch: any number of scenes, any way of sending them, and no trace."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_management
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_hypernetwork import load_hypernetwork_patch
from node_helpers import conditioning_set_values
from torch import Tensor

from semblance.attention.engine.bank import FeatureBank
from semblance.attention.engine.call import AttentionSite, SharedTokens
from semblance.attention.engine.layout import BatchLayout, Chunk
from semblance.attention.engine.moment import Moment
from semblance.attention.engine.sharing import merge_shared
from semblance.attention.engine.states import split_states
from semblance.attention.families import CONSISTORY
from semblance.attention.methods.consistory.applied import applied_subject
from semblance.attention.methods.consistory.method import ConsiStory
from semblance.attention.methods.consistory.settings import Injection, Sharing, StepRange
from semblance.attention.subjects.recording import RecordedFeatures, RecordedStates, RecordedSubject
from semblance.attention.subjects.user_masks import UserMasks
from semblance.attention.subjects.words import SubjectWords
from semblance.host.binding.conditionings import TAG
from semblance.host.binding.model import add_patch, patches_on
from semblance.host.binding.noise_schedule import NoiseSchedule
from semblance.host.binding.regions import Regions
from semblance.host.binding.unet import BoundSite, LayerInputs
from semblance.host.binding.unet_sites import attention_layer, attention_sites
from semblance.host.subjects.subject import record
from semblance.tests.support.speeds import slow
from semblance.tests.support.studio import Studio, painted, record_calls, relative_error, told_on
from semblance.tests.tiny_models import Family, random_latent, sampler_custom

SIGMAS = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.0])
INJECTION = Injection(0.8, StepRange(0.25, 0.75))
SIZE = (16, 16)


def words(scenes: int) -> SubjectWords:
    return SubjectWords(("fox",), tuple(f"scene {n}" for n in range(scenes)), (((5, 6),),) * scenes, 77)


def prompts(studio: Studio, scenes: int, first: int = 0) -> Any:
    """Prompts of random text, the same for a scene whatever stands beside it."""
    rows = [studio.text(50 + first + scene)[0] for scene in range(scenes)]
    extras = {key: torch.cat([row[1][key] for row in rows]) for key in rows[0][1]}
    return [[torch.cat([row[0] for row in rows]), extras]]


def story(studio: Studio, scenes: int = 2, **settings: Any) -> ModelPatcher:
    settings = {"injection": INJECTION, "sharing": Sharing(anchors=2)} | settings
    return add_patch(studio.model, ConsiStory(words(scenes), studio.model_map.family.choice(CONSISTORY), **settings))


def sample(
    studio: Studio, model: ModelPatcher, scenes: int = 2, first: int = 0, sigmas: Tensor = SIGMAS, **more: Any
) -> Tensor:
    """Scenes from a number on, of a story that has as many as one likes; each has noise of its own."""
    noises = [random_latent(1, *SIZE, seed=first + scene)["samples"] for scene in range(scenes)]
    text = told_on(model, prompts(studio, scenes, first))
    return sampler_custom(model, text, studio.negative, {"samples": torch.cat(noises)}, sigmas, **({"cfg": 4.0} | more))


def recorded(studio: Studio, **settings: Any) -> RecordedSubject:
    return record(story(studio, **settings), lambda model: sample(studio, model))[1]


def applied(
    studio: Studio, subject: RecordedSubject, scenes: int = 1, model: ModelPatcher | None = None, **settings: Any
) -> ModelPatcher:
    settings = {"injection": INJECTION} | settings
    patch = applied_subject(words(scenes), studio.model_map.family.choice(CONSISTORY), subject, **settings)
    return add_patch(model or studio.model, patch)


@pytest.fixture(scope="module")
def subject_of(studio_of: Callable[[Family], Studio]) -> Callable[[Family], RecordedSubject]:
    made: dict[Family, RecordedSubject] = {}

    def subject(kind: Family) -> RecordedSubject:
        if kind not in made:
            made[kind] = recorded(studio_of(kind))
        return made[kind]

    return subject


@pytest.fixture
def subject(studio: Studio, subject_of: Any) -> RecordedSubject:
    return subject_of(studio.kind)


def test_recording_changes_nothing_of_what_is_sampled(studio: Studio) -> None:
    model = story(studio)
    made, subject = record(model, lambda recording: sample(studio, recording))
    assert torch.equal(made, sample(studio, model))
    assert [patch.recorder for patch in patches_on(model) if isinstance(patch, ConsiStory)] == [None]
    assert len(subject.passes) == 2 and subject.passes[0].steps == len(SIGMAS) - 1
    assert subject.sigmas == tuple(SIGMAS[:-1].tolist()) and subject.size == SIZE


def test_further_scenes_of_the_batch_are_not_recorded(studio: Studio) -> None:
    # Where the mask is found by attention, a token at the threshold may go either way in a batch of another size.
    drawn = UserMasks(painted(1, 40, 56))
    _, of_two = record(story(studio, masks=drawn), lambda model: sample(studio, model))
    _, among_four = record(story(studio, 4, masks=drawn), lambda model: sample(studio, model, 4))
    assert among_four.anchors == 2
    for found, expected in zip(among_four.tensors, of_two.tensors, strict=True):
        assert found.shape == expected.shape and relative_error(found, expected) < 1e-3


@pytest.mark.parametrize("injection", [INJECTION, Injection(0.0)], ids=["with injection", "without"])
def test_any_number_of_scenes_at_once_come_out_as_one_by_one(
    studio: Studio, subject: RecordedSubject, injection: Injection
) -> None:
    together = sample(studio, applied(studio, subject, 3, injection=injection), 3, first=7)
    plain = sample(studio, studio.model, 3, first=7)
    for scene in range(3):
        alone = sample(studio, applied(studio, subject, injection=injection), 1, first=7 + scene)
        assert relative_error(together[scene : scene + 1], alone) < 1e-3
        assert relative_error(alone, plain[scene : scene + 1]) > 1e-2


def test_conditionings_sent_one_by_one_record_and_apply_the_same(
    studio: Studio, subject: RecordedSubject, request: pytest.FixtureRequest
) -> None:
    together = sample(studio, applied(studio, subject), 1)
    request.getfixturevalue("one_conditioning_a_call")
    model, calls = record_calls(applied(studio, subject))
    assert relative_error(sample(studio, model, 1), together) < 1e-3
    assert [call["numbers"] for call in calls[:2]] == [[1], [0]]
    apart = recorded(studio)
    assert apart.passes[0].sides == ("negative", "positive")
    for found, expected in zip(apart.tensors, subject.tensors, strict=True):
        assert found.shape == expected.shape and relative_error(found, expected) < 1e-3


def test_prompts_combined_with_the_storys_are_not_recorded_in_its_place(sd15: Studio) -> None:
    told, other = conditioning_set_values(prompts(sd15, 2), {TAG: words(2).text}), sd15.text(9)

    def made(*entries: Any) -> RecordedSubject:
        def run(model: ModelPatcher) -> Tensor:
            noise = {"samples": random_latent(2, *SIZE, seed=0)["samples"]}
            return sampler_custom(model, list(entries), sd15.negative, noise, SIGMAS, cfg=4.0)

        return record(story(sd15), run)[1]

    for found, expected in zip(made(*told, *other).tensors, made(*other, *told).tensors, strict=True):
        assert found.shape == expected.shape and relative_error(found, expected) < 1e-3


def test_strength_zero_leaves_the_model_untouched(studio: Studio, subject: RecordedSubject) -> None:
    idle = applied(studio, subject, 2, sharing=Sharing(0.0), injection=Injection(0.0))
    assert torch.equal(sample(studio, idle), sample(studio, studio.model))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_recorded_and_applied_in_its_own_type(dtype: torch.dtype) -> None:
    studio = Studio.of("sd15", dtype)
    subject = recorded(studio)
    assert {tensor.dtype for states in subject.passes for tensor in states.tensors} == {dtype}
    made = sample(studio, applied(studio, subject), 1)
    assert torch.isfinite(made).all() and relative_error(made, sample(studio, studio.model, 1)) > 1e-3


def test_a_recording_in_float16_serves_a_model_in_float32(sd15: Studio, subject_of: Any) -> None:
    subject = subject_of("sd15")
    halved = subject.stored_as(torch.float16)
    assert halved.bytes == subject.bytes // 2 == subject.bytes_as(torch.float16)
    exact, rounded = (sample(sd15, applied(sd15, one, injection=Injection(0.0)), 1) for one in (subject, halved))
    assert 0 < relative_error(rounded, exact) < 1e-2


@pytest.mark.slow
def test_two_subjects_act_together_in_either_order(sd15: Studio, subject_of: Any) -> None:
    one = subject_of("sd15")
    _, two = record(story(sd15), lambda model: sample(sd15, model, first=20))
    both = applied(sd15, two, model=applied(sd15, one))
    other_way = applied(sd15, one, model=applied(sd15, two))
    made = sample(sd15, both, 1)
    for subject in (one, two):
        assert relative_error(made, sample(sd15, applied(sd15, subject), 1)) > 1e-2
    settings = {"injection": Injection(0.0)}
    shared = [
        applied(sd15, second, model=applied(sd15, first, **settings), **settings)
        for first, second in ((one, two), (two, one))
    ]
    assert relative_error(*(sample(sd15, model, 1) for model in shared)) < 0.2
    assert torch.isfinite(sample(sd15, other_way, 1)).all()


@pytest.mark.parametrize("subject_first", [True, slow(False)])
def test_a_fast_subject_acts_beside_a_story_that_is_not_fast(sd15: Studio, subject_first: bool) -> None:
    """Its first pass was recorded up to the step of the features, the other's goes on to the end."""
    sigmas = torch.tensor([8.0, 4.0, 2.0, 0.7, 0.4, 0.2, 0.0])
    _, fast = record(story(sd15, fast=True), lambda model: sample(sd15, model, sigmas=sigmas))
    assert fast.passes[0].steps < fast.passes[1].steps == 6

    def subject(model: ModelPatcher | None = None) -> ModelPatcher:
        return applied(sd15, fast, 2, model, fast=True)

    def beside(model: ModelPatcher) -> ModelPatcher:
        (patch,) = patches_on(story(sd15))
        return add_patch(model, patch)

    both = beside(subject()) if subject_first else subject(beside(sd15.model))
    made, alone = (sample(sd15, model, sigmas=sigmas) for model in (both, subject()))
    assert torch.isfinite(made).all() and relative_error(made, alone) > 1e-2


def test_nothing_is_shared_beyond_the_steps_recorded() -> None:
    site = AttentionSite("self", "output", 0)
    states = RecordedStates({site: torch.ones(2, 5, 8)}, {site: (0, 2, 3)})
    assert [states.at(site, step).shape for step in range(5)] == [(2, count, 8) for count in (0, 2, 3, 0, 0)]


def test_shared_tokens_of_several_are_joined_image_by_image() -> None:
    key = torch.arange(6.0).view(1, 3, 2)
    joined = merge_shared(
        SharedTokens((0, 2), key, -key), SharedTokens((1, 2), key + 10, key), SharedTokens((3,), key, key)
    )
    assert [tokens.images for tokens in joined] == [(0,), (1,), (2,), (3,)]
    assert torch.equal(joined[2].key, torch.cat([key, key + 10], dim=1))
    assert torch.equal(joined[2].value, torch.cat([-key, key], dim=1))
    (alone,) = merge_shared(SharedTokens((0, 1), key, key))
    assert alone.images == (0, 1) and torch.equal(alone.key, key)


def test_what_was_recorded_is_brought_to_the_model_outside_every_attention(
    sd15: Studio, subject_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies from the CPU to a GPU keep it waiting, and an attention that begins one waits each time."""
    inside: list[AttentionSite] = []
    attend, taken = BoundSite.__call__, itertools.count()

    def watched(self: BoundSite, *tensors: Any) -> Tensor:
        inside.append(self.site)
        try:
            return attend(self, *tensors)
        finally:
            inside.pop()

    def watch(kind: type[RecordedStates] | type[RecordedFeatures]) -> None:
        at = kind.at

        def seen(self: Any, site: AttentionSite, step: int) -> Tensor:
            next(taken)
            assert not inside, f"{kind.__name__} are read inside {inside[0]}"
            return at(self, site, step)

        monkeypatch.setattr(kind, "at", seen)

    monkeypatch.setattr(BoundSite, "__call__", watched)
    watch(RecordedStates)
    watch(RecordedFeatures)
    sample(sd15, applied(sd15, subject_of("sd15")), 1)
    assert next(taken)


def test_one_step_of_what_was_recorded_is_where_the_model_is(sd15: Studio, subject_of: Any) -> None:
    subject, bank, device = subject_of("sd15"), FeatureBank(), torch.device("meta")
    (patch,) = patches_on(applied(sd15, subject, injection=Injection(0.0)))
    schedule = NoiseSchedule(sd15.model.get_model_object("model_sampling"))
    layout = BatchLayout((Chunk("negative"), Chunk("positive")), 1, SIZE, device=device)
    for step in (1, 2):
        for _ in range(2):
            patch.begin(layout, Moment(float(SIGMAS[step]), step, 4, 0.5, schedule.sigma_at), bank)
        kept = [bank.recall(name) for name in bank]
        assert {tensor.device for tensor in kept} == {device}
        assert len(kept) == len(subject.passes[0].by_site)


def test_the_models_own_projection_is_taken_so_that_changed_weights_act(sd15: Studio, subject_of: Any) -> None:
    subject = subject_of("sd15")
    twice = {
        f"diffusion_model.{name}": (weight,)
        for name, weight in sd15.model.model.diffusion_model.state_dict().items()
        if "output_blocks" in name and "attn1.to_v" in name
    }
    louder = sd15.model.clone()
    louder.add_patches(twice, 1.0)  # doubles what is read from every token, the recorded ones as well
    silent = replace(subject, passes=tuple(replace(s, by_site=zeros(s.by_site)) for s in subject.passes))
    effects = [
        sample(sd15, applied(sd15, subject, model=model, injection=Injection(0.0)), 1)
        - sample(sd15, applied(sd15, silent, model=model, injection=Injection(0.0)), 1)
        for model in (sd15.model, louder)
    ]
    assert relative_error(effects[1], effects[0]) > 0.1


def zeros(by_site: Any) -> Any:
    return {site: torch.zeros_like(states) for site, states in by_site.items()}


def hypernetwork(studio: Studio, folder: Path, until: float = 0.0) -> ModelPatcher:
    """A model with ComfyUI's hypernetwork on it, which leaves keys alone and changes values; above a noise level."""
    widths = set(widths_of(studio).values())
    noise = torch.Generator().manual_seed(0)

    def layer(width: int, strength: float) -> dict[str, Tensor]:
        weight = strength * torch.randn(width, width, generator=noise) / width**0.5
        return {"linear.0.weight": weight, "linear.0.bias": torch.zeros(width)}

    path = folder / "hypernetwork.pt"
    torch.save({width: [layer(width, 0.0), layer(width, 1.0)] for width in widths}, path)
    patch = load_hypernetwork_patch(str(path), 1.0)
    assert patch is not None
    model = studio.model.clone()

    def gated(query: Tensor, key: Tensor, value: Tensor, options: Any) -> tuple[Tensor, ...]:
        return patch(query, key, value, options) if options["sigmas"][0] >= until else (query, key, value)

    model.set_model_attn1_patch(gated)
    return model


def test_a_subject_of_an_older_semblance_without_a_step_that_is_copied_is_refused(
    sd15: Studio, subject_of: Any
) -> None:
    recorded = subject_of("sd15")
    kept = recorded.features
    assert kept is not None and len(kept.steps) > 1
    fewer = {site: outputs[:-1] for site, outputs in kept.outputs.items()}
    older = replace(recorded, features=replace(kept, outputs=fewer, steps=kept.steps[:-1]))
    with pytest.raises(ValueError, match=f"not of step {kept.steps[-1]}.*an older Semblance"):
        sample(sd15, applied(sd15, older), 1, first=2)
    without = Injection(strength=0.0)
    assert torch.isfinite(sample(sd15, applied(sd15, older, injection=without), 1, first=2)).all()


def widths_of(studio: Studio) -> dict[AttentionSite, int]:
    unet = studio.model.model.diffusion_model
    return {site: attention_layer(unet, site).to_k.in_features for site in attention_sites(unet) if site.kind == "self"}


@pytest.mark.parametrize("until", [0.0, 3.0])
def test_values_of_a_hypernetwork_are_recorded_beside_the_keys(sd15: Studio, tmp_path: Path, until: float) -> None:
    """Keys and values come from different inputs then; until the step at which it ends, or all along."""
    model = hypernetwork(sd15, tmp_path, until)
    story = ConsiStory(words(2), sd15.model_map.family.choice(CONSISTORY), Sharing(anchors=2), injection=INJECTION)
    _, subject = record(add_patch(model, story), lambda model: sample(sd15, model))
    patch = load_hypernetwork_patch(str(tmp_path / "hypernetwork.pt"), 1.0)
    assert patch is not None
    network = patch.hypernet
    unet = sd15.model.model.diffusion_model
    inputs = LayerInputs(unet, frozenset(), Regions(()))
    seen = 0
    for site, states in subject.passes[0].by_site.items():
        width = widths_of(sd15)[site]
        assert states.shape[-1] == 2 * width
        for step, sigma in enumerate(SIGMAS[:-1]):
            keys, values = split_states(subject.passes[0].at(site, step), width)
            changed = values - keys
            expected = network[width][1](keys) if sigma >= until else torch.zeros_like(keys)
            assert torch.allclose(changed, expected, atol=1e-5)
            seen += keys.shape[1]
        layer = attention_layer(unet, site)
        made = inputs.project(site, states)
        whole = split_states(states, width)
        assert torch.equal(made[0], layer.to_k(whole[0])) and torch.equal(made[1], layer.to_v(whole[1]))
    assert seen
    without = replace(subject, passes=tuple(map(keys_alone, subject.passes)))
    made, wrong = (sample(sd15, applied(sd15, each, injection=Injection(0.0)), 1) for each in (subject, without))
    assert torch.isfinite(made).all() and relative_error(made, wrong) > 1e-4


def keys_alone(states: RecordedStates) -> RecordedStates:
    halves = {site: tensor[..., : tensor.shape[-1] // 2] for site, tensor in states.by_site.items()}
    return replace(states, by_site=halves)


def test_a_pack_that_hands_on_equal_values_as_another_tensor_changes_nothing(sd15: Studio, subject_of: Any) -> None:
    model = sd15.model.clone()
    model.set_model_attn1_patch(lambda query, key, value, options: (query, key, value.clone()))
    story = ConsiStory(words(2), sd15.model_map.family.choice(CONSISTORY), Sharing(anchors=2), injection=INJECTION)
    _, subject = record(add_patch(model, story), lambda model: sample(sd15, model))
    made, expected = (sample(sd15, applied(sd15, each), 1) for each in (subject, subject_of("sd15")))
    assert relative_error(made, expected) < 1e-5


def test_what_another_pack_puts_in_place_of_attention_sees_the_recorded_tokens(sd15: Studio, subject_of: Any) -> None:
    seen: list[tuple[int, int]] = []

    def occupant(query: Tensor, key: Tensor, value: Tensor, extra: Any) -> Tensor:
        seen.append((query.shape[1], key.shape[1]))
        return value[:, : query.shape[1]]

    model = sd15.model.clone()
    model.set_model_attn1_replace(occupant, "output", 9)
    sample(sd15, applied(sd15, subject_of("sd15"), model=model), 1)
    assert seen and all(tokens == 256 for tokens, _ in seen)
    assert any(keys > tokens for tokens, keys in seen)


@pytest.mark.parametrize("fault", [RuntimeError, comfy.model_management.InterruptProcessingException])
def test_a_recording_that_fails_leaves_nothing(sd15: Studio, fault: type[BaseException]) -> None:
    calls: list[int] = []

    def stop(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 4:
            raise fault

    plain = sample(sd15, sd15.model)
    handle = sd15.model.model.diffusion_model.register_forward_hook(stop)
    with pytest.raises(fault):
        recorded(sd15)
    handle.remove()
    assert torch.equal(sample(sd15, sd15.model), plain)
    assert recorded(sd15).bytes


@pytest.mark.slow
def test_subjects_recorded_and_dropped_keep_no_tensor(sd15: Studio, subject_of: Any) -> None:
    def alive() -> int:
        gc.collect()
        return sum(isinstance(thing, Tensor) for thing in gc.get_objects())

    subject = subject_of("sd15")
    sample(sd15, applied(sd15, subject), 1)
    before = alive()
    for _ in range(3):
        sample(sd15, applied(sd15, subject), 1)
        recorded(sd15)
    assert alive() <= before + 5
