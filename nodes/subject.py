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
from .inputs import CATEGORY, file_fingerprint, file_options, missing_file, share_input
from .reports import reported


class RecordSubject(io.ComfyNode):
    """A sampler that also writes down the subject."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceRecordSubject",
            display_name="Record Subject",
            category=CATEGORY,
            description="Samples a story like a KSampler and writes down what its anchors show of the subject, so that "
            "Apply Subject can put the same subject into new scenes without sampling the anchors again. The model "
            "comes from ConsiStory, whose anchors are recorded.",
            search_aliases=["consistory", "save character", "consistent character", "anchor cache", "same character"],
            inputs=[
                io.Model.Input("model", tooltip="The model with ConsiStory on it; it is not changed."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Of the noise the pictures begin as. Another seed gives other anchors.",
                ),
                io.Int.Input(
                    "steps",
                    default=50,
                    min=2,
                    max=1000,
                    tooltip="Steps of the sampler; new scenes take as many. More hold details better and make the "
                    "recording larger.",
                ),
                io.Float.Input(
                    "cfg",
                    default=5.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="How strictly the prompts are followed; the paper's is 5.",
                ),
                io.Combo.Input("sampler_name", options=sampler_names(), tooltip="The sampler, as in KSampler."),
                io.Combo.Input(
                    "scheduler",
                    options=scheduler_names(),
                    tooltip="How the noise levels fall, as in KSampler; new scenes take the same.",
                ),
                io.Conditioning.Input("positive", tooltip="The prompts, from Story Prompts."),
                io.Conditioning.Input(
                    "negative", tooltip="What to avoid. The authors use none, which is ConditioningZeroOut."
                ),
                io.Latent.Input(
                    "latent_image", tooltip="Empty Latent Image with as many pictures as the story has scenes."
                ),
                share_input(
                    "denoise", 1.0, "Less keeps more of a picture in the latent; 1 for an empty one.", advanced=True
                ),
                io.Vae.Input("vae", optional=True, tooltip="To keep a thumbnail of the anchors."),
            ],
            outputs=[
                io.Latent.Output("latent", tooltip="The pictures of the story, for VAE Decode."),
                sockets.Subject.Output("subject", tooltip="The subject, for Apply Subject and Save Subject."),
                io.String.Output("report", tooltip="What was recorded, and how large its file would be."),
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
    """A recorded subject in new scenes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceApplySubject",
            display_name="Apply Subject",
            category=CATEGORY,
            description="Puts a recorded subject into new scenes, one or many at once: each looks at the recorded "
            "anchors and at no other scene. Sample with the steps and scheduler of the recording.",
            search_aliases=["consistory", "load character", "consistent character", "same character", "anchor cache"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model the subject was recorded with, a LoRA added or not; it is not changed."
                ),
                sockets.Subject.Input("subject", tooltip="From Record Subject or Load Subject."),
                sockets.SubjectWords.Input(
                    "subject_words", tooltip="The subject's words in the new scenes, from Story Prompts."
                ),
                share_input(
                    "sharing",
                    Sharing().strength,
                    "How strongly the scenes see the recorded subject; 0 lets them not.",
                    step=0.05,
                ),
                share_input(
                    "query_blend",
                    QueryBlend().strength,
                    "How much of the plain layout is kept at the first steps. More gives poses further from the "
                    "anchors'.",
                    step=0.05,
                ),
                share_input(
                    "injection",
                    Injection().strength,
                    "How much of a matching part's features is copied from the anchors. More holds details better; 0 "
                    "leaves out the second sampling.",
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
    """A subject as one file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceSaveSubject",
            display_name="Save Subject",
            category=CATEGORY,
            description="Writes a recorded subject as one safetensors file with a thumbnail, in "
            "models/semblance/subjects. Record Subject says beforehand how large it gets. A name already taken gets a "
            "number; nothing is overwritten.",
            search_aliases=["save character", "keep character", "subject file", "consistent character"],
            inputs=[
                sockets.Subject.Input("subject", tooltip="From Record Subject."),
                io.String.Input("name", default="my subject", tooltip="The file's name; a slash makes a folder."),
                io.Combo.Input(
                    "form",
                    options=list(FORMS),
                    tooltip="'everything' is all that was recorded; 'without injection' less than half of it, for "
                    "scenes with injection 0; 'recipe' some hundred kilobytes, from which Load Subject makes the "
                    "anchors again.",
                ),
                io.Combo.Input(
                    "precision",
                    options=["float16", "float32"],
                    tooltip="float16 halves the file; the error it brings is reported. A recipe is always exact.",
                ),
            ],
            outputs=[io.String.Output("file", tooltip="The name the file got.")],
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
    """A subject from a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceLoadSubject",
            display_name="Load Subject",
            category=CATEGORY,
            description="Opens a subject saved by Save Subject and shows its thumbnail. Of a recipe the anchors are "
            "sampled again, which takes the model.",
            search_aliases=["load character", "subject file", "consistent character", "same character"],
            inputs=[
                io.Combo.Input("file", options=file_options(SUBJECTS), tooltip="A file in models/semblance/subjects."),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The model the subject was recorded with, without ConsiStory. Only a recipe needs it.",
                ),
            ],
            outputs=[
                sockets.Subject.Output("subject", tooltip="For Apply Subject."),
                io.String.Output("report", tooltip="What the file holds, and how it was sampled."),
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
