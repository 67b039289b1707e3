"""The contract of a method: four verbs. What else a method may do is a small protocol it adds; see `protocols.py`."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from .bank import FeatureBank
from .call import AttentionCall, AttentionSite
from .moment import Moment, RunPlan


class Attend(Protocol):
    """Plain attention with the call's number of heads, in the kernel that ComfyUI uses."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """Heads in as the call has them, packed heads out: (rows, query_tokens, heads * head_dim)."""
        ...

    def of(self, call: AttentionCall) -> Tensor:
        """What attention gives for a whole call, with its mask and the tokens it shares."""
        ...


class AttentionPatch(Protocol):
    """A method: an immutable value that a MODEL carries. The engine consults it at every attention it applies to.

    Inside an attention the patches edit its inputs in the order of the nodes, attention runs once, and the patches
    edit the output in the same order; those that replace it in part mix as `replacing.py` says. Tensors that must last
    from call to call go into `bank`, which belongs to this patch and this run.
    """

    def check(self, plan: RunPlan) -> None:
        """Called once, before the first step. Raises ValueError if this patch cannot serve the run."""

    def applies_to(self, site: AttentionSite, moment: Moment) -> bool:
        """Whether this patch edits the attention at `site` now. Asked once a model call for each site.

        A patch that applies nowhere leaves the model bit-identical.
        """
        ...

    def edit_inputs(self, call: AttentionCall, bank: FeatureBank) -> AttentionCall:
        """Returns the attention to run in place of `call`."""
        return call

    def edit_output(self, call: AttentionCall, output: Tensor, attend: Attend, bank: FeatureBank) -> Tensor:
        """Returns the result to use in place of `output`, both taken before the output projection."""
        return output
