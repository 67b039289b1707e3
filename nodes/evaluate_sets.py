"""Sets of pictures compared as wholes: FID and ArtFID."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ..host.evaluation.art_fid import ART_FID_FORMS, ArtFIDForm, art_fid_scores
from ..host.evaluation.fid import FID_FORMS, FIDForm, fid_scores
from ..version import VERSION
from . import sockets
from .inputs import EVALUATION
from .picture_inputs import (
    missing_pictures,
    missing_set,
    pictures_fingerprint,
    pictures_input,
    read_pictures,
    read_set,
    short_side_input,
)
from .reports import reported

SAVED = "For saved statistics write statistics/ and their name."


class FID(io.ComfyNode):
    """FID (arXiv:1706.08500). No template; help page SemblanceFID."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceFID",
            display_name="FID",
            category=EVALUATION,
            description="Measures how far two sets of pictures lie apart as wholes: 0 for the same set. It needs many "
            "pictures: papers take thousands, and its numbers compare under the same protocol only.",
            search_aliases=["frechet inception distance", "metric", "evaluation", "dataset distance", "fid infinity"],
            inputs=[
                pictures_input("a", f"The pictures to measure, at least two. {SAVED}"),
                pictures_input("b", f"The pictures to compare them with, e.g. real ones, at least two. {SAVED}"),
                io.Combo.Input(
                    "form",
                    options=list(FID_FORMS),
                    tooltip="'FID' is the usual one. 'FID-infinity' estimates what endlessly many pictures would give, "
                    "from subsets of 5,000 and more; up to 5,000 pictures it is the same.",
                ),
                io.String.Input(
                    "save",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Keeps the statistics of b under this name, so that its pictures need not be read again. "
                    "Empty: they are not kept.",
                ),
            ],
            outputs=[
                sockets.Scores.Output("scores", tooltip="One row; lower is closer."),
                io.Float.Output("distance", tooltip="The number."),
                io.String.Output("report", tooltip="The number and its protocol. Also shown on the node."),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, a: object = None, b: object = None) -> bool | str:
        return missing_set(a=a, b=b)

    @classmethod
    def fingerprint_inputs(cls, a: object = None, b: object = None, **rest: object) -> str:
        return pictures_fingerprint(a, b)

    @classmethod
    def execute(cls, a: Tensor | str, b: Tensor | str, form: FIDForm, save: str = "") -> io.NodeOutput:
        found = fid_scores(read_set("a", a), read_set("b", b), form, save, VERSION)
        return reported(cls, found.report, found.scores, found.distance, found.report)


class ArtFID(io.ComfyNode):
    """ArtFID (arXiv:2207.12280). No template; help page SemblanceArtFID."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceArtFID",
            display_name="ArtFID",
            category=EVALUATION,
            description="Measures style transfer in one number: how much of the contents is kept (LPIPS) and how near "
            "the results come to the styles (FID on a network of paintings). At best 1; papers take 800 pictures.",
            search_aliases=["style transfer metric", "styleid metric", "evaluation", "art inception", "fid"],
            inputs=[
                pictures_input(
                    "content",
                    "The content of each stylised picture, in the same order; one that was stylised several times is "
                    "there several times.",
                ),
                pictures_input(
                    "style", "The style of each stylised picture, in the same order, repeated in the same way."
                ),
                pictures_input("stylised", "The pictures to measure, at least two."),
                io.Combo.Input(
                    "form",
                    options=list(ART_FID_FORMS),
                    tooltip="'published' takes FID-infinity, as the authors' code does by default; 'plain' takes the "
                    "FID of all pictures. Up to 5,000 pictures, so for the papers' 800, they are the same.",
                ),
                short_side_input(
                    512,
                    "What the short side of every picture is scaled to, in pixels: 512 as in StyleID's evaluation; 0 "
                    "leaves them as they are, as the art-fid package does. The numbers of the two do not compare.",
                ),
            ],
            outputs=[
                sockets.Scores.Output("scores", tooltip="One row with ArtFID, FID (art) and LPIPS; lower is better."),
                io.String.Output("report", tooltip="The numbers and their protocol. Also shown on the node."),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, content: object = None, style: object = None, stylised: object = None) -> bool | str:
        return missing_pictures(content=content, style=style, stylised=stylised)

    @classmethod
    def fingerprint_inputs(
        cls, content: object = None, style: object = None, stylised: object = None, **rest: object
    ) -> str:
        return pictures_fingerprint(content, style, stylised)

    @classmethod
    def execute(
        cls,
        content: Tensor | str,
        style: Tensor | str,
        stylised: Tensor | str,
        form: ArtFIDForm,
        short_side: int,
    ) -> io.NodeOutput:
        contents, styles = read_pictures("content", content), read_pictures("style", style)
        scores, report = art_fid_scores(contents, styles, read_pictures("stylised", stylised), form, short_side)
        return reported(cls, report, scores, report)
