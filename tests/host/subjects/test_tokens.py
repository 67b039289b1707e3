"""The tokens of a subject are found where ComfyUI puts them; a story's rows are its prompts, encoded alone."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import comfy.hooks
import pytest
import torch
from comfy_extras.nodes_hooks import SetClipHooks
from safetensors.torch import save_file
from torch import Tensor

import nodes as host_nodes
from semblance.attention.subjects.words import SubjectWords
from semblance.host.binding.conditionings import TAG
from semblance.host.subjects.tokens import SubjectTokens, encode_story
from semblance.tests.support.frozen_cases import load_reference
from semblance.tests.support.speeds import one_family
from semblance.tests.tiny_models import CLIP_KINDS, ksampler, make_clip, make_unet
from semblance.tests.tiny_models.encoders import TEXT_WIDTH

LONG = ", ".join(["a very long list of trees and stones"] * 9)  # 80 tokens
LONGER = f"{LONG}, {LONG}"
TOWERS = {"sd15": ("l",), "sdxl": ("l", "g"), "sd2": ("h",)}

each_kind = pytest.mark.parametrize("kind", CLIP_KINDS)


@cache
def clip_of(kind: str) -> Any:
    """One for all tests that leave it as it is."""
    return make_clip(kind)


@pytest.fixture(scope="module")
def clip() -> Any:
    return clip_of("sd15")


def columns(clip: Any, prompt: str, *subjects: str) -> tuple[tuple[int, ...], ...]:
    return SubjectTokens.read(clip, subjects).columns_in(prompt)


def encoded(clip: Any, prompt: str) -> tuple[Tensor, Tensor]:
    """What CLIP Text Encode makes of a prompt: its text and its pooled output."""
    ((context, extras),) = host_nodes.CLIPTextEncode().encode(clip, prompt)[0]
    return context, extras["pooled_output"]


def weighed(clip: Any, prompt: str) -> tuple[int, ...]:
    """The columns that ComfyUI itself changes when the part between two stars weighs more."""
    before, part, after = prompt.split("*")
    light, heavy = (encoded(clip, f"{before}({part}:{weight}){after}")[0] for weight in (1.0, 1.5))
    return tuple((light != heavy).any(dim=-1)[0].nonzero().flatten().tolist())


def embed(clip: Any, folder: Path, kind: str, vectors: int, name: str = "myfox") -> None:
    """Gives a CLIP a folder with an embedding."""
    keys = {"l": "clip_l", "g": "clip_g", "h": "emb_params"}
    noise = torch.Generator().manual_seed(len(name))
    file = {keys[tower]: torch.randn(vectors, TEXT_WIDTH[tower], generator=noise) for tower in TOWERS[kind]}
    save_file(file, folder / f"{name}.safetensors")
    for tower in TOWERS[kind]:
        getattr(clip.tokenizer, f"clip_{tower}").embedding_directory = str(folder)


def share_of(context: Tensor, chosen: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Attention of a few random queries to a text: what they read, and their share on the chosen columns."""
    query = torch.randn(5, context.shape[-1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    attention = (query @ context.double().T).softmax(dim=-1)
    return attention @ context.double(), attention[:, list(chosen)].sum(dim=-1)


# Where the words are


@each_kind
@pytest.mark.parametrize(
    "prompt",
    [
        "a photo of a *red fox* in the snow",
        "a photo of an (old:1.2) *axolotl*",  # four tokens of one word
        "(a photo of a *red fox*:1.3) in the snow",
        f"{LONG}, a *red fox* in the snow",
        f"{LONGER}, a *red fox* in the snow",
        "\\(ink\\) a *fox \\(animal*\\), asleep",
    ],
)
def test_columns_are_those_that_a_weight_on_the_subject_acts_on(kind: str, prompt: str) -> None:
    clip = clip_of(kind)
    expected = weighed(clip, prompt)
    assert expected
    plain = prompt.replace("*", "")
    assert columns(clip, plain, prompt.split("*")[1]) == (expected,)
    assert columns(clip, prompt.replace("*", "(", 1).replace("*", ":0.7)"), prompt.split("*")[1]) == (expected,)


@each_kind
@pytest.mark.parametrize("vectors", [1, 4])
def test_embedding_is_a_subject_with_all_its_vectors(kind: str, vectors: int, tmp_path: Path) -> None:
    clip = make_clip(kind)
    embed(clip, tmp_path, kind, vectors)
    prompt = "a photo of embedding:myfox, asleep"
    assert columns(clip, prompt, "embedding:myfox") == (tuple(range(4, 4 + vectors)),)
    assert weighed(clip, "a photo of *embedding:myfox*, asleep") == tuple(range(4, 4 + vectors))


def test_words_after_an_embedding_stand_behind_its_vectors(tmp_path: Path) -> None:
    clip = make_clip("sd15")
    embed(clip, tmp_path, "sd15", 5)
    assert columns(clip, "embedding:myfox and a dog", "dog", "embedding:myfox") == ((8,), (1, 2, 3, 4, 5))


def test_embeddings_are_told_apart(tmp_path: Path) -> None:
    clip = make_clip("sd15")
    for name in ("myfox", "myoldcat"):
        embed(clip, tmp_path, "sd15", 2, name)
    prompt = "a embedding:myfox and embedding:myoldcat"
    assert columns(clip, prompt, "embedding:myoldcat", "embedding:myfox") == ((5, 6), (2, 3))


def test_every_occurrence_counts_in_capitals_too(clip: Any) -> None:
    assert columns(clip, "a Red Fox, a dog and a RED FOX", "red fox") == ((2, 3, 9, 10),)


def test_article_and_punctuation_of_a_subject_do_not_count(clip: Any) -> None:
    found = columns(clip, "the red fox's tail, ((a red fox))!", "(a red fox:1.2),")
    assert found == columns(clip, "the red fox's tail, ((a red fox))!", "red fox") == ((2, 3, 8, 9),)


@pytest.mark.parametrize("prompt", ["a hellhound", "hounds", "two foxes", "a hound red", "a red hot hound"])
def test_part_of_a_word_and_words_out_of_order_are_not_the_subject(clip: Any, prompt: str) -> None:
    assert columns(clip, prompt, "hound", "red hound", "fox", "hell")[1:] == ((), (), ())
    assert bool(columns(clip, prompt, "hound")[0]) == ("hound" in prompt.split())


@pytest.mark.parametrize(
    ("prompt", "subjects", "found"),
    [
        ("ink, a red fox asleep", ("red fox",), ((5,),)),
        ("a red fox and a red fox", ("red fox",), ((7,),)),
        ("a photo of an axolotl", ("axolotl",), ((5,),)),  # four tokens of one word
        ("a fox and a white fox", ("fox", "white fox"), ((2,), (6,))),
        ("a white fox", ("fox", "white fox"), ((), (3,))),
    ],
)
def test_the_last_word_is_looked_up_as_the_authors_do(
    clip: Any, prompt: str, subjects: tuple[str, ...], found: tuple[tuple[int, ...], ...]
) -> None:
    """The first token of the noun, where it stands last."""
    assert SubjectTokens.read(clip, subjects).columns_in(prompt, "last word") == found


def test_the_last_word_may_be_an_embedding(tmp_path: Path) -> None:
    clip = make_clip("sd15")
    embed(clip, tmp_path, "sd15", 4)
    tokens = SubjectTokens.read(clip, ("a red embedding:myfox",))
    assert tokens.columns_in("ink of a red embedding:myfox, asleep", "last word") == ((5,),)


def test_subject_over_the_border_of_two_blocks_is_found_whole(clip: Any) -> None:
    """ComfyUI breaks an unweighted text after 75 tokens, wherever that is."""
    prompt = " ".join(["tree"] * 74 + ["red fox asleep"])
    assert columns(clip, prompt, "red fox") == ((75, 78),)
    assert weighed(clip, " ".join(["tree"] * 74 + ["*red fox*"])) == (78, 79)  # a weight of its own keeps it together


def test_subjects_have_columns_of_their_own_and_none_where_they_are_absent(clip: Any) -> None:
    assert columns(clip, "a boy and his dog", "dog", "boy", "cat") == ((5,), (2,), ())


def test_longer_subject_keeps_the_words_it_shares(clip: Any) -> None:
    assert columns(clip, "a fox and a white fox", "fox", "white fox") == ((2,), (5, 6))


def test_columns_begin_with_the_official_one(clip: Any) -> None:
    """The authors keep the first token of a word and let its last occurrence win; here every occurrence counts."""
    _, metadata = load_reference("consistory_units")
    assert len(metadata["token_lookup"]) == 3
    for case in metadata["token_lookup"]:
        concepts = [case["concept"]] if isinstance(case["concept"], str) else case["concept"]
        for concept, indices in zip(concepts, case["token_indices"], strict=True):
            tokens = len(case["concept_ids"][concept])
            for prompt, index in zip(case["prompts"], indices, strict=True):
                (found,) = columns(clip, prompt, concept)
                assert found[-tokens:][:1] == (() if index == -1 else (index,))


# What is encoded


def test_every_entry_says_of_which_story_it_is(clip: Any) -> None:
    conditioning, words = encode_story(clip, ["red fox"], "ink,", ["asleep", "by a lake"])
    assert [extras[TAG] for _, extras in conditioning] == ["ink, red fox asleep\nink, red fox by a lake"]
    assert words.text == conditioning[0][1][TAG]


def story(clip: Any, subjects: str, *scenes: str) -> tuple[Tensor, Tensor, SubjectWords]:
    """Rows, pooled rows and words of a story told in ink."""
    ((context, extras),), words = encode_story(clip, subjects.split("\n"), "ink,", scenes)
    return context, extras["pooled_output"], words


@each_kind
def test_each_row_is_its_prompt_encoded_alone(kind: str) -> None:
    clip = clip_of(kind)
    context, pooled, words = story(clip, "red fox", "in the (snow:1.4)", "a red fox by a lake", "(red:0.5) fox")
    assert words.prompts == ("ink, red fox in the (snow:1.4)", "ink, a red fox by a lake", "ink, (red:0.5) fox")
    assert words.tokens == context.shape[1] == 77
    for row, row_pooled, prompt in zip(context, pooled, words.prompts, strict=True):
        alone, alone_pooled = encoded(clip, prompt)
        assert torch.equal(row, alone[0]) and torch.equal(row_pooled, alone_pooled[0])


@each_kind
def test_rows_of_unequal_length_repeat_and_read_the_same(kind: str) -> None:
    clip = clip_of(kind)
    context, pooled, words = story(clip, "red fox", "asleep", f"{LONG}, a red fox", f"a red fox, {LONGER}")
    assert words.tokens == context.shape[1] == 6 * 77
    for row, row_pooled, prompt, (found,) in zip(context, pooled, words.prompts, words.columns, strict=True):
        alone, alone_pooled = encoded(clip, prompt)
        own = columns(clip, prompt, "red fox")[0]
        copies = 6 * 77 // alone.shape[1]
        assert torch.equal(row, alone[0].repeat(copies, 1)) and torch.equal(row_pooled, alone_pooled[0])
        assert len(found) == len(own) * copies and found[: len(own)] == own
        read, share = share_of(row, found)
        read_alone, share_alone = share_of(alone[0], own)
        torch.testing.assert_close(read, read_alone)
        torch.testing.assert_close(share, share_alone)


@one_family()
def test_sampler_makes_of_each_scene_what_it_makes_of_the_prompt(kind: str) -> None:
    """Prompts of one block and of two, in one batch through the stock KSampler."""
    clip, model = clip_of(kind), make_unet(kind)
    conditioning, words = encode_story(clip, ["red fox"], "ink,", ["asleep", f"{LONG}, a red fox"])
    negative = host_nodes.CLIPTextEncode().encode(clip, "blurry")[0]
    noise = {"samples": torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3)).repeat(2, 1, 1, 1)}
    together = ksampler(model, conditioning, negative, noise | {"batch_index": [0, 0]})
    for row, prompt in zip(together, words.prompts, strict=True):
        alone = ksampler(
            model, host_nodes.CLIPTextEncode().encode(clip, prompt)[0], negative, {"samples": noise["samples"][:1]}
        )[0]
        assert (row - alone).norm() / alone.norm() < 1e-4
    assert (together[0] - together[1]).norm() / together[0].norm() > 1e-3


def test_scheduled_hooks_give_an_entry_for_each_span_with_all_scenes_in_it() -> None:
    clip = make_clip("sd15")
    layer = "text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj"
    lora = {f"{layer}.lora_up.weight": torch.ones(48, 1), f"{layer}.lora_down.weight": torch.ones(1, 48)}
    hooks = comfy.hooks.create_hook_lora(lora, 1.0, 1.0)
    keyframes = comfy.hooks.HookKeyframeGroup()
    for strength, start in ((0.0, 0.0), (1.0, 0.5)):
        keyframes.add(comfy.hooks.HookKeyframe(strength, start))
    hooks.set_keyframes_on_hooks(keyframes)
    (hooked,) = SetClipHooks().apply_hooks(clip, True, True, hooks)
    conditioning, words = encode_story(hooked, ["red fox"], "ink,", ["asleep", f"{LONG}, a red fox"])
    expected = [host_nodes.CLIPTextEncode().encode(hooked, prompt)[0] for prompt in words.prompts]
    spans = [(extras["clip_start_percent"], extras["clip_end_percent"]) for _, extras in conditioning]
    assert spans == [(0.0, 0.5), (0.5, 1.0)]
    for span, (context, extras) in enumerate(conditioning):
        assert torch.equal(context[0, :77], expected[0][span][0][0]) and torch.equal(
            context[1], expected[1][span][0][0]
        )
        assert "hooks" in extras and extras["pooled_output"].shape[0] == 2
    assert not torch.equal(conditioning[0][0], conditioning[1][0])


def test_nothing_of_the_clip_is_changed() -> None:
    clip = make_clip("sdxl")
    clip.clip_layer(-2)
    before, before_pooled = encoded(clip, "a (red:1.3) fox")
    story(clip, "red fox", "asleep", f"a (red fox:1.4), {LONG}")
    after, after_pooled = encoded(clip, "a (red:1.3) fox")
    assert torch.equal(before, after) and torch.equal(before_pooled, after_pooled) and clip.layer_idx == -2


# Subjects and scenes put together by what the tokenizer reads


def test_weights_inside_a_subject_do_not_hide_it(clip: Any) -> None:
    _, _, words = story(clip, "(red fox:1.2)", "snow on the (red:0.8) FOX", "in the snow")
    assert words.prompts == ("ink, snow on the (red:0.8) FOX", "ink, (red fox:1.2) in the snow")
    assert words.columns == (((6, 7),), ((3, 4),))


def test_letters_inside_another_word_do_not_name_the_subject(clip: Any) -> None:
    _, _, words = story(clip, "cat", "in a cathedral")
    assert words.prompts == ("ink, cat in a cathedral",)


def test_several_subjects_are_found_scene_by_scene(clip: Any) -> None:
    _, _, words = story(clip, "a boy\na dog", "{1} throws a ball to {2}", "the dog asleep")
    assert words.prompts == ("ink, a boy throws a ball to a dog", "ink, the dog asleep")
    assert words.columns == (((4,), (10,)), ((), (4,)))


@pytest.mark.parametrize("subject", ["()", "embedding:nowhere"])
def test_subject_without_words_is_refused(subject: str, tmp_path: Path) -> None:
    clip = make_clip("sd15")
    clip.tokenizer.clip_l.embedding_directory = str(tmp_path)
    with pytest.raises(ValueError, match="has no words that the text encoder reads.*models/embeddings"):
        story(clip, f"red fox\n{subject}", "{1} and {2}")


def test_same_words_twice_are_refused(clip: Any) -> None:
    with pytest.raises(ValueError, match="'a red fox' and '.the RED fox:1.2.' are the same words.*a white fox"):
        story(clip, "a red fox\n(the RED fox:1.2)", "{1} and {2}")


def test_word_that_clings_to_the_place_is_refused(clip: Any) -> None:
    with pytest.raises(ValueError, match="The prompt 'ink, two foxes' names no subject .'fox'.. .*write the subject's"):
        story(clip, "fox", "two {subject}es")
