"""Live anchors: the first images of the batch, sampled beside the images that attend to them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from ...engine.bank import FeatureBank
from ...engine.call import AttentionCall, SharedTokens
from ...engine.layout import BatchLayout
from ...engine.moment import Moment, RunPlan
from ...functional.correspondence import near_enough, nearest_patches
from ...subjects.maps import Grid, grid_of
from ...subjects.words import SubjectWords
from .anchors import StepMasks
from .settings import Injection, Sharing

SEEN_GRID = "seen grid"


@dataclass(frozen=True)
class BatchAnchors:
    """Images of the batch attend to the subject in the anchors of the same batch, wherever its mask is now."""

    @property
    def follow_masks(self) -> bool:
        return True

    @property
    def have_features(self) -> bool:
        return True

    def label(self, words: SubjectWords, sharing: Sharing) -> str:
        of_whom = f"ConsiStory of {words}, {sharing.anchors or 'all'} anchors"
        return f"{of_whom}, sharing {sharing.strength:g}, dropout {sharing.dropout.fraction:g}"

    def prepare(
        self, sharing: Sharing, masks: StepMasks, layout: BatchLayout, moment: Moment, bank: FeatureBank
    ) -> None:
        for grid, mask in masks.items():
            name = selected_name(moment, grid)
            if name not in bank:
                bank.forget_all(*name[:2])
                bank.remember(name, _select(mask(), sharing, moment, grid))

    def prepare_outputs(self, layout: BatchLayout, moment: Moment, bank: FeatureBank) -> None:
        """Nothing to do: the features are in the call itself."""

    def tokens(self, sharing: Sharing, call: AttentionCall, bank: FeatureBank) -> Iterator[SharedTokens]:
        layout = call.layout
        selected = bank.recall_all(selected_name(call.moment, grid_of(call)))
        if not selected:
            return
        # Images with the same sources share one gathered copy of their tokens.
        viewers: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for image in range(layout.images):
            viewers[tuple(sharing.sources(image, layout.images))].append(image)
        key, value = (
            torch.unflatten(rows[: layout.host_rows], 0, (-1, layout.images)) for rows in (call.key, call.value)
        )  # -> (chunks, images, tokens, channels)
        for sources, images in viewers.items():
            if sources:
                keys, values = (
                    torch.cat([part[:, s].index_select(1, selected[s]) for s in sources], 1) for part in (key, value)
                )
                yield SharedTokens(tuple(images), keys, values)

    def match(self, sharing: Sharing, image: int, patches: Tensor, subjects: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest patch among all sources of the image, counted over the patches of all images in turn."""
        count = patches.shape[1]
        own = torch.arange(count, device=patches.device)
        sources = sharing.sources(image, len(patches))
        if not sources:
            return image * count + own, torch.zeros_like(own, dtype=torch.bool)
        found = [nearest_patches(patches[image], patches[source], subjects[source]) for source in sources]
        distances = torch.stack([distance for _, distance in found])
        best = distances.min(dim=0)
        indices = torch.stack([source * count + index for source, (index, _) in zip(sources, found, strict=True)])
        return indices.gather(0, best.indices[None])[0], near_enough(best.values)

    def outputs(self, call: AttentionCall, images: Tensor, bank: FeatureBank) -> Tensor:
        return images.flatten(0, 1)

    def check(self, plan: RunPlan, sharing: Sharing, injection: Injection) -> None:
        if plan.images < 2:
            raise ValueError("A story of one scene has no other image to be alike. Write two scenes or more.")


def selected_name(moment: Moment, grid: Grid) -> tuple[str, Grid, int, int]:
    """The bank's name for the token indices that others attend to in each image at a step."""
    return "selected", grid, moment.pass_number, moment.step


def note_grid(grid: Grid, bank: FeatureBank) -> None:
    """Remembers the grid of an attention that could not be told from the latent's size."""
    bank.remember((SEEN_GRID, grid), ())


def seen_grids(bank: FeatureBank) -> list[Grid]:
    return [cast(Grid, name[1]) for name in bank if isinstance(name, tuple) and name[:1] == (SEEN_GRID,)]


def _select(mask: Tensor | None, sharing: Sharing, moment: Moment, grid: Grid) -> tuple[Tensor, ...]:
    """For each image the indices of the subject's tokens that dropout leaves: (tokens,) each."""
    if mask is None:
        return ()
    # The one tensor read back from the device at a step: how many tokens there are shapes what follows.
    kept = mask.cpu() & ~sharing.dropout.at(moment, len(mask), grid)
    return tuple(tokens.nonzero().squeeze(1).to(mask.device) for tokens in kept)
