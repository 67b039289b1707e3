"""Scores are the cosines of both towers' own embeddings, in the order of the pictures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from semblance.host.demo_models import load_demo
from semblance.host.evaluation.clip_scores import read_prompts, report_of, score_pictures
from semblance.host.instantstyle.text_towers import TextTower
from semblance.host.pictures import fit_picture
from semblance.metrics.scores import fingerprint
from semblance.tests.support.graphs import picture
from semblance.tests.tiny_models import make_clip, make_clip_vision


def hosts_own(encoder: Any, images: Tensor) -> Tensor:
    """The embeddings that ComfyUI's node makes of pictures that fit already."""
    fitted = torch.cat([fit_picture(image, 56, "crop", encoder.image_mean) for image in images])
    return encoder.encode_image(fitted).image_embeds.float()


def cosine(one: Tensor, other: Tensor) -> list[float]:
    return torch.nn.functional.cosine_similarity(one.double(), other.double(), dim=-1).tolist()


@pytest.mark.parametrize(("vision", "text"), [("h", "sd2"), ("g", "sdxl")])
def test_scores_are_the_cosines_of_comfyui_s_own_embeddings(vision: Any, text: Any) -> None:
    encoder, clip = make_clip_vision(vision), make_clip(text)
    images, style = picture(1, 60, 90, images=3), picture(7, images=2)
    prompts = ["a fox", "a lake", "an old tree"]
    pooled = torch.cat([clip.encode_from_tokens(clip.tokenize(line), return_pooled=True)[1] for line in prompts])
    found = score_pictures(images, "\n".join(prompts), clip, encoder, style).scores
    seen, styles = hosts_own(encoder, images), hosts_own(encoder, style)
    assert found["text"].values == pytest.approx(cosine(seen, pooled), abs=1e-5)
    both = torch.tensor([cosine(seen, one[None]) for one in styles]).mean(dim=0).tolist()
    assert found["style"].values == pytest.approx(both, abs=1e-5)
    assert found.rows == tuple(prompts) and found.pictures == tuple(map(fingerprint, images))


def test_one_prompt_is_for_all_pictures_and_is_encoded_once() -> None:
    encoder, clip = make_clip_vision("h"), make_clip("sd2")
    images = picture(1, images=4)
    asked: list[str] = []
    tokenize = clip.tokenize
    clip.tokenize = lambda text: asked.append(text) or tokenize(text)
    together = score_pictures(images, "a fox\n", clip, encoder).scores
    assert asked == ["a fox"]
    alone = [score_pictures(image[None], "a fox", clip, encoder).scores["text"].values[0] for image in images]
    assert together["text"].values == pytest.approx(alone, abs=1e-6)


def test_a_picture_is_its_own_style_and_the_best_comes_first() -> None:
    encoder, clip = make_clip_vision("h"), make_clip("sd2")
    images = picture(1, images=5)
    found = score_pictures(images, "a fox", clip, encoder, images[2:3])
    assert found.scores["style"].values[2] == pytest.approx(1, abs=1e-6)
    ranked = [found.scores["text"].values[row] for row in found.best_first()]
    assert ranked == sorted(ranked, reverse=True)


def test_weights_and_words_after_the_first_block_do_not_count() -> None:
    encoder, clip = make_clip_vision("h"), make_clip("sd2")
    images, long = picture(1, images=2), "a red fox asleep " * 30
    plain, weighted = (score_pictures(images, text, clip, encoder) for text in ("a fox", "(a fox:1.4)"))
    assert plain.scores["text"].values == pytest.approx(weighted.scores["text"].values, abs=1e-6)
    one, other = (score_pictures(images, long + end, clip, encoder) for end in ("in snow", "by a lake"))
    assert one.scores["text"].values == pytest.approx(other.scores["text"].values, abs=1e-6)
    assert plain.cut == () and one.cut == ((long + "in snow").strip(),)
    assert "Only the first 77 tokens were read of: a red fox" in report_of(one)


def test_a_text_tower_scores_as_the_clip_it_is_the_text_half_of() -> None:
    """The two kinds of text encoder lead to one number; a long prompt is cut at the same token."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    clip, encoder = make_clip("sd2"), make_clip_vision("h")
    inner = clip.cond_stage_model.clip_h.transformer
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 3}
    config = CLIPTextConfig(**sizes, projection_dim=64, hidden_act="gelu", bos_token_id=49406, eos_token_id=49407)
    model = CLIPTextModelWithProjection(config).eval().requires_grad_(False)
    weights = {name: tensor for name, tensor in inner.state_dict().items() if "position_ids" not in name}
    model.load_state_dict(weights, strict=True)
    tower = TextTower("tower", model, 64)
    for prompt in ("a fox", "a red fox asleep " * 30):
        by_clip, by_tower = (score_pictures(picture(1), prompt, text, encoder) for text in (clip, tower))
        assert by_clip.scores["text"].values == pytest.approx(by_tower.scores["text"].values, abs=1e-5)
        assert by_clip.cut == by_tower.cut


def test_the_demo_model_s_own_towers_know_a_heart_from_a_star() -> None:
    demo = load_demo("SD 1.5")
    side = torch.linspace(-1, 1, 128)
    y, x = torch.meshgrid(-side, side, indexing="ij")
    x, y = 1.6 * x, 1.6 * y + 0.1
    heart = ((x**2 + y**2 - 0.6) ** 3 - x**2 * y**3 * 0.9 < 0).float()[..., None]
    figure, ground = torch.tensor([0.9, 0.8, 0.3]), torch.tensor([0.2, 0.3, 0.6])
    image = (heart * figure + (1 - heart) * ground)[None]
    scores = {
        shape: score_pictures(image, f"a {shape} in the middle", demo.clip, demo.clip_vision).scores["text"].values[0]
        for shape in ("heart", "star", "moon", "cat")
    }
    assert max(scores, key=scores.__getitem__) == "heart", scores


def test_the_protocol_says_how_it_was_measured() -> None:
    found = score_pictures(picture(1, images=2), "a fox", make_clip("sd2"), make_clip_vision("h"), picture(2))
    for words in ("64-wide", "56 pixels", "77 tokens", "max(100 x the mean of text, 0)", "one style picture"):
        assert words in found.scores.protocol


def test_the_report_is_a_table_best_first_with_prompts_where_they_differ() -> None:
    clip, encoder = make_clip("sd2"), make_clip_vision("h")
    found = score_pictures(picture(1, images=2), "a fox\na | lake", clip, encoder)
    lines = report_of(found).splitlines()
    assert lines[0] == "| picture | text | prompt |"
    first = found.best_first()[0]
    assert lines[2].startswith(f"| {first} | {found.scores['text'].values[first]:.4f} |")
    assert "a / lake" in report_of(found)
    same = report_of(score_pictures(picture(1, images=2), "a fox", clip, encoder))
    assert same.startswith("Prompt: a fox") and "| picture | text |\n" in same


@pytest.mark.parametrize(
    ("text", "pictures", "expected"),
    [("a fox", 3, ["a fox"] * 3), ("a\n\n b \nc\n", 3, ["a", "b", "c"]), ("a", 1, ["a"])],
)
def test_prompts_are_one_for_all_or_one_a_line(text: str, pictures: int, expected: list[str]) -> None:
    assert read_prompts(text, pictures) == expected


def test_more_pictures_than_an_encoder_remembers_are_scored_alike() -> None:
    encoder, clip = make_clip_vision("h"), make_clip("sd2")
    images = picture(1, 16, 16, images=70)
    found = score_pictures(images, "a fox", clip, encoder).scores["text"].values
    assert found[69] == pytest.approx(score_pictures(images[69:], "a fox", clip, encoder).scores["text"].values[0])
    assert len(found) == 70
