"""Story Prompts as a person uses it: text in, a batch of prompts out, and sentences where something is missing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding

from semblance.nodes.prompts import StoryPrompts
from semblance.tests.support.graphs import run
from semblance.tests.tiny_models import empty_latent, ksampler, make_clip, make_unet


@pytest.fixture(scope="module")
def clip() -> Any:
    return make_clip("sdxl")


def test_outputs_are_conditioning_words_count_and_prompts(clip: Any) -> None:
    output = run(StoryPrompts, clip, "a red fox", "a watercolour of", "in the snow\n\nwith {subject} by a lake\n")
    [[context, extras]], words, count, prompts = output.result
    assert context.shape[:2] == (2, 77) and extras["pooled_output"].shape[0] == 2
    assert count == words.scenes == 2 and words.tokens == 77
    assert words.subjects == ("a red fox",) and words.columns == (((5, 6),), ((6, 7),))
    assert prompts == "a watercolour of a red fox in the snow\na watercolour of with a red fox by a lake"
    assert prompts.split("\n") == list(words.prompts)
    assert prompts in output.ui.as_dict()["text"]


def test_defaults_tell_a_story_of_three_scenes(clip: Any) -> None:
    texts = {entry.id: entry.default for entry in StoryPrompts.define_schema().inputs[1:4]}
    *_, count, prompts = run(StoryPrompts, clip, **texts).result
    assert count == 3
    assert prompts.split("\n")[1:] == [
        "a watercolour of a red fox by a lake in autumn",
        "a watercolour of an old tree and a red fox asleep under it",
    ]


def test_a_workflow_saved_before_size_and_lookup_keeps_its_meaning(clip: Any) -> None:
    given = (clip, "a red fox", "ink,", "in the snow\nby a lake")
    [[context, extras]], words, *_ = run(StoryPrompts, *given).result
    [[again, more]], same, *_ = run(StoryPrompts, *given, lookup="all words", width=0, height=0).result
    assert torch.equal(context, again) and words == same
    assert extras.keys() == more.keys() and "width" not in extras


def test_the_noun_alone_can_name_the_subject_and_the_prompts_stay(clip: Any) -> None:
    given = (clip, "a red fox", "ink,", "in the snow\nthe red fox and a red fox asleep")
    [[context, _]], words, *_ = run(StoryPrompts, *given).result
    [[again, _]], last, *_ = run(StoryPrompts, *given, lookup="last word").result
    assert words.columns == (((4, 5),), ((4, 5, 8, 9),)) and last.columns == (((5,),), ((9,),))
    assert torch.equal(context, again) and words.prompts == last.prompts


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, [128, 96, 0, 0, 128, 96]),
        ({"width": 1024, "height": 1024}, [1024, 1024, 0, 0, 1024, 1024]),
        ({"width": 512}, [128, 512, 0, 0, 128, 512]),
    ],
)
def test_sdxl_is_told_the_size_given_or_that_of_the_latent(clip: Any, given: dict[str, int], told: list[int]) -> None:
    """In diffusers' order: height and width, crop, height and width of the target."""
    model = make_unet("sdxl")
    positive, *_ = run(StoryPrompts, clip, "a red fox", "ink,", "in the snow\nby a lake", **given).result
    seen: list[torch.Tensor] = []

    def keep(apply: Any, given: dict[str, Any]) -> torch.Tensor:
        seen.append(given["c"]["y"])
        return apply(given["input"], given["timestep"], **given["c"])

    model.set_model_unet_function_wrapper(keep)
    ksampler(model, positive, positive, empty_latent(2, 16, 12), steps=1, cfg=1.0)
    expected = get_timestep_embedding(torch.tensor(told), 256, flip_sin_to_cos=True, downscale_freq_shift=0).flatten()
    assert torch.allclose(seen[0][:, -6 * 256 :], expected.expand(2, -1), atol=1e-4)


def test_curly_brackets_reach_the_node_as_they_were_typed() -> None:
    """The browser takes them for random choices where an input allows that."""
    assert not any(entry.as_dict().get("dynamicPrompts") for entry in StoryPrompts.define_schema().inputs)


@pytest.mark.parametrize(
    ("subjects", "scenes", "sentence"),
    [
        (" \n", "in the snow", "There is no subject. Write at least one under subjects, one a line, e.g. a red fox."),
        ("fox", "\n\n", "There is no scene. Write at least one under scenes, one a line, e.g. sleeping in the snow."),
        ("fox\n()", "{1}", "The subject '()' has no words that the text encoder reads. Write it in words"),
        ("fox\ndog", "the fox\nin snow", "Scene 2 ('in snow') names no subject ('fox' or 'dog')"),
        ("fox", "the {2}", "holds {2}, which is the place of no subject. Write {subject} where a subject belongs"),
    ],
)
def test_missing_text_is_named_in_a_sentence(clip: Any, subjects: str, scenes: str, sentence: str) -> None:
    with pytest.raises(ValueError) as refusal:
        run(StoryPrompts, clip, subjects, "ink,", scenes)
    assert sentence in str(refusal.value)
    assert str(refusal.value).endswith(".") and "\n" not in str(refusal.value)


def test_checkpoint_without_a_text_encoder_is_refused() -> None:
    with pytest.raises(ValueError, match="There is no CLIP: .* Connect the CLIP of a whole checkpoint, or Load CLIP."):
        run(StoryPrompts, None, "fox", "", "in the snow")


def test_text_encoder_of_another_family_is_refused() -> None:
    foreign = SimpleNamespace(tokenize=lambda text: {"t5xxl": [[]], "l": [[]]}, cond_stage_model=torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="connected .Linear. is not one of SD 1.5, SD 2.x or SDXL.*Connect the CLIP"):
        run(StoryPrompts, foreign, "fox", "", "in the snow")
