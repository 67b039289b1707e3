"""Pictures in rows and columns."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from ..host.display import show_text
from ..host.evaluation.arrangement import ORDERS, arrange, notes_for, pictures_of
from ..host.evaluation.drawing import LOOKS
from ..host.evaluation.grid import Words, draw_grid, lay_out, report
from ..host.pictures import tensor_of
from ..metrics.scores import Scores
from . import sockets
from .inputs import EVALUATION
from .parsing import read_captions


class PictureGrid(io.ComfyNode):
    """The XY plot, from lists in one queue. Template compare_strengths; help page SemblancePictureGrid."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblancePictureGrid",
            display_name="Picture Grid",
            category=EVALUATION,
            description="Puts pictures into one picture, in rows and columns with captions, and the score of each "
            "under it: an XY plot. Connect a list, such as several strengths, to the node that you compare; each value "
            "makes its pictures in the same queue, and all of them come here.",
            search_aliases=["xy plot", "xyz plot", "image grid", "contact sheet", "compare", "captions", "collage"],
            inputs=[
                io.Image.Input("images", tooltip="The pictures: a batch, or a list of batches, of any sizes."),
                _captions("row_captions", "row"),
                _captions("column_captions", "column"),
                io.Combo.Input(
                    "order",
                    options=list(ORDERS),
                    tooltip="How the pictures fill the grid. With 'row by row', each batch of a list is a row; with "
                    "'column by column', a column. Captions must fit: with several batches, they are not spread over "
                    "other rows and columns.",
                ),
                io.Int.Input(
                    "cell_size",
                    default=256,
                    min=32,
                    max=2048,
                    step=8,
                    tooltip="The long side of each picture in pixels. Larger values show more detail. A grid that "
                    "would be too large is made smaller, and the node says so.",
                ),
                io.String.Input("title", default="", tooltip="A line above the grid. It may be empty."),
                io.Combo.Input("look", options=list(LOOKS), tooltip="Light paper, for documents, or dark."),
                sockets.Scores.Input(
                    "scores",
                    optional=True,
                    tooltip="Scores of these pictures, or a list of them. Each is written under its own picture, in "
                    "whatever order they come; a picture without a score gets none.",
                ),
            ],
            outputs=[io.Image.Output("grid", tooltip="The grid as one picture. Also shown on the node.")],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_input_list=True,
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        images: list[Tensor],
        row_captions: list[str | float],
        column_captions: list[str | float],
        order: list[Any],
        cell_size: list[int],
        title: list[str],
        look: list[Any],
        scores: list[Scores | None] | None = None,
    ) -> io.NodeOutput:
        pictures = pictures_of(images)
        rows, columns = read_captions(row_captions), read_captions(column_captions)
        arrangement = arrange([len(batch) for batch in images], len(rows), len(columns), order[0])
        notes, unscored = notes_for(pictures, [one for one in scores or () if one is not None])
        layout = lay_out(arrangement, pictures, cell_size[0], Words(rows, columns, title[0], notes))
        grid = tensor_of(draw_grid(pictures, arrangement, layout, look[0]))
        show_text(cls.hidden.unique_id, " ".join(filter(None, (report(layout, cell_size[0]), unscored))))
        return io.NodeOutput(grid, ui=ui.PreviewImage(grid, cls=cls))


def _captions(name: str, what: str) -> io.MultiType.Input:
    return io.MultiType.Input(
        io.String.Input(
            name,
            multiline=True,
            default="",
            tooltip=f"A caption for each {what}, one a line; or a list of texts or numbers from another node, such as "
            f"the strengths themselves. If empty, the {what}s have none.",
        ),
        types=[io.String, io.Float, io.Int],
    )
