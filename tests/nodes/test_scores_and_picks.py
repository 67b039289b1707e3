"""CLIP Score and Pick Images as nodes: what they hand on, what they show, and what they say no to."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from semblance.metrics.scores import Scores
from semblance.nodes.clip_score import CLIPScore
from semblance.nodes.pick_images import PickImages
from semblance.tests.support.graphs import picture, run
from semblance.tests.tiny_models import make_clip, make_clip_vision

RULE = {"picked": "", "count": 2, "by": "text", "floor_measure": "", "floor": 0.0}
PROMPTS = "a fox\na lake\nan old tree\nsnow"


@pytest.fixture(autouse=True)
def folders(models: Any) -> None:
    """Previews go to a folder of the test's own."""


@pytest.fixture
def images() -> Tensor:
    return picture(5, 40, 60, images=4)


def scored(images: Tensor, prompts: str = PROMPTS, **more: Any) -> Any:
    given = {"text_encoder": make_clip("sd2"), "clip_vision": make_clip_vision("h"), "style": picture(9)} | more
    return run(CLIPScore, images, prompts, **given)


def picked(images: Tensor, scores: Scores, **more: Any) -> Any:
    return run(PickImages, images, scores, **(RULE | more))


def refusal(action: Any) -> str:
    with pytest.raises(ValueError) as fault:
        action()
    message = str(fault.value)
    assert message[0] == "'" or message[0].isupper(), message
    assert message.rstrip().endswith(".") and "\n" not in message, message
    return message


def refused(action: Any, pattern: str) -> None:
    message = refusal(action)
    assert re.search(pattern, message), message


# What comes out


def test_rows_that_are_no_prompts_are_not_handed_on_as_prompts(images: Tensor) -> None:
    pairs = replace(scored(images)[0], rows=("a 0", "a 1", "a 2", "a 3"), of_prompts=False)
    (prompt,) = picked(images, pairs)[2]
    assert prompt.message.startswith("These scores hold no prompts")


def test_pictures_come_out_best_first_and_scores_in_the_order_given(images: Tensor) -> None:
    scores, ranked, report = scored(images).result
    best_first = scores["text"].ranking()
    assert torch.equal(ranked, images[best_first]) and scores.rows == tuple(PROMPTS.splitlines())
    assert [measure.name for measure in scores.measures] == ["text", "style"]
    assert report.splitlines()[2].startswith(f"| {best_first[0]} |")


def test_without_a_style_picture_there_is_no_style(images: Tensor) -> None:
    scores = scored(images, "a fox", style=None)[0]
    assert [measure.name for measure in scores.measures] == ["text"]


def test_the_report_is_shown_on_the_node(images: Tensor) -> None:
    output = scored(images)
    assert output.ui.as_dict()["text"] == (output[2],)


def test_the_best_pictures_latents_and_prompts_go_on_together(images: Tensor) -> None:
    scores, ranked, _ = scored(images).result
    latents = {"samples": torch.arange(4.0)[:, None, None, None].expand(4, 4, 5, 5)}
    chosen, kept, prompts, rows = picked(ranked, scores, picked="0, 2", latents=latents).result
    expected = [scores["text"].ranking()[place] for place in (0, 2)]
    assert torch.equal(chosen, images[expected])
    assert kept["samples"][:, 0, 0, 0].tolist() == expected
    assert prompts == [scores.rows[row] for row in expected] and rows.rows == tuple(prompts)


def test_picks_of_picks_are_found_in_the_scores_of_either(images: Tensor) -> None:
    scores = scored(images)[0]
    first = picked(images, scores, count=3)
    for known in (scores, first[3]):
        assert len(picked(first[0], known, picked="1")[0]) == 1


def test_the_sheet_is_one_picture_with_its_geometry_beside_it(images: Tensor) -> None:
    shown = picked(images, scored(images)[0], picked="3, 0").ui
    assert len(shown["images"]) == 1
    (sheet,) = shown["sheet"]
    assert sheet["count"] == 4 and sheet["columns"] == 2 and sheet["picked"] == [3, 0] and not sheet["by_rule"]
    assert sheet["size"] == [2 * sheet["cell"][0], 2 * sheet["cell"][1]]
    assert picked(images, scored(images)[0]).ui["sheet"][0]["by_rule"]


def test_both_nodes_show_themselves_again_after_a_reload() -> None:
    for node in (CLIPScore, PickImages):
        assert node.define_schema().has_intermediate_output


def test_scores_alone_do_not_run_a_graph_whose_picks_are_refused() -> None:
    """ComfyUI runs every valid output, so of the two only the last may be one."""
    assert PickImages.define_schema().is_output_node and not CLIPScore.define_schema().is_output_node


@pytest.mark.parametrize("text", ["0, 2", "0 2", " 0,2, ", "0，2", "0, 2, 0"])
def test_numbers_may_be_written_in_many_ways(images: Tensor, text: str) -> None:
    assert PickImages.validate_inputs(picked=text) is True
    chosen = picked(images, scored(images)[0], picked=text)[0]
    assert torch.equal(chosen, images[[0, 2]])


def test_a_field_that_another_node_fills_in_is_read_when_it_is_there() -> None:
    assert PickImages.validate_inputs(picked=None) is True


# What is refused


@pytest.mark.parametrize(("text", "vision"), [("sdxl", "h"), ("sd15", "h"), ("sd2", "g")])
def test_towers_of_two_spaces_are_refused(images: Tensor, text: Any, vision: Any) -> None:
    towers = {"text_encoder": make_clip(text), "clip_vision": make_clip_vision(vision)}
    refused(lambda: scored(images, **towers), "^The pictures were seen by .*but the text encoder connected.*compared")


def test_a_text_encoder_that_is_no_clip_is_refused(images: Tensor) -> None:
    t5 = SimpleNamespace(cond_stage_model=SimpleNamespace())
    refused(lambda: scored(images, text_encoder=t5), "is not a CLIP, so its words cannot be compared")


@pytest.mark.parametrize("garbage", [0.0, 1e20, float("nan")])
def test_an_image_encoder_without_a_projection_is_refused(images: Tensor, garbage: float) -> None:
    encoder = make_clip_vision("h")
    with torch.no_grad():
        encoder.model.visual_projection.weight.fill_(garbage)
    refused(lambda: scored(images, clip_vision=encoder), "has no projection .visual_projection.*Download")


def test_an_image_encoder_without_a_text_half_is_refused(images: Tensor) -> None:
    encoder = make_clip_vision("h")
    encoder.model_type = "siglip_vision_model"
    refused(
        lambda: scored(images, clip_vision=encoder), "is a siglip_vision_model without a text half.*Load CLIP-ViT-H"
    )


@pytest.mark.parametrize("prompts", ["a\nb", "a\nb\nc", "a\nb\nc\nd\ne"])
def test_another_number_of_prompts_than_of_pictures_is_refused(images: Tensor, prompts: str) -> None:
    count = len(prompts.splitlines())
    refused(lambda: scored(images, prompts), f"There are {count} prompts for 4 pictures. Write one prompt for all")


@pytest.mark.parametrize("prompts", ["", "  \n\n"])
def test_no_prompt_is_refused(images: Tensor, prompts: str) -> None:
    refused(lambda: scored(images, prompts), "There is no prompt to score the pictures by")


@pytest.mark.parametrize("name", ["images", "style"])
def test_pictures_with_pixels_that_are_no_numbers_are_refused(images: Tensor, name: str) -> None:
    broken = images.clone()
    broken[1, 3, 4, 0] = float("nan")
    given = {"images": images, "style": picture(9)} | {name: broken}
    refused(lambda: scored(given["images"], style=given["style"]), f"The image at '{name}' holds pixels that are not")


def test_pictures_to_pick_with_pixels_that_are_no_numbers_are_refused(images: Tensor) -> None:
    scores = scored(images)[0]
    refused(lambda: picked(images * float("nan"), scores), "The image at 'images' holds pixels that are not numbers")


@pytest.mark.parametrize("text", ["a", "0, x", "1.5", "-1", "0-3", "0; 1"])
def test_what_is_no_number_is_refused_before_anything_runs(text: str) -> None:
    message = PickImages.validate_inputs(picked=text)
    assert isinstance(message, str) and "is not the number of a picture. Write the numbers on the sheet" in message


def test_numbers_that_no_picture_has_are_refused(images: Tensor) -> None:
    scores = scored(images)[0]
    sentence = "There is no picture 4, 17 on the sheet: its 4 pictures are numbered 0 to 3. Correct 'picked'"
    refused(lambda: picked(images, scores, picked="1, 4, 17"), sentence)


def test_pictures_that_were_not_scored_are_refused(images: Tensor) -> None:
    scores = scored(images)[0]
    strange = torch.cat([images, picture(77, 40, 60)])
    refused(lambda: picked(strange, scores), "Picture 4 of 5 was not scored.*Connect the images that went into")


def test_scores_of_no_pictures_are_refused(images: Tensor) -> None:
    scores = replace(scored(images)[0], pictures=())
    refused(lambda: picked(images, scores), "These scores belong to no pictures.*Connect the scores of CLIP Score")


@pytest.mark.parametrize("count", [1, 3, 5])
def test_another_number_of_latents_than_of_scores_is_refused(images: Tensor, count: int) -> None:
    scores = scored(images)[0]
    latents = {"samples": torch.zeros(count, 4, 5, 5)}
    refused(lambda: picked(images, scores, latents=latents), f"There are {count} latents, but 4 pictures were scored")


@pytest.mark.parametrize("name", ["by", "floor_measure"])
def test_a_score_that_is_not_there_is_refused_with_those_that_are(images: Tensor, name: str) -> None:
    scores = scored(images)[0]
    refused(lambda: picked(images, scores, **{name: "LPIPS"}), "hold no measure 'LPIPS'; they hold: text, style")


def test_a_floor_that_no_picture_reaches_is_refused(images: Tensor) -> None:
    scores = scored(images)[0]
    refused(lambda: picked(images, scores, floor_measure="style", floor=2.0), "No row of 4 reaches 'style'.*Loosen a")


def test_a_floor_that_is_no_number_is_refused(images: Tensor) -> None:
    scores = scored(images)[0]
    refused(lambda: picked(images, scores, floor_measure="style", floor=float("nan")), "The floor is nan")
