"""A story as a CLIP reads it: its scenes encoded as one batch, and the tokens that name its subjects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, dropwhile
from string import punctuation
from typing import Any

import torch
from torch import Tensor

from ...attention.functional.attention import joined_contexts
from ...attention.subjects.words import SubjectWords, story_prompts
from ..binding.conditionings import TAG

Conditioning = list[list[Any]]
TOWERS = {"l", "g", "h"}
"""ComfyUI's names for CLIP-L, OpenCLIP-bigG and OpenCLIP-H, which share one vocabulary."""
WORD_END = "</w>"
ARTICLES = {f"{article}{WORD_END}" for article in ("a", "an", "the")}


@dataclass(frozen=True, eq=False)
class Token:
    """One token of a text's own words."""

    column: int
    """Its place in the encoded text, start marks and earlier blocks counted."""
    spelling: str
    """As the vocabulary has it: the last of a word ends in </w>. Empty for a vector."""
    vector: Tensor | None = None
    """Of an embedding file, in place of a word."""

    @property
    def ends_word(self) -> bool:
        return self.vector is not None or self.spelling.endswith(WORD_END)

    @property
    def is_punctuation(self) -> bool:
        return self.vector is None and set(self.spelling.removesuffix(WORD_END)) <= set(punctuation)

    def equals(self, other: Token) -> bool:
        if self.vector is None or other.vector is None:
            return self.vector is other.vector and self.spelling == other.spelling
        return torch.equal(self.vector, other.vector)


Phrase = list[Token]
Reading = dict[str, Phrase]
"""A text by tower: an embedding has vectors of its own in each, and may differ in length."""


@dataclass(frozen=True, eq=False)
class Cast:
    """The subjects of a story as a CLIP reads them."""

    clip: Any
    subjects: tuple[str, ...]
    readings: tuple[Reading, ...]

    @classmethod
    def read(cls, clip: Any, subjects: Sequence[str]) -> Cast:
        """Raises ValueError for a subject without words, and for two of the same."""
        readings = tuple(
            {tower: _bare(phrase) for tower, phrase in _read(clip, subject).items()} for subject in subjects
        )
        _require_words(subjects, readings)
        _require_distinct(subjects, readings)
        return cls(clip, tuple(subjects), readings)

    def columns_in(self, prompt: str) -> tuple[tuple[int, ...], ...]:
        """By subject: every column of `prompt` that is part of its words, wherever they stand."""
        by_tower = [
            _columns(phrase, [reading[tower] for reading in self.readings])
            for tower, phrase in _read(self.clip, prompt).items()
        ]
        return tuple(tuple(sorted(set().union(*columns))) for columns in zip(*by_tower, strict=True))

    def named_in(self, prompt: str) -> bool:
        return any(self.columns_in(prompt))


def encode_story(
    clip: Any, subjects: Sequence[str], style: str, scenes: Sequence[str]
) -> tuple[Conditioning, SubjectWords]:
    """The prompts of a story as one CONDITIONING with a row a scene, and where each names its subjects.

    A row is what CLIP Text Encode makes of the prompt alone. Rows of fewer 77-token blocks repeat whole up to the
    smallest common length (6 blocks for 2 and 3), and their columns with them, because cross-attention over copies is
    that over one. Blocks of empty text would draw attention away from the shorter prompts.
    """
    _require_clip(clip)
    cast = Cast.read(clip, subjects)
    prompts = story_prompts(subjects, style, scenes, cast.named_in)
    columns = [cast.columns_in(prompt) for prompt in prompts]
    encoded = [clip.encode_from_tokens_scheduled(clip.tokenize(prompt)) for prompt in prompts]
    # Where the CLIP has scheduled hooks there is an entry for each of their spans; else there is one.
    conditioning = [_as_rows(entries) for entries in zip(*encoded, strict=True)]
    tokens = conditioning[0][0].shape[1]
    lengths = [entries[0][0].shape[1] for entries in encoded]
    copied = tuple(
        tuple(_in_every_copy(of_subject, length, tokens) for of_subject in scene)
        for scene, length in zip(columns, lengths, strict=True)
    )
    words = SubjectWords(cast.subjects, prompts, copied, tokens)
    return [[context, {**extras, TAG: words.text}] for context, extras in conditioning], words


def _as_rows(entries: Sequence[list[Any]]) -> list[Any]:
    """Entries of one prompt each as an entry with a row for each."""
    contexts, extras = zip(*entries, strict=True)
    pooled = torch.cat([extra["pooled_output"] for extra in extras])
    return [joined_contexts(contexts), {**extras[0], "pooled_output": pooled}]


def _in_every_copy(columns: Sequence[int], length: int, tokens: int) -> tuple[int, ...]:
    """Columns of a text of `length` that is repeated up to `tokens`."""
    # SDXL cuts the texts of its two towers to the shorter, so a column of the longer may be gone.
    return tuple(start + column for start in range(0, tokens, length) for column in columns if column < length)


def _read(clip: Any, text: str) -> Reading:
    towers = clip.tokenize(text, return_word_ids=True)
    return {tower: list(_own_tokens(clip, blocks)) for tower, blocks in towers.items()}


def _own_tokens(clip: Any, blocks: Sequence[Sequence[tuple[Any, float, int]]]) -> Iterator[Token]:
    for column, (token, _weight, word) in enumerate(chain.from_iterable(blocks)):
        if word == 0:  # ComfyUI's number for start marks, end marks and padding
            continue
        if isinstance(token, Tensor):
            yield Token(column, "", token)
        else:
            yield Token(column, clip.tokenizer.untokenize([(token, 1.0)])[0][1])


def _bare(phrase: Phrase) -> Phrase:
    """A subject's words without an article before them or punctuation around them.

    'a red fox' is also meant by 'the red fox'; and a mark at the end melts with the one after it in a prompt: the ')'
    of 'fox (animal), asleep' is no token, '),' is.
    """
    bare = list(dropwhile(lambda token: token.spelling in ARTICLES or token.is_punctuation, phrase))
    while bare and bare[-1].is_punctuation:
        bare.pop()
    return bare or phrase


def _columns(tokens: Phrase, phrases: Sequence[Phrase]) -> list[set[int]]:
    """Columns by phrase; the longer keep theirs, so that where both are subjects 'fox' is not found in 'red fox'."""
    found: list[set[int]] = [set() for _ in phrases]
    taken: set[int] = set()
    for place in sorted(range(len(phrases)), key=lambda place: len(phrases[place]), reverse=True):
        occurrences = [{token.column for token in words} for words in _occurrences(tokens, phrases[place])]
        found[place].update(*(columns for columns in occurrences if not columns & taken))
        taken |= found[place]
    return found


def _occurrences(tokens: Phrase, phrase: Phrase) -> Iterator[Phrase]:
    """Each stretch of `tokens` that is `phrase`, over the border of two blocks too."""
    for start in range(len(tokens) - len(phrase) + 1):
        # 'hellhound' is 'hell' and 'hound</w>': its end reads like the whole word.
        whole = start == 0 or tokens[start - 1].ends_word
        stretch = tokens[start : start + len(phrase)]
        if whole and _same(stretch, phrase):
            yield stretch


def _same(words: Phrase, others: Phrase) -> bool:
    return len(words) == len(others) and all(map(Token.equals, words, others))


def _require_clip(clip: Any) -> None:
    if clip is None:
        raise ValueError(
            "There is no CLIP: the checkpoint holds no text encoder. Connect the CLIP of a whole checkpoint, or Load "
            "CLIP."
        )
    if not set(clip.tokenize("")) <= TOWERS:
        raise ValueError(
            f"The text encoder connected ({type(clip.cond_stage_model).__name__}) is not one of SD 1.5, SD 2.x or "
            "SDXL, so the tokens of a subject cannot be found in it. Connect the CLIP of such a checkpoint."
        )


def _require_words(subjects: Sequence[str], readings: Sequence[Reading]) -> None:
    for subject, reading in zip(subjects, readings, strict=True):
        if not all(reading.values()):
            raise ValueError(
                f"The subject '{subject}' has no words that the text encoder reads. Write it in words, e.g. a red fox; "
                "if it is an embedding, put its file into models/embeddings."
            )


def _require_distinct(subjects: Sequence[str], readings: Sequence[Reading]) -> None:
    for (first, words), (second, others) in combinations(zip(subjects, readings, strict=True), 2):
        if all(_same(words[tower], others[tower]) for tower in words):
            raise ValueError(
                f"The subjects '{first}' and '{second}' are the same words, so they cannot be told apart. Name each "
                "subject once, two alike by what differs, e.g. a red fox and a white fox."
            )
