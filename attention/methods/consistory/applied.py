"""Apply Subject: a recorded subject kept in new images (ConsiStory, arXiv:2402.03286)."""

from __future__ import annotations

from typing import Any

from ...subjects.blocks import StoryBlocks
from ...subjects.recording import RecordedSubject
from ...subjects.words import SubjectWords
from .method import ConsiStory
from .recorded_anchors import RecordedAnchors
from .settings import Injection


def applied_subject(
    words: SubjectWords,
    blocks: StoryBlocks,
    subject: RecordedSubject,
    injection: Injection = Injection(),  # noqa: B008  (a frozen value)
    **settings: Any,
) -> ConsiStory:
    """ConsiStory with a recorded subject in place of live anchors; `settings` are those of ConsiStory.

    Raises ValueError if features are to be copied and the subject holds none.
    """
    anchors = RecordedAnchors(subject, copies=injection.strength != 0.0)
    return ConsiStory(words, blocks, injection=injection, anchors=anchors, **settings)
