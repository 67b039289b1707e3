"""Reference Style: images attend to a reference picture beside their own tokens, in every family of models.

The reference, noised to the level of the step, goes through the model once for each conditioning. With its keys K' and
values V' an image's tokens give

    Z = softmax(Q [K, s K']^T / sqrt(d) + [0, log w]) [V, V']

where Q and K, as the model has rotated them, may take the statistics of the reference's first, and s is a factor for
each frequency of the rotary positions: high frequencies tell places and make the image copy the reference's structure,
low ones tell what is alike (Untwisting RoPE, arXiv:2602.05013). A weight w counts each token of the reference w times.
On a UNet, where nothing is rotated, this is StyleAligned (arXiv:2312.02133) and, with the reference's tokens instead of
the image's own, Visual Style Prompting (arXiv:2402.12974).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..engine.bank import FeatureBank
from ..engine.call import AttentionCall, Rotary, SharedTokens
from ..engine.guests import ShownPicture
from ..engine.moment import Moment, RunPlan
from ..engine.pictures import KEPT_APART, features_of
from ..engine.protocols import Advises, NeedsMemory, ShowsPictures
from ..engine.replacing import ReplacesByCall
from ..engine.scope import Scope
from ..engine.sharing import merge_shared
from ..functional.rotary import frequency_factors
from ..functional.token_statistics import Moments, moments, pooled, with_moments
from ..references.shared_style import Frequencies, Statistics

COUNTED_AGAIN = 0.25
"""As how many images the keys and values count that an image looks at once more: about that in Flux."""


@dataclass(frozen=True, eq=False)
class ReferenceStyle(ReplacesByCall, ShowsPictures, NeedsMemory, Advises):
    """Lets the images of the batch attend to reference pictures where the scope says.

    Acts on conditional and unconditional rows alike, beside each of which the references are looked at.
    """

    references: tuple[ShownPicture, ...]
    scope: Scope
    strength: float = 1.0
    """0 is plain attention, 1 the method."""
    frequencies: Frequencies = Frequencies()
    statistics: Statistics = Statistics()
    instead: bool = False
    """Whether the references' tokens stand in the place of the images' own."""
    weight: int = 1
    """How many times each of the references' tokens counts; StyleAligned shifts its logits by log 2, which is 2."""

    def pictures(self, moment: Moment) -> Sequence[ShownPicture]:
        return self.references

    def features(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        if not self.statistics.queries_and_keys:
            return key, value
        return key, value, *moments(query)

    def extra_images(self, plan: RunPlan) -> float:
        if not self._acts(plan):
            return 0.0
        return sum(self._images(one, plan) for one in self.references)

    def _images(self, one: ShownPicture, plan: RunPlan) -> float:
        """As how many images, or videos, of the run a reference counts."""
        share = math.prod(one.clean.shape[-2:]) / (math.prod(plan.size) * plan.frames)
        alone = plan.pictures_apart or one.prompt is not None or tuple(one.clean.shape[-2:]) != plan.size
        return share * (1 + KEPT_APART * alone + COUNTED_AGAIN * (self._times - 1) * plan.images)

    def check(self, plan: RunPlan) -> None:
        if caches := plan.conflicts & {"EasyCache", "LazyCache"}:
            raise ValueError(
                f"{' and '.join(sorted(caches))} on the same model answers some steps without looking at the "
                "references. Bypass it."
            )
        if plan.conflicts:
            raise ValueError(
                f"{' and '.join(sorted(plan.conflicts))} on the same model changes which tokens there are, so that the "
                "references do not match the images. Bypass it."
            )
        for reference in self.references:
            if None not in (plan.text_width, reference.text_width) and plan.text_width != reference.text_width:
                raise ValueError(
                    f"The reference prompt is text of {reference.text_width} channels, and the prompts of this run "
                    f"have {plan.text_width}. Encode it with the CLIP of this model."
                )
            channels = reference.clean.shape[1]
            if plan.latent_channels not in (None, channels):
                raise ValueError(
                    f"The reference is a latent of {channels} channels, and the sampler works on "
                    f"{plan.latent_channels}. Encode the picture with the VAE of this model."
                )

    def advice(self, plan: RunPlan) -> Sequence[str]:
        if not self._acts(plan):
            return self.scope.advice(plan, "Reference Style") if self.strength else ()
        told = [*self.scope.advice(plan, "Reference Style")]
        other_size = any(tuple(one.clean.shape[-2:]) != plan.size for one in self.references)
        if plan.rotated and self.statistics.queries_and_keys and other_size:
            told.append(
                "The reference has another size than the images. Its queries and keys tell places too, so that "
                "Reference Style's statistics of them shift a little for that reason alone. Scale the reference to the "
                "images' size, or set statistics to 0 under custom."
            )
        return told

    def __repr__(self) -> str:
        high, low = self.frequencies.structure, self.frequencies.detail
        way = "instead of their own tokens" if self.instead else f"structure {high[0]:g} to {high[1]:g}"
        shown = f"{len(self.references)} reference{'' if len(self.references) == 1 else 's'}"
        shown += "" if self._times == 1 else f", each counted {self._times} times"
        factors = f"{way}, detail {low[0]:g} to {low[1]:g}"
        taken = f"statistics {self.statistics.queries_and_keys:g} and {self.statistics.values:g}"
        return f"Reference Style ({shown}), {factors}, {taken}, strength {self.strength:g}, {self.scope}"

    def instead_of(self, call: AttentionCall, bank: FeatureBank) -> AttentionCall:
        """The attention in which every image also attends to the references."""
        seen = [features_of(call, self, reference.name) for reference in self.references]
        key, value = (torch.cat([features[part] for features in seen], dim=-2) for part in (0, 1))
        query, own_key, own_value = call.query, *_seen_as_own(call)
        if share := self.statistics.queries_and_keys:
            of_queries = pooled([Moments(*features[2:]) for features in seen])
            query = _moved(query, of_queries, call, share)
            own_key = _moved(own_key, pooled([moments(features[0]) for features in seen]), call, share)
        if share := self.statistics.values:
            own_value = _moved(own_value, pooled([moments(features[1]) for features in seen]), call, share)
        images = tuple(range(call.layout.images))
        shared = SharedTokens(images, self._counted(self._scaled(key, call, bank)), self._counted(value), self.instead)
        if call.image == slice(None):
            call = replace(call, key=own_key, value=own_value)
        elif self.statistics != Statistics():
            shared = replace(shared, own=(own_key, own_value))
        return replace(call, query=query, shared=merge_shared(*call.shared, shared))

    def _counted(self, tokens: Tensor) -> Tensor:
        """Tokens as often as they count: the same as a shift of their logits by the logarithm, in any kernel."""
        return tokens if self._times == 1 else torch.cat([tokens] * self._times, dim=-2)

    @property
    def _times(self) -> int:
        """How often the references count beside other tokens; in their place there is nothing to count beside."""
        return 1 if self.instead else self.weight

    def _scaled(self, key: Tensor, call: AttentionCall, bank: FeatureBank) -> Tensor:
        """The references' keys by frequency."""
        high, low = self.frequencies.at(call.moment.progress)
        rotary = call.rotary
        if rotary is None:
            return key if low == 1.0 else key * low
        if high == low == 1.0:
            return key
        name = "factors", key.device, high, low, rotary, key.shape[-1], key.dtype
        if name not in bank:
            bank.forget_all(*name[:2])
        return key * bank.once(name, lambda: self._factors(high, low, rotary, key))

    def _factors(self, high: float, low: float, rotary: Rotary, key: Tensor) -> Tensor:
        factors = frequency_factors(
            rotary.axes, high, low, self.frequencies.falloff, rotary.pairs == "halves", device=key.device
        )
        return factors.repeat(key.shape[-1] // len(factors)).to(key)  # packed heads have them one after another


def _seen_as_own(call: AttentionCall) -> tuple[Tensor, Tensor]:
    """Key and value that the picture's tokens see as their own, after other patches."""
    return next((shared.own for shared in call.shared if shared.own is not None), (call.key, call.value))


def _moved(tokens: Tensor, given: Moments, call: AttentionCall, share: float) -> Tensor:
    """The picture's tokens in the sampler's rows with the statistics given for each chunk; all others as they are."""
    rows, images = call.layout.host_rows, call.layout.images
    first, end, _ = call.image.indices(tokens.shape[-2])
    for_rows = Moments(*(part.repeat_interleave(images, dim=0) for part in given))
    moved = with_moments(tokens[:rows, ..., first:end, :], for_rows, share)
    within = torch.cat([tokens[:rows, ..., :first, :], moved, tokens[:rows, ..., end:, :]], dim=-2)
    return torch.cat([within, tokens[rows:]])
