"""Picture Grid over ComfyUI's own lists: what each value of a list made stands beside its caption, with its score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor

from semblance.harness.prompts import PromptFailed
from semblance.harness.server import ComfyUIServer, Prompt
from semblance.host.evaluation.grid import GAP, MARGIN
from semblance.metrics.scores import Measure, Scores, fingerprint
from semblance.nodes.picture_grid import PictureGrid
from semblance.tests.support.graphs import picture, run

COLOURS = [0xFF0000, 0x00FF00, 0x0000FF]
SIDE = 64


def graph(columns: Any, **inputs: Any) -> Prompt:
    """A list of colours, two pictures of each, as a grid whose columns they are."""
    colours = {str(number): node("PrimitiveInt", value=colour) for number, colour in enumerate(COLOURS)}
    return {
        **colours,
        "list": node("CreateList", **{f"inputs.input{number}": [number, 0] for number in colours}),
        "pictures": node("EmptyImage", width=SIDE, height=SIDE, batch_size=2, color=["list", 0]),
        "grid": node(
            "SemblancePictureGrid",
            images=["pictures", 0],
            **{**settings(column_captions=columns, order="column by column"), **inputs},
        ),
        "save": node("SaveImage", images=["grid", 0], filename_prefix="grid"),
    }


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}}


def settings(**changes: Any) -> dict[str, Any]:
    return {
        "row_captions": "",
        "column_captions": "",
        "order": "row by row",
        "cell_size": SIDE,
        "title": "",
        "look": "light",
        **changes,
    }


def made(images: list[Tensor], **inputs: Any) -> Tensor:
    """The grid, by the node as ComfyUI calls it: with every input as a list."""
    lists = {name: value if isinstance(value, list) else [value] for name, value in settings(**inputs).items()}
    return run(PictureGrid, images=images, **lists)[0]


@pytest.fixture(autouse=True)
def _temporary(models: Path) -> None:
    """Previews go to a folder of the test's own."""


def test_a_list_of_values_becomes_columns_in_one_queue(comfyui: ComfyUIServer) -> None:
    history = comfyui.run(graph(["list", 0]))
    (saved,) = comfyui.outputs(history)
    assert len(comfyui.outputs(history, "temp")) == 1  # shown on the node
    drawn = numpy.asarray(Image.open(saved).convert("RGB"))
    bottom = drawn[-MARGIN - SIDE // 2]
    centres = [MARGIN + number * (SIDE + GAP) + SIDE // 2 for number in range(3)]
    assert [tuple(bottom[at]) for at in centres] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    assert drawn.shape[1] == 3 * SIDE + 2 * GAP + 2 * MARGIN
    assert (drawn[: drawn.shape[0] - 2 * (SIDE + GAP) - MARGIN] < 128).any()  # the captions


def test_pictures_that_do_not_fit_the_captions_turn_the_node_red_with_a_sentence(comfyui: ComfyUIServer) -> None:
    with pytest.raises(PromptFailed, match="There are 6 pictures for 2 x 4 captions, which need 8"):
        comfyui.run(graph("a\nb\nc\nd", row_captions="1\n2"))


def test_numbers_and_texts_of_a_list_are_captions_and_so_are_lines_of_one_text() -> None:
    images = [picture(number) for number in range(3)]
    typed = made(images, column_captions="0.5\n1\nfox")
    assert torch.equal(typed, made(images, column_captions=[0.5, 1.0, "fox"]))
    assert torch.equal(typed, made(images, column_captions="\n0.5\n\n 1 \nfox\n"))
    assert not torch.equal(typed, made(images, column_captions="0.5\n1\nfax"))


def test_a_score_stands_under_its_own_picture_in_whatever_order_it_comes() -> None:
    images = [picture(1), picture(2, images=2)]
    flat = list(torch.cat(images))
    values = (0.1, 0.2, 0.3)
    forwards = Scores(("a", "b", "c"), (Measure("text", values, True),), "p", tuple(map(fingerprint, flat)))
    backwards = Scores(
        ("c", "b", "a"), (Measure("text", values[::-1], True),), "p", tuple(map(fingerprint, flat[::-1]))
    )
    grid = made(images, scores=[forwards])
    assert torch.equal(grid, made(images, scores=[backwards]))
    assert not torch.equal(
        grid, made(images, scores=[Scores(("a", "b", "c"), forwards.measures, "p", backwards.pictures)])
    )
    assert grid.shape[1] > made(images).shape[1]


def test_batches_of_any_sizes_make_one_grid() -> None:
    grid = made([picture(1, 32, 64), picture(2, 128, 64, images=3)])
    assert grid.shape == (1, 2 * (SIDE + GAP) - GAP + 2 * MARGIN, 2 * (SIDE + GAP) - GAP + 2 * MARGIN, 3)
