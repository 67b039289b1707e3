"""A story: scenes sampled together, and which words of each name its subjects."""

from __future__ import annotations

from dataclasses import dataclass


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

    def __repr__(self) -> str:
        return f"{self.scenes} scene{'' if self.scenes == 1 else 's'} of {', '.join(self.subjects)}"
