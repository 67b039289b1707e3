"""The prompts of a story, encoded as one batch, and the tokens in them that name its subjects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, dropwhile
from string import punctuation
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ...attention.functional.attention import joined_contexts
from ...attention.subjects.words import SubjectWords, story_prompts
from ..binding.conditionings import TAG
from ..conditioning import Conditioning

TOWERS = {"l", "g", "h"}
"""ComfyUI's names for CLIP-L, OpenCLIP-bigG and OpenCLIP-H, which have the same vocabulary."""
WORD_END = "</w>"
Lookup = Literal["all words", "last word"]
"""Which tokens stand for a subject: all of its words, or the first token of its last word, as in the authors' code."""
LOOKUPS: tuple[Lookup, ...] = get_args(Lookup)
ARTICLES = {f"{article}{WORD_END}" for article in ("a", "an", "the")}


@dataclass(frozen=True, eq=False)
class Token:
    """One token of a text, without marks and padding."""

    column: int
    """Its index in the encoded text, counting start marks and earlier blocks."""
    spelling: str
    """Its entry in the vocabulary; the last token of a word ends in </w>. Empty for a vector."""
    vector: Tensor | None = None
    """(channels,), from an embedding file, in place of a word."""

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


Tokens = list[Token]
TokensByTower = dict[str, Tokens]
"""A text's tokens by tower. They differ if the text holds an embedding: each tower has its own vectors for it."""


@dataclass(frozen=True, eq=False)
class SubjectTokens:
    """The tokens of a story's subjects in a CLIP."""

    clip: Any
    subjects: tuple[str, ...]
    tokens: tuple[TokensByTower, ...]  # by subject

    @classmethod
    def read(cls, clip: Any, subjects: Sequence[str]) -> SubjectTokens:
        """The tokens of each subject. Raises ValueError for a subject without words, and for two with the same."""
        by_subject = tuple(
            {tower: _bare(tokens) for tower, tokens in _tokens_by_tower(clip, subject).items()} for subject in subjects
        )
        _check_words(subjects, by_subject)
        _check_distinct(subjects, by_subject)
        return cls(clip, tuple(subjects), by_subject)

    def columns_in(self, prompt: str, lookup: Lookup = "all words") -> tuple[tuple[int, ...], ...]:
        """By subject: all token columns of `prompt` that name it, in rising order."""
        by_tower = [
            _columns(tokens, [subject[tower] for subject in self.tokens], lookup)
            for tower, tokens in _tokens_by_tower(self.clip, prompt).items()
        ]
        return tuple(tuple(sorted(set().union(*columns))) for columns in zip(*by_tower, strict=True))

    def named_in(self, prompt: str) -> bool:
        """Whether `prompt` names any subject."""
        return any(self.columns_in(prompt))


def encode_story(
    clip: Any,
    subjects: Sequence[str],
    style: str,
    scenes: Sequence[str],
    lookup: Lookup = "all words",
    size: Mapping[str, int] | None = None,
) -> tuple[Conditioning, SubjectWords]:
    """The prompts of a story as one CONDITIONING with one row for each scene, and the columns that name its subjects.

    `size` is the width and height in pixels that SDXL is told; what is left out is that of the latent.

    A row equals what CLIP Text Encode gives for the prompt alone. Shorter rows are repeated whole up to the least
    common length (6 blocks of 77 tokens for 2 and 3), and their columns too: cross-attention over copies equals that
    over one. Blocks of empty text would draw attention away from the shorter prompts.

    Raises ValueError for a CLIP of another kind, for unusable subjects, and for a scene that names none.
    """
    _check_clip(clip)
    subject_tokens = SubjectTokens.read(clip, subjects)
    prompts = story_prompts(subjects, style, scenes, subject_tokens.named_in)
    columns = [subject_tokens.columns_in(prompt, lookup) for prompt in prompts]
    encoded = [clip.encode_from_tokens_scheduled(clip.tokenize(prompt)) for prompt in prompts]
    # One entry, or one for each span of scheduled hooks on the CLIP.
    conditioning = [_as_rows(entries) for entries in zip(*encoded, strict=True)]
    tokens = conditioning[0][0].shape[1]
    lengths = [entries[0][0].shape[1] for entries in encoded]
    copied = tuple(
        tuple(_in_every_copy(of_subject, length, tokens) for of_subject in scene)
        for scene, length in zip(columns, lengths, strict=True)
    )
    words = SubjectWords(subject_tokens.subjects, prompts, copied, tokens)
    more = {**(size or {}), TAG: words.text}
    return [[context, {**extras, **more}] for context, extras in conditioning], words


def _as_rows(entries: Sequence[list[Any]]) -> list[Any]:
    """Entries of single prompts as one entry with a row for each."""
    contexts, extras = zip(*entries, strict=True)
    pooled = torch.cat([extra["pooled_output"] for extra in extras])
    return [joined_contexts(contexts), {**extras[0], "pooled_output": pooled}]


def _in_every_copy(columns: Sequence[int], length: int, tokens: int) -> tuple[int, ...]:
    """The columns in all copies of a text of `length` that is repeated up to `tokens`."""
    # SDXL cuts both towers' texts to the shorter length, which may remove columns of the longer.
    return tuple(start + column for start in range(0, tokens, length) for column in columns if column < length)


def _tokens_by_tower(clip: Any, text: str) -> TokensByTower:
    towers = clip.tokenize(text, return_word_ids=True)
    return {tower: list(_own_tokens(clip, blocks)) for tower, blocks in towers.items()}


def _own_tokens(clip: Any, blocks: Sequence[Sequence[tuple[Any, float, int]]]) -> Iterator[Token]:
    for column, (token, _weight, word) in enumerate(chain.from_iterable(blocks)):
        if word == 0:  # start marks, end marks and padding
            continue
        if isinstance(token, Tensor):
            yield Token(column, "", token)
        else:
            yield Token(column, clip.tokenizer.untokenize([(token, 1.0)])[0][1])


def _bare(tokens: Tokens) -> Tokens:
    """A subject's tokens without leading articles and surrounding punctuation.

    'the red fox' also names 'a red fox'. Punctuation at the end may merge with the mark that follows in a prompt: in
    'fox (animal), asleep' the token is '),' and not ')'.
    """
    bare = list(dropwhile(lambda token: token.spelling in ARTICLES or token.is_punctuation, tokens))
    while bare and bare[-1].is_punctuation:
        bare.pop()
    return bare or tokens


def _columns(tokens: Tokens, subjects: Sequence[Tokens], lookup: Lookup) -> list[set[int]]:
    """The columns of each subject in `tokens`. Longer subjects go first, so that 'fox' is not found in 'red fox'."""
    found: list[list[Tokens]] = [[] for _ in subjects]
    taken: set[int] = set()
    for index in sorted(range(len(subjects)), key=lambda index: len(subjects[index]), reverse=True):
        occurrences = _occurrences(tokens, subjects[index])
        found[index] = [words for words in occurrences if not taken & {token.column for token in words}]
        taken |= {token.column for words in found[index] for token in words}
    if lookup == "last word":
        # The authors' code writes each occurrence over the one before.
        return [{_last_word(words[-1])[0].column} if words else set[int]() for words in found]
    return [{token.column for words in occurrences for token in words} for occurrences in found]


def _last_word(words: Tokens) -> Tokens:
    """The tokens of the last word, or the vectors of an embedding."""
    start = len(words) - 1
    while start and (
        not words[start - 1].ends_word or (words[start].vector is not None and words[start - 1].vector is not None)
    ):
        start -= 1
    return words[start:]


def _occurrences(tokens: Tokens, subject: Tokens) -> Iterator[Tokens]:
    """All stretches of `tokens` equal to `subject`, also across two blocks."""
    for start in range(len(tokens) - len(subject) + 1):
        # 'hellhound' is 'hell' and 'hound</w>'; its last token equals the word 'hound'.
        whole = start == 0 or tokens[start - 1].ends_word
        stretch = tokens[start : start + len(subject)]
        if whole and _same(stretch, subject):
            yield stretch


def _same(words: Tokens, others: Tokens) -> bool:
    return len(words) == len(others) and all(map(Token.equals, words, others))


def _check_clip(clip: Any) -> None:
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


def _check_words(subjects: Sequence[str], tokens: Sequence[TokensByTower]) -> None:
    for subject, by_tower in zip(subjects, tokens, strict=True):
        if not all(by_tower.values()):
            raise ValueError(
                f"The subject '{subject}' has no words that the text encoder reads. Write it in words, e.g. a red fox; "
                "if it is an embedding, put its file into models/embeddings."
            )


def _check_distinct(subjects: Sequence[str], tokens: Sequence[TokensByTower]) -> None:
    for (first, words), (second, others) in combinations(zip(subjects, tokens, strict=True), 2):
        if all(_same(words[tower], others[tower]) for tower in words):
            raise ValueError(
                f"The subjects '{first}' and '{second}' are the same words, so they cannot be told apart. Name each "
                "subject once, two alike by what differs, e.g. a red fox and a white fox."
            )
