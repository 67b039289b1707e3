"""Pictures that patches show a UNet: as guests where they are of the sampler's size, else in a call of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...attention.engine.call import AttentionSite
from ...attention.engine.guests import Guest
from ...attention.engine.layout import BatchLayout
from ...attention.engine.moment import Moment
from ...attention.engine.patch import AttentionPatch
from ...attention.engine.protocols import ShowsPictures
from ...attention.functional.attention import joined_contexts
from .carried import Uncopied
from .conditions import Conditions, nothing_to_fill
from .kept_features import KeptFeatures, keep_features
from .pictures import noised
from .run import Run
from .unet import PatchWithBank, attend
from .unet_sites import SLOT


@dataclass(frozen=True, eq=False)
class UnetPictures:
    """The pictures of one call, a row beside each chunk."""

    beside: tuple[tuple[AttentionPatch, Guest], ...]
    apart: tuple[tuple[AttentionPatch, Guest], ...]

    @classmethod
    def of(
        cls,
        patches: Sequence[PatchWithBank],
        layout: BatchLayout,
        moment: Moment,
        x: Tensor,
        context: Tensor,
        y: Tensor | None,
        run: Run,
        alone: bool,
    ) -> UnetPictures:
        """All patches' pictures, noised and scaled as the UNet sees the sampler's rows; `alone` keeps all apart."""
        beside: list[tuple[AttentionPatch, Guest]] = []
        apart: list[tuple[AttentionPatch, Guest]] = []
        whole = not alone and all(chunk.crop is None for chunk in layout.chunks)
        for patch, bank in patches:
            for picture in patch.pictures(moment) if isinstance(patch, ShowsPictures) else ():
                model = run.models[layout.device]
                held = noised(picture, bank, layout, moment, model)
                latent = model.model_sampling.calculate_input(torch.tensor([moment.sigma]), held).to(x)
                if latent.shape[1] < x.shape[1] and (beside_it := nothing_to_fill(model, held)) is not None:
                    latent = torch.cat([latent, beside_it.to(x)], dim=1)
                prompt = run.prompts.of(picture, model, held)
                guest = _guest(picture.name, latent, layout, context, y, prompt)
                (beside if whole and latent.shape[1:] == x.shape[1:] else apart).append((patch, guest))
        return cls(tuple(beside), tuple(apart))

    def look_at_those_apart(
        self,
        executor: Any,
        timesteps: Tensor,
        options: Mapping[str, Any],
        acting_at: Mapping[AttentionSite, Sequence[PatchWithBank]],
        named: Mapping[str, Any],
    ) -> KeptFeatures:
        """Lets the UNet see the pictures of other sizes, and keeps what their patches take of them."""
        kept = KeptFeatures()
        for patch, guest in self.apart:
            replaced: dict[str, dict[Any, Any]] = {}
            for site, acting in acting_at.items():
                if any(one is patch for one, _ in acting):
                    watch = UnetWatch(site, [(patch, guest.name)] * guest.rows, kept)
                    replaced.setdefault(SLOT[site.kind], {})[site.part, site.number, site.depth] = watch
            plain = {**options, "patches": {}, "patches_replace": replaced}
            t = timesteps[:1].expand(guest.rows)
            executor(guest.latent, t, guest.context, guest.vector, None, plain, **named)
        return kept


@dataclass(frozen=True, eq=False)
class UnetWatch(Uncopied):
    """The attention of a site while a picture goes through the UNet alone: plain, and its features are kept."""

    site: AttentionSite
    shown: Sequence[tuple[AttentionPatch, str]]
    into: KeptFeatures

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, extra: dict[str, Any]) -> Tensor:
        acting = {id(patch) for patch, _ in self.shown}
        keep_features(self.into, self.site, acting, self.shown, slice(None), query, key, value)
        return attend(extra, query, key, value)


def _guest(
    name: str, latent: Tensor, layout: BatchLayout, context: Tensor, y: Tensor | None, prompt: Conditions | None
) -> Guest:
    """The picture once for each chunk, with the chunk's text or, beside a conditional one, with its own prompt."""
    texts: list[Tensor] = []
    vectors: list[Tensor] = []
    for number, chunk in enumerate(layout.chunks):
        row = layout.chunk_rows(number).start
        own = prompt if chunk.conditional else None
        texts.append(context[row : row + 1] if own is None or own.text is None else own.text.to(context))
        if y is not None:
            vectors.append(y[row : row + 1] if own is None or "y" not in own.named else own.named["y"].to(y))
    rows = len(layout.chunks)
    joined = joined_contexts(texts)
    return Guest(name, latent.expand(rows, *latent.shape[1:]), joined, torch.cat(vectors) if vectors else None)
