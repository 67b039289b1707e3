"""`python -m bench sizes`: what each method takes on SD 1.5 and SDXL at real sizes, beside the plain model.

One call of the UNet in half precision, on the meta device. Peaks are of the tensors that live at once, weights left
out; a GPU's allocator needs somewhat more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any
from unittest import mock

import comfy.model_management
import comfy.samplers
import torch
from torch import Tensor

from semblance.attention.engine.scope import Scope
from semblance.attention.families import CONSISTORY, STYLEID, adapter_numbers
from semblance.attention.methods.consistory.applied import applied_subject
from semblance.attention.methods.consistory.features import features_step
from semblance.attention.methods.consistory.method import ConsiStory
from semblance.attention.methods.consistory.settings import Injection
from semblance.attention.methods.instantstyle import ImageTokens, InstantStyle
from semblance.attention.methods.styleid.method import StyleID
from semblance.attention.references.trajectory import ModelStamp, ReferenceTrajectory
from semblance.attention.subjects.recording import RecordedStates, RecordedSubject
from semblance.host.binding.model import add_patch, map_model
from semblance.host.binding.run import RUN, Run
from semblance.tests.tiny_models.unets import SIZE_CONDITIONING_WIDTH, Family

from .consistory import words
from .cost import table
from .models import POOLED_WIDTH, TEXT_WIDTH, real_model
from .weightless import Meter, Size, metered

SIZES: Mapping[Family, Sequence[int]] = {"sd15": (512, 768), "sdxl": (512, 1024, 1536)}
TITLES: Mapping[Family, str] = {"sd15": "SD 1.5", "sdxl": "SDXL"}
STEPS = 50
IMAGES = 4
"""Of a story."""
MIB = 2**20


@cache
def weightless(kind: Family) -> Any:
    """A MODEL of the family's true size, without contents."""
    return real_model(kind, torch.float16, torch.device("meta"))


@dataclass(frozen=True)
class Calls:
    """Calls of one model with one latent size."""

    kind: Family
    pixels: int
    images: int
    guided: bool = True

    @property
    def rows(self) -> int:
        return self.images * (1 + self.guided)

    def run(self, passes: int = 1) -> Run:
        schedule = weightless(self.kind).get_model_object("model_sampling")
        ladder = comfy.samplers.calculate_sigmas(schedule, "normal", STEPS).tolist()
        run = Run(schedule, ladder, (self.pixels // 8, self.pixels // 8))
        run.passes = passes
        return run

    def call(self, model: Any, run: Run, meter: Meter, step: int) -> Size:
        """One call at a step of a run."""
        meter.begin()
        options = {**model.model_options["transformer_options"], RUN: run}
        numbers = [1, 0] if self.guided else [0]
        options |= {"cond_or_uncond": numbers, "sigmas": [run.moment(0.0).sigmas[step]] * self.images}
        vector = self._empty(POOLED_WIDTH + SIZE_CONDITIONING_WIDTH) if self.kind == "sdxl" else None
        model.model.diffusion_model(
            self._empty(4, self.pixels // 8, self.pixels // 8),
            timesteps=torch.empty(self.rows, device="meta"),
            context=self._empty(77, TEXT_WIDTH[self.kind]),
            y=vector,
            transformer_options=options,
        )
        return meter.size

    def declared(self, extra_images: float) -> float:
        """For how many bytes ComfyUI makes room, beside the weights, where its attention is fused."""
        shape = [2 * (self.images + extra_images), 4, self.pixels // 8, self.pixels // 8]
        with mock.patch.object(comfy.model_management, "pytorch_attention_flash_attention", lambda: True):
            return weightless(self.kind).model.memory_required(shape)

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(self.rows, *shape, dtype=torch.float16, device="meta")


def plain(calls: Calls) -> Size:
    model, run = weightless(calls.kind), calls.run()
    with metered(Meter()) as meter:
        return calls.call(model, run, meter, STEPS // 2)


class AnyAdapter:
    """Image keys and values of the right shapes."""

    def __init__(self, widths: Mapping[int, int]) -> None:
        self._widths = widths

    def keys_values(self, number: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
        made = torch.zeros(*tokens.shape[:2], self._widths[number])
        return made, made.clone()


def instantstyle(calls: Calls, preset: str) -> Size:
    """The second call of a run: at the first, image keys and values are brought to the GPU besides."""
    model_map = map_model(weightless(calls.kind))
    numbers = adapter_numbers(model_map.sites)
    adapter = AnyAdapter({number: model_map.widths[site] for site, number in numbers.items()})
    picture = torch.zeros(16, TEXT_WIDTH[calls.kind])  # as many tokens as a plus adapter gives
    tokens = ImageTokens((picture,), (picture,), (1.0,))
    patch = InstantStyle(tokens, adapter, numbers, Scope(model_map.family.preset(preset)))
    model, run = add_patch(weightless(calls.kind), patch), calls.run()
    with metered(Meter()) as meter:
        calls.call(model, run, meter, STEPS // 2)
        return calls.call(model, run, meter, STEPS // 2)


def styleid(calls: Calls) -> Size:
    """One content and one style."""
    model, run = weightless(calls.kind), calls.run()
    side = calls.pixels // 8
    sigmas = tuple(sorted(run.moment(0.0).sigmas))
    latents = torch.zeros(1, 1, 4, side, side).expand(len(sigmas), -1, -1, -1, -1)
    vector = torch.zeros(1, POOLED_WIDTH + SIZE_CONDITIONING_WIDTH) if calls.kind == "sdxl" else None
    stamp = ModelStamp(TITLES[calls.kind], "none", "")
    picture = ReferenceTrajectory(
        latents, sigmas, STEPS, "styleid", stamp, torch.zeros(1, 77, TEXT_WIDTH[calls.kind]), vector
    )
    scope = Scope(map_model(model).family.weights(STYLEID))
    with metered(Meter()) as meter:
        return calls.call(add_patch(model, StyleID(picture, picture, scope)), run, meter, STEPS // 2)


def story(calls: Calls) -> ConsiStory:
    return ConsiStory(words(calls.images), map_model(weightless(calls.kind)).family.choice(CONSISTORY))


def consistory(calls: Calls) -> Iterator[tuple[str, Size]]:
    """A call of each kind: with queries blended and rehearsed, sharing alone, and copying in the second pass."""
    run = calls.run(passes=2)
    features = features_step(run.moment(run.moment(0.0).sigmas[0]))
    steps = [("", 1, 0), ("blending", 1, 2), ("sharing", 1, STEPS // 2), ("taking features", 1, features)]
    return _told(calls, story(calls), run, [*steps, ("", 2, 0), ("copying", 2, STEPS // 5)])


def applied(calls: Calls) -> Iterator[tuple[str, Size]]:
    """The same with a subject of two recorded anchors in place of live ones, without injection."""
    patch = applied_subject(words(calls.images), story(calls).blocks, subject(calls), Injection(0.0))
    return _told(calls, patch, calls.run(), [("blending", 1, 2), ("sharing", 1, STEPS // 2)])


def _told(
    calls: Calls, patch: ConsiStory, run: Run, steps: Sequence[tuple[str, int, int]]
) -> Iterator[tuple[str, Size]]:
    """What each named call of (name, pass, step) takes."""
    model, meter = add_patch(weightless(calls.kind), patch), Meter()
    for name, pass_number, step in steps:
        run.pass_number = pass_number
        with metered(meter):
            size = calls.call(model, run, meter, step)
        if name:
            yield name, size


def subject(calls: Calls) -> RecordedSubject:
    """A subject that covers a quarter of two anchors, half of it dropped."""
    blocks, size, sigmas = story(calls).blocks, (calls.pixels // 8, calls.pixels // 8), calls.run().moment(0.0).sigmas
    widths = map_model(weightless(calls.kind)).widths
    shared = {site: width for site, width in widths.items() if site.kind == "self" and site.block in blocks.shared}
    counts = {site: (2 * prod(blocks.grid(site.block, size)) // 8,) * STEPS for site in shared}
    states = {
        site: torch.zeros(2, 1, width, dtype=torch.half).expand(-1, sum(counts[site]), -1)
        for site, width in shared.items()
    }
    return RecordedSubject(2, size, sigmas[:-1], (RecordedStates(states, counts),))


def sizes(kind: Family, pixels: int) -> Iterator[tuple[str, Size, Size]]:
    """Each kind of call with what it takes, and what the plain model takes for the same rows."""
    batch, single = Calls(kind, pixels, IMAGES), Calls(kind, pixels, 1, guided=False)
    base = plain(batch)
    yield f"plain, {IMAGES} images", base, base
    for preset in ("style", "all"):
        yield f"InstantStyle, {preset}, {IMAGES} images", instantstyle(batch, preset), base
    for method, calls in (("ConsiStory", consistory), ("Apply Subject", applied)):
        for name, size in calls(batch):
            yield f"{method}, {name}, {IMAGES} images", size, base
    for calls, side in ((single, "CFG 1"), (Calls(kind, pixels, 1), "CFG > 1")):
        alone = plain(calls)
        yield f"plain, {side}", alone, alone
        yield f"StyleID, {side}", styleid(calls), alone


def report_sizes() -> None:
    """Prints a table for each family and size, and one of Apply IP-Adapter's calls."""
    for kind, every in SIZES.items():
        for pixels in every:
            print(f"\n{TITLES[kind]}, {pixels} px, half precision\n")
            rows = [
                [
                    name,
                    f"{size.peak / MIB:.0f}",
                    f"{size.peak / base.peak:.2f}",
                    f"{size.operations / 1e12:.2f}",
                    f"{size.operations / base.operations:.3f}",
                    size.kernels,
                    f"{size.kernels / base.kernels:.2f}",
                ]
                for name, size, base in sizes(kind, pixels)
            ]
            heads = ["call", "peak, MiB", "/ plain", "operations, TFLOP", "/ plain", "kernels", "/ plain"]
            table(heads, rows)
    report_applications()


def report_applications() -> None:
    """Prints what a call with Apply IP-Adapter takes beside a plain one."""
    from .ip_adapter import APPLICATIONS, application

    for kind in SIZES:
        calls = Calls(kind, SIZES[kind][0], IMAGES)
        print(f"\nApply IP-Adapter, {TITLES[kind]}, {calls.pixels} px, {IMAGES} images\n")
        base = plain(calls)
        sizes = {"plain": base} | {name: application(calls, name) for name in APPLICATIONS}
        rows = [
            [
                name,
                calls.rows,
                f"{size.peak / base.peak:.2f}",
                f"{size.operations / base.operations:.3f}",
                f"{size.kernels / base.kernels:.2f}",
                size.waits - base.waits,
            ]
            for name, size in sizes.items()
        ]
        table(["call", "rows", "peak / plain", "operations / plain", "kernels / plain", "waits more"], rows)
