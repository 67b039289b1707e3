"""Pick Images: the contact sheet on the node, and what was picked from it."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from ..attention.engine.scope import finite
from ..host.evaluation.contact_sheet import FRAME, GROUND
from ..host.evaluation.picking import PickRule, Picks, pick_images, pick_latents, prompts_of
from ..metrics.scores import Scores
from . import sockets
from .inputs import EVALUATION
from .parsing import read_numbers


class PickImages(io.ComfyNode):
    """Feedback by a person or a rule. Template score_and_pick; help page SemblancePickImages; click: web/pick.js."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblancePickImages",
            display_name="Pick Images",
            category=EVALUATION,
            description="Shows scored pictures as a numbered sheet and hands on those you pick: click them, or write "
            "their numbers, and run again. Only what follows runs anew. With no number it takes the best by a rule.",
            search_aliases=[
                "select images",
                "choose images",
                "image filter",
                "best of",
                "contact sheet",
                "cherry pick",
            ],
            inputs=[
                io.Image.Input("images", tooltip="Pictures that were scored, in any order; also only some of them."),
                sockets.Scores.Input("scores", tooltip="From CLIP Score."),
                io.Latent.Input(
                    "latents",
                    optional=True,
                    tooltip="The latents of the pictures, in the order in which CLIP Score received them.",
                ),
                io.String.Input(
                    "picked",
                    default="",
                    tooltip="Numbers of the pictures to take, e.g. 0, 3, 5. A click on a picture of the sheet writes "
                    "or removes its number. Empty: the best by the rule below.",
                ),
                *_rule_inputs(),
            ],
            outputs=[
                io.Image.Output("images", tooltip="The picked pictures, in the order of their numbers in 'picked'."),
                io.Latent.Output("latents", tooltip="Their latents, if latents are connected."),
                io.String.Output(
                    "prompts",
                    is_output_list=True,
                    tooltip="Their prompts as a list: CLIP Text Encode encodes each by itself.",
                ),
                sockets.Scores.Output("scores", tooltip="Their scores."),
            ],
            is_output_node=True,  # it may be the end of a graph
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, picked: str | None = None) -> bool | str:
        try:
            read_numbers(picked or "")
        except ValueError as wrong:
            return str(wrong)
        return True

    @classmethod
    def execute(
        cls,
        images: Tensor,
        scores: Scores,
        picked: str,
        count: int,
        by: str,
        floor_measure: str,
        floor: float,
        latents: dict[str, Any] | None = None,
    ) -> io.NodeOutput:
        numbers = read_numbers(picked)
        floors = {floor_measure.strip(): finite(floor, "The floor")} if floor_measure.strip() else {}
        picks = pick_images(images, scores, numbers, PickRule(count, by.strip(), floors))
        chosen = pick_latents(latents, picks.rows, len(scores.rows))
        shown = _shown(cls, picks, by_rule=not numbers)
        return io.NodeOutput(picks.images, chosen, prompts_of(picks.scores), picks.scores, ui=shown)


def _rule_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "count",
            default=4,
            min=1,
            max=4096,
            tooltip="How many of the best to take while 'picked' is empty; fewer where fewer reach the floor.",
        ),
        io.String.Input(
            "by", default="text", tooltip="The score that says which are the best, by its name on the sheet."
        ),
        io.String.Input(
            "floor_measure",
            default="",
            tooltip="A second score that a picture must be good enough in, e.g. style. By text alone those that took "
            "up least of the style are the best. Empty: none.",
        ),
        io.Float.Input(
            "floor",
            default=0.0,
            min=-1000.0,
            max=1000.0,
            step=0.01,
            tooltip="The least that the second score must be, or the most where lower is better.",
        ),
    ]


def _shown(node: type[io.ComfyNode], picks: Picks, by_rule: bool) -> dict[str, Any]:
    """The sheet as an image, and where its pictures are, for web/pick.js."""
    layout = picks.layout
    geometry = {
        "count": layout.count,
        "columns": layout.columns,
        "cell": [layout.cell_width, layout.cell_height],
        "size": list(layout.size),
        "frame": list(layout.frame()),
        "colours": {"frame": _css(FRAME), "ground": _css(GROUND)},
        "picked": list(picks.places),
        "by_rule": by_rule,
    }
    return {**ui.PreviewImage(picks.sheet, cls=node).as_dict(), "sheet": [geometry]}


def _css(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
