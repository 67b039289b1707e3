"""The demo models on the real ComfyUI in this process: many pictures a setting, with what the nodes themselves run.

`harness.library.use_library` comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from comfy.sample import prepare_noise
from comfy.samplers import CFGGuider, calculate_sigmas, sampler_object
from torch import Tensor

from semblance.host.demo_models import DemoModel, Topology, load_demo
from semblance.host.instantstyle.adapter import LoadedAdapter, load_adapter
from semblance.host.masked.sampler import TEMPERATURE, MaskSchedule, masked_sampler
from semblance.nodes.instantstyle import InstantStyle
from semblance.nodes.reference import EncodeReference, SubtractContent

from .captions import content_captions, shape_captions
from .metrics import Measures, measure
from .shapes import SHAPES
from .training.judge import Judge, load_judge
from .world import PICTURE_SIZE, Scenes, draw, single_shapes

REFERENCES, PER_REFERENCE = 16, 4
STEPS, GUIDANCE = 12, 3.0
NOISE_SEED = 20261
MASKED: Topology = "aMUSEd"
"""Sampled by tokens instead of noise."""
ADAPTERS: Mapping[Topology, str] = {
    "SDXL": "semblance_demo_sdxl.safetensors",
    "SD 1.5": "semblance_demo_sd15.safetensors",
}
"""The base adapters, trained on all blocks."""


@dataclass(frozen=True)
class Setting:
    """How a reference acts; `blocks` is a preset of the family, or weights such as "output.1=1"."""

    name: str
    blocks: str = "style"
    strength: float = 1.0
    subtract: float = 0.0
    adapter: str = ""
    """A file other than the base adapter trained on all blocks."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """What is asked for and in whose style: held-out drawings, some contents to each reference in a row."""

    asked: Scenes
    references: Scenes
    per_reference: int = 1

    @classmethod
    def draw(cls, references: int = REFERENCES, per_reference: int = PER_REFERENCE, seed: int = 902) -> Pairs:
        """No asked shape is its reference's, so that a leaked shape can be told from an asked one."""
        shown = single_shapes(references, seed, "held_out").take(
            torch.arange(references).repeat_interleave(per_reference)
        )
        asked = single_shapes(references * per_reference, seed + 1, "held_out")
        shape = asked.content.shape.clone()
        same = shape[:, 0] == shown.content.shape[:, 0]
        shape[same, 0] = (shape[same, 0] + 1 + torch.arange(int(same.sum())) % (len(SHAPES) - 1)) % len(SHAPES)
        return cls(Scenes(replace(asked.content, shape=shape), asked.style), shown, per_reference)

    def __len__(self) -> int:
        return len(self.asked)

    def take(self, rows: Tensor) -> Pairs:
        """Some of the pairs, each on its own."""
        return Pairs(self.asked.take(rows), self.references.take(rows))


@dataclass(frozen=True, eq=False)
class Study:
    """One topology's demo model with its adapters, and the classifier that judges what it makes."""

    topology: Topology
    demo: DemoModel
    judge: Judge
    pairs: Pairs = field(default_factory=Pairs.draw)
    _adapters: dict[str, LoadedAdapter] = field(default_factory=dict)

    @classmethod
    def open(cls, topology: Topology, dtype: torch.dtype | None = None, pairs: Pairs | None = None) -> Study:
        """In `fastest_dtype`, over the pairs of `Pairs.draw`, unless others are asked for."""
        return cls(topology, load_demo(topology, dtype or fastest_dtype()), load_judge(), pairs or Pairs.draw())

    @torch.inference_mode()
    def sample(self, captions: Sequence[str], seed: int = NOISE_SEED, model: Any = None, steps: int = STEPS) -> Tensor:
        """Pictures (captions, 3, 128, 128) in 0..1 with CFG, a row a caption."""
        guider = CFGGuider(model or self.demo.model)
        guider.set_conds(self.prompt(captions), self.prompt([""]))
        guider.set_cfg(GUIDANCE)
        return self.guided(guider, len(captions), seed, steps)

    @torch.inference_mode()
    def guided(self, guider: Any, pictures: int, seed: int, steps: int = STEPS) -> Tensor:
        """Pictures (pictures, 3, 128, 128) in 0..1 by a GUIDER, from the noise that `sample` starts from."""
        model = guider.model_patcher
        form = model.get_model_object("latent_format")
        side = PICTURE_SIZE // form.spacial_downscale_ratio
        latent = torch.zeros(pictures, form.latent_channels, side, side)
        if self.topology == MASKED:
            schedule = MaskSchedule(steps, TEMPERATURE)
            sampler, sigmas = masked_sampler(schedule), schedule.sigmas()
        else:
            sampler = sampler_object("euler")
            sigmas = calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)
        made = guider.sample(prepare_noise(latent, seed), latent, sampler, sigmas, disable_pbar=True, seed=seed)
        return self.demo.vae.decode(made).movedim(-1, 1).clamp(0, 1)

    def prompt(self, captions: Sequence[str]) -> list[list[Any]]:
        """Captions as one CONDITIONING with a row each."""
        encoded = [self.demo.clip.encode_from_tokens(self.demo.clip.tokenize(c), return_pooled=True) for c in captions]
        context, pooled = (torch.cat(parts) for parts in zip(*encoded, strict=True))
        return [[context, {"pooled_output": pooled}]]

    @torch.inference_mode()
    def styled(self, setting: Setting, reference: Scenes) -> Any:
        """The MODEL with the style of one drawn reference on it."""
        picture = draw(reference).pictures.movedim(1, -1)
        adapter = self.adapter(setting.adapter)
        style = output_of(
            EncodeReference.execute(adapter, self.demo.clip_vision, {"picture0": picture}, "average", "crop")
        )
        if setting.subtract:
            (words,) = content_captions(reference)
            style = output_of(SubtractContent.execute(style, self.demo.clip, words, setting.subtract))
        custom = {"blocks": "custom", "weights": setting.blocks}
        blocks = custom if "=" in setting.blocks else {"blocks": setting.blocks}
        curve = {"curve": "constant"}
        return output_of(InstantStyle.execute(self.demo.model, style, blocks, setting.strength, 0.0, 1.0, curve))

    def adapter(self, name: str = "") -> LoadedAdapter:
        name = name or ADAPTERS[self.topology]
        if name not in self._adapters:
            self._adapters[name] = load_adapter(name)
        return self._adapters[name]

    def plain(self) -> Measures:
        """The asked shapes with no reference, judged against the references' styles."""
        return self.judged(self.sample(shape_captions(self.pairs.asked)))

    def with_setting(self, setting: Setting) -> Measures:
        """The asked shapes in the references' styles; the prompt leaves the place open, for the reference's to show."""
        return self.in_styles(shape_captions(self.pairs.asked), lambda reference: self.styled(setting, reference))

    def in_styles(self, captions: Sequence[str], styled: Callable[[Scenes], Any]) -> Measures:
        """The captions of the pairs in the references' styles, by the MODEL that `styled` makes of each reference."""
        made, each = [], self.pairs.per_reference
        for row in range(0, len(captions), each):
            model = styled(self.pairs.references.take(torch.tensor([row])))
            made.append(self.sample(captions[row : row + each], NOISE_SEED + row, model))
        return self.judged(torch.cat(made))

    def judged(self, made: Tensor) -> Measures:
        """Pictures of the pairs, a row each, against the asked contents and the references' styles."""
        return measure(made, self.pairs.asked, self.pairs.references, self.judge)


def fastest_dtype() -> torch.dtype:
    """bf16 where the processor calculates in it: half the time of fp32, the same pictures to the eye."""
    return torch.bfloat16 if torch.cpu.get_capabilities().get("avx512_bf16") else torch.float32


def output_of(output: Any) -> Any:
    """What a node gives at its first socket."""
    return output.result[0]
