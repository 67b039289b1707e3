"""Which model this is, and whether something made with one model may be used on another.

A ModelStamp has two notions of prediction, and files of both kinds exist:

- `stamp_of`, for trajectories: `eps`, `v` or `flow`. Models that cannot be inverted have no such stamp and are refused.
- `subject_stamp`, for subjects: the names of the classes that ComfyUI samples by. Every model has one.

Neither counts a LoRA; another checkpoint merged into the model makes another model of it.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import comfy.model_sampling

from ..attention.functional.inversion import TRAINING_STEPS
from ..attention.references.trajectory import ModelStamp
from ..attention.references.weight_samples import WeightSamples
from .binding.model import check_reached, map_model, map_unet
from .binding.noise_schedule import is_flow
from .binding.transformer import transformer_of
from .weight_values import is_merged, sample_weights

INVERT_AGAIN = "Invert the picture with the model you sample with; a LoRA may be added afterwards."
"""What to do about a trajectory of another model."""


FLOW = "flow"
"""The prediction of a rectified flow: the velocity from the clean latent to the noise."""


def stamp_of(model: Any) -> ModelStamp:
    """The stamp of a MODEL for trajectories.

    Raises ValueError for an unknown family, a prediction other than noise, v or flow, and another noise schedule. A
    flow model may be of any family, and its schedule may be shifted: the same network gives the same velocities.
    """
    if is_flow(model):
        return ModelStamp(name_of(model), FLOW, replace(sample_weights(model), schedule=()).text())
    check_invertible(model)
    known = map_unet(model)
    model_sampling = model.get_model_object("model_sampling")
    prediction = _prediction(model_sampling)
    schedule = model_sampling.sigmas
    if len(schedule) != TRAINING_STEPS:
        raise ValueError(
            f"This model's noise schedule has {len(schedule)} steps where {TRAINING_STEPS} are expected. Remove "
            "ModelSampling nodes before Invert Image."
        )
    return ModelStamp(known.name, prediction, sample_weights(model).text())


def check_invertible(model: Any) -> None:
    """Raises ValueError for a transformer that is no rectified flow."""
    if is_flow(model):
        return
    check_reached(model)
    transformer = transformer_of(model.model)
    if transformer is not None:
        raise ValueError(
            f"This model is a {transformer.name} transformer that is not sampled as a rectified flow and cannot invert "
            "a picture. Load SD 1.5, SDXL or a flow model such as Flux; on this model Semblance has Reference Style."
        )


def name_of(model: Any) -> str:
    """The family of a MODEL as people know it; of one without a map, the name that ComfyUI gives its class."""
    if (transformer := transformer_of(model.model)) is not None:
        return transformer.name
    return map_unet(model).name if hasattr(model.model.diffusion_model, "output_blocks") else type(model.model).__name__


def subject_stamp(model: Any) -> ModelStamp:
    """The stamp of a MODEL for recorded subjects. Raises ValueError for an unknown family."""
    sampling = model.get_model_object("model_sampling")
    kinds = "/".join(base.__name__ for base in type(sampling).__bases__)
    return ModelStamp(map_model(model).name, kinds, sample_weights(model).text())


def check_model(stamp: ModelStamp, here: ModelStamp, model: Any, made: str, remedy: str) -> None:
    """Refuses, with a ValueError, what was made with a model other than MODEL, whose stamp is `here`.

    `made` begins the sentence, such as "The subject was recorded"; `remedy` is the sentence after it.
    """
    check_family(stamp, here.family, made, remedy)
    if stamp.prediction != here.prediction:
        found = f"a model that predicts {stamp.prediction}, but this one predicts {here.prediction}"
        raise _other_model(made, found, remedy)
    if not same_weights(stamp, here, model):
        raise _other_model(made, f"another {stamp.family} model, whose weights are not those of this one", remedy)


def check_family(stamp: ModelStamp, family: str, made: str, remedy: str) -> None:
    """Like `check_model`, for what any model of its family may use."""
    if stamp.family != family:
        article = "an" if stamp.family.startswith(("SD", "A", "E", "I", "O")) else "a"
        raise _other_model(made, f"{article} {stamp.family} model, but this one is {family}", remedy)


def _other_model(made: str, found: str, remedy: str) -> ValueError:
    return ValueError(f"{made} with {found}. {remedy}")


def _prediction(model_sampling: Any) -> str:
    """What the network predicts; a ModelSampling node may have changed it."""
    kinds = {comfy.model_sampling.V_PREDICTION: "v", comfy.model_sampling.EPS: "eps"}  # V_PREDICTION is a subclass
    others = (comfy.model_sampling.X0, comfy.model_sampling.EDM)
    for kind, name in kinds.items():
        if isinstance(model_sampling, kind) and not isinstance(model_sampling, others):
            return name
    found = "/".join(base.__name__ for base in type(model_sampling).__bases__)
    raise ValueError(
        f"This model samples by {found}, which DDIM cannot invert. Load an SD 1.5 or SDXL checkpoint "
        "that predicts noise or v, without LCM or EDM sampling nodes, or a flow model such as Flux."
    )


def same_weights(stamp: ModelStamp, here: ModelStamp, model: Any) -> bool:
    """Whether MODEL, whose stamp is `here`, has the weights that `stamp` was read from."""
    recorded, present = (WeightSamples.read(each.weights) for each in (stamp, here))
    if recorded is not None and present is not None:
        return recorded.is_same(present)
    # A digest does not say whether a merge was on the model, so none may be.
    return not is_merged(model) and stamp.weights == _digest(model)


def _digest(model: Any) -> str | None:
    """What version 0.1 wrote for a model's weights, or None where the layers do not show theirs."""
    schedule = model.get_model_object("model_sampling").sigmas
    digest = hashlib.sha256(schedule.float().cpu().numpy().tobytes())
    weights = model.model.diffusion_model.state_dict()
    digest.update(repr([(name, tuple(weight.shape)) for name, weight in sorted(weights.items())]).encode())
    backup = model.backup
    for name in sorted(weights)[:: max(1, len(weights) // 16)]:
        kept = backup.get(f"diffusion_model.{name}")
        weight = weights[name] if kept is None else kept.weight
        if weight.device.type == "meta":
            return None
        digest.update(weight.flatten()[:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
