"""Subjects kept: recorded once with their anchors, applied to new scenes, and kept in files."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..attention.engine.scope import finite
from ..attention.methods.consistory.settings import Injection, QueryBlend, Sharing
from ..attention.subjects.words import SubjectWords
from ..host.conditioning import Conditioning
from ..host.files import SUBJECTS
from ..host.subjects.recipe import AnchorRun, SamplerSettings, sampler_names, scheduler_names
from ..host.subjects.subject import Subject, apply_subject, record_subject
from ..host.subjects.subject_files import FORMS, Form, load_subject, save_subject, sizes
from ..version import VERSION
from . import sockets
from .inputs import CATEGORY, file_fingerprint, file_options, fraction_input, missing_file
from .reports import reported


class RecordSubject(io.ComfyNode):
    """ConsiStory's anchor cache, written. Template consistory_reuse; help page SemblanceRecordSubject."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceRecordSubject",
            display_name="Record Subject",
            category=CATEGORY,
            description="Samples a story like KSampler and records the subject in its anchors. Apply Subject then puts "
            "the same subject into new scenes without sampling the anchors again. The model comes from ConsiStory, "
            "whose anchors are recorded.",
            search_aliases=["consistory", "save character", "consistent character", "anchor cache", "same character"],
            inputs=[
                io.Model.Input("model", tooltip="A model with ConsiStory on it. It is not changed."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Seed of the starting noise. Another seed gives other anchors.",
                ),
                io.Int.Input(
                    "steps",
                    default=50,
                    min=2,
                    max=1000,
                    tooltip="Number of steps; new scenes must take the same number. More steps hold details better and "
                    "make the recording larger.",
                ),
                io.Float.Input(
                    "cfg",
                    default=5.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="How strictly the prompts are followed; higher values follow them more. The paper uses 5.",
                ),
                io.Combo.Input("sampler_name", options=sampler_names(), tooltip="The sampler, as in KSampler."),
                io.Combo.Input(
                    "scheduler",
                    options=scheduler_names(),
                    tooltip="Spacing of the noise levels, as in KSampler. New scenes must take the same scheduler.",
                ),
                io.Conditioning.Input("positive", tooltip="The prompts, from Story Prompts."),
                io.Conditioning.Input(
                    "negative",
                    tooltip="What to avoid. The authors use no negative: connect ConditioningZeroOut for that.",
                ),
                io.Latent.Input(
                    "latent_image", tooltip="Empty Latent Image with as many images as the story has scenes."
                ),
                fraction_input(
                    "denoise",
                    1.0,
                    "Lower values keep more of a picture in the latent. Use 1 for an empty latent.",
                    advanced=True,
                ),
                io.Vae.Input("vae", optional=True, tooltip="For a thumbnail of the anchors."),
            ],
            outputs=[
                io.Latent.Output("latent", tooltip="The images of the story, for VAE Decode."),
                sockets.Subject.Output("subject", tooltip="The subject, for Apply Subject and Save Subject."),
                io.String.Output(
                    "report", tooltip="The contents of the recording and the size of its file. Also shown on the node."
                ),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        positive: Conditioning,
        negative: Conditioning,
        latent_image: dict[str, Any],
        denoise: float,
        vae: Any = None,
    ) -> io.NodeOutput:
        settings = SamplerSettings(seed, steps, finite(cfg, "The CFG"), sampler_name, scheduler, denoise)
        latents, subject = record_subject(model, AnchorRun.of_latent(settings, positive, negative, latent_image), vae)
        report = f"{subject!r}\n{sizes(subject)}"
        return reported(cls, report, {**latent_image, "samples": latents}, subject, report)


class ApplySubject(io.ComfyNode):
    """ConsiStory's anchor cache, used. Template consistory_reuse; help page SemblanceApplySubject."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceApplySubject",
            display_name="Apply Subject",
            category=CATEGORY,
            description="Puts a recorded subject into new scenes, one or many at once. Each scene attends to the "
            "recorded anchors and to no other scene. Sample with the steps, scheduler and denoise of the recording.",
            search_aliases=["consistory", "load character", "consistent character", "same character", "anchor cache"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model that the subject was recorded with; a LoRA may be added. It is not changed.",
                ),
                sockets.Subject.Input("subject", tooltip="From Record Subject or Load Subject."),
                sockets.SubjectWords.Input(
                    "subject_words", tooltip="The words that name the subject in the new scenes, from Story Prompts."
                ),
                fraction_input(
                    "sharing",
                    Sharing().strength,
                    "How strongly the scenes attend to the recorded subject. 0 turns it off.",
                    step=0.05,
                ),
                fraction_input(
                    "query_blend",
                    QueryBlend().strength,
                    "How much of each scene's own layout is kept in the first steps. Higher values give poses that "
                    "differ more from the anchors'.",
                    step=0.05,
                ),
                fraction_input(
                    "injection",
                    Injection().strength,
                    "How much of the features of matching parts is copied from the anchors. Higher values hold details "
                    "better. 0 leaves out the second pass.",
                    step=0.05,
                ),
            ],
            outputs=[io.Model.Output("model", tooltip="The model, for a sampler with the new scenes' prompts.")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        subject: Subject,
        subject_words: SubjectWords,
        sharing: float,
        query_blend: float,
        injection: float,
    ) -> io.NodeOutput:
        return io.NodeOutput(apply_subject(model, subject, subject_words, sharing, query_blend, injection))


class SaveSubject(io.ComfyNode):
    """Subject files, read by LoadSubject. Template consistory_reuse; help page SemblanceSaveSubject."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceSaveSubject",
            display_name="Save Subject",
            category=CATEGORY,
            description="Writes a recorded subject as one safetensors file with a thumbnail, in "
            "models/semblance/subjects. The report of Record Subject gives its size beforehand. If the name is taken, "
            "a number is added; nothing is overwritten.",
            search_aliases=["save character", "keep character", "subject file", "consistent character"],
            inputs=[
                sockets.Subject.Input("subject", tooltip="From Record Subject."),
                io.String.Input("name", default="my subject", tooltip="Name of the file. A slash makes a folder."),
                io.Combo.Input(
                    "form",
                    options=list(FORMS),
                    tooltip="'everything' saves the whole recording. 'without injection' takes less than half the "
                    "size, for scenes with injection 0. 'recipe' takes a few hundred kilobytes; Load Subject samples "
                    "the anchors again from it.",
                ),
                io.Combo.Input(
                    "precision",
                    options=["float16", "float32"],
                    tooltip="float16 halves the file. The node shows the error that this causes. A recipe is always "
                    "exact.",
                ),
            ],
            outputs=[io.String.Output("file", tooltip="Name of the file that was written.")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, subject: Subject, name: str, form: Form, precision: str) -> io.NodeOutput:
        saved = save_subject(subject, name, VERSION, form, precision == "float16")
        lost = f", relative error {saved.error:.1e}" if saved.error else ""
        report = f"{saved.name}: {form}, {saved.bytes / 2**20:.2f} MB{lost}"
        return reported(cls, report, saved.name, thumbnail=subject.thumbnail)


class LoadSubject(io.ComfyNode):
    """Subject files, written by SaveSubject. Template consistory_reuse; help page SemblanceLoadSubject."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceLoadSubject",
            display_name="Load Subject",
            category=CATEGORY,
            description="Opens a subject saved by Save Subject and shows its thumbnail. For a recipe it samples the "
            "anchors again, which needs the model.",
            search_aliases=["load character", "subject file", "consistent character", "same character"],
            inputs=[
                io.Combo.Input("file", options=file_options(SUBJECTS), tooltip="A file in models/semblance/subjects."),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The model that the subject was recorded with, without ConsiStory. Only a recipe needs it.",
                ),
            ],
            outputs=[
                sockets.Subject.Output("subject", tooltip="For Apply Subject."),
                io.String.Output(
                    "report", tooltip="The contents of the file and the settings its anchors were sampled with."
                ),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        return missing_file(file, SUBJECTS)

    @classmethod
    def fingerprint_inputs(cls, file: str, model: Any = None) -> str:
        return file_fingerprint(file, SUBJECTS)

    @classmethod
    def execute(cls, file: str, model: Any = None) -> io.NodeOutput:
        subject = load_subject(file, model)
        return reported(cls, repr(subject), subject, repr(subject), thumbnail=subject.thumbnail)
