"""Reference Style as a person connects it: on UNets and transformers, with presets, prompts, masks and refusals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.utils  # noqa: F401  (puts ComfyUI on the path)
import pytest
import torch
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from torch import Tensor

import nodes as host_nodes
from semblance.attention.families.reference_styles import STYLE_PRESETS
from semblance.attention.methods.reference_style import ReferenceStyle as ReferenceStylePatch
from semblance.host.binding.model import patches_on
from semblance.nodes.reference_style import ReferenceStyle
from semblance.tests.support.graphs import relative_error, run
from semblance.tests.support.transformers import HUNYUAN_DIT, TRANSFORMERS, sample
from semblance.tests.tiny_models import ksampler, make_conditioning, make_unet
from semblance.tests.tiny_models.unets import UNET_CONFIGS, base_model, patcher_around
from semblance.tests.tiny_models.weights import seed_weights

CHANGED = 1e-3
UNETS = ("sd15", "sdxl")
FAMILIES = (*UNETS, "flux", "qwen_image", "z_image")
NUMBERS: dict[str, Any] = {
    "preset": "custom",
    "reference_tokens": "beside",
    "structure": 0.5,
    "detail": 1.2,
    "statistics": 0.5,
    "value_statistics": 0.0,
    "structure_start": 0.0,
    "detail_start": 1.0,
    "falloff": 2.5,
}


@dataclass(frozen=True)
class Family:
    """A tiny model of one family and what it is sampled with."""

    name: str

    def model(self, **changed: Any) -> Any:
        return make_unet(self.name) if self.name in UNETS else TRANSFORMERS[self.name].model(**changed)

    def text(self, seed: int) -> Any:
        of_unet = self.name in UNETS
        return make_conditioning(self.name, seed=seed) if of_unet else TRANSFORMERS[self.name].conditioning(seed=seed)

    def latent(self, seed: int | None, images: int = 1, height: int = 8, width: int = 8) -> dict[str, Tensor]:
        if self.name not in UNETS:
            return TRANSFORMERS[self.name].latent(images, height, width, seed)
        shape = (images, 4, height, width)
        if seed is None:
            return {"samples": torch.zeros(shape)}
        return {"samples": torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 4}

    def sampled(self, model: Any, images: int = 1, cfg: float = 3.0, **settings: Any) -> Tensor:
        texts, latent = (self.text(1), self.text(2)), self.latent(None, images)
        if self.name in UNETS:
            return ksampler(model, *texts, latent, **{"steps": 2, "cfg": cfg, "seed": 1, **settings})
        return sample(model, *texts, latent, cfg=cfg, **settings)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return Family(request.param)


@pytest.fixture(scope="module")
def sd15() -> Family:
    return Family("sd15")


def styled(model: Any, reference: Any, **settings: Any) -> Any:
    """MODEL with Reference Style on it."""
    chosen = {
        "preset": {"preset": "auto"},
        "strength": 1.0,
        "blocks": {"blocks": "preset"},
        "start": 0.0,
        "end": 1.0,
        "curve": {"curve": "constant"},
        "reference_seed": 0,
    }
    return run(ReferenceStyle, model, reference, **(chosen | settings))[0]


def patch_on(model: Any) -> ReferenceStylePatch:
    (patch,) = patches_on(model)
    assert isinstance(patch, ReferenceStylePatch)
    return patch


def custom(**numbers: Any) -> dict[str, Any]:
    return {"preset": {**NUMBERS, **numbers}}


# What it does


def test_the_reference_changes_the_picture_and_strength_zero_does_not(family: Family) -> None:
    model, reference = family.model(), family.latent(seed=5)
    plain = family.sampled(model)
    made = family.sampled(styled(model, reference))
    assert relative_error(made, plain) > CHANGED
    assert torch.equal(family.sampled(styled(model, reference, strength=0.0)), plain)
    assert torch.equal(family.sampled(styled(model, reference)), made)
    assert torch.equal(family.sampled(model), plain)


def test_another_picture_another_size_and_two_references_make_other_pictures(family: Family) -> None:
    model = family.model()
    references = (
        family.latent(seed=5),
        family.latent(seed=6),
        family.latent(seed=5, height=6, width=12),
        family.latent(seed=5, images=2),
    )
    made = [family.sampled(styled(model, reference)) for reference in references]
    for place, one in enumerate(made):
        assert torch.isfinite(one).all()
        for other in made[place + 1 :]:
            assert relative_error(one, other) > CHANGED


def test_every_picture_of_a_batch_is_a_reference_as_the_model_holds_latents(family: Family) -> None:
    model, latent = family.model(), family.latent(seed=5, images=3)
    references = patch_on(styled(model, latent)).references
    expected = model.model.process_latent_in(latent["samples"])
    assert len({reference.name for reference in references}) == 3
    for number, reference in enumerate(references):
        assert torch.equal(reference.clean, expected[number : number + 1])
        assert reference.noise.shape == reference.clean.shape
    assert not torch.equal(references[0].noise, references[1].noise)


def test_a_picture_without_frames_gets_one_where_the_family_has_frames() -> None:
    qwen = Family("qwen_image")
    model, latent = qwen.model(), qwen.latent(seed=5)
    flat = {"samples": latent["samples"].squeeze(2)}
    made = [patch_on(styled(model, given)).references[0].clean for given in (flat, latent)]
    assert made[0].shape == (1, 16, 1, 8, 8) and torch.equal(*made)


def test_the_seed_draws_the_noise_of_the_reference_and_leaves_the_hosts_alone(sd15: Family) -> None:
    model, reference = sd15.model(), sd15.latent(seed=5)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    made = [patch_on(styled(model, reference, reference_seed=seed)).references[0].noise for seed in (0, 0, 2**64 - 1)]
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])


def test_every_input_changes_the_picture(family: Family) -> None:
    model, reference = family.model(), family.latent(seed=5)
    first = next(iter(patch_on(styled(model, reference)).scope.blocks))
    ways: dict[str, dict[str, Any]] = {
        "custom": custom(),
        "instead": custom(reference_tokens="instead"),
        "detail": custom(detail=2.0),
        "early detail": custom(detail_start=2.0),
        "statistics": custom(statistics=1.0),
        "statistics of values": custom(value_statistics=1.0),
        "strength": {**custom(), "strength": 0.5},
        "one block": {**custom(), "blocks": {"blocks": "custom", "weights": f"{first}=1"}},
        "half a block": {**custom(), "blocks": {"blocks": "custom", "weights": f"{first}=0.5"}},
        "early": {**custom(), "end": 0.5},
        "fading": {**custom(), "curve": {"curve": "fade out"}},
        "seed": {**custom(), "reference_seed": 1},
        "prompt": {**custom(), "reference_prompt": family.text(9)},
        "mask": {**custom(), "mask": torch.cat([torch.ones(1, 64, 32), torch.zeros(1, 64, 32)], dim=2)},
    }
    if family.name not in UNETS:
        ways |= {"structure": custom(structure=2.0), "early structure": custom(structure_start=2.0)}
        ways |= {"falloff": custom(falloff=0.5)}
    made = {name: family.sampled(styled(model, reference, **way)) for name, way in ways.items()}
    names = list(made)
    for place, one in enumerate(names):
        for other in names[place + 1 :]:
            assert relative_error(made[one], made[other]) > 1e-5, (one, other)
