"""Pictures compared pair by pair: LPIPS and CFSD."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ..host.evaluation.pairs import CFSD_FORMS, LPIPS_NETWORKS, CFSDForm, LPIPSNetwork, cfsd_scores, lpips_scores
from . import sockets
from .inputs import EVALUATION
from .picture_inputs import (
    missing_pictures,
    pictures_fingerprint,
    pictures_input,
    read_pictures,
    short_side_input,
)
from .reports import reported


class LPIPS(io.ComfyNode):
    """LPIPS v0.1 (arXiv:1801.03924). No template; help page SemblanceLPIPS."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceLPIPS",
            display_name="LPIPS",
            category=EVALUATION,
            description="Measures how far two pictures look apart, pair by pair: 0 for the same picture, higher for "
            "less alike. Give batches or folders of equal length, or one picture against many.",
            search_aliases=["perceptual distance", "perceptual similarity", "compare images", "metric", "evaluation"],
            inputs=[
                pictures_input("a", "The first pictures of the pairs, e.g. the originals."),
                pictures_input("b", "The second pictures, e.g. what was made of them; as many as in a, or one."),
                io.Combo.Input(
                    "network",
                    options=list(LPIPS_NETWORKS),
                    tooltip="The network whose features are compared: 'alex' is the authors' choice for measuring and "
                    "the one in ArtFID, 'vgg' is near what losses use, 'squeeze' is the smallest. Their numbers do not "
                    "compare with each other.",
                ),
                short_side_input(
                    0,
                    "What the short side of every picture is scaled to, in pixels; 0 leaves them as they are. More "
                    "pixels count finer differences and take longer.",
                ),
            ],
            outputs=[
                sockets.Scores.Output("scores", tooltip="A row for each pair; lower is more alike."),
                io.String.Output("report", tooltip="The mean, its interval and the pairs. Also shown on the node."),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, a: object = None, b: object = None) -> bool | str:
        return missing_pictures(a=a, b=b)

    @classmethod
    def fingerprint_inputs(cls, a: object = None, b: object = None, **rest: object) -> str:
        return pictures_fingerprint(a, b)

    @classmethod
    def execute(cls, a: Tensor | str, b: Tensor | str, network: LPIPSNetwork, short_side: int) -> io.NodeOutput:
        scores, report = lpips_scores(read_pictures("a", a), read_pictures("b", b), network, short_side)
        return reported(cls, report, scores, report)


class CFSD(io.ComfyNode):
    """The content measure of StyleID (arXiv:2312.09008). No template; help page SemblanceCFSD."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceCFSD",
            display_name="CFSD",
            category=EVALUATION,
            description="Measures how much of a picture's structure is lost when it is stylised, whatever its colours: "
            "it compares how alike the places of a picture are to each other before and after. 0 is unchanged.",
            search_aliases=["content preservation", "styleid metric", "patch similarity", "structure", "evaluation"],
            inputs=[
                pictures_input("content", "The pictures before they were stylised."),
                pictures_input("stylised", "The same pictures stylised, in the same order and of the same sizes."),
                io.Combo.Input(
                    "form",
                    options=list(CFSD_FORMS),
                    tooltip="'official' adds up over all places, as the authors' code does and their tables show; "
                    "'paper' takes the mean, as their formula says. At 512 pixels official is 16384 times paper.",
                ),
                short_side_input(
                    0,
                    "What the short side of every picture is scaled to, in pixels; 0 leaves them as they are, as the "
                    "authors do at 512. The time grows with the fourth power of the side.",
                ),
            ],
            outputs=[
                sockets.Scores.Output("scores", tooltip="A row for each pair; lower keeps more of the content."),
                io.String.Output("report", tooltip="The mean, its interval and the pairs. Also shown on the node."),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, content: object = None, stylised: object = None) -> bool | str:
        return missing_pictures(content=content, stylised=stylised)

    @classmethod
    def fingerprint_inputs(cls, content: object = None, stylised: object = None, **rest: object) -> str:
        return pictures_fingerprint(content, stylised)

    @classmethod
    def execute(cls, content: Tensor | str, stylised: Tensor | str, form: CFSDForm, short_side: int) -> io.NodeOutput:
        pairs = read_pictures("content", content), read_pictures("stylised", stylised)
        scores, report = cfsd_scores(*pairs, form, short_side)
        return reported(cls, report, scores, report)
