"""The attention layers and blocks of ComfyUI's UNet or of a masked transformer, and a patch's place in them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import comfy.ldm.modules.attention as host_attention
from torch import Tensor

from ...attention.engine.bank import FeatureBank
from ...attention.engine.call import AttentionCall, AttentionKind, AttentionSite, BlockCall
from ...attention.engine.layout import BatchLayout
from ...attention.engine.moment import Moment
from ...attention.engine.patch import AttentionPatch
from ...attention.engine.protocols import EditsBlocks, Rehearses
from ...attention.engine.replacing import edited_inputs, edited_output
from ...attention.engine.sharing import attend_in_groups
from ...attention.engine.states import joined_states, split_states
from ...attention.engine.unexpected import UnexpectedCall
from .carried import Uncopied
from .guests import ShieldedOccupant
from .kept_features import KeptFeatures
from .occupants import Occupant, attend_as_batch, checked
from .regions import Regions
from .unet_sites import SLOT, attention_layer

PatchWithBank = tuple[AttentionPatch, FeatureBank]


@dataclass
class LayerInputs(Uncopied):
    """What the attention about to run projects its keys and values from, known from its input to its attention."""

    unet: Any
    sites: frozenset[AttentionSite]
    regions: Regions
    _noted: dict[AttentionSite, Tensor] = field(default_factory=dict)

    def noting(self, patches: Mapping[str, Any]) -> dict[str, Any]:
        """A copy of the options' patches in which the last of those before an attention notes what it is given."""
        noting = dict(patches)
        kinds: set[AttentionKind] = {site.kind for site in self.sites}
        for kind in kinds:
            name = f"{SLOT[kind]}_patch"
            noting[name] = [*patches.get(name, ()), partial(self._note, kind)]
        return noting

    def _note(
        self, kind: AttentionKind, hidden: Tensor, context: Tensor, value: Tensor, extra: Mapping[str, Any]
    ) -> tuple[Tensor, ...]:
        part, number = extra["block"]
        site = AttentionSite(kind, part, number, extra["block_index"])
        if site in self.sites:
            self._noted[site] = joined_states(context, value) if kind == "self" else context
        return hidden, context, value

    def take(self, site: AttentionSite) -> Tensor | None:
        return self._noted.pop(site, None)

    def project(self, site: AttentionSite, states: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of `states` by the layer's own modules: the host may keep their weights anywhere."""
        layer = attention_layer(self.unet, site)
        for_keys, for_values = split_states(states, layer.to_k.in_features)
        return layer.to_k(for_keys), layer.to_v(for_values)


@dataclass(frozen=True, eq=False)
class BoundSite(Uncopied):
    """The attention of one site during one call: inputs edited, attention run once, output edited."""

    site: AttentionSite
    patches: Sequence[PatchWithBank]
    layout: BatchLayout
    moment: Moment
    occupant: Occupant | None
    inputs: LayerInputs
    kept: Mapping[Hashable, tuple[Tensor, ...]]
    """What patches took of their pictures here, where these went through the model before."""
    met: set[int]
    """Gets the ids of the patches that an attention came to."""
    observer: PatchWithBank | None = None
    """A patch that only looks on."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, extra: dict[str, Any]) -> Tensor:
        self.note_patches()
        height, width = extra["activations_shape"][-2:]
        states = self.inputs.take(self.site)
        layout = self._layout_of(query, height, width, extra, states)
        heads = extra["n_heads"]
        call = AttentionCall(self.site, layout, self.moment, height, width, heads, query, key, value, apart=self.kept)
        if self.site.kind == "self":
            call = replace(call, states=states, project=partial(self.inputs.project, self.site))
        call = edited_inputs(call, self.patches)
        for patch, bank in (self.observer,) if self.observer else ():
            if isinstance(patch, Rehearses):
                patch.observe(call, bank)
        return edited_output(call, UnetAttending(self, extra), self.patches)

    def note_patches(self) -> None:
        """Notes that an attention came to the patches of this site."""
        self.met.update(id(patch) for patch, _ in (*self.patches, *([self.observer] if self.observer else ())))

    def attended(self, call: AttentionCall, extra: dict[str, Any]) -> Tensor:
        """What the attention of this site gives for `call`, by whoever computes it here."""
        if call.shared:
            return attend_in_groups(call, partial(self._attended_by, extra, call.key.shape[1]))
        if self.occupant is None:
            return attend(extra, call.query, call.key, call.value, call.mask)
        return self._occupied(call, extra)

    def _occupied(self, call: AttentionCall, extra: dict[str, Any]) -> Tensor:
        assert self.occupant is not None
        self._check_mask(call.mask)
        return checked(self.occupant(call.query, call.key, call.value, extra), call.query, self.site)

    def _check_mask(self, mask: Tensor | None) -> None:
        if mask is not None:
            raise ValueError(
                f"Another node replaces the attention of {self.site.block}, and a Semblance patch restricts it with a "
                "mask there; the two cannot be joined. Bypass one of them for this block."
            )

    def _attended_by(
        self,
        extra: dict[str, Any],
        own: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        images: int,
        mask: Tensor | None = None,
        span: slice = slice(None),
    ) -> Tensor:
        """Some of the rows, without guests or guests alone; the first `own` keys of each are its own."""
        if self.occupant is None or not images:
            return attend(extra, query, key, value, mask)
        self._check_mask(mask)
        bare = self.occupant.occupant if isinstance(self.occupant, ShieldedOccupant) else self.occupant
        return attend_as_batch(bare, self.site, extra, query, key, value, own)

    def _layout_of(
        self, query: Tensor, height: int, width: int, extra: Mapping[str, Any], states: Tensor | None
    ) -> BatchLayout:
        """Whose the rows of this attention are. Raises UnexpectedCall for others than the whole picture's."""
        rows, tokens, _ = query.shape
        layout, whole = self.layout, tokens == height * width
        if whole and rows == layout.rows:
            return layout
        remedy = "Bypass the node that changes the tokens inside the model; HyperTile, ToMe and StyleAligned do."
        if whole and self.site.kind == "cross":
            guests = layout.rows - layout.host_rows
            if (found := self.inputs.regions.layout_of(layout, rows - guests, extra, states)) is not None:
                return found
            remedy = (
                "If a node gives prompts to regions (attention couple), give them by Conditioning (Set Mask) instead; "
                "or bypass the node that changes the rows inside the model."
            )
        raise UnexpectedCall(
            f"At {self.site} the model shows {rows} rows of {tokens} tokens where the picture has {layout.rows} rows "
            f"of {height}x{width}.",
            remedy,
        )


@dataclass(frozen=True, eq=False)
class UnetAttending(Uncopied):
    """The attention of a site, as a method calls it."""

    bound: BoundSite
    extra: dict[str, Any]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        return attend(self.extra, query, key, value, mask)

    def of(self, call: AttentionCall) -> Tensor:
        return self.bound.attended(call, self.extra)


def bound_sites(
    replaced: Mapping[str, Mapping[Any, Occupant]],
    wanted: Mapping[AttentionSite, Sequence[PatchWithBank]],
    layout: BatchLayout,
    moment: Moment,
    inputs: LayerInputs,
    kept: KeptFeatures,
    met: set[int],
    rehearsing: PatchWithBank | None = None,
) -> dict[str, dict[Any, Occupant]]:
    """A copy of `patches_replace` with our sites in it, each around its present occupant."""
    bound = {slot: dict(occupants) for slot, occupants in replaced.items()}
    for site, patches in wanted.items():
        occupants = bound.setdefault(SLOT[site.kind], {})
        whole_block, one_depth = (site.part, site.number), (site.part, site.number, site.depth)
        # ComfyUI calls the three-part key alone where both exist, so it must take in the two-part occupant.
        occupant = occupants.get(one_depth, occupants.get(whole_block))
        observer = rehearsing if rehearsing in patches else None
        acting = [one for one in patches if one != observer]
        occupants[one_depth] = BoundSite(site, acting, layout, moment, occupant, inputs, kept.at(site), met, observer)
    return bound


def with_block_edits(
    patches: Mapping[str, Any],
    carried: Sequence[PatchWithBank],
    layout: BatchLayout,
    moment: Moment,
    rehearsal: bool = False,
) -> dict[str, Any]:
    """A copy of the options' patches in which ours edit what enters the decoder's blocks, after other packs' edits."""

    def edit(hidden: Tensor, skip: Tensor, options: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        part, number = options["block"]
        call = BlockCall(f"{part}.{number}", layout, moment, hidden, skip, rehearsal)
        for patch, bank in carried:
            if isinstance(patch, EditsBlocks) and patch.enters(call.block, moment):
                call = patch.edit_block(call, bank)
        return call.hidden, call.skip

    with_edits = dict(patches)
    with_edits["output_block_patch"] = [*patches.get("output_block_patch", ()), edit]
    return with_edits


def attend(extra: dict[str, Any], query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """ComfyUI's attention of choice; looked up at each call, since packs rebind it."""
    attention = host_attention.optimized_attention if mask is None else host_attention.optimized_attention_masked
    return attention(
        query,
        key,
        value,
        extra["n_heads"],
        mask=mask,
        attn_precision=extra.get("attn_precision"),
        transformer_options=extra,
    )
