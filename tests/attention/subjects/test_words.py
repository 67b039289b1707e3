"""Scenes become prompts: a subject in its place, or between style and scene; and what is refused, in a sentence."""

from __future__ import annotations

import pytest

from semblance.attention.subjects.words import SubjectWords, read_scenes, read_subjects, story_prompts


def prompts(subjects: str, style: str, scenes: str) -> list[str]:
    """The prompts where a subject is named by its own letters."""
    names = read_subjects(subjects)
    return list(story_prompts(names, style, read_scenes(scenes), lambda prompt: any(name in prompt for name in names)))


def test_one_subject_comes_between_style_and_scene() -> None:
    assert prompts("a red fox", "a watercolour of", "in the snow\nby a lake") == [
        "a watercolour of a red fox in the snow",
        "a watercolour of a red fox by a lake",
    ]


def test_subject_named_by_its_scene_is_not_added_again() -> None:
    assert prompts("red fox", "a watercolour of", "snow on a red fox") == ["a watercolour of snow on a red fox"]


def test_subject_named_by_the_style_is_not_added_again() -> None:
    assert prompts("red fox", "a red fox", "in the snow") == ["a red fox in the snow"]


def test_style_may_be_empty() -> None:
    assert prompts("red fox", "  ", "in the snow") == ["red fox in the snow"]


@pytest.mark.parametrize("place", ["{subject}", "{ Subject }", "{1}"])
def test_one_subject_is_put_in_its_place(place: str) -> None:
    assert prompts("red fox", "ink,", f"snow on {place}, {place}") == ["ink, snow on red fox, red fox"]


def test_places_in_the_style_count_for_every_scene() -> None:
    assert prompts("boy\ndog", "{2} with {1}", "at sea\non land") == ["dog with boy at sea", "dog with boy on land"]


def test_several_subjects_are_put_in_their_places() -> None:
    scenes = "{1} throws a ball to {2}\nthe dog asleep\n{2}, {2} and {1}"
    assert prompts("boy\ndog", "ink,", scenes) == [
        "ink, boy throws a ball to dog",
        "ink, the dog asleep",
        "ink, dog, dog and boy",
    ]


def test_blank_lines_and_spaces_around_do_not_count() -> None:
    assert read_subjects("\n  red fox \n\n dog\n") == ("red fox", "dog")
    assert read_scenes("in the snow\n \n\tby a lake") == ("in the snow", "by a lake")


def test_every_prompt_is_one_line() -> None:
    assert prompts("red fox", "ink,\nloose", "in  the snow") == ["ink, loose red fox in the snow"]


@pytest.mark.parametrize("text", ["", " \n\n "])
def test_story_without_subjects_or_scenes_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="There is no subject. Write at least one under subjects, .* a red fox"):
        read_subjects(text)
    with pytest.raises(ValueError, match="There is no scene. Write at least one under scenes, .* in the snow"):
        read_scenes(text)


def test_scene_without_any_of_several_subjects_is_refused_by_its_number() -> None:
    with pytest.raises(ValueError, match=r"Scene 2 \('at sea'\) names no subject .*\{1\} for 'boy' or \{2\} for 'dog'"):
        prompts("boy\ndog", "ink,", "a boy\nat sea")


@pytest.mark.parametrize("mark", ["{3}", "{0}", "{subject}", "{red|blue}", "{}"])
def test_place_of_nobody_is_refused(mark: str) -> None:
    with pytest.raises(ValueError) as refusal:
        prompts("boy\ndog", "ink,", f"the boy\nthe boy and {mark}")
    assert f"scene 2 holds {mark}, which is the place of no subject. Write {{1}} for 'boy'" in str(refusal.value)


def test_place_a_word_clings_to_is_no_place_for_the_subject_words() -> None:
    """The prompt is left as written, and says itself that its subject cannot be found."""
    (prompt,) = story_prompts(["fox"], "", ["two {1}es"], lambda prompt: False)
    assert prompt == "two foxes"
    with pytest.raises(ValueError, match="The prompt 'two foxes' names no subject .'fox'."):
        SubjectWords(("fox",), (prompt,), (((),),), 77)


def test_a_subject_beside_letters_of_a_script_without_spaces_is_set_apart() -> None:
    told = story_prompts(("a red fox",), "", ("雪地里的{1}在睡觉", "{1}, asleep"), lambda prompt: False)
    assert told == ("雪地里的 a red fox 在睡觉", "a red fox, asleep")
