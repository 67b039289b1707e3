"""Prompts of a story: scenes that are sampled together."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..attention.subjects.words import read_scenes, read_subjects
from ..host.subjects.tokens import LOOKUPS, Lookup, encode_story
from . import sockets
from .inputs import CATEGORY
from .reports import reported


class StoryPrompts(io.ComfyNode):
    """Prompts for ConsiStory (arXiv:2402.03286). Templates consistory*; help page SemblanceStoryPrompts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceStoryPrompts",
            display_name="Story Prompts",
            category=CATEGORY,
            description="Writes one prompt for each scene of a story and encodes them as one batch, so that ConsiStory "
            "can keep the subjects alike. It finds the tokens that name the subjects, also in prompts that are long, "
            "weighted or hold embeddings.",
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
                    tooltip="The subjects that stay the same, one on each line, e.g. a red fox. Short, plain "
                    "descriptions work best. Weights and embeddings work as in any prompt.",
                ),
                io.String.Input(
                    "style",
                    default="a watercolour of",
                    tooltip="The beginning of every prompt, e.g. a watercolour of. It may be empty. Words for all "
                    "scenes belong here: Conditioning (Concat) cannot join one prompt to the batch.",
                ),
                io.String.Input(
                    "scenes",
                    multiline=True,
                    default="in the snow\nby a lake in autumn\nan old tree and {subject} asleep under it",
                    tooltip="One scene on each line; each becomes one image. A single subject is put between style and "
                    "scene. To place it yourself, write its words, or its number from the list in curly brackets. With "
                    "several subjects every scene must name at least one.",
                ),
                io.Combo.Input(
                    "lookup",
                    options=list(LOOKUPS),
                    optional=True,
                    advanced=True,
                    tooltip="The words by which ConsiStory finds a subject in the image. 'all words' takes all of "
                    "them; 'last word' takes the first token of the last one, as in the authors' code: fox of a red "
                    "fox.",
                ),
                _size_input("width"),
                _size_input("height"),
            ],
            outputs=[
                io.Conditioning.Output(
                    "conditioning", tooltip="The prompts as one batch, for a sampler's positive input."
                ),
                sockets.SubjectWords.Output(
                    "subject_words", tooltip="The words of each prompt that name the subjects, for ConsiStory."
                ),
                io.Int.Output("count", tooltip="Number of scenes, for batch_size of Empty Latent Image."),
                io.String.Output("prompts", tooltip="The prompts, one on each line. Also shown on the node."),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        clip: Any,
        subjects: str,
        style: str,
        scenes: str,
        lookup: Lookup = "all words",
        width: int = 0,
        height: int = 0,
    ) -> io.NodeOutput:
        size = {name: pixels for name, pixels in (("width", width), ("height", height)) if pixels}
        conditioning, words = encode_story(clip, read_subjects(subjects), style, read_scenes(scenes), lookup, size)
        prompts = "\n".join(words.prompts)
        return reported(cls, prompts, conditioning, words, words.scenes, prompts)


def _size_input(side: str) -> io.Int.Input:
    return io.Int.Input(
        side,
        default=0,
        min=0,
        max=16384,
        step=8,
        optional=True,
        advanced=True,
        tooltip=f"The {side} in pixels that SDXL is told of its picture. Higher values ask for the detail of a larger "
        f"picture. 0: the {side} of the latent. The authors' pipeline tells it 1024.",
    )
