"""A method, as the engine sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from .bank import FeatureBank
from .call import AttentionCall, AttentionSite, BlockCall
from .guests import Guest, PinnedImages
from .layout import BatchLayout
from .moment import Moment, RunPlan


class Attend(Protocol):
    """Plain attention with the call's number of heads, in whichever kernel the host uses."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """Packed heads in, packed heads out: (rows, query_tokens, heads * head_dim)."""
        ...


class AttentionPatch(Protocol):
    """A method: an immutable value that a MODEL carries and the engine consults at every attention it applies to.

    The engine asks `applies_to` once a model call for every site; a patch that applies nowhere leaves the model
    bit-identical. Inside an attention the patches edit its inputs in the order of the nodes, attention runs once,
    and the patches edit the output in the same order. What must last from call to call goes into `bank`, which
    belongs to this patch and this run.
    """

    def require(self, plan: RunPlan) -> None:
        """Refuses a run that this patch cannot serve, with a ValueError, before the first step."""

    def applies_to(self, site: AttentionSite, moment: Moment) -> bool:
        """Whether this patch wants to edit the attention at `site` now."""
        ...

    def samplings(self, plan: RunPlan) -> int:
        """How often the sampler runs, from the same noise each time; the user gets what the last one made."""
        return 1

    def is_enough(self, moment: Moment, bank: FeatureBank) -> bool:
        """Whether this patch needs no more of a sampling that is not the last; asked before the model is called."""
        return True

    def begin(self, layout: BatchLayout, moment: Moment, bank: FeatureBank) -> None:
        """Prepares a model call: the place for what must be read back from the device, outside every attention."""

    def rehearses(self, moment: Moment) -> bool:
        """Whether the UNet first runs once on the same latents without this patch, which only observes."""
        return False

    def observe(self, call: AttentionCall, bank: FeatureBank) -> None:
        """Sees, in a rehearsal, the attention at a site that this patch applies to."""

    def enters(self, block: str, moment: Moment) -> bool:
        """Whether this patch wants to edit what goes into a block of the decoder, e.g. `output.3`."""
        return False

    def edit_block(self, call: BlockCall, bank: FeatureBank) -> BlockCall:
        """The block to run in place of `call`."""
        return call

    def findings(self, plan: RunPlan, bank: FeatureBank) -> Mapping[str, Tensor]:
        """What the run found out that its latent shall carry along; asked once, after the last sampling."""
        return {}

    def guests(self, moment: Moment, bank: FeatureBank) -> Sequence[Guest]:
        """Rows to send through the UNet beside the sampler's own, cut off again before the sampler sees them."""
        return ()

    def pins(self, moment: Moment) -> PinnedImages | None:
        """Images of the batch that are known already, and so are neither sampled nor changed."""
        return None

    def edit_inputs(self, call: AttentionCall, bank: FeatureBank) -> AttentionCall:
        """The attention to run in place of `call`."""
        return call

    def edit_output(self, call: AttentionCall, output: Tensor, attend: Attend, bank: FeatureBank) -> Tensor:
        """The result to use in place of `output`, which is attention's, before its output projection."""
        return output
