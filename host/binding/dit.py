"""One call of a diffusion transformer: patches bind to its attentions in APPLY_MODEL, whatever the family.

The host hands every attention of a call to one function, `optimized_attention_override`. Ours runs around the one that
other packs put there, if any, and is gone after the call.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor

from ...attention.engine.call import AttentionCall, AttentionSite
from ...attention.engine.layout import BatchLayout
from ...attention.engine.moment import Moment
from ...attention.engine.patch import AttentionPatch
from ...attention.engine.protocols import Prepares
from ...attention.engine.replacing import edited_inputs, edited_output
from ...attention.engine.unexpected import UnexpectedCall
from ...attention.functional.rotary import moved_along
from .attending import Attending
from .carried import Uncopied
from .conditions import Conditions
from .kept_features import KeptFeatures, keep_features
from .layouts import acting_in, layout_of
from .neighbours import others_attend, others_call
from .pictures import ModelCall
from .run import RUN, Run
from .streams import Streams
from .transformer import REFERENCES, Transformer
from .unet import PatchWithBank
from .whereabouts import Whereabouts

OVERRIDE = "optimized_attention_override"


def called(
    executor: Any, transformer: Transformer, x: Tensor, t: Tensor, conditions: Conditions, options: dict[str, Any]
) -> Tensor:
    """The model's answer to `x` at the noise levels `t` (rows,), with the carried patches bound to this call."""
    run: Run = options[RUN]
    with run.model_call():
        return _bound(executor, transformer, run, x, t, conditions, options)


def _bound(
    executor: Any,
    transformer: Transformer,
    run: Run,
    x: Tensor,
    t: Tensor,
    conditions: Conditions,
    given: Mapping[str, Any],
) -> Tensor:
    layout = replace(layout_of(given, x, run), device=x.device)
    # The one number read back from the device in a call, and outside every attention.
    moment = run.moment(float(t[0]))
    patches, acting_at, acting = acting_in(given, run, transformer.sites, moment)
    call = ModelCall(layout, moment, conditions, x, executor.class_obj, run.prompts)
    seats = call.seats(acting, alone=others_attend(given) or others_call(executor.class_obj.current_patcher, given))
    layout = replace(layout, guests=seats.rows)
    for patch, bank in patches:
        if isinstance(patch, Prepares):
            patch.begin(layout, moment, bank)
    options = {name: option for name, option in given.items() if name not in ("block_index", "block_type")}
    grid = transformer.picture_tokens(x)
    bound = BoundTransformer(transformer, acting_at, grid, layout, moment, options.get(OVERRIDE))
    for group in seats.groups:
        further = transformer.places_before(conditions.text) - transformer.places_before(group.conditions.text)
        seen = transformer.picture_tokens(group.x)
        watching = PictureWatch(transformer, acting_at, seen, group.shown, bound.apart, further)
        alone = watching.whereabouts.told(_without_others(options, len(group.x)))
        group.conditions.call(executor, group.x, t[:1].expand(len(group.x)), {**alone, OVERRIDE: watching})
    rows = layout.rows - layout.host_rows
    levels = t if not rows else t[:1].expand(layout.rows)
    seated = {**bound.streams.seated(bound.whereabouts.told(options)), OVERRIDE: bound}
    output = call.with_seats(seats).call(executor, seats.behind(x), levels, seated)
    run.attendance.take([patch for patch, _ in acting], set(), bound.met, given, run.others)
    return output[: layout.host_rows]


def _without_others(options: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """The options of a call that shows pictures alone, as many as there are rows: no other pack's patches act."""
    left = {name: option for name, option in options.items() if name not in ("patches", "patches_replace", "uuids")}
    return {**left, "cond_or_uncond": [0] * rows}


@dataclass(eq=False)
class _AtAttentions(Uncopied, ABC):
    """Stands at every attention of one call of a transformer."""

    transformer: Transformer
    acting_at: Mapping[AttentionSite, Sequence[PatchWithBank]]
    grid: tuple[int, int, int]
    """Frames, height and width of the picture in tokens."""

    def __post_init__(self) -> None:
        self._tokens = math.prod(self.grid)
        self.whereabouts = Whereabouts(self.transformer, self._tokens)

    def __call__(
        self,
        func: Callable[..., Tensor],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        heads: int,
        *rest: Any,
        **named: Any,
    ) -> Tensor:
        attending = Attending(self._host(func), query, key, value, heads, rest, named)
        site = self.whereabouts.site(attending.options, query, key)
        return attending.plain() if site is None or site not in self.acting_at else self._at(site, attending)

    def _host(self, func: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """What runs the attention in the end."""
        return func

    @abstractmethod
    def _at(self, site: AttentionSite, attending: Attending) -> Tensor:
        """What comes out of an attention at which patches act."""


@dataclass(eq=False)
class BoundTransformer(_AtAttentions):
    """The attentions of one call of a transformer: inputs edited, attention run, output edited."""

    layout: BatchLayout
    moment: Moment
    occupant: Callable[..., Tensor] | None
    met: set[int] = field(default_factory=set[int])
    """Gets the ids of the patches that an attention came to."""
    apart: KeptFeatures = field(default_factory=KeptFeatures)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.streams = Streams(self.acting_at, self.transformer.kind.tells_rotation)

    def _host(self, func: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return func if self.occupant is None else partial(self.occupant, func)

    def _at(self, site: AttentionSite, attending: Attending) -> Tensor:
        patches, call = self.acting_at[site], self._call(site, attending)
        self.met.update(id(patch) for patch, _ in patches)
        return edited_output(edited_inputs(call, patches), attending, patches)

    def _call(self, site: AttentionSite, attending: Attending) -> AttentionCall:
        query, key, value = attending.parts
        _, height, width = self.grid
        tokens, own = query.shape[-2], self._tokens
        alone = site.kind == "self"
        if len(query) != self.layout.rows or tokens < own or (alone and tokens != own):
            raise UnexpectedCall(
                f"At {site} the model shows {len(query)} rows of {tokens} tokens where there are {self.layout.rows} "
                f"rows of a picture of {own}.",
                "Bypass the node that changes the rows or tokens inside the model, such as reference frames of a video "
                "model.",
            )
        image = self.transformer.image(site, tokens, own, attending.options)
        if image.start < 0 or (site.kind == "joint" and REFERENCES in attending.options and key.shape[-2] > tokens):
            raise UnexpectedCall(
                f"At {site} another node keeps the keys of reference pictures and leaves out their tokens.",
                "Bypass it; Flux KV Cache does so.",
            )
        return AttentionCall(
            site,
            self.layout,
            self.moment,
            height,
            width,
            attending.heads,
            query,
            key,
            value,
            attending.mask,
            image=image,
            model_query=query,
            rotary=self.transformer.rotary if site.kind != "cross" else None,
            rotation=self.streams.rotation,
            apart=self.apart.at(site),
        )


@dataclass(eq=False)
class PictureWatch(_AtAttentions):
    """The attentions of a call that shows the model a patch's pictures alone: plain, and their features are kept."""

    shown: Sequence[tuple[AttentionPatch, str]]
    """Whose picture each row is, and its name."""
    into: KeptFeatures
    further: int = 0
    """By how many places of the first axis the sampler's pictures stand further behind their text."""

    def _at(self, site: AttentionSite, attending: Attending) -> Tensor:
        query, key, value = attending.parts
        rotary = self.transformer.rotary
        if self.further and rotary is not None:
            query, key = (moved_along(part, self.further, rotary.axes[0], rotary.base) for part in (query, key))
        image = self.transformer.image(site, query.shape[-2], self._tokens, attending.options)
        acting = {id(patch) for patch, _ in self.acting_at[site]}
        keep_features(self.into, site, acting, self.shown, image, query, key, value)
        return attending.plain()
