"""ConsiStory on a MODEL."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..attention.engine.scope import ImageMask
from ..attention.methods.consistory.method import ConsiStory as ConsiStoryPatch
from ..attention.methods.consistory.settings import FreeU, Injection, MaskDropout, QueryBlend, Sharing, StepRange
from ..attention.references.trajectory import ReferenceTrajectory
from ..attention.subjects.user_masks import UserMasks
from ..attention.subjects.words import SubjectWords
from ..host.binding.model import add_patch, map_model
from ..host.identity import require_family
from . import sockets
from .inputs import CATEGORY, share_input

MODES = ("official", "clean", "fast")
REPLACE, LIMIT = "replace", "limit"


class ConsiStory(io.ComfyNode):
    """The same subjects in every image of a batch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceConsiStory",
            display_name="ConsiStory",
            category=CATEGORY,
            description="Keeps a story's subjects alike in all images of a batch, without training: the images see "
            "each other's subject while they are sampled, and matching parts are copied from image to image. Each "
            "image keeps its own prompt and layout. The sampler runs twice.",
            search_aliases=["consistent character", "same character", "consistent subject", "storyboard", "story"],
            inputs=[
                io.Model.Input("model", tooltip="The SD 1.5 or SDXL model; it is not changed."),
                sockets.SubjectWords.Input("subject_words", tooltip="The subjects' words, from Story Prompts."),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    tooltip="'official' does what the authors' code does; 'clean' copies features from images as they "
                    "were, not as changed already; 'fast' is clean and ends the first sampling early.",
                ),
                io.Int.Input(
                    "anchors",
                    default=2,
                    min=0,
                    max=64,
                    tooltip="The first images of the batch, which all others look at. More hold the subject better and "
                    "cost more; 0 lets every image look at all others.",
                ),
                share_input(
                    "sharing", 1.0, "How strongly the images see each other's subject; 0 lets them not.", step=0.05
                ),
                share_input(
                    "dropout",
                    0.5,
                    "The share of the subject hidden from the others at each step. More gives freer poses and a "
                    "looser likeness.",
                    step=0.05,
                ),
                share_input(
                    "query_blend",
                    1.0,
                    "How much of the plain layout is kept at the first steps. More gives more different poses.",
                    step=0.05,
                ),
                share_input(
                    "injection",
                    0.8,
                    "How much of a matching part's features is copied. More holds details better; 0 leaves out the "
                    "second sampling.",
                    step=0.05,
                ),
                *_advanced_inputs(),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the subject stands, in white: one mask, or one an image. Without it the masks are "
                    "found by the attention to the subject's words.",
                ),
                sockets.Trajectory.Input(
                    "pictures",
                    optional=True,
                    tooltip="Real pictures of the subject, from Invert Image (edit-friendly): the first images of the "
                    "batch are these, and all others look at them. The first scenes say what is in them.",
                ),
            ],
            outputs=[io.Model.Output("model", tooltip="The model, for a sampler with the story's prompts.")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        subject_words: SubjectWords,
        mode: str,
        anchors: int,
        sharing: float,
        dropout: float,
        query_blend: float,
        injection: float,
        blend_until: float,
        inject_from: float,
        inject_until: float,
        free_u: bool,
        dropout_seed: int,
        mask_use: str,
        mask: Tensor | None = None,
        pictures: ReferenceTrajectory | None = None,
    ) -> io.NodeOutput:
        known = map_model(model)
        if pictures is not None:
            require_family(pictures, known.name, "trajectory of the pictures")
        window = StepRange(inject_from, inject_until)
        patch = ConsiStoryPatch(
            subject_words,
            known.family.consistory,
            Sharing(sharing, anchors, MaskDropout(dropout, dropout_seed)),
            QueryBlend(query_blend, until=blend_until),
            Injection(injection, window, in_turn=mode == "official"),
            FreeU() if free_u else None,
            None if mask is None else UserMasks(ImageMask(mask), mask_use == LIMIT),
            fast=mode == "fast",
            pictures=pictures,
        )
        return io.NodeOutput(add_patch(model, patch))


def _advanced_inputs() -> list[io.Input]:
    inputs = [
        share_input("blend_until", 0.1, "Until when the plain layout is mixed in, as a share of the run."),
        share_input("inject_from", 0.1, "From when features are copied, as a share of the run."),
        share_input("inject_until", 0.3334, "Until when features are copied, as a share of the run.", step=0.0001),
        io.Boolean.Input(
            "free_u",
            default=False,
            tooltip="FreeU with the authors' factors and blocks, which their results were made with. The FreeU node "
            "chooses other blocks.",
        ),
        io.Int.Input(
            "dropout_seed",
            default=0,
            min=0,
            max=0xFFFFFFFF,
            tooltip="Another number hides other parts of the subject.",
        ),
        io.Combo.Input(
            "mask_use",
            options=[REPLACE, LIMIT],
            tooltip="Whether the mask stands in place of those found, or only limits them.",
        ),
    ]
    for each in inputs:
        each.advanced = True
    return inputs
