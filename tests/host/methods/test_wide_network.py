"""On a network that reads timesteps, pooled texts and sizes, every row of a call has its own.

The tiny networks elsewhere are blind to them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from semblance.attention.engine.guests import Guest
from semblance.attention.engine.scope import Scope
from semblance.attention.families import CONSISTORY
from semblance.attention.methods.consistory.method import ConsiStory
from semblance.attention.methods.consistory.settings import Injection, QueryBlend, StepRange
from semblance.attention.subjects.words import SubjectWords
from semblance.host.binding.model import add_patch
from semblance.host.conditioning import Text
from semblance.host.inversion.ddim import invert
from semblance.tests.support.studio import Conditioning, Studio, relative_error, told_on
from semblance.tests.support.toy_patches import Watch
from semblance.tests.tiny_models import CONTEXT_WIDTH, POOLED_WIDTH, diffusers_unet, ksampler
from semblance.tests.tiny_models.unets import SDXL_VECTOR_WIDTH, WIDE

pytestmark = pytest.mark.slow

SIDE = 16
SIGMA = 2.0


@pytest.fixture(scope="module")
def wide() -> Studio:
    return Studio.of("sdxl", channels=WIDE)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def diffusers(studio: Studio) -> Any:
    return diffusers_unet("sdxl", studio.model.model.diffusion_model)


def added(pooled: Tensor, height: float, width: float) -> dict[str, Tensor]:
    """What diffusers' network reads besides: pooled texts, original size, crop and target size."""
    return {
        "text_embeds": pooled,
        "time_ids": torch.tensor([[height, width, 0.0, 0.0, height, width]]).repeat(len(pooled), 1),
    }


def test_timesteps_pooled_texts_and_sizes_move_the_wide_network(wide: Studio) -> None:
    network, text = wide.model.model, random(1, 77, CONTEXT_WIDTH["sdxl"], seed=1)
    latent, pooled = random(1, 4, SIDE, SIDE, seed=2), random(1, POOLED_WIDTH, seed=3)

    def ours(timestep: float = 500, pooled: Tensor = pooled, **sizes: int) -> Tensor:
        vector = network.encode_adm(pooled_output=pooled, **({"width": 128, "height": 128} | sizes))
        with torch.no_grad():
            return network.diffusion_model(latent, torch.tensor([timestep]), text, y=vector, transformer_options={})

    other = random(1, POOLED_WIDTH, seed=4)
    changed = [ours(timestep=200), ours(pooled=other), ours(width=1024, height=1024)]
    assert all(relative_error(one, ours()) > 0.05 for one in changed)
    with torch.no_grad():
        theirs = diffusers(wide)(latent, 200, text, added_cond_kwargs=added(other, 64.0, 96.0)).sample
    mine = ours(timestep=200, pooled=other, height=64, width=96, target_height=64, target_width=96)
    assert relative_error(mine, theirs) < 1e-4


def test_ddim_inversion_reads_them_as_diffusers_does(wide: Studio) -> None:
    from diffusers import DDIMInverseScheduler

    steps, picture = 4, 4 * random(1, 4, 8, 12, seed=5)
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
    theirs = DDIMInverseScheduler(**schedule, set_alpha_to_one=False, steps_offset=1, timestep_spacing="leading")
    theirs.set_timesteps(steps)
    network, ((context, extras),) = diffusers(wide), wide.positive
    expected = [wide.model.model.process_latent_in(picture)]
    for timestep in theirs.timesteps.tolist():
        given = added(extras["pooled_output"], 64.0, 96.0)
        with torch.no_grad():
            noise = network(expected[-1], timestep, context, added_cond_kwargs=given).sample
        expected.append(theirs.step(noise, timestep, expected[-1]).prev_sample)
    made = invert(wide.model, picture, steps, "ddim", Text(wide.positive, wide.negative)).trajectory
    for mine, there in zip(made.latents, expected, strict=True):
        assert relative_error(mine, there) < 1e-4


def test_a_guest_has_its_own_pooled_text_and_size(wide: Studio) -> None:
    somewhere, one = Scope({"output.4": 1.0}), wide.guest("one", (8, 8), seed=1)
    other = replace(one, vector=random(1, SDXL_VECTOR_WIDTH, seed=9))

    def call(patch: Watch, latent: Tensor, context: Tensor, vector: Tensor) -> None:
        model = add_patch(wide.model, patch)
        options = {**model.model_options["transformer_options"], "cond_or_uncond": [0]}
        with torch.no_grad():
            model.model.apply_model(
                latent, torch.tensor([SIGMA]), c_crossattn=context, y=vector, transformer_options=options
            )

    def ridden(guest: Guest) -> Tensor:
        patch = Watch(somewhere, visitors=(guest,))
        text = random(1, 77, CONTEXT_WIDTH["sdxl"], seed=4)
        call(patch, random(1, 4, 8, 8, seed=3), text, random(1, SDXL_VECTOR_WIDTH, seed=6))
        return torch.stack(patch.guests_seen)

    assert one.vector is not None
    alone = Watch(somewhere)
    call(alone, one.latent * (1 + SIGMA**2) ** 0.5, one.context, one.vector)  # the UNet sees it divided by this
    assert relative_error(ridden(one), torch.stack(alone.host_seen)) < 1e-5
    assert relative_error(ridden(other), ridden(one)) > 0.01


def test_each_scene_of_a_story_has_its_own_pooled_text(wide: Studio) -> None:
    def told(pooled: Tensor) -> Tensor:
        texts: Conditioning = [[random(3, 77, CONTEXT_WIDTH["sdxl"], seed=7), {"pooled_output": pooled}]]
        words = SubjectWords(("a fox",), ("a fox", "the fox", "fox"), (((2,),), ((3,),), ((4,),)), 77)
        settings = {"injection": Injection(window=StepRange(0.0, 1.0)), "blend": QueryBlend(until=0.6)}
        story = ConsiStory(words, wide.model_map.family.choice(CONSISTORY), **settings)
        latent = {"samples": torch.zeros(3, 4, 8, 8)}
        model = add_patch(wide.model, story)
        texts = told_on(model, texts)
        return ksampler(model, texts, wide.negative, latent, steps=3, scheduler="simple", sampler="ddim")

    pooled = random(3, POOLED_WIDTH, seed=8)
    given, third = told(pooled), told(torch.cat([pooled[:2], random(1, POOLED_WIDTH, seed=9)]))
    assert relative_error(third[:2], given[:2]) < 1e-5  # the anchors see no other image's
    assert relative_error(third[2:], given[2:]) > 0.01
    first = told(torch.cat([random(1, POOLED_WIDTH, seed=9), pooled[1:]]))
    assert relative_error(first[:1], given[:1]) > 0.01
