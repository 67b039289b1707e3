"""How the anchors of a subject were sampled, so that they can be sampled again from a small file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar, cast

import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
from torch import Tensor

from ...attention.families import CONSISTORY
from ...attention.methods.consistory.method import ConsiStory
from ...attention.methods.consistory.settings import FreeU, Injection, MaskDropout, QueryBlend, Sharing, StepRange
from ...attention.subjects.words import SubjectWords
from ..binding.conditionings import TAG
from ..binding.model import add_patch, map_unet
from ..conditioning import Conditioning

Settings = TypeVar("Settings")
KINDS = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}
"""The types that JSON gives for plain fields, by their annotation."""


@dataclass(frozen=True)
class StorySettings:
    """ConsiStory's settings, without the model and without masks or pictures."""

    words: SubjectWords
    sharing: Sharing
    blend: QueryBlend
    injection: Injection
    free_u: FreeU | None
    fast: bool

    @classmethod
    def of(cls, story: ConsiStory) -> StorySettings:
        """The settings of a patch."""
        return cls(**{entry.name: getattr(story, entry.name) for entry in fields(cls)})

    @classmethod
    def read(cls, described: Mapping[str, Any]) -> StorySettings:
        """The settings from their `asdict` after JSON. Raises KeyError or TypeError for anything else."""
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
        """The same story with only its first scenes."""
        words = replace(self.words, prompts=self.words.prompts[:scenes], columns=self.words.columns[:scenes])
        return replace(self, words=words)

    def on(self, model: Any) -> Any:
        """A clone of MODEL with this story on it."""
        settings = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return add_patch(model, ConsiStory(blocks=map_unet(model).family.choice(CONSISTORY), **settings))


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
"""Samplers that draw no noise after the start. The noise that others draw for an image depends on the batch size."""


@dataclass(frozen=True)
class SamplerSettings:
    """The settings of KSampler."""

    seed: int
    steps: int
    cfg: float
    sampler: str
    scheduler: str
    denoise: float = 1.0

    @property
    def is_quiet(self) -> bool:
        """Whether the sampler draws no noise after the start."""
        return self.sampler in QUIET_SAMPLERS

    def __str__(self) -> str:
        return f"seed {self.seed}, {self.steps} steps, CFG {self.cfg:g}, {self.sampler}, {self.scheduler}"


@dataclass(frozen=True, eq=False)
class AnchorRun:
    """The inputs of the KSampler run that makes the anchors."""

    settings: SamplerSettings
    positive: Conditioning
    negative: Conditioning
    latents: Tensor  # (images, channels, height, width), samples of a LATENT
    batch: int
    """Size of the batch that the noise is drawn for. The latents are its first images."""
    batch_indices: Sequence[int] | None = None
    """The `batch_index` of a LATENT: for each image of the batch, its index in the batch it was taken from."""
    noise_mask: Tensor | None = None

    @classmethod
    def of_latent(
        cls, settings: SamplerSettings, positive: Conditioning, negative: Conditioning, latent: Mapping[str, Any]
    ) -> AnchorRun:
        """The run of a sampler node with these inputs."""
        latents: Tensor = latent["samples"]
        indices, mask = latent.get("batch_index"), latent.get("noise_mask")
        return cls(settings, positive, negative, latents, len(latents), indices, mask)

    def of_story(self, words: SubjectWords) -> AnchorRun:
        """The same run, its prompts marked as those of a story: they may be the first scenes of a longer one."""
        return replace(self, positive=[[context, {**extras, TAG: words.text}] for context, extras in self.positive])

    def sample(self, model: Any) -> Tensor:
        """The latents (images, channels, height, width) that KSampler gives for these inputs."""
        settings = self.settings
        latents = comfy.sample.fix_empty_latent_channels(model, self.latents)
        whole = latents.new_zeros(self.batch, *latents.shape[1:])
        noise = comfy.sample.prepare_noise(whole, settings.seed, self.batch_indices)[: len(latents)]
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
    """A dataclass from its fields after JSON. Raises TypeError for unknown fields and for values of another type."""
    made = kind(**described)
    for entry in fields(cast(Any, kind)):
        value = getattr(made, entry.name)
        kinds = KINDS.get(str(entry.type), (object,))
        # bool is a subclass of int.
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
    """JSON's lists as tuples."""
    return tuple(_tuples(one) for one in entry) if isinstance(entry, list) else entry
