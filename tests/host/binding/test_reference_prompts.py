"""A reference with a prompt of its own: where it stands, what it is given beside the text, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from semblance.attention.engine.bank import FeatureBank
from semblance.attention.engine.call import AttentionCall
from semblance.attention.engine.guests import ShownPicture
from semblance.attention.engine.pictures import features_of
from semblance.attention.methods.reference_style import ReferenceStyle
from semblance.attention.references.shared_style import PLAIN
from semblance.host.binding.model import add_patch
from semblance.tests.support.reference_styles import everywhere, picture, sampled, styled
from semblance.tests.support.studio import relative_error
from semblance.tests.support.transformers import TRANSFORMERS, TransformerFamily


class KeysSeen(ReferenceStyle):
    """Notes the picture's own keys and the reference's in the first block of a call."""

    seen: list[tuple[Tensor, Tensor]] = []

    def instead_of(self, call: AttentionCall, bank: FeatureBank) -> AttentionCall:
        if not self.seen:
            key, *_ = features_of(call, self, self.references[0].name)
            self.seen.append((call.key[:1, ..., call.image, :].clone(), key[:1].clone()))
        return super().instead_of(call, bank)


@pytest.mark.parametrize("lengths", [(7, 9), (7, 40), (40, 7)], ids=str)
@pytest.mark.parametrize("name", ["flux", "qwen_image", "krea2", "z_image", "lumina2"])
def test_a_reference_stands_where_the_picture_does_whatever_the_length_of_its_prompt(
    name: str, lengths: tuple[int, int]
) -> None:
    """Lumina 2 and Z-Image count places from the end of the text. Shown what the sampler holds, its keys are alike.

    Z-Image's not wholly: before its blocks the picture's tokens look at padding, which stands at the first place.
    """
    family, (own, others) = TRANSFORMERS[name], lengths
    model = family.model()
    noise = torch.randn(family.latent()["samples"].shape, generator=torch.Generator().manual_seed(4))
    ((_, more),) = family.conditioning(own, seed=1)
    ((text, _),) = family.conditioning(others, seed=4)
    same = ShownPicture("same", torch.zeros_like(noise), noise, [[text, more]])
    method = KeysSeen((same,), everywhere(model), frequencies=PLAIN)
    KeysSeen.seen.clear()
    sampled(family, add_patch(model, method), texts=(own, own), noise=noise, steps=1, cfg=1.0)
    ((mine, its),) = KeysSeen.seen
    assert torch.nn.functional.cosine_similarity(mine, its, dim=-1).min() > (0.95 if name == "z_image" else 0.999)


def with_prompt(family: TransformerFamily, prompt: Any, positive: Any) -> Tensor:
    return sampled(family, styled(family.model(), picture(family, prompt=prompt)), positive=positive)


@pytest.mark.parametrize("name", ["flux", "flux2"])
def test_the_images_guidance_is_the_references_too_unless_its_prompt_has_one(name: str) -> None:
    family = TRANSFORMERS[name]
    ((text, more),) = family.conditioning(seed=1, guidance=30.0)
    bare = {key: value for key, value in more.items() if key != "guidance"}
    unconnected = with_prompt(family, None, [[text, more]])
    assert relative_error(with_prompt(family, [[text, bare]], [[text, more]]), unconnected) < 1e-5
    assert relative_error(with_prompt(family, [[text, {**bare, "guidance": 2.0}]], [[text, more]]), unconnected) > 1e-3


@pytest.mark.parametrize("name", ["flux", "qwen_image", "flux2"])
def test_pictures_to_edit_are_left_out_of_the_references_prompt(name: str) -> None:
    family = TRANSFORMERS[name]
    ((text, more),) = family.conditioning(seed=1)
    edits = {"reference_latents": [family.latent(seed=8)["samples"]]}
    plain, with_picture = (with_prompt(family, [[text, {**more, **given}]], [[text, more]]) for given in ({}, edits))
    assert torch.equal(with_picture, plain)


@pytest.mark.parametrize("name", ["flux", "z_image", "anima", "krea2", "wan"])
def test_a_prompt_of_another_text_encoder_is_refused_before_the_first_step(name: str) -> None:
    family = TRANSFORMERS[name]
    ((text, more),) = family.conditioning(seed=1)
    wide = replace(picture(family, prompt=[[torch.cat([text, text], dim=-1), more]]), text_width=2 * text.shape[-1])
    with pytest.raises(ValueError, match="text of .* channels, and the prompts of this run have .* this model"):
        sampled(family, styled(family.model(), wide))
