"""Recording a subject on the real sampler: one run of a MODEL with ConsiStory on it, written down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from ..methods.consistory import AppliedSubject, ConsiStory
from ..recording import RecordedSubject, SubjectRecorder
from .patching import exchange_patch, patches_on

Sampled = TypeVar("Sampled")


def record(model: Any, sample: Callable[[Any], Sampled]) -> tuple[Sampled, RecordedSubject]:
    """What `sample` makes with a MODEL that carries ConsiStory, and the subject in its anchors.

    Raises ValueError where there is no story on the MODEL, or nothing of a subject was seen.
    """
    story = story_on(model)
    recorder = SubjectRecorder()
    made = sample(exchange_patch(model, story, replace(story, recorder=recorder)))
    return made, recorder.subject()


def story_on(model: Any) -> ConsiStory:
    """The story that a MODEL carries. Raises ValueError unless it is one."""
    stories = [patch for patch in patches_on(model) if isinstance(patch, ConsiStory)]
    if len(stories) != 1 or isinstance(stories[0], AppliedSubject):
        found = "an applied subject" if stories and isinstance(stories[0], AppliedSubject) else f"{len(stories)}"
        raise ValueError(
            f"To record a subject the model needs one ConsiStory; this one carries {found}. Put the ConsiStory node "
            "between the model and Record Subject, and Apply Subject only after it, on the plain model."
        )
    return stories[0]
