"""Subjects as files: the recording of their anchors, or a recipe of some hundred kilobytes to sample them again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ...attention.engine.call import AttentionSite
from ...attention.references.trajectory import ModelStamp
from ...attention.subjects.recording import RecordedFeatures, RecordedStates, RecordedSubject
from ..conditioning import Conditioning
from ..files import SUBJECTS, UnreadableFile, find_file, free_path, read_saved, save_tensors, saved_name
from .recipe import AnchorRun, SamplerSettings, StorySettings, read_settings
from .subject import Subject, check_recorded_with, recreate_subject

FORMAT = "semblance.subject.1"
Form = Literal["everything", "without injection", "recipe"]
FORMS: tuple[Form, ...] = get_args(Form)
PLAIN = (int, float, str, bool, type(None))
TEXTS = ("positive", "negative")
POOLED = "pooled_output"


@dataclass(frozen=True)
class SavedSubject:
    """The file of a subject that was saved."""

    name: str
    bytes: int
    error: float
    """The relative error of half precision, 0 without it."""


def save_subject(subject: Subject, name: str, version: str, form: Form, half: bool) -> SavedSubject:
    """Writes a subject as one safetensors file in models/semblance/subjects.

    `half` stores a recording as float16. Raises ValueError if the form is a recipe and `recipe_hindrance` says why not,
    or if the disk has too little space, and UnwritableFile for a name or a folder that cannot be written.
    """
    path = free_path(SUBJECTS, name)
    tensors, described, error = _recipe(subject) if form == "recipe" else _features(_reduced(subject, form), half)
    size = _bytes(tensors.values())
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise ValueError(
            f"The subject takes {_size(size)}, but the disk has {_size(free)} left. Save it without injection, as a "
            "recipe, or make room."
        )
    entries = {
        **described,
        "format": FORMAT,
        "semblance": version,
        "form": form,
        "stamp": asdict(subject.stamp),
        "story": asdict(subject.story),
        "sampler": asdict(subject.sampler),
        "modelspec.thumbnail": subject.thumbnail,
    }
    metadata = {key: entry if isinstance(entry, str) else json.dumps(entry) for key, entry in entries.items()}
    save_tensors(path, {key: tensor.contiguous() for key, tensor in tensors.items()}, metadata)
    return SavedSubject(saved_name(SUBJECTS, path), size, error)


def load_subject(name: str, model: Any = None) -> Subject:
    """Opens a saved subject. The anchors of a recipe are sampled again with MODEL.

    Raises UnreadableFile for a missing, damaged or foreign file, and ValueError if MODEL is not the subject's, or is
    missing for a recipe.
    """
    tensors, metadata = read_saved(SUBJECTS, find_file(name, SUBJECTS), name, FORMAT)
    try:
        stamp = ModelStamp.read(json.loads(metadata["stamp"]))
        story = StorySettings.read(json.loads(metadata["story"]))
        sampler = read_settings(SamplerSettings, json.loads(metadata["sampler"]))
        thumbnail = metadata["modelspec.thumbnail"]
        recipe = metadata["form"] == "recipe"
        anchor_run = _anchor_run(tensors, metadata, sampler) if recipe else None
        recorded = None if recipe else _recorded(tensors, metadata)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as fault:
        raise UnreadableFile(f"'{name}' is damaged ({fault}). Save the subject again.") from fault
    if model is not None:
        check_recorded_with(stamp, model)
    if recorded is not None:
        return Subject(recorded, story, sampler, stamp, thumbnail)
    if model is None:
        raise ValueError(
            f"'{name}' is a recipe, from which the anchors are made again. Connect the {stamp.family} model that the "
            "subject was recorded with to Load Subject."
        )
    assert anchor_run is not None
    return recreate_subject(model, story, anchor_run, thumbnail)


def sizes(subject: Subject) -> str:
    """The size of a file of each form, in a sentence."""
    found: list[str] = []
    for form in FORMS:
        if form == "recipe":
            why = recipe_hindrance(subject)
            found.append(f"no recipe: {why}" if why else f"as a recipe {_size(_bytes(_recipe(subject)[0].values()))}")
        elif form == "everything" or subject.recorded.features is not None:
            recorded = _reduced(subject, form).recorded
            found.append(f"{'' if form == 'everything' else f'{form} '}{_size(recorded.bytes_as(torch.float16))}")
    return f"A file of it in float16: {'; '.join(found)}."


def recipe_hindrance(subject: Subject) -> str:
    """What a recipe could not hold of how the anchors were made, or nothing."""
    anchor_run = subject.anchor_run
    if anchor_run is None:
        return "it was loaded from a file, or masks or inverted pictures were connected to ConsiStory"
    if anchor_run.noise_mask is not None:
        return "the latent carries a noise mask"
    if len(anchor_run.latents) > subject.recorded.anchors and not subject.sampler.is_quiet:
        return f"{subject.sampler.sampler} draws noise on its way, other noise where the further scenes are missing"
    for conditioning in (anchor_run.positive, anchor_run.negative):
        if len(conditioning) != 1:
            return "a prompt is made of several (Conditioning (Combine))"
        foreign = [key for key, entry in conditioning[0][1].items() if key != POOLED and not isinstance(entry, PLAIN)]
        if foreign:
            return f"a prompt carries {', '.join(foreign)}"
    return ""


def _reduced(subject: Subject, form: Form) -> Subject:
    return replace(subject, recorded=subject.recorded.without_features()) if form != "everything" else subject


Described = tuple[dict[str, Tensor], dict[str, Any], float]
"""The tensors and metadata of a file, and their relative error."""


def _features(subject: Subject, half: bool) -> Described:
    recorded = subject.recorded
    stored = recorded.stored_as(torch.float16).checked() if half else recorded
    error = max(map(_relative_error, stored.tensors, recorded.tensors)) if half else 0.0
    tensors = {
        f"states.{index}.{_name(site)}": states
        for index, states_of_pass in enumerate(stored.passes)
        for site, states in states_of_pass.by_site.items()
    }
    described: dict[str, Any] = {
        "anchors": recorded.anchors,
        "size": recorded.size,
        "sigmas": recorded.sigmas,
        "counts": [{_name(site): counts for site, counts in states.counts.items()} for states in recorded.passes],
    }
    if stored.features is not None:
        tensors["patches"] = stored.features.patches
        tensors |= {f"outputs.{_name(site)}": outputs for site, outputs in stored.features.outputs.items()}
        described["steps"] = stored.features.steps
    return tensors, described, error


def _recorded(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> RecordedSubject:
    """Raises KeyError, TypeError or ValueError if the file is damaged."""
    passes = tuple(
        RecordedStates(
            {_site(name): tensors[f"states.{index}.{name}"] for name in counts},
            {_site(name): tuple(map(int, of_steps)) for name, of_steps in counts.items()},
        )
        for index, counts in enumerate(json.loads(metadata["counts"]))
    )
    features = None
    if "patches" in tensors:
        prefix = "outputs."
        outputs = {_site(name.removeprefix(prefix)): tensors[name] for name in tensors if name.startswith(prefix)}
        features = RecordedFeatures(tensors["patches"], outputs, tuple(map(int, json.loads(metadata["steps"]))))
    height, width = map(int, json.loads(metadata["size"]))
    sigmas = tuple(map(float, json.loads(metadata["sigmas"])))
    anchors = int(json.loads(metadata["anchors"]))
    return RecordedSubject(anchors, (height, width), sigmas, passes, features).checked()


def _recipe(subject: Subject) -> Described:
    why = recipe_hindrance(subject)
    anchor_run = subject.anchor_run
    if why or anchor_run is None:
        raise ValueError(f"This subject cannot be saved as a recipe: {why}. Save what was recorded instead.")
    anchors, indices = subject.recorded.anchors, anchor_run.batch_indices
    tensors: dict[str, Tensor] = {}
    extras: dict[str, dict[str, Any]] = {}
    for name, [[context, more]] in zip(TEXTS, (anchor_run.positive, anchor_run.negative), strict=True):
        # Copies, so that the file does not hold the other scenes.
        tensors[name] = context[:anchors].clone()
        if isinstance(more.get(POOLED), Tensor):
            tensors[f"{name}.pooled"] = more[POOLED][:anchors].clone()
        extras[name] = {key: entry for key, entry in more.items() if key != POOLED}
    if anchor_run.latents.any():
        tensors["latents"] = anchor_run.latents[:anchors].clone()
    described = {
        "extras": extras,
        "shape": [anchors, *anchor_run.latents.shape[1:]],
        "batch": anchor_run.batch,
        "numbers": None if indices is None else [int(index) for index in indices],
    }
    return tensors, described, 0.0


def _anchor_run(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], settings: SamplerSettings) -> AnchorRun:
    """Raises KeyError, TypeError or ValueError if the file is damaged."""
    extras = json.loads(metadata["extras"])

    def text(name: str) -> Conditioning:
        pooled = {POOLED: tensors[f"{name}.pooled"]} if f"{name}.pooled" in tensors else {}
        return [[tensors[name], {**extras[name], **pooled}]]

    shape = tuple(map(int, json.loads(metadata["shape"])))
    latents = tensors.get("latents", torch.zeros(shape))
    if len(shape) != 4 or tuple(latents.shape) != shape or 0 in shape:
        raise ValueError("its latent has the wrong shape")
    batch, indices = json.loads(metadata["batch"]), json.loads(metadata["numbers"])
    if type(batch) is not int or batch < len(latents):
        raise TypeError(f"its batch is {batch!r}")
    if indices is not None and not (isinstance(indices, list) and all(type(index) is int for index in indices)):
        raise TypeError(f"its batch indices are {indices!r}")
    positive, negative = (text(name) for name in TEXTS)
    return AnchorRun(settings, positive, negative, latents, batch, indices)


def _name(site: AttentionSite) -> str:
    return f"{site.block}.{site.depth}"


def _site(name: str) -> AttentionSite:
    part, number, depth = name.split(".")
    if part not in ("input", "middle", "output"):
        raise ValueError(f"it names a block called {part}")
    return AttentionSite("self", part, int(number), int(depth))


def _relative_error(stored: Tensor, exact: Tensor) -> float:
    return ((stored.float() - exact.float()).norm() / exact.float().norm().clamp_min(1e-12)).item()


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _size(count: int) -> str:
    """Bytes as people read them."""
    if count < 2**20:
        return f"{count / 2**10:.0f} KB"
    return f"{count / 2**20:.1f} MB" if count < 2**30 else f"{count / 2**30:.2f} GB"
