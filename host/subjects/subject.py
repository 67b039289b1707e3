"""The SUBJECT socket: recording a subject while its anchors are sampled, and applying it to a MODEL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch import Tensor

from ...attention.families import CONSISTORY
from ...attention.methods.consistory.applied import applied_subject
from ...attention.methods.consistory.method import ConsiStory
from ...attention.methods.consistory.recorded_anchors import RecordedAnchors
from ...attention.references.trajectory import ModelStamp
from ...attention.subjects.recorder import SubjectRecorder
from ...attention.subjects.recording import RecordedSubject
from ...attention.subjects.words import SubjectWords
from ..binding.model import add_patch, exchange_patch, map_unet, patches_on
from ..identity import check_model, subject_stamp
from ..thumbnails import thumbnail_of
from .recipe import AnchorRun, SamplerSettings, StorySettings, sampler_names, scheduler_names


@dataclass(frozen=True, eq=False)
class Subject(tuple[Tensor, ...]):
    """The value of a SUBJECT socket: what was recorded of a subject, and how.

    It is also the tuple of what was recorded. Where memory runs short, ComfyUI drops the largest outputs of nodes, and
    it looks for tensors in lists and tuples alone.
    """

    recorded: RecordedSubject
    story: StorySettings
    sampler: SamplerSettings
    stamp: ModelStamp
    thumbnail: str = ""
    """A JPEG picture as a data URL, or an empty text."""
    anchor_run: AnchorRun | None = None
    """How to sample the anchors again. None if it was not kept, or if masks or pictures were used."""

    def __new__(cls, recorded: RecordedSubject, *given: Any, **named: Any) -> Subject:
        return super().__new__(cls, recorded.tensors)

    __eq__, __ne__ = object.__eq__, object.__ne__  # two subjects are not compared tensor by tensor
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"{', '.join(self.story.words.subjects)}: {self.recorded!r}, {self.stamp.family}; {self.sampler}"


def record_subject(model: Any, anchor_run: AnchorRun, vae: Any = None) -> tuple[Tensor, Subject]:
    """Samples a story. Returns the latents (images, channels, height, width) and the subject recorded in its anchors.

    With a `vae` the subject has a thumbnail. Raises ValueError like `record`.
    """
    story = story_on(model)
    stamp = subject_stamp(model)
    latents, recorded = record(model, anchor_run.sample)
    anchors = recorded.anchors
    pictures = None if vae is None else vae.decode(latents[:anchors])
    return latents, Subject(
        recorded,
        StorySettings.of(story).of_first(anchors),
        anchor_run.settings,
        stamp,
        "" if pictures is None else thumbnail_of(pictures),
        anchor_run if story.masks is None and story.pictures is None else None,
    )


def recreate_subject(model: Any, story: StorySettings, anchor_run: AnchorRun, thumbnail: str) -> Subject:
    """Samples the anchors of a recipe again, on a MODEL without a story.

    Raises ValueError for an unknown sampler or scheduler: ComfyUI would replace it by the first of its list.
    """
    settings = anchor_run.settings
    for name, known in ((settings.sampler, sampler_names()), (settings.scheduler, scheduler_names())):
        if name not in known:
            raise ValueError(
                f"The anchors of this recipe were sampled with '{name}', which is not known here. Install the node "
                "pack that brings it, or record the subject anew."
            )
    return replace(record_subject(story.on(model), anchor_run.of_story(story.words))[1], thumbnail=thumbnail)


def apply_subject(
    model: Any, subject: Subject, words: SubjectWords, sharing: float, query_blend: float, injection: float
) -> Any:
    """A clone of MODEL that puts a recorded subject into the scenes of `words`. Strengths are from 0 to 1.

    Raises ValueError for another model than the subject's, and for injection if no features were recorded.
    """
    check_recorded_with(subject.stamp, model)
    made = subject.story
    patch = applied_subject(
        words,
        map_unet(model).family.choice(CONSISTORY),
        subject.recorded,
        replace(made.injection, strength=injection),
        sharing=replace(made.sharing, strength=sharing),
        blend=replace(made.blend, strength=query_blend),
        free_u=made.free_u,
        fast=made.fast,
    )
    return add_patch(model, patch)


def check_recorded_with(stamp: ModelStamp, model: Any) -> None:
    """Raises ValueError if a subject with this stamp was recorded with another model. A LoRA does not count."""
    remedy = (
        "Load the model that it was recorded with, with the same ModelSampling node if there was one, or record the "
        "subject anew; a LoRA may be added to either."
    )
    check_model(stamp, subject_stamp(model), model, "The subject was recorded", remedy)


Sampled = TypeVar("Sampled")


def record(model: Any, sample: Callable[[Any], Sampled]) -> tuple[Sampled, RecordedSubject]:
    """The result of `sample` with a MODEL that carries ConsiStory, and the subject recorded in its anchors.

    Raises ValueError if there is no story on the MODEL, or nothing of the subject was seen.
    """
    story = story_on(model)
    recorder = SubjectRecorder()
    made = sample(exchange_patch(model, story, replace(story, recorder=recorder)))
    return made, recorder.subject()


def story_on(model: Any) -> ConsiStory:
    """The ConsiStory on a MODEL. Raises ValueError if there is none, several, or an applied subject."""
    stories = [patch for patch in patches_on(model) if isinstance(patch, ConsiStory)]
    applied = bool(stories) and isinstance(stories[0].anchors, RecordedAnchors)
    if len(stories) != 1 or applied:
        found = "an applied subject" if applied else f"{len(stories)}"
        raise ValueError(
            f"To record a subject the model needs one ConsiStory; this one carries {found}. Put the ConsiStory node "
            "between the model and Record Subject, and Apply Subject only after it, on the plain model."
        )
    return stories[0]
