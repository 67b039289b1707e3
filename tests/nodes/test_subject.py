"""A subject as a person keeps it: recorded with a story, put into new scenes, saved and opened again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.utils  # noqa: F401  (puts ComfyUI on the path)
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from semblance.attention.subjects.recording import RecordedSubject
from semblance.host import files
from semblance.host.files import UnreadableFile
from semblance.host.subjects.subject import Subject
from semblance.nodes.masks import SubjectMasks
from semblance.nodes.subject import LoadSubject, RecordSubject, SaveSubject
from semblance.tests.support.graphs import relative_error, run
from semblance.tests.support.speeds import FAMILIES, slow, slow_but
from semblance.tests.support.subjects import SIDE, STEPS, applied, prompts, recorded, sampled, story_on
from semblance.tests.tiny_models import (
    Family,
    empty_latent,
    make_conditioning,
    make_unet,
    make_vae,
    with_lora,
)

RAM_OF_SMALL_THINGS = 0.05
"""What ComfyUI reckons for an output without tensors."""


@pytest.fixture(params=slow_but(FAMILIES, ("sd15",)))
def kind(request: pytest.FixtureRequest) -> Family:
    return request.param


@pytest.fixture(scope="module")
def fox() -> tuple[Any, Subject]:
    """A model with a subject recorded on it."""
    model = make_unet("sd15")
    return model, recorded(model)[1]


def test_the_recorder_makes_what_the_sampler_makes(kind: Family) -> None:
    model = make_unet(kind)
    latent, subject, report = recorded(model, kind, scenes=3)
    text, words = prompts(kind, "asleep", "by a lake", "on a hill")
    story = story_on(model, words)
    assert torch.equal(latent["samples"], sampled(story, text, kind, seed=3))
    assert subject.recorded.anchors == 2 and subject.story.words.scenes == 2
    assert "2 anchors of 16x16, 6 steps, with features to copy" in report and "as a recipe" in report


def test_a_recorded_subject_changes_one_new_scene_or_many_and_not_the_model(kind: Family) -> None:
    model = make_unet(kind)
    _, subject, _ = recorded(model, kind)
    for scenes in (["in a boat"], ["in a boat", "at night", "in the snow"]):
        text, words = prompts(kind, *scenes)
        plain = sampled(model, text, kind)
        for settings in ({"injection": 0.0}, {}):
            made = sampled(applied(model, subject, words, **settings), text, kind)
            assert torch.isfinite(made).all() and relative_error(made, plain) > 1e-3
        assert torch.equal(sampled(model, text, kind), plain)
    text, words = prompts(kind, "in a boat")
    idle = applied(model, subject, words, sharing=0.0, injection=0.0)
    assert torch.equal(sampled(idle, text, kind), sampled(model, text, kind))


@pytest.mark.slow
def test_subject_masks_come_along_with_anchors_and_new_scenes(fox: Any) -> None:
    model, subject = fox
    latent, _, _ = recorded(model)
    text, words = prompts("sd15", "in a boat", "at night", "in the snow")
    made = {"samples": sampled(applied(model, subject, words), text)}
    for images, found in ((2, latent), (3, made)):
        masks = run(SubjectMasks, found)[0]
        assert masks.shape == (images, SIDE * 8, SIDE * 8) and 0 < masks.mean() < 1


def test_without_injection_apply_subject_makes_no_masks_and_the_refusal_says_so(fox: Any) -> None:
    model, subject = fox
    text, words = prompts("sd15", "in a boat", "at night")
    made = sampled(applied(model, subject, words, sharing=1.0, injection=0.0), text)
    with pytest.raises(ValueError, match="no subject masks.*or from Apply Subject whose injection is above 0"):
        run(SubjectMasks, {"samples": made})


@pytest.mark.slow
def test_every_setting_of_apply_acts(fox: Any) -> None:
    model, subject = fox
    text, words = prompts("sd15", "in a boat", "at night")
    usual = sampled(applied(model, subject, words), text)
    for changes in ({"sharing": 0.5}, {"query_blend": 0.0}, {"injection": 0.4}, {"injection": 0.0}):
        assert relative_error(sampled(applied(model, subject, words, **changes), text), usual) > 1e-5, changes


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["clean", "fast"])
def test_subjects_of_the_other_modes_serve_too(mode: str) -> None:
    model = make_unet("sd15")
    _, subject, _ = recorded(model, mode=mode, free_u=True)
    text, words = prompts("sd15", "in a boat")
    for injection in (0.8, 0.0):
        made = sampled(applied(model, subject, words, injection=injection), text)
        assert relative_error(made, sampled(model, text)) > 1e-3
    assert subject.recorded.single_pass == (1 if mode == "fast" else 0)


@pytest.mark.slow
def test_one_anchor_is_enough_to_record() -> None:
    model = make_unet("sd15")
    latent, subject, _ = recorded(model, scenes=1)
    text, words = prompts("sd15", "in a boat")
    assert subject.recorded.anchors == 1 and len(latent["samples"]) == 1
    assert relative_error(sampled(applied(model, subject, words), text), sampled(model, text)) > 1e-3


@pytest.mark.parametrize(("form", "precision"), [("everything", "float32"), slow(("everything", "float16"))])
def test_a_saved_subject_gives_the_pictures_of_the_recorded_one(
    models: Path, fox: Any, form: str, precision: str
) -> None:
    model, subject = fox
    output = run(SaveSubject, subject, "animals/fox", form, precision)
    assert output[0] == str(Path("animals") / "fox.safetensors")
    opened, report = run(LoadSubject, output[0]).result
    text, words = prompts("sd15", "in a boat", "at night")
    before, after = (sampled(applied(model, one, words, injection=0.0), text) for one in (subject, opened))
    assert relative_error(after, before) < (1e-9 if precision == "float32" else 2e-2)
    assert torch.isfinite(sampled(applied(model, opened, words), text)).all()
    assert opened.story == subject.story and opened.sampler == subject.sampler and opened.stamp == subject.stamp
    assert "a red fox: 2 anchors of 16x16, 6 steps" in report and "seed 3, 6 steps, CFG 4, euler" in report
    assert ("relative error" in str(output.ui.as_dict())) == (precision == "float16")


def test_files_are_as_large_as_was_said_and_half_without_injection(models: Path, fox: Any) -> None:
    _, subject = fox
    sizes: dict[str, int] = {}
    for form in ("everything", "without injection", "recipe"):
        name = run(SaveSubject, subject, form, form, "float16")[0]
        sizes[form] = (models / "semblance" / "subjects" / name).stat().st_size
    said = subject.recorded.bytes_as(torch.float16)
    assert said < sizes["everything"] < said + 2e5
    assert sizes["without injection"] < 0.6 * sizes["everything"]
    assert sizes["recipe"] < 2e5


def test_only_the_subjects_tokens_are_kept(fox: Any) -> None:
    subject = fox[1].recorded
    for sampling in subject.passes:
        for site, counts in sampling.counts.items():
            side = {3: 4, 6: 8, 9: 16}[site.number // 3 * 3]
            assert counts[0] == 0 and all(0 < count < 2 * side * side for count in counts[1:])


def test_a_file_without_injection_serves_with_injection_zero_and_is_refused_else(models: Path, fox: Any) -> None:
    model, subject = fox
    name = run(SaveSubject, subject, "light", "without injection", "float32")[0]
    opened = run(LoadSubject, name)[0]
    text, words = prompts("sd15", "in a boat")
    expected = sampled(applied(model, subject, words, injection=0.0), text)
    assert torch.equal(sampled(applied(model, opened, words, injection=0.0), text), expected)
    with pytest.raises(ValueError, match="holds no features to copy.*Set injection to 0"):
        applied(model, opened, words)


@pytest.mark.slow
def test_a_recipe_makes_the_same_subject_again(models: Path, kind: Family) -> None:
    model = make_unet(kind)
    negative = make_conditioning(kind, seed=2)
    _, subject, _ = recorded(model, kind, scenes=3, negative=negative, vae=make_vae())
    name = run(SaveSubject, subject, "recipe", "recipe", "float16")[0]
    opened = run(LoadSubject, name, model)[0]
    assert opened.story == subject.story and opened.thumbnail == subject.thumbnail != ""
    assert opened.recorded.sigmas == subject.recorded.sigmas
    assert_same(opened.recorded, subject.recorded)
    with pytest.raises(ValueError, match="is a recipe, from which the anchors are made again. Connect the"):
        run(LoadSubject, name)


@pytest.mark.parametrize("entry", ["sampler", "scheduler"])
def test_a_recipe_by_a_sampler_that_is_not_here_is_refused(models: Path, fox: Any, entry: str) -> None:
    """ComfyUI takes the first sampler of its list in place of one that it does not know."""
    model, subject = fox
    path = models / "semblance" / "subjects" / run(SaveSubject, subject, "recipe", "recipe", "float16")[0]
    damaged(path, sampler=lambda settings: {**settings, entry: "beta57"})
    with pytest.raises(ValueError, match="sampled with 'beta57', which is not known here. Install the node pack"):
        run(LoadSubject, path.name, model)


def assert_same(found: RecordedSubject, expected: RecordedSubject) -> None:
    """But for rounding: a batch of another size is computed in another order."""
    assert [states.counts for states in found.passes] == [states.counts for states in expected.passes]
    for one, other in zip(found.tensors, expected.tensors, strict=True):
        assert relative_error(one, other) < 1e-3


@pytest.mark.slow
def test_a_recipe_of_a_picture_in_the_latent_holds_the_picture(models: Path) -> None:
    model = make_unet("sd15")
    latent = {"samples": torch.randn(2, 4, SIDE, SIDE), "batch_index": [4, 1]}
    _, subject, _ = recorded(model, latent=latent, denoise=0.6)
    name = run(SaveSubject, subject, "picture", "recipe", "float16")[0]
    assert_same(run(LoadSubject, name, model)[0].recorded, subject.recorded)


def test_what_a_recipe_cannot_hold_is_said(models: Path) -> None:
    model = make_unet("sd15")
    mask = torch.zeros(1, SIDE * 8, SIDE * 8)
    mask[:, :64] = 1
    cases: list[tuple[dict[str, Any], str]] = [
        ({"mask": mask}, "masks or inverted pictures were connected"),
        ({"latent": {**empty_latent(2, SIDE, SIDE), "noise_mask": mask}}, "carries a noise mask"),
        ({"negative": make_conditioning(seed=2) * 2}, "made of several"),
        ({"scenes": 3, "sampler_name": "euler_ancestral"}, "euler_ancestral draws noise on its way"),
        ({"negative": [[make_conditioning(seed=2)[0][0], {"note": mask}]]}, "carries note"),
    ]
    for settings, words in cases:
        _, subject, report = recorded(model, steps=2, **settings)
        assert "no recipe: " in report
        with pytest.raises(ValueError, match=f"cannot be saved as a recipe: .*{words}.*Save what was recorded instead"):
            run(SaveSubject, subject, "no", "recipe", "float16")


@pytest.mark.slow
def test_a_lora_acts_on_what_was_recorded(fox: Any) -> None:
    model, subject = fox
    text, words = prompts("sd15", "in a boat")
    lora = with_lora(model)
    changed = sampled(applied(lora, subject, words), text)
    assert relative_error(changed, sampled(lora, text)) > 1e-3
    assert relative_error(changed, sampled(applied(model, subject, words), text)) > 1e-3


def test_other_models_sizes_and_ladders_are_refused(fox: Any) -> None:
    model, subject = fox
    text, words = prompts("sd15", "in a boat")
    with pytest.raises(ValueError, match="recorded with an SD 1.5 model, but this one is SDXL. Load the model"):
        applied(make_unet("sdxl"), subject, words)
    other = make_unet("sd15", seed=9)
    with pytest.raises(ValueError, match="recorded with another SD 1.5 model.*Load the model that it was"):
        applied(other, subject, words)
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    predicts_v = ModelSamplingDiscrete().patch(model, "v_prediction", zsnr=False)[0]
    with pytest.raises(ValueError, match="predicts .*EPS, but this one predicts .*V_PREDICTION"):
        applied(predicts_v, subject, words)
    patched = applied(model, subject, words)
    refused: dict[str, dict[str, Any]] = {
        "on a latent of 16x16, but this one is 12x12. Make the picture 128x128": {"side": 12},
        "recorded in 6 steps from .* but the sampler takes 8 steps.*Give the sampler the steps": {"steps": 8},
        "recorded in 6 steps .* the sampler takes 6 steps": {"scheduler": "karras"},
        "6 steps .* dpm_2 and uni_pc other noise levels .* take it for both": {"sampler": "uni_pc"},
        "the sampler takes": {"denoise": 0.5},
    }
    for sentence, settings in refused.items():
        with pytest.raises(ValueError, match=sentence):
            sampled(patched, text, **settings)
    with pytest.raises(ValueError, match="The story has 1 scenes but the latent 2 images"):
        sampled(patched, [[text[0][0].repeat(2, 1, 1), {}]])


def test_a_subject_recorded_without_guidance_is_refused_with_it() -> None:
    model = make_unet("sd15")
    _, subject, _ = recorded(model, cfg=1.0)
    text, words = prompts("sd15", "in a boat")
    patched = applied(model, subject, words)
    assert relative_error(sampled(patched, text, cfg=1.0), sampled(model, text, cfg=1.0)) > 1e-3
    asked: list[int] = []
    handle = model.model.diffusion_model.register_forward_pre_hook(lambda *_: asked.append(1))
    with pytest.raises(ValueError, match="recorded at CFG 1, so nothing is known of its negative side"):
        sampled(patched, text, cfg=4.0)
    handle.remove()
    assert not asked


def test_recording_needs_one_story_on_the_model(fox: Any) -> None:
    model, subject = fox
    text, words = prompts("sd15", "in a boat")
    sampler = {"seed": 3, "steps": STEPS, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    latent = empty_latent(1, SIDE, SIDE)
    for given, found in ((model, "carries 0"), (applied(model, subject, words), "carries an applied subject")):
        with pytest.raises(ValueError, match=f"needs one ConsiStory; this one {found}. Put the ConsiStory node"):
            run(RecordSubject, given, positive=text, negative=text, latent_image=latent, **sampler)
    with pytest.raises(ValueError, match="Nothing of the subject was seen.*Set sharing above 0"):
        recorded(model, sharing=0.0)
    with pytest.raises(ValueError, match="looked at . of its 6 noise levels.*Choose one that takes them all"):
        recorded(model, sampler_name="dpm_fast")


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["heun", "dpm_2", "euler_ancestral", "dpmpp_2m"])
def test_other_samplers_record_and_apply(fox: Any, sampler: str) -> None:
    model, _ = fox
    _, subject, _ = recorded(model, sampler_name=sampler)
    text, words = prompts("sd15", "in a boat")
    made = sampled(applied(model, subject, words), text, sampler=sampler)
    assert torch.isfinite(made).all() and relative_error(made, sampled(model, text, sampler=sampler)) > 1e-3


def damaged(path: Path, **changes: Callable[[Any], Any]) -> None:
    """Rewrites entries of a file's metadata, or of its tensors."""
    tensors = load_file(path)
    with safe_open(str(path), "pt") as file:
        metadata = dict(file.metadata())
    for name, change in changes.items():
        if name in metadata:
            metadata[name] = json.dumps(change(json.loads(metadata[name])))
        else:
            tensors[name] = change(tensors[name])
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path, metadata)


def test_files_that_are_no_subject_are_refused_in_a_sentence(models: Path, fox: Any) -> None:
    _, subject = fox
    folder = models / "semblance" / "subjects"

    def saved() -> Path:
        return folder / run(SaveSubject, subject, "fox", "everything", "float16")[0]

    path = saved()
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="cannot be read: the file is damaged .*Save the subject again"):
        run(LoadSubject, path.name)
    cases: dict[str, dict[str, Callable[[Any], Any]]] = {
        "wrong shape": {"states.0.output.3.0": lambda states: states[:, 1:].contiguous()},
        "outputs of self input.4.0. have the wrong shape": {"outputs.input.4.0": lambda outputs: outputs[1:].clone()},
        "states.1.output.5.0": {"states.1.output.5.0": lambda states: None},
        "do not go through all steps": {"sigmas": lambda sigmas: [*sigmas, 0.01]},
        "not numbers": {"patches": lambda patches: patches * float("nan")},
        "holds no pass": {"counts": lambda counts: []},
    }
    for words, changes in cases.items():
        path = saved()
        damaged(path, **changes)
        with pytest.raises(ValueError, match=f"is damaged .*{words}.*Save the subject again"):
            run(LoadSubject, path.name)
    foreign = folder / "foreign.safetensors"
    save_file({"a": torch.ones(1)}, foreign, {"format": "semblance style 1"})
    with pytest.raises(ValueError, match="is not a subject saved by Semblance.*written by Save Subject"):
        run(LoadSubject, foreign.name)
    assert "Put it there and press R" in str(LoadSubject.validate_inputs("nowhere.safetensors"))
    with pytest.raises(ValueError, match="is not a name for a subject"):
        run(SaveSubject, subject, "../fox", "everything", "float16")


def test_a_foreign_file_is_refused_before_its_tensors_are_read(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be a checkpoint of many gigabytes."""
    foreign = models / "semblance" / "subjects" / "checkpoint.safetensors"
    foreign.parent.mkdir(parents=True, exist_ok=True)
    save_file({"a": torch.ones(1)}, foreign)

    class Sealed:
        def __init__(self, *arguments: Any, **named: Any) -> None:
            self.file = safe_open(*arguments, **named)

        def __enter__(self) -> Sealed:
            return self

        def __exit__(self, *fault: Any) -> None:
            pass

        def metadata(self) -> Any:
            return self.file.metadata()

        def keys(self) -> Any:
            raise AssertionError("the tensors are read")

    monkeypatch.setattr(files, "safe_open", Sealed)
    with pytest.raises(ValueError, match="is not a subject saved by Semblance .its format is 'not given'"):
        run(LoadSubject, foreign.name)


@pytest.mark.parametrize(
    ("entry", "change"),
    [
        ("batch", lambda batch: "two"),
        ("batch", lambda batch: 1),
        ("numbers", lambda numbers: [0.5, 1]),
        ("numbers", lambda numbers: "01"),
        ("numbers", lambda numbers: 3),
        ("sampler", lambda sampler: {**sampler, "steps": "many"}),
        ("sampler", lambda sampler: {**sampler, "cfg": None}),
        ("sampler", lambda sampler: {**sampler, "seed": 1.5}),
        ("story", lambda told: {**told, "sharing": {**told["sharing"], "anchors": "two"}}),
        ("story", lambda told: {**told, "blend": {**told["blend"], "strength": None}}),
        ("extras", lambda extras: {**extras, "positive": []}),
    ],
)
def test_settings_of_another_kind_are_damage(models: Path, fox: Any, entry: str, change: Callable[[Any], Any]) -> None:
    name = run(SaveSubject, fox[1], "fox", "recipe", "float16")[0]
    damaged(models / "semblance" / "subjects" / name, **{entry: change})
    with pytest.raises(UnreadableFile, match="is damaged .*Save the subject again"):
        run(LoadSubject, name, model=fox[0])


def test_a_disk_without_room_is_said_before_anything_is_written(
    models: Path, fox: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil
    from types import SimpleNamespace

    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(ValueError, match="takes .* but the disk has 1 KB left.*as a recipe, or make room"):
        run(SaveSubject, fox[1], "fox", "everything", "float16")
    assert list((models / "semblance").rglob("*.safetensors")) == []


def test_comfyuis_memory_cache_counts_a_subject(fox: Any, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A subject takes gigabytes; where memory runs short it is to go before what is small."""
    from types import SimpleNamespace

    from comfy_execution import caching

    opened = run(LoadSubject, run(SaveSubject, fox[1], "fox", "everything", "float32")[0])[0]
    monkeypatch.setattr(caching.psutil, "virtual_memory", lambda: SimpleNamespace(available=0))
    for subject in (fox[1], opened, replace(fox[1], thumbnail="x")):
        outputs = [[subject], ["a report"]]
        counted = RAM_OF_SMALL_THINGS + subject.recorded.bytes
        for least, freed in ((subject.recorded.bytes + 1, 0), (subject.recorded.bytes, counted)):
            cache = caching.RAMPressureCache(caching.CacheKeySetInputSignature)
            cache.cache, cache.used_generation = {"subject": SimpleNamespace(outputs=outputs)}, {"subject": 0}
            cache.timestamps, cache.generation = {"subject": 0.0}, 1
            assert cache.ram_release(1, min_entry_size=least) == pytest.approx(freed)
    assert fox[1] == fox[1] and fox[1] != replace(fox[1], thumbnail="x") and len({fox[1], fox[1]}) == 1


def test_a_subject_is_an_immutable_value(fox: Any) -> None:
    model, subject = fox
    before = [tensor.clone() for tensor in subject.recorded.tensors]
    text, words = prompts("sd15", "in a boat")
    sampled(applied(model, subject, words), text)
    assert all(map(torch.equal, before, subject.recorded.tensors))
    assert replace(subject, thumbnail="x").recorded is subject.recorded
