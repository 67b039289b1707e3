"""What a method may do besides editing attentions: one small protocol for each. A method that adds none is complete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from .bank import FeatureBank
from .call import AttentionCall, AttentionSite, BlockCall
from .guests import Guest, InvertedPicture, PinnedImages, ShownPicture
from .layout import BatchLayout
from .moment import Moment, RunPlan


@runtime_checkable
class Prepares(Protocol):
    """Does work between two model calls."""

    def begin(self, layout: BatchLayout, moment: Moment, bank: FeatureBank) -> None:
        """Called once before each model call. Read tensors back to the CPU here, never inside an attention."""
        ...


@runtime_checkable
class NeedsMemory(Protocol):
    """Holds more memory during a run than the model does for its images."""

    def extra_images(self, plan: RunPlan) -> float:
        """For how many images beside those of the run the host is asked to make room.

        A guest's row counts as one. Tensors kept from call to call count as the images that take as much memory.
        """
        ...


@runtime_checkable
class BringsGuests(Protocol):
    """Sends latents of its own through the model."""

    def guests(self, layout: BatchLayout, moment: Moment, bank: FeatureBank) -> Sequence[Guest]:
        """Extra rows for the next model call. They are cut off before the sampler sees the result.

        `layout` tells which images of the batch the call shows.
        """
        ...


@runtime_checkable
class ShowsPictures(Protocol):
    """Shows the model pictures of its own, at the noise level of each call."""

    def pictures(self, moment: Moment) -> Sequence[ShownPicture | InvertedPicture]:
        """The pictures for the next model call."""
        ...

    def features(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """What the patch takes of a picture in one attention, given its tokens; text is left out.

        Each is (chunks, tokens, channels) or (chunks, heads, tokens, head_dim). Where the picture goes through the
        model before the call, the result is kept until the call is done, for every attention.
        """
        ...


@runtime_checkable
class KnowsImages(Protocol):
    """Knows some images of the batch already."""

    def pins(self, moment: Moment) -> PinnedImages | None:
        """The images at the start of the batch that are known and must come out unchanged; None for none."""
        ...


@runtime_checkable
class Rehearses(Protocol):
    """Needs to see what the model does without this patch."""

    def rehearses(self, moment: Moment) -> bool:
        """Whether the model runs once more, first, on the same latents with this patch only observing."""
        ...

    def observe(self, call: AttentionCall, bank: FeatureBank) -> None:
        """Reads, in a rehearsal, an attention that this patch applies to."""
        ...


@runtime_checkable
class SamplesAgain(Protocol):
    """Needs the sampler to run more than once from the same noise. The user gets the result of the last pass."""

    def passes(self, plan: RunPlan) -> int:
        """How often the sampler runs."""
        ...

    def pass_is_done(self, moment: Moment, bank: FeatureBank) -> bool:
        """Whether a pass before the last may end now. Asked before each model call."""
        ...


@runtime_checkable
class EditsBlocks(Protocol):
    """Edits what enters a block of the decoder."""

    def enters(self, block: str, moment: Moment) -> bool:
        """Whether this patch edits the input of `block`, e.g. `output.3`, now."""
        ...

    def edit_block(self, call: BlockCall, bank: FeatureBank) -> BlockCall:
        """Returns the block to run in place of `call`."""
        ...


@runtime_checkable
class EditsStreams(Protocol):
    """Edits what leaves a double block of a transformer."""

    def edit_stream(self, site: AttentionSite, picture: Tensor, bank: FeatureBank) -> Tensor:
        """Returns the tokens to use in place of `picture` (rows, tokens, channels), after the block of `site`.

        Asked where the patch applies. The picture's own tokens come first, then those of reference pictures.
        """
        ...


class AddsToOutput:
    """Adds to what an attention of a transformer gives, and so acts after all patches that replace part of it."""


@runtime_checkable
class Advises(Protocol):
    """Knows before a run what the user may not expect of it."""

    def advice(self, plan: RunPlan) -> Sequence[str]:
        """Sentences for the user, such as that a window meets no step. The run goes on."""
        ...


@runtime_checkable
class Reports(Protocol):
    """Finds something out that outlives the run, such as subject masks."""

    def findings(self, plan: RunPlan, bank: FeatureBank) -> Mapping[str, Tensor]:
        """Tensors by name that leave with the run's LATENT. Asked once, after the last pass."""
        ...


@runtime_checkable
class Resumes(Protocol):
    """Goes on where an earlier run ended, with what that one found."""

    def resume(self, found: Mapping[str, Tensor], bank: FeatureBank) -> bool:
        """Takes what it needs of an earlier run's findings, before the first step. Returns whether that was anything.

        Asked if the sampler adds no noise to the LATENT that carries them.
        """
        ...
