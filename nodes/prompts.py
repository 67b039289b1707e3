"""Prompts of a story: scenes that are sampled together."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..attention.subjects.words import read_scenes, read_subjects
from ..host.subjects.tokens import encode_story
from . import sockets
from .inputs import CATEGORY
from .reports import reported


class StoryPrompts(io.ComfyNode):
    """Scenes of the same subjects as one batch of prompts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceStoryPrompts",
            display_name="Story Prompts",
            category=CATEGORY,
            description="Writes a prompt for each scene of a story and encodes them as one batch, a picture a scene, "
            "so that ConsiStory can keep the subjects alike. It finds the tokens that name the subjects, also in "
            "weighted, long and embedded text.",
            search_aliases=[
                "consistory",
                "consistent character",
                "same character",
                "storyboard",
                "prompt batch",
                "multiple prompts",
            ],
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP of the SD 1.5, SD 2.x or SDXL checkpoint."),
                io.String.Input(
                    "subjects",
                    multiline=True,
                    default="a red fox",
                    tooltip="Who stays the same, one subject a line, e.g. a red fox. Few and plain words hold best. "
                    "Weights and embeddings work as in any prompt.",
                ),
                io.String.Input(
                    "style",
                    default="a watercolour of",
                    tooltip="What every prompt begins with, e.g. a watercolour of. It may be empty.",
                ),
                io.String.Input(
                    "scenes",
                    multiline=True,
                    default="in the snow\nby a lake in autumn\nan old tree and {subject} asleep under it",
                    tooltip="One scene a line; each becomes a picture. A single subject comes between style and scene. "
                    "To place it yourself, write its words, or its number from the list in curly brackets. With "
                    "several subjects every scene places at least one.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    "conditioning", tooltip="The prompts as one batch, for a sampler's positive input."
                ),
                sockets.SubjectWords.Output(
                    "subject_words", tooltip="Which words of each prompt name the subjects, for ConsiStory."
                ),
                io.Int.Output("count", tooltip="How many scenes there are, for batch_size of Empty Latent Image."),
                io.String.Output("prompts", tooltip="The prompts, one a line; they are shown on the node too."),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(cls, clip: Any, subjects: str, style: str, scenes: str) -> io.NodeOutput:
        conditioning, words = encode_story(clip, read_subjects(subjects), style, read_scenes(scenes))
        prompts = "\n".join(words.prompts)
        return reported(cls, prompts, conditioning, words, words.scenes, prompts)
