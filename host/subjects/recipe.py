"""How the anchors of a subject were made, so that they can be made again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar, cast

import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
from torch import Tensor

from ...attention.methods.consistory.method import ConsiStory
from ...attention.methods.consistory.settings import FreeU, Injection, MaskDropout, QueryBlend, Sharing, StepRange
from ...attention.subjects.words import SubjectWords
from ..binding.model import add_patch, map_model
from ..conditioning import Conditioning

Settings = TypeVar("Settings")
KINDS = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}
"""What JSON makes of plain fields, by how a dataclass declares them."""


@dataclass(frozen=True)
class StorySettings:
    """What a story was sampled with, apart from the model."""

    words: SubjectWords
    sharing: Sharing
    blend: QueryBlend
    injection: Injection
    free_u: FreeU | None
    fast: bool

    @classmethod
    def of(cls, story: ConsiStory) -> StorySettings:
        return cls(**{entry.name: getattr(story, entry.name) for entry in fields(cls)})

    @classmethod
    def read(cls, described: Mapping[str, Any]) -> StorySettings:
        """From what `asdict` and JSON made of it. Raises KeyError or TypeError where that is not it."""
        sharing, injection, free_u = (described[name] for name in ("sharing", "injection", "free_u"))
        return cls(
            words=SubjectWords(**{name: _tuples(entry) for name, entry in described["words"].items()}),
            sharing=read_settings(Sharing, {**sharing, "dropout": _read_dropout(sharing["dropout"])}),
            blend=read_settings(QueryBlend, described["blend"]),
            injection=read_settings(Injection, {**injection, "window": read_settings(StepRange, injection["window"])}),
            free_u=None if free_u is None else FreeU(**{name: _tuples(entry) for name, entry in free_u.items()}),
            fast=bool(described["fast"]),
        )

    def of_first(self, scenes: int) -> StorySettings:
        """The same story up to a scene."""
        words = replace(self.words, prompts=self.words.prompts[:scenes], columns=self.words.columns[:scenes])
        return replace(self, words=words)

    def on(self, model: Any) -> Any:
        """A clone of MODEL with this story on it."""
        settings = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return add_patch(model, ConsiStory(blocks=map_model(model).family.consistory, **settings))


QUIET_SAMPLERS = frozenset(
    {
        "euler",
        "euler_cfg_pp",
        "heun",
        "heunpp2",
        "exp_heun_2_x0",
        "dpm_2",
        "lms",
        "dpmpp_2m",
        "dpmpp_2m_cfg_pp",
        "ipndm",
        "ipndm_v",
        "deis",
        "res_multistep",
        "res_multistep_cfg_pp",
        "gradient_estimation",
        "gradient_estimation_cfg_pp",
        "ddim",
        "uni_pc",
        "uni_pc_bh2",
    }
)
"""Those that draw no noise after the first step. What others draw for an image depends on how many stand beside it."""


@dataclass(frozen=True)
class SamplerSettings:
    """The widgets of a sampler."""

    seed: int
    steps: int
    cfg: float
    sampler: str
    scheduler: str
    denoise: float = 1.0

    @property
    def is_quiet(self) -> bool:
        return self.sampler in QUIET_SAMPLERS

    def __str__(self) -> str:
        return f"seed {self.seed}, {self.steps} steps, CFG {self.cfg:g}, {self.sampler}, {self.scheduler}"


@dataclass(frozen=True, eq=False)
class Sitting:
    """All that an ordinary sampler is given to make the anchors."""

    settings: SamplerSettings
    positive: Conditioning
    negative: Conditioning
    latents: Tensor  # (images, channels, height, width) as a sampler node takes them
    batch: int
    """Images of the batch that the noise is drawn for, of which these are the first."""
    numbers: Sequence[int] | None = None
    """The numbers of the batch's images in a batch before it, as ComfyUI keeps them."""
    noise_mask: Tensor | None = None

    @classmethod
    def of_latent(
        cls, settings: SamplerSettings, positive: Conditioning, negative: Conditioning, latent: Mapping[str, Any]
    ) -> Sitting:
        latents: Tensor = latent["samples"]
        numbers, mask = latent.get("batch_index"), latent.get("noise_mask")
        return cls(settings, positive, negative, latents, len(latents), numbers, mask)

    def sample(self, model: Any) -> Tensor:
        """What KSampler makes of it."""
        settings = self.settings
        latents = comfy.sample.fix_empty_latent_channels(model, self.latents)
        whole = latents.new_zeros(self.batch, *latents.shape[1:])
        noise = comfy.sample.prepare_noise(whole, settings.seed, self.numbers)[: len(latents)]
        return comfy.sample.sample(
            model,
            noise,
            settings.steps,
            settings.cfg,
            settings.sampler,
            settings.scheduler,
            self.positive,
            self.negative,
            latents,
            denoise=settings.denoise,
            noise_mask=self.noise_mask,
            callback=latent_preview.prepare_callback(model, settings.steps),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=settings.seed,
        )


def read_settings(kind: type[Settings], described: Mapping[str, Any]) -> Settings:
    """A dataclass from what JSON made of it. Raises TypeError for entries that are not its own, or of another kind."""
    made = kind(**described)
    for entry in fields(cast(Any, kind)):
        value = getattr(made, entry.name)
        kinds = KINDS.get(str(entry.type), (object,))
        # To Python, True is a number.
        if not isinstance(value, kinds) or (isinstance(value, bool) and kinds in (KINDS["int"], KINDS["float"])):
            raise TypeError(f"its {entry.name} is {value!r}")
    return made


def _read_dropout(described: Mapping[str, Any]) -> MaskDropout:
    """Files of version 0.1 call the fraction `share`."""
    return read_settings(MaskDropout, {"fraction" if name == "share" else name: v for name, v in described.items()})


def scheduler_names() -> list[str]:
    return list(comfy.samplers.KSampler.SCHEDULERS)


def sampler_names() -> list[str]:
    return list(comfy.samplers.KSampler.SAMPLERS)


def _tuples(entry: Any) -> Any:
    """JSON's lists as the tuples they were."""
    return tuple(_tuples(one) for one in entry) if isinstance(entry, list) else entry
