"""The attention layers and blocks of ComfyUI's UNet, and a patch's place in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import comfy.ldm.modules.attention as host_attention
from torch import Tensor

from ...attention.engine.bank import FeatureBank
from ...attention.engine.call import AttentionCall, AttentionKind, AttentionSite, BlockCall, BlockPart
from ...attention.engine.layout import BatchLayout
from ...attention.engine.moment import Moment
from ...attention.engine.patch import AttentionPatch
from ...attention.engine.protocols import EditsBlocks, Rehearses
from ...attention.engine.sharing import attend_in_groups
from ...attention.engine.states import joined_states, split_states

Occupant = Callable[[Tensor, Tensor, Tensor, dict[str, Any]], Tensor]
"""What another pack left at a site: (query, key, value, extra_options) -> attention's output."""
PatchWithBank = tuple[AttentionPatch, FeatureBank]
SLOT: Mapping[AttentionKind, str] = {"self": "attn1", "cross": "attn2"}


@dataclass
class LayerInputs:
    """What the self-attention about to run projects its keys and values from, known from its input to its attention."""

    unet: Any
    sites: frozenset[AttentionSite]
    _noted: dict[AttentionSite, Tensor] = field(default_factory=dict)

    def note(self, hidden: Tensor, context: Tensor, value: Tensor, extra: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """The last of the host's `attn1_patch` list, which changes nothing."""
        part, number = extra["block"]
        site = AttentionSite("self", part, number, extra["block_index"])
        if site in self.sites:
            self._noted[site] = joined_states(context, value)
        return hidden, context, value

    def take(self, site: AttentionSite) -> Tensor | None:
        return self._noted.pop(site, None)

    def project(self, site: AttentionSite, states: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of `states` by the layer's own modules: the host may keep their weights anywhere."""
        layer = attention_layer(self.unet, site)
        for_keys, for_values = split_states(states, layer.to_k.in_features)
        return layer.to_k(for_keys), layer.to_v(for_values)


@dataclass(frozen=True, eq=False)
class BoundSite:
    """The attention of one site during one call: inputs edited, attention run once, output edited."""

    site: AttentionSite
    patches: Sequence[PatchWithBank]
    layout: BatchLayout
    moment: Moment
    occupant: Occupant | None
    inputs: LayerInputs
    met: set[int]
    """Gets the ids of the patches that an attention came to."""
    observer: PatchWithBank | None = None
    """A patch that only looks on."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, extra: dict[str, Any]) -> Tensor:
        self.note_patches()
        height, width = extra["activations_shape"][-2:]
        self._check_whole_picture(query, height, width)
        call = AttentionCall(self.site, self.layout, self.moment, height, width, extra["n_heads"], query, key, value)
        if self.site.kind == "self":
            states, project = self.inputs.take(self.site), partial(self.inputs.project, self.site)
            call = replace(call, states=states, project=project)
        for patch, bank in self.patches:
            call = patch.edit_inputs(call, bank)
        for patch, bank in (self.observer,) if self.observer else ():
            if isinstance(patch, Rehearses):
                patch.observe(call, bank)
        attend = partial(_attend, extra)
        if call.shared:
            output = attend_in_groups(call, partial(self._attended_by, extra))
        elif self.occupant is None:
            output = attend(call.query, call.key, call.value, call.mask)
        else:
            output = self._occupied(call, extra)
        for patch, bank in self.patches:
            output = patch.edit_output(call, output, attend, bank)
        return output

    def note_patches(self) -> None:
        """Notes that an attention came to the patches of this site."""
        self.met.update(id(patch) for patch, _ in (*self.patches, *([self.observer] if self.observer else ())))

    def _occupied(self, call: AttentionCall, extra: dict[str, Any]) -> Tensor:
        assert self.occupant is not None
        if call.mask is not None:
            raise ValueError(
                f"Another node replaces the attention of {self.site.block}, and a Semblance patch restricts it with a "
                "mask there; the two cannot be joined. Bypass one of them for this block."
            )
        return self.occupant(call.query, call.key, call.value, extra)

    def _attended_by(self, extra: dict[str, Any], query: Tensor, key: Tensor, value: Tensor, images: int) -> Tensor:
        """Some of the rows, shown to an occupant as a smaller batch."""
        if self.occupant is None or not images:
            return _attend(extra, query, key, value)
        return self.occupant(
            query, key, value, {**extra, "activations_shape": [len(query), *extra["activations_shape"][1:]]}
        )

    def _check_whole_picture(self, query: Tensor, height: int, width: int) -> None:
        rows, tokens, _ = query.shape
        if rows != self.layout.rows or tokens != height * width:
            raise ValueError(
                f"At {self.site} the model shows {rows} rows of {tokens} tokens where the picture has "
                f"{self.layout.rows} rows of {height}x{width}. A node such as HyperTile or ToMe cuts the picture up; "
                "bypass it to use Semblance."
            )


def attention_sites(unet: Any) -> tuple[AttentionSite, ...]:
    """Every attention layer of a UNet, in the order it runs them."""
    parts: list[tuple[BlockPart, Sequence[Any]]] = [
        ("input", unet.input_blocks),
        ("middle", [] if unet.middle_block is None else [unet.middle_block]),
        ("output", unet.output_blocks),
    ]
    return tuple(
        AttentionSite(kind, part, number, depth)
        for part, blocks in parts
        for number, block in enumerate(blocks)
        for layer in block
        for depth, transformer in enumerate(getattr(layer, "transformer_blocks", ()))
        for kind in (("self", "cross") if transformer.attn2 is not None else ("self",))
    )


def attention_layer(unet: Any, site: AttentionSite) -> Any:
    """The host's module at a site, with its to_q, to_k and to_v."""
    blocks = {"input": unet.input_blocks, "middle": [unet.middle_block], "output": unet.output_blocks}[site.part]
    transformer = next(layer for layer in blocks[site.number] if hasattr(layer, "transformer_blocks"))
    return getattr(transformer.transformer_blocks[site.depth], SLOT[site.kind])


def bound_sites(
    replaced: Mapping[str, Mapping[Any, Occupant]],
    wanted: Mapping[AttentionSite, Sequence[PatchWithBank]],
    layout: BatchLayout,
    moment: Moment,
    inputs: LayerInputs,
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
        occupants[one_depth] = BoundSite(site, acting, layout, moment, occupant, inputs, met, observer)
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


def _attend(extra: dict[str, Any], query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
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
