"""Inputs of nodes that put pictures on a model as ComfyUI_IPAdapter_plus does, under its names."""

from __future__ import annotations

from comfy_api.latest import io

from ..attention.families.weight_types import WEIGHT_TYPES, WeightType
from ..attention.functional.key_scaling import KEY_SCALINGS, KeyScaling
from ..attention.functional.picture_sums import APPLIED_SUMS, PictureSum
from . import sockets
from .inputs import fraction_input

OWN_TYPES: tuple[WeightType, ...] = WEIGHT_TYPES[:15]
"""The weight types without second names and boosts."""
LINEAR: WeightType = "linear"
CONCAT: PictureSum = "concat"
V_ONLY: KeyScaling = "V only"


def adapter_input(tooltip: str) -> io.Input:
    """An adapter, under the name of the old nodes."""
    return sockets.Adapter.Input("ipadapter", tooltip=tooltip)


def weight_input(name: str, most: float, tooltip: str, step: float = 0.05) -> io.Float.Input:
    """How strongly a picture acts, from -1 to `most`."""
    return io.Float.Input(name, default=1.0, min=-1.0, max=most, step=step, tooltip=tooltip)


def weight_type_input() -> io.Combo.Input:
    """How a weight is spread over blocks."""
    return io.Combo.Input(
        "weight_type",
        options=list(OWN_TYPES),
        default=LINEAR,
        tooltip="How the weight is spread over the model's blocks: 'linear' everywhere, 'style transfer' and "
        "'composition' where each lives. The help page of Apply IP-Adapter has all in a table.",
    )


def combine_input() -> io.Combo.Input:
    """How a batch of pictures becomes one."""
    return io.Combo.Input(
        "combine_embeds",
        options=list(APPLIED_SUMS),
        default=CONCAT,
        tooltip="How the pictures of a batch become one: 'concat' keeps all of them side by side, the others sum, "
        "subtract or average what the image encoder sees.",
    )


def scaling_input() -> io.Combo.Input:
    """What a weight multiplies."""
    return io.Combo.Input(
        "embeds_scaling",
        options=list(KEY_SCALINGS),
        default=V_ONLY,
        tooltip="What the weight multiplies. 'V only' scales what the picture adds. The others scale the keys too, "
        "which makes the model look at fewer parts of the picture the higher the weight is; with a C penalty narrow "
        "layers weigh less.",
    )


def window_inputs() -> list[io.Input]:
    """When a picture acts."""
    return [
        fraction_input(
            "start_at",
            0.0,
            "When the picture begins to act, as a fraction of the noise schedule (not of the steps). Higher values "
            "begin later and leave the layout to the prompt.",
            step=0.001,
        ),
        fraction_input(
            "end_at",
            1.0,
            "When the picture stops acting, as a fraction of the noise schedule (not of the steps). Lower values stop "
            "earlier and leave fine texture to the prompt.",
            step=0.001,
        ),
    ]


def encoder_input() -> io.Input:
    """The image encoder of an adapter that came without one."""
    return io.ClipVision.Input(
        "clip_vision",
        optional=True,
        tooltip="The image encoder the adapter was trained with. Load IP-Adapter by Kind brings it along.",
    )
