"""A method, as the engine sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from .bank import FeatureBank
from .call import AttentionCall, AttentionSite, Moment, RunPlan
from .reference import Guest


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

    def guests(self, moment: Moment, bank: FeatureBank) -> Sequence[Guest]:
        """Rows to send through the UNet beside the sampler's own, cut off again before the sampler sees them."""
        return ()

    def edit_inputs(self, call: AttentionCall, bank: FeatureBank) -> AttentionCall:
        """The attention to run in place of `call`."""
        return call

    def edit_output(self, call: AttentionCall, output: Tensor, attend: Attend, bank: FeatureBank) -> Tensor:
        """The result to use in place of `output`, which is attention's, before its output projection."""
        return output
