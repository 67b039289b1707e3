"""Images that see tokens of others attend to those too, and to their own, in any number of chunks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from semblance.attention.engine.call import AttentionCall, AttentionSite, SharedTokens
from semblance.attention.engine.layout import BatchLayout, Chunk
from semblance.attention.engine.moment import Moment
from semblance.attention.engine.sharing import attend_in_groups, select_rows

LAYOUT = BatchLayout((Chunk("negative"), Chunk("positive")), 3, (2, 2))
MOMENT = Moment(1.0, 1, 2, 0.5, lambda progress: 0.0)


class NoLists(TorchDispatchMode):
    """Refuses brackets with a list or a mask: a GPU waits for the CPU there, and for no `index_select`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket.__name__ not in ("index", "index_put_")
        return func(*args, **(kwargs or {}))


def attention(query: Tensor, key: Tensor, value: Tensor, images: int, mask: Tensor | None = None) -> Tensor:
    return scaled_dot_product_attention(query, key, value, attn_mask=mask)


def test_each_image_attends_to_its_own_tokens_and_to_those_it_is_shown_and_no_gpu_waits() -> None:
    noise = torch.Generator().manual_seed(1)
    query, key, value = torch.randn(3, 6, 4, 8, generator=noise)
    shared_key, shared_value = torch.randn(2, 2, 5, 8, generator=noise)
    shown = SharedTokens((0, 2), shared_key, shared_value)
    call = AttentionCall(
        AttentionSite("self", "output", 0), LAYOUT, MOMENT, 2, 2, 1, query, key, value, shared=(shown,)
    )
    with NoLists():
        made = attend_in_groups(call, attention)
    for row in range(6):
        chunk, image = divmod(row, 3)
        others = [(shared_key[chunk], shared_value[chunk])] if image in shown.images else []
        keys, values = (torch.cat(parts) for parts in zip((key[row], value[row]), *others, strict=True))
        torch.testing.assert_close(made[row], scaled_dot_product_attention(query[row], keys, values))


def test_rows_are_taken_as_by_a_list_in_brackets() -> None:
    rows = torch.arange(24.0).view(2, 3, 4)
    with NoLists():
        found = select_rows(rows, (2, 0, 2), dim=1)
    assert torch.equal(found, rows[:, [2, 0, 2]])
