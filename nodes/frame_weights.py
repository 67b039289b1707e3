"""Weights that change from frame to frame, and the pictures that go with them."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..host.blocked import not_made
from ..host.ip_adapter.frames import METHODS, TIMINGS, FrameSettings, Method, Timing, line_up
from . import sockets
from .inputs import IP_ADAPTER_CATEGORY
from .parsing import read_weights

LONGEST = 9999


class WeightsOverFrames(io.ComfyNode):
    """A list of weights for the images of a batch. No template; help page SemblanceWeightsOverFrames."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceWeightsOverFrames",
            display_name="Weights over Frames",
            category=IP_ADAPTER_CATEGORY,
            description="Makes one weight for each image of a batch, rising or falling from the first to the last, and "
            "lines up pictures with them. For 'weight' and 'image' of Apply IP-Adapter with per_image on.",
            search_aliases=["ipadapter weights", "weights strategy", "schedule", "keyframes", "animation weights"],
            inputs=[*_shape_inputs(), *_length_inputs(), *_picture_inputs()],
            outputs=[
                io.Float.Output("weights", tooltip="One weight for each frame, as a list, for 'weight'."),
                io.Float.Output("weights_invert", tooltip="The same list from its end to its beginning."),
                io.Int.Output("total_frames", tooltip="How many frames there are, for batch_size of the latent."),
                io.Image.Output("image_1", tooltip="The picture of each frame, for 'image'."),
                io.Image.Output(
                    "image_2",
                    tooltip="The picture that each frame changes to or from, for a second Apply IP-Adapter with "
                    "weights_invert. With 'full batch' there is none.",
                ),
                sockets.FrameWeights.Output(
                    "weights_strategy", tooltip="The settings, for another Weights over Frames with other pictures."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        weights: str,
        timing: Timing,
        frames: int,
        start_frame: int,
        end_frame: int,
        add_starting_frames: int,
        add_ending_frames: int,
        method: Method,
        image: Tensor | None = None,
        weights_strategy: FrameSettings | None = None,
        seed: int = 0,
    ) -> io.NodeOutput:
        written = tuple(read_weights(weights))
        own = FrameSettings(
            written, timing, frames, start_frame, end_frame, add_starting_frames, add_ending_frames, method, seed
        )
        settings = own if weights_strategy is None else weights_strategy
        lined_up = line_up(settings, 0 if image is None else len(image))
        shown = (_pictures(image, numbers, settings) for numbers in (lined_up.pictures, lined_up.others))
        values = list(lined_up.weights)
        return io.NodeOutput(values, values[::-1], len(values), *shown, settings)


def _pictures(image: Tensor | None, numbers: tuple[int, ...] | None, settings: FrameSettings) -> Any:
    if image is None:
        return not_made("There are no pictures. Connect a batch to 'image' of Weights over Frames.")
    if numbers is None:
        return not_made(f"'{settings.method}' shows one picture at a time, so there is no 'image_2'. Choose another.")
    return image[list(numbers)]


def _shape_inputs() -> list[io.Input]:
    return [
        io.String.Input(
            "weights",
            default="1.0, 0.0",
            multiline=True,
            tooltip="Weights, with commas or on lines of their own. With 'custom' each is one frame's; else the first "
            "is the weight at the start and the last that at the end. Higher weights follow the picture more.",
        ),
        io.Combo.Input(
            "timing",
            options=list(TIMINGS),
            default="linear",
            tooltip="How the weight changes: 'linear' evenly, 'ease_in_out' slowly at both ends, 'ease_in' fast at "
            "first, 'ease_out' slowly at first, 'random' anyhow, 'custom' as written.",
        ),
        _frames_input("frames", 0, "Number of frames. At least 2; 'custom' has as many as there are weights."),
        _frames_input("start_frame", 0, "The frame at which the weight begins to change. A higher one begins later."),
        _frames_input("end_frame", LONGEST, "The frame before which the weight arrives at the last one."),
    ]


def _length_inputs() -> list[io.Input]:
    return [
        _frames_input("add_starting_frames", 0, "So many frames come before, with the first weight and picture."),
        _frames_input("add_ending_frames", 0, "So many frames come after, with the last weight and picture."),
    ]


def _picture_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "method",
            options=list(METHODS),
            tooltip="What several pictures do: 'full batch' shows each for all frames in turn; 'shift batches' goes "
            "from each to the next; 'alternate batches' does too, and keeps the pictures in place while the weights "
            "swing back and forth.",
        ),
        io.Image.Input("image", optional=True, tooltip="The pictures, as a batch."),
        sockets.FrameWeights.Input(
            "weights_strategy",
            optional=True,
            tooltip="Settings from another Weights over Frames. They take the place of those on this node.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=False,
            optional=True,
            advanced=True,
            tooltip="Seed of 'random'. Another seed gives other weights.",
        ),
    ]


def _frames_input(name: str, default: int, tooltip: str) -> io.Int.Input:
    return io.Int.Input(name, default=default, min=0, max=LONGEST, tooltip=tooltip)
