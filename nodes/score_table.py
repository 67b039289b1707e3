"""Scores side by side."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..host.display import show_text
from ..host.evaluation.chart import draw_chart, panels_of
from ..host.evaluation.drawing import LOOKS
from ..host.evaluation.table import tabulate
from ..host.output_files import save_output
from ..host.pictures import tensor_of
from ..metrics.scores import Scores
from . import sockets
from .inputs import EVALUATION
from .parsing import read_captions


class ScoreTable(io.ComfyNode):
    """Means and intervals of SCORES. Template compare_strengths; help page SemblanceScoreTable."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        scores = io.Autogrow.TemplatePrefix(
            sockets.Scores.Input(
                "scores",
                tooltip="Scores to compare, or a list of them. Each time you connect one, a new socket appears.",
            ),
            prefix="scores",
            min=1,
            max=16,
        )
        return io.Schema(
            node_id="SemblanceScoreTable",
            display_name="Score Table",
            category=EVALUATION,
            description="Compares scores: a table of means with their 95 % intervals, a bar chart, and a CSV file with "
            "every value in ComfyUI's output folder. Where the protocols differ, it says so.",
            search_aliases=["compare scores", "csv", "bar chart", "metrics table", "benchmark", "evaluation"],
            inputs=[
                io.Autogrow.Input("scores", template=scores, tooltip="The scores to compare, in this order."),
                io.MultiType.Input(
                    io.String.Input(
                        "labels",
                        multiline=True,
                        default="",
                        tooltip="What to call each of the scores, one a line, in the order of the sockets; or a list "
                        "of texts or numbers from another node. If empty, they are numbered.",
                    ),
                    types=[io.String, io.Float, io.Int],
                ),
                io.String.Input(
                    "filename_prefix",
                    default="scores",
                    tooltip="Beginning of the CSV file's name. A number follows it, so that nothing is overwritten. A "
                    "slash makes a folder.",
                ),
                io.Combo.Input(
                    "look", options=list(LOOKS), tooltip="The chart on light paper, for documents, or on dark."
                ),
            ],
            outputs=[
                io.String.Output("text", tooltip="The table as text. It is Markdown, and reads as plain text too."),
                io.Image.Output("chart", tooltip="A bar for each of the scores, with its interval. Also on the node."),
                io.String.Output("file", tooltip="Name of the CSV file in the output folder."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_input_list=True,
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        scores: dict[str, list[Scores | None]],
        labels: list[str | float],
        filename_prefix: list[str],
        look: list[Any],
    ) -> io.NodeOutput:
        given = [one for socket in scores.values() for one in socket if one is not None]
        table = tabulate(given, read_captions(labels))
        image, warning = draw_chart(panels_of(table), look[0])
        chart = tensor_of(image)
        file = save_output(filename_prefix[0], "table", ".csv", table.csv().encode("utf-8-sig"))
        text = "\n".join(filter(None, (table.text(), warning)))
        show_text(cls.hidden.unique_id, "\n".join(filter(None, (*table.notes(), f"Saved as {file}.", warning))))
        folder = "" if len(file.parts) == 1 else str(file.parent)
        saved = ui.SavedResult(file.name, folder, io.FolderType.output)
        shown = {**ui.PreviewImage(chart, cls=cls).as_dict(), "text": (text,), "files": [saved]}
        return io.NodeOutput(text, chart, str(file), ui=shown)
