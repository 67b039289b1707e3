"""StyleID on transformers of rectified flow, where text and picture attend as one sequence. This form is ours.

The picture's tokens of an image use the content's queries and the style's keys and values; text attends as before:

    Q' = gamma * Q_content + (1 - gamma) * Q
    Z = softmax(temperature * Q' [K_text, K_style]^T / sqrt(d)) [V_text, V_style]

Both pictures go through the model at the states that their inversion passed, beside each conditioning and with its
text. Tokens stand at the same places in all three, so rotated queries and keys can be exchanged as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...engine.bank import FeatureBank
from ...engine.call import AttentionCall, SharedTokens
from ...engine.guests import InvertedPicture
from ...engine.moment import Moment, RunPlan
from ...engine.pictures import KEPT_APART, features_of
from ...engine.protocols import ShowsPictures
from ...engine.replacing import ReplacesByCall
from ...engine.sharing import merge_shared
from ...references.trajectory import ReferenceTrajectory
from .injection import CONTENT, STYLE, StyleInjection


@dataclass(frozen=True, eq=False, repr=False)
class JointStyleID(StyleInjection, ReplacesByCall, ShowsPictures):
    """StyleID on a diffusion transformer."""

    def pictures(self, moment: Moment) -> Sequence[InvertedPicture]:
        pairs = ((CONTENT, self.content), (STYLE, self.style))
        return [
            InvertedPicture(_named(name, image), state[None])
            for name, trajectory in pairs
            for image, state in enumerate(trajectory.at(moment.sigma))
        ]

    def extra_images(self, plan: RunPlan) -> float:
        pictures = self.content.images + self.style.images
        kept = 1.5 * KEPT_APART if plan.pictures_apart else 0.0  # queries too
        return pictures * (1 + kept) if self._acts(plan) else 0.0

    def features(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        return query, key, value

    def instead_of(self, call: AttentionCall, bank: FeatureBank) -> AttentionCall:
        """The attention with the content's queries, and the style's keys and values, in the picture's tokens."""
        shared = merge_shared(*call.shared, *self._of_the_style(call))
        return replace(call, query=self._queries(call), shared=shared)

    def _of_the_style(self, call: AttentionCall) -> list[SharedTokens]:
        """The style's tokens in the place of the images' own."""
        found: list[SharedTokens] = []
        for image, places in _watchers(self.style, call).items():
            _, key, value = features_of(call, self, _named(STYLE, image))
            found.append(SharedTokens(places, key, value, instead=True))
        return found

    def _queries(self, call: AttentionCall) -> Tensor:
        """The queries of all rows; those of the picture's tokens in the sampler's are mixed with the content's."""
        rows, images = call.layout.host_rows, call.layout.images
        first, end, _ = call.image.indices(call.query.shape[-2])
        seen = {image: features_of(call, self, _named(CONTENT, image))[0] for image in _watchers(self.content, call)}
        of_images = [seen[_shown(self.content, call, image)] for image in range(images)]
        content = torch.stack(of_images, dim=1).flatten(0, 1)  # -> (chunks * images, ...)
        own = call.query[:rows]
        mixed = torch.lerp(own[..., first:end, :], content.to(own), self.gamma) * self.temperature
        sampled = torch.cat([own[..., :first, :], mixed, own[..., end:, :]], dim=-2)
        return torch.cat([sampled, call.query[rows:]])


def _named(name: str, image: int) -> str:
    return f"{name} {image}"


def _shown(trajectory: ReferenceTrajectory, call: AttentionCall, image: int) -> int:
    """Which picture of a trajectory goes with an image of the call."""
    return call.layout.image_indices[image] if trajectory.images > 1 else 0


def _watchers(trajectory: ReferenceTrajectory, call: AttentionCall) -> dict[int, tuple[int, ...]]:
    """The images of the call by the picture of the trajectory that goes with them."""
    found: dict[int, tuple[int, ...]] = {}
    for image in range(call.layout.images):
        picture = _shown(trajectory, call, image)
        found[picture] = (*found.get(picture, ()), image)
    return found
