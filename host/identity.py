"""Which model this is: what must agree before something made with one model is used on another."""

from __future__ import annotations

import hashlib
from typing import Any

import comfy.model_sampling
import comfy.sample
import comfy.samplers
import comfy.utils

from ..attention.functional.inversion import TRAINING_STEPS
from ..attention.references.trajectory import ModelStamp, ReferenceTrajectory
from .binding.model import map_model


def stamp_of(model: Any) -> ModelStamp:
    """What tells this model from others. Raises ValueError for families and predictions that are not known."""
    known = map_model(model)
    model_sampling = model.get_model_object("model_sampling")
    prediction = _prediction(model_sampling)
    schedule = model_sampling.sigmas
    if len(schedule) != TRAINING_STEPS:
        raise ValueError(
            f"This model's noise schedule has {len(schedule)} steps where {TRAINING_STEPS} are expected. Remove "
            "ModelSampling nodes before Invert Image."
        )
    return ModelStamp(known.name, prediction, digest_of(model))


def check_family(trajectory: ReferenceTrajectory, family: str, name: str) -> None:
    """Refuses a trajectory of another family of models, with a ValueError."""
    if trajectory.stamp.family != family:
        raise ValueError(
            f"The {name} was made with an {trajectory.stamp.family} model, but this one is {family}. Invert the "
            "picture with the model you sample with."
        )


def _prediction(model_sampling: Any) -> str:
    """What the network predicts; a ModelSampling node may have changed it."""
    kinds = {comfy.model_sampling.V_PREDICTION: "v", comfy.model_sampling.EPS: "eps"}  # the first is one of the second
    others = (comfy.model_sampling.X0, comfy.model_sampling.EDM)
    for kind, name in kinds.items():
        if isinstance(model_sampling, kind) and not isinstance(model_sampling, others):
            return name
    found = "/".join(base.__name__ for base in type(model_sampling).__bases__)
    raise ValueError(
        f"This model samples by {found}, which DDIM cannot invert. Load an SD 1.5 or SDXL checkpoint "
        "that predicts noise or v, without LCM or EDM sampling nodes."
    )


def digest_of(model: Any) -> str:
    """Noise schedule, shapes of all weights and samples of some, before any LoRA."""
    schedule = model.get_model_object("model_sampling").sigmas
    digest = hashlib.sha256(schedule.float().cpu().numpy().tobytes())
    weights = model.model.diffusion_model.state_dict()
    digest.update(repr([(name, tuple(weight.shape)) for name, weight in sorted(weights.items())]).encode())
    backup = model.backup
    for name in sorted(weights)[:: max(1, len(weights) // 16)]:
        kept = backup.get(f"diffusion_model.{name}")
        weight = weights[name] if kept is None else kept.weight
        digest.update(weight.flatten()[:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def subject_stamp(model: Any) -> ModelStamp:
    """What tells this model from others on which a subject cannot be used; a LoRA does not count."""
    sampling = model.get_model_object("model_sampling")
    kinds = "/".join(base.__name__ for base in type(sampling).__bases__)
    return ModelStamp(map_model(model).name, kinds, digest_of(model))


def check_model(stamp: ModelStamp, model: Any) -> None:
    """Refuses, with a ValueError, a MODEL other than the one that a subject was recorded with."""
    here = subject_stamp(model)
    if stamp.family != here.family:
        raise ValueError(
            f"The subject was recorded with an {stamp.family} model, but this one is {here.family}. Load the model it "
            "was recorded with, or record it anew."
        )
    if stamp.prediction != here.prediction:
        raise ValueError(
            f"The subject was recorded on a model that samples by {stamp.prediction}, but this one samples by "
            f"{here.prediction}. Give the model the same ModelSampling node, or record the subject anew."
        )
    if stamp.weights != here.weights:
        raise ValueError(
            f"The subject was recorded with another {stamp.family} checkpoint. Load that one, or record the subject "
            "anew; a LoRA may be added to either."
        )
