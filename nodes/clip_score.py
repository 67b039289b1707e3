"""CLIP Score: how well pictures show their prompts and keep a style."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..host.evaluation.clip_scores import report_of, score_pictures
from . import sockets
from .inputs import EVALUATION
from .reports import reported


class CLIPScore(io.ComfyNode):
    """CLIP score (arXiv:2104.08718). Template score_and_pick; help page SemblanceCLIPScore."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceCLIPScore",
            display_name="CLIP Score",
            category=EVALUATION,
            description="Measures how well each picture shows its prompt, and how much of a style picture it has, as "
            "cosines between CLIP embeddings. It sorts the pictures and shows a table. Higher is better; compare only "
            "scores of the same encoders.",
            search_aliases=["clip score", "prompt adherence", "rank images", "sort images", "evaluate", "similarity"],
            inputs=[
                io.Image.Input("images", tooltip="The pictures to score, one or a batch."),
                io.String.Input(
                    "prompts",
                    multiline=True,
                    default="",
                    tooltip="What the pictures were to show: one line for all of them, or one line for each, such as "
                    "the prompts of Story Prompts. CLIP reads the first 77 tokens of a line and no weights.",
                ),
                io.MultiType.Input(
                    "text_encoder",
                    types=[io.Clip, sockets.TextTower],
                    tooltip="The text half that belongs to the image encoder: for bigG the CLIP of an SDXL checkpoint, "
                    "for ViT-H or ViT-L Load CLIP Text Tower with the full CLIP file.",
                ),
                io.ClipVision.Input(
                    "clip_vision", tooltip="The image half, from Load CLIP Vision. Larger ones judge better."
                ),
                io.Image.Input(
                    "style",
                    optional=True,
                    tooltip="One or more style pictures, for a second score: how alike the embeddings of each picture "
                    "and of these are. With several it is the mean over them.",
                ),
            ],
            outputs=[
                sockets.Scores.Output("scores", tooltip="The scores in the order of the pictures, for Pick Images."),
                io.Image.Output("images", tooltip="The pictures, the best by text first."),
                io.String.Output("report", tooltip="The table, best first, and how it was measured. Also on the node."),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls, images: Tensor, prompts: str, text_encoder: Any, clip_vision: Any, style: Tensor | None = None
    ) -> io.NodeOutput:
        found = score_pictures(images, prompts, text_encoder, clip_vision, style)
        report = report_of(found)
        return reported(cls, report, found.scores, images[found.best_first()], report)
