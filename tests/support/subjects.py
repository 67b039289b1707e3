"""A subject as a person keeps it, node by node, on tiny models."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from semblance.host.subjects.subject import Subject
from semblance.nodes.consistory import ConsiStory
from semblance.nodes.prompts import StoryPrompts
from semblance.nodes.subject import ApplySubject, RecordSubject
from semblance.tests.support.graphs import run
from semblance.tests.tiny_models import Family, empty_latent, ksampler, make_clip, make_conditioning

STEPS = 6
SIDE = 16
STORY = {
    "mode": "official",
    "anchors": 2,
    "sharing": 1.0,
    "dropout": 0.5,
    "query_blend": 1.0,
    "injection": 0.8,
    "blend_until": 0.2,
    "inject_from": 0.1,
    "inject_until": 0.7,
    "free_u": False,
    "dropout_seed": 0,
    "mask_use": "replace",
}


def prompts(kind: Family, *scenes: str) -> tuple[Any, Any]:
    """CONDITIONING and SUBJECT_WORDS of scenes with a fox."""
    conditioning, words, *_ = run(StoryPrompts, make_clip(kind), "a red fox", "ink,", "\n".join(scenes)).result
    return conditioning, words


def story_on(model: Any, words: Any, **settings: Any) -> Any:
    """MODEL with ConsiStory on it."""
    return run(ConsiStory, model, words, **(STORY | settings))[0]


def recorded(model: Any, kind: Family = "sd15", scenes: int = 2, vae: Any = None, **settings: Any) -> Any:
    """The outputs of Record Subject: latent, subject, report."""
    sampler = {"seed": 3, "steps": STEPS, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    sampler |= {name: settings.pop(name) for name in list(settings) if name in sampler}
    text, words = prompts(kind, *("asleep", "by a lake", "on a hill")[:scenes])
    negative = settings.pop("negative", make_conditioning(kind, seed=2))
    latent = settings.pop("latent", empty_latent(scenes, SIDE, SIDE))
    story = story_on(model, words, **settings)
    return run(RecordSubject, story, positive=text, negative=negative, latent_image=latent, vae=vae, **sampler).result


def applied(model: Any, subject: Subject, words: Any, **settings: Any) -> Any:
    settings = {"sharing": 1.0, "query_blend": 1.0, "injection": 0.8} | settings
    return run(ApplySubject, model, subject, words, **settings)[0]


def sampled(model: Any, text: Any, kind: Family = "sd15", side: int = SIDE, **settings: Any) -> Tensor:
    """What KSampler makes of new scenes."""
    settings = {"steps": STEPS, "cfg": 4.0, "scheduler": "simple", "seed": 8} | settings
    images = len(text[0][0])
    return ksampler(model, text, make_conditioning(kind, seed=2), empty_latent(images, side, side), **settings)
