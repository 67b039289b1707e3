"""ConsiStory on a MODEL."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..attention.engine.scope import ImageMask
from ..attention.families import CONSISTORY
from ..attention.methods.consistory.method import ConsiStory as ConsiStoryPatch
from ..attention.methods.consistory.settings import FreeU, Injection, MaskDropout, QueryBlend, Sharing, StepRange
from ..attention.references.trajectory import ReferenceTrajectory
from ..attention.subjects.user_masks import UserMasks
from ..attention.subjects.words import SubjectWords
from ..host.binding.model import add_patch, map_unet
from ..host.identity import INVERT_AGAIN, check_family
from . import sockets
from .inputs import CATEGORY, fraction_input

MODES = ("official", "clean", "fast")
REPLACE, LIMIT = "replace", "limit"


class ConsiStory(io.ComfyNode):
    """ConsiStory (arXiv:2402.03286). Templates consistory*; help page SemblanceConsiStory."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceConsiStory",
            display_name="ConsiStory",
            category=CATEGORY,
            description="Keeps a story's subjects alike in all images of a batch, without training. While they are "
            "sampled, the images attend to each other's subject, and features of matching parts are copied from image "
            "to image. Each image keeps its own prompt and layout. The sampler makes two passes.",
            search_aliases=["consistent character", "same character", "consistent subject", "storyboard", "story"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="An SD 1.5 or SDXL model. It is not changed; a patched copy comes out."
                ),
                sockets.SubjectWords.Input(
                    "subject_words", tooltip="The words that name the subjects, from Story Prompts."
                ),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    tooltip="'official' follows the authors' code: images copy features from earlier images that have "
                    "themselves been changed. 'clean' copies from the images before any change. 'fast' is 'clean' with "
                    "a shorter first pass.",
                ),
                io.Int.Input(
                    "anchors",
                    default=Sharing().anchors,
                    min=0,
                    max=64,
                    tooltip="How many of the first images serve as anchors, which all images attend to. More anchors "
                    "hold the subject better and cost more time and memory. 0: every image attends to all others.",
                ),
                fraction_input(
                    "sharing",
                    Sharing().strength,
                    "How strongly the images attend to each other's subject. 0 turns it off.",
                    step=0.05,
                ),
                fraction_input(
                    "dropout",
                    MaskDropout().fraction,
                    "Fraction of the subject that is hidden from the other images at each step. Higher values give "
                    "freer poses and a looser likeness.",
                    step=0.05,
                ),
                fraction_input(
                    "query_blend",
                    QueryBlend().strength,
                    "How much of each image's own layout is kept in the first steps. Higher values give more varied "
                    "poses.",
                    step=0.05,
                ),
                fraction_input(
                    "injection",
                    Injection().strength,
                    "How much of the features of matching parts is copied between images. Higher values hold details "
                    "better. 0 leaves out the second pass.",
                    step=0.05,
                ),
                *_advanced_inputs(),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="The area of the subject, in white: one mask for all images, or one for each. Without it "
                    "the masks are found from the attention to the subject's words. Passes by tiles (Ultimate SD "
                    "Upscale, detailers) take each tile for a whole picture: bypass ConsiStory there.",
                ),
                sockets.Trajectory.Input(
                    "pictures",
                    optional=True,
                    tooltip="Real pictures of the subject, from Invert Image (edit-friendly). They become the first "
                    "images of the batch, and all others attend to them. Describe each of them in the first scenes.",
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
        known = map_unet(model)
        if pictures is not None:
            check_family(pictures.stamp, known.name, "The trajectory of the pictures was made", INVERT_AGAIN)
        window = StepRange(inject_from, inject_until)
        patch = ConsiStoryPatch(
            subject_words,
            known.family.choice(CONSISTORY),
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
    window = Injection().window
    inputs = [
        fraction_input(
            "blend_until",
            QueryBlend().until,
            "The step at which query_blend ends, as a fraction of the steps of a plain run; other schedulers act at "
            "the same noise. Higher values keep each image's own layout for longer.",
        ),
        fraction_input(
            "inject_from",
            window.start,
            "The step at which copying of features begins, as a fraction of the steps of a plain run; other schedulers "
            "act at the same noise. Higher values begin later.",
        ),
        fraction_input(
            "inject_until",
            window.end,
            "The step at which copying of features ends, as a fraction of the steps of a plain run; other schedulers "
            "act at the same noise. Higher values copy for longer.",
            step=0.0001,
        ),
        io.Boolean.Input(
            "free_u",
            default=True,
            tooltip="Adds FreeU with the factors and blocks of the authors' code, as in their results. ComfyUI's FreeU "
            "node acts on other blocks.",
        ),
        io.Int.Input(
            "dropout_seed",
            default=MaskDropout().seed,
            min=0,
            max=0xFFFFFFFF,
            tooltip="Seed of the dropout. Another number hides other parts of the subject.",
        ),
        io.Combo.Input(
            "mask_use",
            options=[REPLACE, LIMIT],
            tooltip="'replace' uses the mask instead of those found; 'limit' keeps only what is in both.",
        ),
    ]
    for each in inputs:
        each.advanced = True
    return inputs
