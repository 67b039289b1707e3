"""InstantStyle (arXiv:2404.02733): an IP-Adapter that speaks only to the blocks that carry style.

An IP-Adapter adds to every cross-attention a second one, over image tokens c with keys and values of their own
(arXiv:2308.06721, eq. 5):

    Z = Attention(Q, K, V) + strength * Attention(Q, c K', c V')

InstantStyle's finding is that injecting into one block (SDXL: up_blocks.0.attentions.1) takes the style and leaves
the reference's content behind. Content words can be taken out of the embedding besides: `functional.embeddings`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ...adapters.ip_adapter import ImageAdapter
from ...engine.bank import FeatureBank
from ...engine.call import AttentionCall, AttentionSite
from ...engine.layout import BatchLayout
from ...engine.moment import Moment, RunPlan
from ...engine.patch import Attend
from ...engine.protocols import Advises
from ...engine.scope import ImageMask, Scope
from ...engine.token_masks import mask_per_image, masks_on_tokens
from ...engine.weighted import Weighted
from ...functional.key_scaling import KeyScaling, scaled_keys
from .tokens import ImageTokens

ImageKeys = Mapping[AttentionSite, Sequence[tuple[Tensor, Tensor]]]
MasksBy = Literal["auto", "per picture", "per image"]
MASKS_BY: tuple[MasksBy, ...] = ("auto", "per picture", "per image")


@dataclass(frozen=True, eq=False)
class InstantStyle(Weighted, Advises):
    """Adds image cross-attention where the scope says, to conditional and unconditional rows alike.

    One mask in the scope holds for the sum of all pictures; as many masks as pictures give each picture an area and
    a softmax of its own, as diffusers does; any other number is one mask for each image of the batch.
    `masks_by` decides where both counts fit.
    """

    tokens: ImageTokens
    adapter: ImageAdapter
    numbers: Mapping[AttentionSite, int]
    """The number under which the adapter keeps the weights of each cross-attention."""
    scope: Scope
    strength: float = 1.0
    name: str = "IP-Adapter"
    masks_by: MasksBy = "auto"
    """What the masks of the scope stand for; `auto` takes their number for the answer, pictures first."""
    scaling: KeyScaling = "V only"
    """What the weight multiplies: what attention gives, or the image's keys and values."""
    method: str = "InstantStyle"
    """Whose patch it is, for messages."""
    image_keys: ImageKeys = field(default_factory=dict[AttentionSite, Sequence[tuple[Tensor, Tensor]]], repr=False)
    """Keys and values (2, tokens, channels) on the CPU, by layer in scope: of all pictures, or of each in turn. Given
    those of another patch, it takes from them what is its own, so `dataclasses.replace` of a scope copies nothing."""
    keys_from: tuple[ImageAdapter, ImageTokens, bool] | None = field(default=None, repr=False)
    """What `image_keys` were made from, and whether of each picture in turn."""

    def __post_init__(self) -> None:
        mask, pictures = self.scope.mask, len(self.tokens.conditional)
        if self.masks_by == "per picture" and mask is not None and len(mask.values) not in (1, pictures):
            raise ValueError(
                f"There are {len(mask.values)} masks for {pictures} reference pictures. Connect one mask for each "
                "picture, or set masks_by to 'per image'."
            )
        # Once, before any run: no run needs the adapter, and no attention waits for its weights.
        sites = [site for site in self.numbers if self.strength * self.scope.blocks.get(site.block, 0.0)]
        source = (self.adapter, self.tokens, self._by_picture)
        known: ImageKeys = self.image_keys if self.keys_from == source else {}
        keys = {site: known[site] if site in known else self._projected(self.numbers[site]) for site in sites}
        object.__setattr__(self, "image_keys", keys)
        object.__setattr__(self, "keys_from", source)

    def applies_to(self, site: AttentionSite, moment: Moment) -> bool:
        return site in self.numbers and self._weight(site, moment) != 0.0

    def edit_output(self, call: AttentionCall, output: Tensor, attend: Attend, bank: FeatureBank) -> Tensor:
        rows = call.layout.host_rows
        image = self._image_attention(call, call.query[:rows], attend, bank)
        alpha = self._weight(call.site, call.moment) if self.scaling == "V only" else 1.0
        styled = torch.add(output[:rows], image, alpha=alpha)
        return styled if rows == len(output) else torch.cat([styled, output[rows:]])

    def check(self, plan: RunPlan) -> None:
        mask = self.scope.mask
        by_image = self.tokens.by_image or (mask is not None and mask.repeats and len(mask.values) > 1)
        if by_image and plan.untold_window is not None:
            raise ValueError(
                "This model samples in windows of frames (AnimateDiff); Semblance gives pictures, weights and masks to "
                "the images in their order only. Take a context at least as long as the batch."
            )

    def advice(self, plan: RunPlan) -> Sequence[str]:
        return self.scope.advice(plan, f"{self.method} ({self.name})") if self.strength else ()

    def __repr__(self) -> str:
        scaled = "" if self.scaling == "V only" else f", {self.scaling}"
        strength = f"strength {self.strength:g}"
        if self.tokens.by_image:
            strength = f"by image at strengths {', '.join(f'{self.strength * own:g}' for own in self.tokens.weights)}"
        return f"{self.method} ({self.name}), {strength}, {self.scope}{scaled}"

    def _image_attention(self, call: AttentionCall, query: Tensor, attend: Attend, bank: FeatureBank) -> Tensor:
        """What the sampler's own queries find in the pictures, (rows, query_tokens, channels)."""
        mask = self.scope.mask
        if mask is None:
            return self._attend_to(None, call, query, attend, bank)
        masks = self._masks(mask, call, bank)
        if not self._mask_per_picture(mask):
            return _within(masks[0], self._attend_to(None, call, query, attend, bank), call.layout)
        found = torch.zeros_like(query)
        for picture, (area, weight) in enumerate(zip(masks, self.tokens.weights, strict=True)):
            image = self._attend_to(picture, call, query, attend, bank)
            found = torch.add(found, _within(area, image, call.layout), alpha=weight)
        return found

    def _attend_to(
        self, picture: int | None, call: AttentionCall, query: Tensor, attend: Attend, bank: FeatureBank
    ) -> Tensor:
        """Attention to one picture's tokens or, with None, to those of all pictures in one softmax."""
        key, value = self._keys_values(picture, call, query, bank)
        if self.tokens.by_image:
            image = attend(query, key, value, None)
            return image * self._weight_of_images(call, query, bank) if self.scaling == "V only" else image
        weight_mask = self._weight_mask(picture, query, bank)
        # The images of a chunk share their keys, so they queue up as one long query and no key is copied.
        queue = query.reshape(len(call.layout.chunks), -1, query.shape[-1])
        return attend(queue, key, value, weight_mask).reshape(query.shape)

    def _weight_mask(self, picture: int | None, query: Tensor, bank: FeatureBank) -> Tensor | None:
        mask = self.tokens.weight_mask if picture is None else None
        return None if mask is None else bank.once(("weight mask", query.device, query.dtype), partial(mask.to, query))

    def _keys_values(
        self, picture: int | None, call: AttentionCall, query: Tensor, bank: FeatureBank
    ) -> tuple[Tensor, Tensor]:
        """Image keys and values of each chunk's side, (chunks, tokens, channels), or of each row."""
        name = (call.site, picture, query.device, query.dtype)
        images = call.layout.image_indices if self.tokens.by_image else None
        weight = 1.0 if self.scaling == "V only" else self._weight(call.site, call.moment)

        def bring() -> tuple[Tensor, Tensor]:
            key, value = self._keys_for(call)[picture or 0]
            return key.to(query), value.to(query)

        def line_up() -> tuple[Tensor, Tensor]:
            sides = [int(conditional) for conditional in call.layout.conditional]
            if images is None and self.scaling == "V only":  # the side that no call asks for stays on the CPU
                key, value = (both[sides].to(query) for both in self._keys_for(call)[picture or 0])
            elif images is None:
                key, value = (both[sides] for both in bank.once(name, bring))
            else:  # of many images only those come along that a call shows
                found = self._keys_for(call)
                rows = [(side, found[min(image, len(found) - 1)]) for side in sides for image in images]
                key, value = (torch.stack([both[half][side] for side, both in rows]).to(query) for half in (0, 1))
            if self.scaling == "V only":
                return key, value
            own = 1.0 if images is None else self._weight_of_images(call, query, bank)
            return scaled_keys(key, value, own * weight, self.scaling, self._token_counts(picture))

        return bank.once((*name, call.layout.conditional, images, weight), line_up)

    def _keys_for(self, call: AttentionCall) -> Sequence[tuple[Tensor, Tensor]]:
        """The image keys and values of a layer, as it attends to them."""
        return self.image_keys[call.site]

    def _token_counts(self, picture: int | None) -> list[int]:
        """How many tokens the keys hold of each picture."""
        one = 0 if self.tokens.by_image else picture
        return [len(tokens) for number, tokens in enumerate(self.tokens.conditional) if one in (None, number)]

    def _weight_of_images(self, call: AttentionCall, query: Tensor, bank: FeatureBank) -> Tensor:
        """The weight of each row's picture, (rows, 1, 1)."""
        weights, images = self.tokens.weights, call.layout.image_indices

        def line_up() -> Tensor:
            row = [weights[min(image, len(weights) - 1)] for image in images]
            return torch.tensor(row * len(call.layout.chunks)).reshape(-1, 1, 1).to(query)

        return bank.once(("weights of images", images, len(call.layout.chunks), query.device, query.dtype), line_up)

    def _projected(self, number: int) -> Sequence[tuple[Tensor, Tensor]]:
        pictures = self.tokens.distinct() if self._by_picture else [None]
        with torch.no_grad():
            found = {one: self.adapter.keys_values(number, self.tokens.both_sides(one)) for one in set(pictures)}
        kept = {one: (key.cpu(), value.cpu()) for one, (key, value) in found.items()}
        return [kept[picture] for picture in pictures]

    @property
    def _by_picture(self) -> bool:
        """Whether each picture has a mask or an image, and so a softmax, of its own."""
        masked = self.scope.mask is not None and self._mask_per_picture(self.scope.mask)
        return masked or self.tokens.by_image

    def _mask_per_picture(self, mask: ImageMask) -> bool:
        if self.masks_by == "per image" or self.tokens.by_image:
            return False
        return 1 < len(mask.values) == len(self.tokens.conditional)

    def _masks(self, mask: ImageMask, call: AttentionCall, bank: FeatureBank) -> Tensor:
        """The masks on this layer's tokens, (masks, chunks, 1, tokens, 1), or (1, chunks, images, tokens, 1)."""
        masks, images = len(mask.values), call.layout.batch_images
        if self._mask_per_picture(mask):
            return masks_on_tokens(mask, call, bank).unsqueeze(2)
        if masks not in (1, images) and not mask.repeats:
            raise ValueError(
                f"There are {masks} masks for {len(self.tokens.conditional)} reference pictures and {images} "
                "images. Connect one mask, one for each reference picture, or one for each image of the batch."
            )
        return mask_per_image(mask, call, bank).unsqueeze(0)


def _within(area: Tensor, image: Tensor, layout: BatchLayout) -> Tensor:
    """`image` (rows, tokens, channels) times its area (chunks, images or 1, tokens, 1)."""
    return (image.reshape(len(layout.chunks), layout.images, *image.shape[1:]) * area).reshape(image.shape)
