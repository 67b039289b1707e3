"""One family's tiny model with all that is needed to try a patch on it through the real samplers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from node_helpers import conditioning_set_values
from torch import Tensor

from semblance.attention.engine.guests import Guest, ShownPicture
from semblance.attention.engine.patch import AttentionPatch
from semblance.attention.engine.scope import ImageMask, Scope
from semblance.attention.families import CONSISTORY
from semblance.attention.methods.consistory.method import ConsiStory
from semblance.attention.methods.consistory.settings import Injection, QueryBlend, Sharing, StepRange
from semblance.attention.methods.instantstyle import InstantStyle
from semblance.attention.methods.reference_style import ReferenceStyle
from semblance.attention.methods.styledrop import StyleDrop
from semblance.attention.methods.styleid.method import StyleID
from semblance.attention.references.shared_style import Statistics
from semblance.attention.references.style import StyleReference
from semblance.attention.references.trajectory import ReferenceTrajectory
from semblance.attention.subjects.user_masks import UserMasks
from semblance.attention.subjects.words import SubjectWords
from semblance.host.binding.conditionings import TAG
from semblance.host.binding.model import ModelMap, add_patch, map_model, patches_on
from semblance.host.identity import stamp_of
from semblance.host.instantstyle.adapter import LoadedAdapter, manage_adapter
from semblance.host.inversion.runs import start_latent
from semblance.tests.support.speeds import FAMILIES, slow_but
from semblance.tests.tiny_models import (
    CONTEXT_WIDTH,
    Family,
    adapter_state_dict,
    empty_latent,
    ksampler,
    make_conditioning,
    make_unet,
)
from semblance.tests.tiny_models.unets import NARROW, SDXL_VECTOR_WIDTH, unet_config

from .style_adapters import bottleneck_tensors
from .toy_patches import Echo, LookAway, ShareKeys, Sharpen, Visit

Conditioning = list[list[Any]]
BOTH_AT_ONCE = [1, 0]
"""The numbers that ComfyUI gives the conditionings of a call: the negative first."""


@dataclass(frozen=True, eq=False)
class Studio:
    kind: Family
    model: ModelPatcher
    model_map: ModelMap
    positive: Conditioning
    negative: Conditioning
    adapters: dict[str, LoadedAdapter] = field(default_factory=dict)
    sampled: dict[Any, Tensor] = field(default_factory=dict, repr=False)
    """What was sampled once for all tests: by the patch on the model, none for the plain one, and the settings."""

    @classmethod
    def of(cls, kind: Family, dtype: torch.dtype = torch.float32, channels: int = NARROW) -> Studio:
        model, config = make_unet(kind, dtype=dtype, channels=channels), unet_config(kind, channels)
        positive, negative = (make_conditioning(kind, seed=seed) for seed in (1, 2))
        adapters = {
            variant: manage_adapter(variant, adapter_state_dict(kind, variant, unet_config=config))
            for variant in ("base", "plus")
        }
        return cls(kind, model, map_model(model), positive, negative, adapters)

    def everywhere(self, **settings: Any) -> Scope:
        return Scope(self.model_map.family.preset("all"), **settings)

    @cached_property
    def plain(self) -> Tensor:
        """What the model samples without any patch."""
        return self.without_patch()

    def without_patch(self, **settings: Any) -> Tensor:
        """What the model samples without any patch, once for all tests."""
        return self._kept(None, settings)

    def patched(self, name: str, **settings: Any) -> Tensor:
        """What the model samples with the patch of that name, both conditionings in a call, once for all tests."""
        return self._kept(name, settings)

    def _kept(self, name: str | None, settings: dict[str, Any]) -> Tensor:
        key = (name, *sorted(settings.items()))
        if key not in self.sampled:
            model, calls = record_calls(self.model if name is None else self.with_patch(name))
            self.sampled[key] = self.sample(model, **settings)
            assert calls[0]["numbers"] == BOTH_AT_ONCE
        return self.sampled[key]

    def text(self, seed: int, rows: int = 1, tokens: int = 77) -> Conditioning:
        return make_conditioning(self.kind, rows, tokens, seed)

    def sample(
        self, model: ModelPatcher | None = None, images: int = 2, size: Sequence[int] = (8, 8), **more: Any
    ) -> Tensor:
        """The KSampler node's result, of two steps unless more are asked for."""
        settings = {"steps": 2, "scheduler": "simple", "seed": 1, **more}
        positive, negative = settings.pop("positive", self.positive), settings.pop("negative", self.negative)
        latent = self.noisy_latent(images, size, settings["seed"])
        model = model or self.model
        return ksampler(model, told_on(model, positive), negative, latent, add_noise=False, **settings)

    def noisy_latent(self, images: int, size: Sequence[int], seed: int) -> dict[str, Tensor]:
        """The start of a run that adds no noise, which StyleID refuses."""
        noise = comfy.sample.prepare_noise(empty_latent(images, *size)["samples"], seed)
        sigma = float(self.model.get_model_object("model_sampling").sigma_max)
        return {"samples": start_latent(self.model, noise, sigma)}

    def with_patch(
        self,
        name: str,
        model: ModelPatcher | None = None,
        strength: float = 1.0,
        scope: Scope | None = None,
        size: tuple[int, int] = (8, 8),
    ) -> ModelPatcher:
        """`model` with the patch of that name on it."""
        patch = PATCHES[name](self, strength, self.everywhere() if scope is None else scope, size)
        return add_patch(model or self.model, patch)

    def instantstyle(
        self,
        strength: float = 1.0,
        scope: Scope | None = None,
        variant: str = "base",
        pictures: int = 1,
        shares: Sequence[float] = (),
    ) -> InstantStyle:
        adapter = self.adapters[variant]
        tokens = adapter.image_tokens(style_reference(adapter, pictures, shares))
        numbers = adapter.numbers_for(self.model_map)
        return InstantStyle(tokens, adapter, numbers, self.everywhere() if scope is None else scope, strength, variant)

    def guest(self, name: str, size: tuple[int, int] = (8, 8), rows: int = 1, tokens: int = 77, seed: int = 0) -> Guest:
        generator = torch.Generator().manual_seed(seed)
        vector = torch.randn(1, SDXL_VECTOR_WIDTH, generator=generator) if self.kind == "sdxl" else None
        latent = torch.randn(rows, 4, *size, generator=generator)
        return Guest(name, latent, torch.randn(1, tokens, CONTEXT_WIDTH[self.kind], generator=generator), vector)


def style_reference(adapter: LoadedAdapter, pictures: int, shares: Sequence[float]) -> StyleReference:
    """Pictures of noise as the image encoder might see them."""
    layout = adapter.layout
    shape = (1, layout.clip_width) if layout.is_global else (1, 17, layout.clip_width)
    generator = torch.Generator().manual_seed(7)
    seen = tuple(torch.randn(shape, generator=generator) for _ in range(pictures))
    negative = torch.zeros(shape) if layout.is_global else torch.randn(shape, generator=generator)
    return StyleReference(seen, negative, tuple(shares) or (1.0,) * pictures)


def painted(masks: int, height: int, width: int, seed: int = 3) -> ImageMask:
    """Masks with soft and hard parts all over."""
    noise = torch.rand(masks, height, width, generator=torch.Generator().manual_seed(seed))
    return ImageMask((1.5 * noise - 0.25).clamp(0, 1))


Maker = Callable[[Studio, float, Scope, tuple[int, int]], AttentionPatch]


def instantstyle(variant: str, pictures: int = 1, shares: Sequence[float] = (), masks: int = 0) -> Maker:
    def make(studio: Studio, strength: float, scope: Scope, size: tuple[int, int]) -> AttentionPatch:
        mask = painted(masks, 40, 56) if masks else None
        scope = Scope(scope.blocks, scope.window, mask)
        return studio.instantstyle(strength, scope, variant, pictures, shares)

    return make


def swapped_and_scaled(studio: Studio, strength: float, scope: Scope, size: tuple[int, int]) -> AttentionPatch:
    """Pictures on the unconditional side alone, listened to by their keys."""
    patch = studio.instantstyle(strength, scope, "plus", pictures=2)
    nothing = tuple(map(torch.zeros_like, patch.tokens.conditional))
    tokens = replace(patch.tokens, conditional=nothing, unconditional=patch.tokens.conditional)
    return replace(patch, tokens=tokens, scaling="K+mean(V) w/ C penalty")


def picture_per_image(studio: Studio, strength: float, scope: Scope, size: tuple[int, int]) -> AttentionPatch:
    """A picture, a weight and a mask for each of the first images."""
    mask = ImageMask(painted(2, 40, 56).values, straight=True, repeats=True)
    patch = studio.instantstyle(strength, Scope(scope.blocks, scope.window, mask), "base", pictures=2)
    return replace(patch, tokens=replace(patch.tokens, by_image=True, weights=(1.5, 0.7)))


def visit(studio: Studio, strength: float, scope: Scope, size: tuple[int, int]) -> AttentionPatch:
    visitors = (studio.guest("one", size, seed=1), studio.guest("two", size, rows=2, tokens=154, seed=2))
    return Visit(scope, strength, visitors=visitors)


def trajectory(studio: Studio, size: tuple[int, int], seed: int) -> ReferenceTrajectory:
    """Latents of noise at every level that a test of the laws samples."""
    schedule: Any = studio.model.get_model_object("model_sampling")
    sigmas = tuple(sorted({*schedule.sigmas.tolist(), 1.0, 4.0}))
    guest = studio.guest("any", size, rows=len(sigmas), seed=seed)
    stamp = stamp_of(studio.model)
    return ReferenceTrajectory(guest.latent[:, None], sigmas, 50, "styleid", stamp, guest.context, guest.vector)


def styleid(masks: int = 0) -> Maker:
    def make(studio: Studio, strength: float, scope: Scope, size: tuple[int, int]) -> AttentionPatch:
        mask = painted(masks, 40, 56) if masks else None
        scope = Scope(scope.blocks, scope.window, mask)
        content, style = (trajectory(studio, size, seed) for seed in (1, 2))
        return StyleID(content, style, scope, strength=strength)

    return make


def styledrop(masks: int = 0) -> Maker:
    def make(studio: Studio, strength: float, scope: Scope, size: tuple[int, int]) -> AttentionPatch:
        mask = painted(masks, 40, 56) if masks else None
        widths = {site.name: channels for site, channels in studio.model_map.widths.items()}
        return StyleDrop(bottleneck_tensors(widths), Scope(scope.blocks, scope.window, mask), strength)

    return make


def reference_style(masks: int = 0) -> Maker:
    """Two references, of the batch's size and of another, listened to by half where a mask says."""

    def make(studio: Studio, strength: float, scope: Scope, size: tuple[int, int]) -> AttentionPatch:
        noise = torch.Generator().manual_seed(11)
        shapes = ((1, 4, *size), (1, 4, size[0] + 2, size[1]))
        references = tuple(
            ShownPicture(f"reference {number}", *torch.randn(2, *shape, generator=noise))
            for number, shape in enumerate(shapes)
        )
        mask = painted(masks, 40, 56) if masks else None
        scope = Scope(scope.blocks, scope.window, mask)
        return ReferenceStyle(references, scope, strength, statistics=Statistics(0.8, 0.3))

    return make


def consistory(**settings: Any) -> Maker:
    """A story of two scenes, which acts at both steps of a run of two."""

    def make(studio: Studio, strength: float, scope: Scope, size: tuple[int, int]) -> AttentionPatch:
        sharing, injection = Sharing(strength), Injection(0.8 * strength, StepRange(0.0, 1.0))
        chosen = {"sharing": sharing, "injection": injection, "blend": QueryBlend(until=0.6)} | settings
        if "anchors" in chosen:
            chosen["sharing"] = replace(sharing, anchors=chosen.pop("anchors"))
        return ConsiStory(STORY, studio.model_map.family.choice(CONSISTORY), **chosen)

    return make


STORY = SubjectWords(("a fox",), ("a fox asleep", "snow on a fox"), (((2,),), ((4, 5),)), 77)
PATCHES: dict[str, Maker] = {
    "edits inputs": lambda studio, strength, scope, size: Sharpen(scope, strength),
    "shares keys": lambda studio, strength, scope, size: ShareKeys(scope, strength),
    "edits output": lambda studio, strength, scope, size: LookAway(scope, strength),
    "remembers": lambda studio, strength, scope, size: Echo(scope, strength),
    "brings guests": visit,
    "instantstyle": instantstyle("base"),
    "instantstyle plus": instantstyle("plus", pictures=2, shares=(1.0, 0.5)),
    "instantstyle masked": instantstyle("base", pictures=3, masks=1),
    "instantstyle regions": instantstyle("plus", pictures=2, shares=(1.0, 0.7), masks=2),
    "ip-adapter swapped": swapped_and_scaled,
    "ip-adapter per image": picture_per_image,
    "styleid": styleid(),
    "styleid masked": styleid(masks=1),
    "styledrop": styledrop(),
    "styledrop masked": styledrop(masks=1),
    "reference style": reference_style(),
    "reference style masked": reference_style(masks=1),
    "consistory": consistory(),
    "consistory fast": consistory(anchors=1, fast=True, masks=UserMasks(painted(2, 40, 56), limits=True)),
}
WITH_GUESTS = {name for name in PATCHES if name.startswith(("brings guests", "styleid"))}
STORIES = {name for name in PATCHES if name.startswith("consistory")}
"""Those that need a batch of two images, sample twice, and act everywhere at all times."""
TELLS_IMAGES_APART = {"ip-adapter per image"}
"""Those that give an image of a batch what it would not get alone."""
OF_EACH_KIND = ("edits inputs", "shares keys", "edits output", "remembers", "brings guests", "consistory")
"""One patch for each thing of the engine that a method may use."""


def on_both_families(names: Iterable[str], quick_on_sdxl: Collection[str] = OF_EACH_KIND) -> Any:
    """Every patch on SD 1.5 and one of each kind, or fewer, on SDXL; the rest of SDXL by `nox -s laws`."""
    rows = slow_but(itertools.product(names, FAMILIES), lambda row: row[1] == "sd15" or row[0] in quick_on_sdxl)
    return pytest.mark.parametrize(("name", "studio"), rows, indirect=["studio"])


def told_on(model: ModelPatcher, positive: Conditioning) -> Conditioning:
    """`positive` as the prompts of the story on the model, as Story Prompts marks them; unless it is marked already."""
    stories = [patch.words.text for patch in patches_on(model) if isinstance(patch, ConsiStory)]
    marked = any(TAG in extras for _, extras in positive)
    return positive if marked or not stories else conditioning_set_values(positive, {TAG: stories[0]})


def wrap(model: ModelPatcher, kind: str, wrapper: Callable[..., Any], first: bool = False) -> ModelPatcher:
    """A clone of `model` that another pack wraps."""
    wrapped = model.clone()
    comfy.patcher_extension.add_wrapper_with_key(kind, "another pack", wrapper, wrapped.model_options, True)
    return wrapped


def record_calls(model: ModelPatcher) -> tuple[ModelPatcher, list[dict[str, Any]]]:
    """A clone of `model` whose calls of the UNet are written down, as the sampler asked for them."""
    calls: list[dict[str, Any]] = []

    def recorder(
        executor: Any, x: Tensor, t: Tensor, c_concat: Any, c_crossattn: Any, control: Any, options: Any, **more: Any
    ) -> Tensor:
        output = executor(x, t, c_concat, c_crossattn, control, options, **more)
        calls.append(
            {
                "x": x,
                "sigma": float(t[0]),
                "context": c_crossattn,
                "numbers": list(options["cond_or_uncond"]),
                "control": control is not None,
                "more": more,
                "output": output,
            }
        )
        return output

    return wrap(model, WrappersMP.APPLY_MODEL, recorder), calls


def rows_of_calls(model: ModelPatcher) -> tuple[ModelPatcher, list[int]]:
    """`model`, and the rows of every call of the UNet, guests included."""
    rows: list[int] = []

    def count(executor: Any, x: Tensor, *rest: Any, **named: Any) -> Tensor:
        rows.append(len(x))
        return executor(x, *rest, **named)

    return wrap(model, WrappersMP.DIFFUSION_MODEL, count), rows


def ladder(studio: Studio, steps: int, scheduler: str = "simple") -> Tensor:
    return comfy.samplers.calculate_sigmas(studio.model.get_model_object("model_sampling"), scheduler, steps)


def guider_of(studio: Studio, model: ModelPatcher, cfg: float = 5.0) -> comfy.samplers.CFGGuider:
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(told_on(model, studio.positive), studio.negative)
    guider.set_cfg(cfg)
    return guider


def run_guider(
    guider: comfy.samplers.CFGGuider,
    sigmas: Tensor,
    images: int = 2,
    size: Sequence[int] = (8, 8),
    callback: Callable[..., None] | None = None,
    sampler: str = "euler",
) -> Tensor:
    """What a guider samples from noise of seed 0, by the host's own sampler."""
    noise = torch.randn(images, 4, *size, generator=torch.Generator().manual_seed(0))
    chosen = comfy.samplers.sampler_object(sampler)
    return guider.sample(noise, torch.zeros_like(noise), chosen, sigmas, callback=callback, disable_pbar=True, seed=0)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())
