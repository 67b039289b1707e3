"""A story: scenes sampled together, and which words of each name its subjects."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

PLACE = re.compile(r"\{([^{}]*)\}")
"""A subject's place in a scene: {subject} where there is one, else its number in the list."""


@dataclass(frozen=True)
class SubjectWords:
    """For each scene of a story and each of its subjects, the columns of the text that name the subject."""

    subjects: tuple[str, ...]
    prompts: tuple[str, ...]
    columns: tuple[tuple[tuple[int, ...], ...], ...]
    """By scene, then by subject: token columns of the encoded text, the start mark counted; none where it is absent."""
    tokens: int
    """Length of every scene's text in tokens: one or more blocks of 77."""

    def __post_init__(self) -> None:
        for prompt, scene in zip(self.prompts, self.columns, strict=True):
            if not any(scene):
                names = " or ".join(f"'{subject}'" for subject in self.subjects)
                raise ValueError(
                    f"The prompt '{prompt}' names no subject ({names}). Every scene needs one: write the subject's "
                    "words into the prompt just as they stand in the list of subjects."
                )

    @property
    def scenes(self) -> int:
        return len(self.prompts)

    @property
    def text(self) -> str:
        """What tells the conditionings of this story from other prompts."""
        return "\n".join(self.prompts)

    def __repr__(self) -> str:
        return f"{self.scenes} scene{'' if self.scenes == 1 else 's'} of {', '.join(self.subjects)}"


def read_subjects(text: str) -> tuple[str, ...]:
    """One subject a line; blank lines do not count."""
    return _lines(text, "subject", "a red fox")


def read_scenes(text: str) -> tuple[str, ...]:
    """One scene a line; blank lines do not count."""
    return _lines(text, "scene", "sleeping in the snow")


def story_prompts(
    subjects: Sequence[str], style: str, scenes: Sequence[str], names_subject: Callable[[str], bool]
) -> tuple[str, ...]:
    """The prompt of each scene: style, then scene; between them the one subject, unless it has its place there.

    `names_subject` says whether a prompt holds the words of a subject. Raises ValueError for a scene without a subject
    where there are several to choose from.
    """
    return tuple(_prompt(number, subjects, style, scene, names_subject) for number, scene in enumerate(scenes, start=1))


def _lines(text: str, what: str, example: str) -> tuple[str, ...]:
    lines = tuple(filter(None, (line.strip() for line in text.splitlines())))
    if not lines:
        raise ValueError(f"There is no {what}. Write at least one under {what}s, one a line, e.g. {example}.")
    return lines


def _prompt(number: int, subjects: Sequence[str], style: str, scene: str, names_subject: Callable[[str], bool]) -> str:
    written = _joined(style, scene)
    prompt = PLACE.sub(lambda place: _set_apart(place, _subject_at(place, subjects, number)), written)
    if prompt != written or names_subject(prompt):
        return prompt
    if len(subjects) == 1:
        return _joined(style, subjects[0], scene)
    names = " or ".join(f"'{subject}'" for subject in subjects)
    raise ValueError(
        f"Scene {number} ('{scene}') names no subject ({names}), so it is not known who is in it. Write the subject's "
        f"words into the scene, or {_places(subjects)} where it belongs."
    )


def _set_apart(place: re.Match[str], subject: str) -> str:
    """A subject with spaces beside letters of a script that has none: a word's tokens depend on what touches it."""
    before, after = place.string[: place.start()][-1:], place.string[place.end() :][:1]
    left, right = (" " if neighbour.isalnum() and not neighbour.isascii() else "" for neighbour in (before, after))
    return f"{left}{subject}{right}"


def _subject_at(place: re.Match[str], subjects: Sequence[str], number: int) -> str:
    mark = place[1].strip().lower()
    if mark == "subject" and len(subjects) == 1:
        return subjects[0]
    if mark.isdecimal() and 1 <= int(mark) <= len(subjects):
        return subjects[int(mark) - 1]
    raise ValueError(
        f"The prompt of scene {number} holds {place[0]}, which is the place of no subject. "
        f"Write {_places(subjects)} where a subject belongs, and no other curly brackets."
    )


def _places(subjects: Sequence[str]) -> str:
    if len(subjects) == 1:
        return "{subject}"
    return " or ".join(f"{{{number}}} for '{subject}'" for number, subject in enumerate(subjects, start=1))


def _joined(*parts: str) -> str:
    return " ".join(" ".join(parts).split())
