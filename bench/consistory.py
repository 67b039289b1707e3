"""ConsiStory and recorded subjects: how often the UNet is called, what that takes, and what is kept meanwhile.

All of it is on stand-ins for SDXL, small enough for a CPU: its blocks at a tenth of its widths. What is kept is told
for SDXL itself by the shapes of what a stand-in of its depth keeps; what is timed has fewer layers in each block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from math import prod
from statistics import median
from typing import Any

import comfy.patcher_extension
import torch
from comfy.patcher_extension import WrappersMP
from node_helpers import conditioning_set_values
from torch import Tensor

from semblance.attention.engine.bank import FeatureBank
from semblance.attention.engine.call import AttentionSite
from semblance.attention.engine.layout import BatchLayout
from semblance.attention.engine.moment import Moment, RunPlan
from semblance.attention.families import CONSISTORY, SDXL
from semblance.attention.methods.consistory.applied import applied_subject
from semblance.attention.methods.consistory.method import ConsiStory
from semblance.attention.methods.consistory.recorded_anchors import RecordedAnchors
from semblance.attention.methods.consistory.settings import Injection, MaskDropout, QueryBlend
from semblance.attention.subjects.maps import REMEMBERED_STEPS
from semblance.attention.subjects.recording import RecordedSubject
from semblance.attention.subjects.words import SubjectWords
from semblance.host.binding.conditionings import TAG
from semblance.host.binding.model import add_patch, map_model
from semblance.host.binding.unet import BoundSite
from semblance.host.subjects.subject import record
from semblance.tests.tiny_models import UNET_CONFIGS, empty_latent, ksampler, make_conditioning, make_unet
from semblance.tests.tiny_models.unets import base_model, patcher_around
from semblance.tests.tiny_models.weights import seed_weights

from .cost import Run, flops, measure, ratios, spread, table

STEPS = 50
"""Steps of the authors' runs, in which calls are counted."""
TIMED_STEPS = 5
"""Steps of the runs that are timed: short ones, taken in turn many times."""
LONGER_BLEND = QueryBlend(until=0.4)
"""Under which so short a run blends queries too."""
SLOPE_STEPS, DISTANCE_STEPS = 3, 10
SIDE = 16
"""Of the stand-ins' latents."""
WIDER, SDXL_SIDE = 10, 128
"""How much wider SDXL is than the stand-in, and the side of its latent at 1024 pixels."""
COVERED = (0.1, 0.25)
"""Shares of the picture that a subject covers, for which sizes are foretold."""
SEEDS = (1, 2, 3)

PARTS = {
    "vanilla query": "vanilla queries",
    "features": "features",
    "matches": "matches",
    "selected": "selected tokens",
    "map sum": "attention maps",
}
"""What a story keeps, by the names in its bank."""


def stand_in() -> Any:
    """A MODEL with SDXL's blocks and depths."""
    return make_unet("sdxl")


def shallow_stand_in() -> Any:
    """A MODEL with SDXL's blocks, of one layer where it has two, and of two where it has ten."""
    known = UNET_CONFIGS["sdxl"]
    fewer = {0: 0, 2: 1, 10: 2}
    depths = ("transformer_depth", "transformer_depth_output")
    thinned = {name: [fewer[depth] for depth in known[name]] for name in depths}
    model = base_model("sdxl", {**known, **thinned, "transformer_depth_middle": 2})
    seed_weights(model.diffusion_model, 0)
    return patcher_around(model)


def modes(images: int) -> dict[str, ConsiStory]:
    """The stories that are measured, by the names of the node's modes."""
    official = ConsiStory(words(images), SDXL.choice(CONSISTORY))
    clean = replace(official, injection=Injection(in_turn=False))
    return {
        "official": official,
        "clean": clean,
        "fast": replace(clean, fast=True),
        "sharing alone": replace(official, injection=Injection(0.0)),
    }


def words(images: int) -> SubjectWords:
    scenes = tuple(f"scene {number}" for number in range(images))
    return SubjectWords(("fox",), scenes, (((5, 6),),) * images, 77)


def sample(model: Any, images: int, steps: int = TIMED_STEPS, seed: int = 1, side: int = SIDE) -> Tensor:
    """One run of KSampler with guidance, each image with a text of its own."""
    texts, negative = make_conditioning("sdxl", images, seed=seed), make_conditioning("sdxl", seed=seed + 1)
    told = conditioning_set_values(texts, {TAG: words(images).text})
    return ksampler(model, told, negative, empty_latent(images, side, side), seed=seed, steps=steps)


def rows_of_calls(model: Any, images: int, steps: int = STEPS) -> list[int]:
    """The rows of each call of the UNet in one run. Nothing is computed: the moment alone decides when it is called."""
    rows: list[int] = []

    def answer(executor: Any, x: Tensor, *rest: Any, **named: Any) -> Tensor:
        rows.append(len(x))
        options: dict[str, Any] = rest[-1]
        for sites in options.get("patches_replace", {}).values():
            for site in sites.values():
                if isinstance(site, BoundSite):
                    site.note_patches()  # as if the model had run, for a run in which no patch is met is stopped
        return torch.zeros_like(x)

    silent = model.clone()
    # Added last it is innermost, so that it sees a story's own calls too.
    comfy.patcher_extension.add_wrapper_with_key(
        WrappersMP.DIFFUSION_MODEL, "bench", answer, silent.model_options, is_model_options=True
    )
    sample(silent, images, steps)
    return rows


@dataclass(frozen=True, eq=False)
class Watched(ConsiStory):
    """A story that notes the most that its bank keeps: after a call of the UNet it is fullest."""

    most: dict[str, int] = field(default_factory=dict)

    def begin(self, layout: BatchLayout, moment: Moment, bank: FeatureBank) -> None:
        self._note(bank)
        super().begin(layout, moment, bank)

    def findings(self, plan: RunPlan, bank: FeatureBank) -> dict[str, Tensor]:
        self._note(bank)
        return super().findings(plan, bank)

    def _note(self, bank: FeatureBank) -> None:
        kept = dict.fromkeys(PARTS.values(), 0)
        for name in bank:
            part = PARTS.get(str(name[0] if isinstance(name, tuple) else name))
            if part is not None:
                kept[part] += sum(tensor.numel() * tensor.element_size() for tensor in bank.recall_all(name))
        for part, size in kept.items():
            self.most[part] = max(self.most.get(part, 0), size)


def most_kept(model: Any, story: ConsiStory) -> dict[str, int]:
    """Bytes of each part where it is largest, in a run of TIMED_STEPS on the stand-in."""
    watched = _remade(Watched, story, blend=LONGER_BLEND)
    sample(add_patch(model, watched), story.words.scenes)
    return watched.most


def on_sdxl(kept: Mapping[str, int]) -> dict[str, float]:
    """What SDXL keeps at 1024 pixels in half precision in STEPS steps, by what the stand-in kept."""
    tokens = (SDXL_SIDE / SIDE) ** 2
    remembered = (2 * REMEMBERED_STEPS + 1) / (2 * TIMED_STEPS)
    growth = {
        "vanilla queries": WIDER * tokens / 2,
        "features": WIDER * tokens,
        "matches": tokens,
        "selected tokens": tokens,
        "attention maps": tokens * remembered,
    }
    return {part: kept[part] * times for part, times in growth.items()}


def recorded_bytes(
    covers: float,
    dropout: float = MaskDropout().fraction,
    injection: bool = True,
    side: int = SDXL_SIDE,
    wider: int = WIDER,
    steps: int = STEPS,
    number_bytes: int = 2,
) -> float:
    """What is recorded of one anchor whose subject covers a share of the picture: every state once, as it was shaped.

    At every step but the first the states of both sides of the guidance, at the tokens that others see; and with
    injection those of two passes, the patches to match, and the outputs to copy, all of the subject.
    """
    blocks, size = SDXL.choice(CONSISTORY), (side, side)

    def numbers(site: AttentionSite, width: int) -> int:
        return prod(blocks.grid(site.block, size)) * width * wider

    widths = {site: width for site, width in map_model(stand_in()).widths.items() if site.kind == "self"}
    shared = sum(numbers(site, width) for site, width in widths.items() if site.block in blocks.shared)
    states = 2 * (steps - 1) * covers * (1 - dropout) * shared
    if not injection:
        return states * number_bytes
    copied = sum(numbers(site, width) for site, width in widths.items() if site.block in blocks.injected)
    window = Injection().window
    outputs = (int(steps * window.end) - int(steps * window.start) + 1) * covers * copied
    # The features to match are as wide as the level below.
    patches = covers * prod(blocks.grid(blocks.features, size)) * max(widths.values()) * wider
    return (2 * states + outputs + patches) * number_bytes


@dataclass(frozen=True, eq=False)
class AnyLadder(ConsiStory):
    """A recorded subject in a run of other steps, where nothing is computed."""

    def check(self, plan: RunPlan) -> None:
        pass


def recorded_subject(model: Any) -> RecordedSubject:
    """Two anchors of the stand-in."""
    story = add_patch(model, ConsiStory(words(2), SDXL.choice(CONSISTORY)))
    return record(story, lambda recording: sample(recording, 2))[1]


def applied(subject: RecordedSubject, images: int) -> dict[str, ConsiStory]:
    injections = {"Apply Subject": Injection(), "Apply Subject, injection 0": Injection(0.0)}
    return {
        name: applied_subject(words(images), SDXL.choice(CONSISTORY), subject, injection)
        for name, injection in injections.items()
    }


def report_batch(model: Any, images: int, patches: Mapping[str, ConsiStory], rounds: int) -> None:
    """Prints calls, rows and time of a batch with each patch against the plain batch."""
    models = {"plain": model, **{name: add_patch(model, patch) for name, patch in patches.items()}}
    free = {"plain": model, **{name: _on_any_ladder(model, patch) for name, patch in patches.items()}}
    calls = {name: rows_of_calls(one, images) for name, one in free.items()}
    timed = {name: sum(rows_of_calls(one, images, TIMED_STEPS)) for name, one in free.items()}
    runs: dict[str, Run] = {name: partial(sample, one, images) for name, one in models.items()}
    operations = {name: flops(run) for name, run in runs.items()}  # and every run is warm
    costs = measure(runs, rounds)
    rows: list[list[object]] = []
    for name in runs:
        times, share = sum(calls[name]) / sum(calls["plain"]), timed["plain"] / timed[name]
        each = operations[name] / operations["plain"] * share
        processor, wall = ratios(costs[name], costs["plain"], share)
        figures = [f"{times:.3f}", f"{each:.3f}", spread(processor), spread(wall), f"{times * median(processor):.2f}"]
        rows.append([name, len(calls[name]), sum(calls[name]), *figures])
    of_a_row = ["operations of a row", "processor time of a row", "wall time of a row"]
    table(["run", "UNet calls", "rows", "rows / plain", *of_a_row, "time / plain"], rows)


def _on_any_ladder(model: Any, patch: ConsiStory) -> Any:
    return add_patch(model, _remade(AnyLadder, patch) if isinstance(patch.anchors, RecordedAnchors) else patch)


def _remade(kind: type[ConsiStory], patch: ConsiStory, **changed: Any) -> Any:
    """The patch as one of another kind, with the same settings but those named."""
    return kind(**{each.name: getattr(patch, each.name) for each in fields(patch)} | changed)


def report_slope(model: Any, counts: Sequence[int], rounds: int) -> None:
    """Prints what more images cost, against as many times what the fewest do."""
    stories = {count: add_patch(model, replace(modes(count)["official"], blend=LONGER_BLEND)) for count in counts}
    runs: dict[str, Run] = {f"{count}": partial(sample, one, count, SLOPE_STEPS) for count, one in stories.items()}
    plain: dict[str, Run] = {f"{count} plain": partial(sample, model, count, SLOPE_STEPS) for count in counts}
    operations = {name: flops(run) for name, run in runs.items()}  # and every run is warm
    costs = measure({**runs, **plain}, rounds)
    first = counts[0]
    rows: list[list[object]] = []
    for count, story in stories.items():
        linear = first / count
        each = operations[f"{count}"] / operations[f"{first}"] * linear
        mine, _ = ratios(costs[f"{count}"], costs[f"{first}"], linear)
        other, _ = ratios(costs[f"{count} plain"], costs[f"{first} plain"], linear)
        rows.append([count, sum(rows_of_calls(story, count, SLOPE_STEPS)), f"{each:.4f}", spread(mine), spread(other)])
    heads = ["images", "UNet rows", "operations / linear", "processor time / linear", "that of the plain model"]
    table(heads, rows)


def distances(model: Any, names: Sequence[str], images: int = 2) -> dict[str, list[float]]:
    """How far the latents of each mode lie from those of clean for each seed, relative; "plain" is no mode."""
    models = {"plain": model, **{name: add_patch(model, patch) for name, patch in modes(images).items()}}
    found: dict[str, list[float]] = {name: [] for name in names}
    for seed in SEEDS:
        clean = sample(models["clean"], images, DISTANCE_STEPS, seed)
        for name in names:
            other = sample(models[name], images, DISTANCE_STEPS, seed)
            found[name].append(float((other - clean).norm() / clean.norm()))
    return found


def report_consistory(rounds: int) -> None:
    """Prints all that this file measures."""
    model, shallow = stand_in(), shallow_stand_in()
    timed = f"time of a row / the plain model's in runs of {TIMED_STEPS} steps, medians of {rounds} interleaved rounds"
    print(f"\nConsiStory, 3 images, 2 anchors, CFG 5: calls in {STEPS} steps; {timed}\n")
    report_batch(shallow, 3, modes(3), rounds)
    print(f"\nA recorded subject of 2 anchors in 4 new images: calls in {STEPS} steps; {timed}\n")
    report_batch(shallow, 4, applied(recorded_subject(shallow), 4), rounds)
    print(f"\nMore images, 2 anchors, official: {SLOPE_STEPS} steps, medians of {rounds} interleaved rounds\n")
    report_slope(shallow, (4, 8, 16), rounds)
    report_kept(model, 3)
    report_recorded()
    report_distances(shallow)


def report_kept(model: Any, images: int) -> None:
    """Prints what stories keep between two calls of the UNet, an image."""
    patches = modes(images)
    kept = {name: on_sdxl(most_kept(model, patches[name])) for name in ("official", "sharing alone")}
    print(f"\nKept at most between calls for each image, SDXL at 1024 px in half precision, {STEPS} steps, CFG 5\n")
    rows = [[part, *(f"{kept[name][part] / images / 2**20:.2f} MB" for name in kept)] for part in PARTS.values()]
    table(["part", *kept], rows)


def report_recorded() -> None:
    """Prints how large a recorded subject is."""
    print(f"\nA recorded subject for each anchor, SDXL at 1024 px in half precision, {STEPS} steps, CFG above 1\n")
    rows: list[list[str]] = []
    for covers in COVERED:
        whole, least = (recorded_bytes(covers, injection=injection) for injection in (True, False))
        rows.append([f"{covers:.0%}", f"{whole / 2**30:.2f} GB", f"{least / 2**30:.2f} GB", f"{least / whole:.2f}"])
    table(["the subject covers", "everything", "without injection", "share of everything"], rows)


def report_distances(model: Any) -> None:
    """Prints how far from clean the other modes end."""
    print(
        f"\nDistance of the final latents from those of clean, relative; {len(SEEDS)} seeds, {DISTANCE_STEPS} steps\n"
    )
    found = distances(model, ("fast", "official", "plain"))
    table(["mode", "distance"], [[name, spread(distance)] for name, distance in found.items()])
