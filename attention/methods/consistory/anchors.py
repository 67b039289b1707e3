"""The anchors of a story: the images that all others attend to, sampled in the same batch or recorded before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from torch import Tensor

from ...engine.bank import FeatureBank
from ...engine.call import AttentionCall, SharedTokens
from ...engine.layout import BatchLayout
from ...engine.moment import Moment, RunPlan
from ...subjects.maps import Grid
from ...subjects.words import SubjectWords
from .settings import Injection, Sharing

StepMasks = Mapping[Grid, Callable[[], Tensor | None]]
"""By grid, what gives the subjects' mask before this step: bool (images, tokens), or None before the first masks."""


class Anchors(Protocol):
    """What ConsiStory asks of its anchors."""

    @property
    def follow_masks(self) -> bool:
        """Whether the shared tokens are chosen by the masks of the images being sampled."""
        ...

    @property
    def have_features(self) -> bool:
        """Whether there are features to copy."""
        ...

    def label(self, words: SubjectWords, sharing: Sharing) -> str:
        """The story and its anchors in words, for lists of what is on a model."""
        ...

    def check(self, plan: RunPlan, sharing: Sharing, injection: Injection) -> None:
        """Raises ValueError for a run in which these anchors cannot serve."""
        ...

    def prepare(
        self, sharing: Sharing, masks: StepMasks, layout: BatchLayout, moment: Moment, bank: FeatureBank
    ) -> None:
        """Called before each model call that shares: readies the shared tokens of this step."""
        ...

    def prepare_outputs(self, layout: BatchLayout, moment: Moment, bank: FeatureBank) -> None:
        """Called before each model call that copies features: readies the features of this step."""
        ...

    def tokens(self, sharing: Sharing, call: AttentionCall, bank: FeatureBank) -> Iterator[SharedTokens]:
        """The anchors' keys and values at the subject, for the images that attend to them."""
        ...

    def match(self, sharing: Sharing, image: int, patches: Tensor, subjects: Tensor) -> tuple[Tensor, Tensor]:
        """For each patch of an image the index of its match in `outputs`, and whether it is near enough: (patches,).

        `patches` (images, patches, channels) of length 1; `subjects` bool (images, patches).
        """
        ...

    def outputs(self, call: AttentionCall, images: Tensor, bank: FeatureBank) -> Tensor:
        """The features to copy, (patches, channels); `images` (images, patches, channels) are those being sampled."""
        ...
