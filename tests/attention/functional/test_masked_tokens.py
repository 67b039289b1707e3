"""Masked tokens by closed forms, and the frozen cases of the port of StyleDrop on the pack's own functions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from semblance.attention.functional.bottleneck import bottleneck
from semblance.attention.functional.masked_tokens import (
    draw_tokens,
    draw_tokens_muse,
    gumbel,
    mask_count,
    mask_for_tuning,
    mask_ratios,
    masked_cross_entropy,
    one_hot,
    remask_amused,
    remask_muse,
    tokens_of,
)
from semblance.attention.functional.two_scales import two_scale_guidance
from semblance.tests.support.frozen_cases import furthest, load_reference
from semblance.tests.support.port_of_muse import PortUViT, down_and_up, rows_of

MASK = 24


def test_tokens_go_to_one_hot_and_back() -> None:
    tokens = torch.randint(0, MASK + 1, (2, 3, 4))
    latent = one_hot(tokens, MASK)
    assert torch.equal(tokens_of(latent, MASK), tokens)
    assert torch.equal(latent.sum(dim=1), (tokens < MASK).float())


def test_amused_counts_masked_tokens_in_float32_and_muse_in_float64() -> None:
    masked = torch.tensor([16])
    counts = [int(mask_count(16, mask_ratios(3, dtype)[2], masked)) for dtype in (torch.float32, torch.float64)]
    assert counts == [7, 8]
    assert mask_ratios(5)[0] == 1 and mask_ratios(5)[-1] == 0


def test_at_least_one_token_stays_masked_and_at_least_one_is_found() -> None:
    masked = torch.tensor([5, 2, 1])
    assert mask_count(16, torch.tensor(0.9), masked).tolist() == [4, 1, 1]
    assert mask_count(16, torch.tensor(0.0), masked).tolist() == [1, 1, 1]


def test_counts_take_no_float64_to_the_device_of_the_tokens() -> None:
    """Not every device has it."""

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            on_device = [each for each in (made, *args) if isinstance(each, Tensor) and each.device.type == "meta"]
            if on_device:
                assert all(each.dtype != torch.float64 for each in (made, *args) if isinstance(each, Tensor)), func
            return made

    masked, ratio = torch.tensor([16], device="meta"), mask_ratios(3, torch.float64)[2]
    with Watch():
        assert mask_count(16, ratio, masked).device.type == "meta"


def test_a_draw_is_that_of_multinomial() -> None:
    logits = torch.randn(3, 5, MASK)
    exponential = torch.empty(15, MASK).exponential_(generator=torch.Generator().manual_seed(1))
    probabilities = logits.softmax(dim=-1).flatten(0, 1)
    expected = torch.multinomial(probabilities, 1, generator=torch.Generator().manual_seed(1)).reshape(3, 5)
    assert torch.equal(draw_tokens(logits, exponential.reshape(3, 5, MASK)), expected)


@pytest.mark.parametrize("remask", [remask_amused, remask_muse])
def test_known_tokens_are_never_masked_again(remask: Any) -> None:
    logits, noise = torch.randn(2, 6, MASK), gumbel(torch.rand(2, 6))
    tokens = torch.tensor([[1, 2, 3, 4, 5, MASK], [1, 2, 3, 4, MASK, MASK]])
    drawn = torch.full_like(tokens, 7)
    after = remask(tokens, logits, drawn, MASK, torch.tensor(0.9), 1.0, noise)
    assert torch.equal(after[:, :4], tokens[:, :4])
    whole = remask(drawn, logits, drawn, MASK, torch.tensor(0.9), 1.0, noise)
    assert torch.equal(whole, drawn)


def test_the_two_decoders_differ_where_tokens_stand_at_the_cut_off() -> None:
    """Strictly less in aMUSEd, less or equal in the port of MUSE, whose count is the first row's."""
    logits = torch.zeros(2, 4, MASK)
    logits[..., 7] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    tokens = torch.tensor([[MASK] * 4, [MASK, MASK, MASK, 3]])
    drawn = torch.full_like(tokens, 7)
    settings = (tokens, logits, drawn, MASK, torch.tensor(0.5), 0.0, torch.zeros(2, 4))
    assert (remask_amused(*settings) == MASK).sum(dim=1).tolist() == [2, 2]
    assert (remask_muse(*settings) == MASK).sum(dim=1).tolist() == [2, 2]
    even = (tokens, torch.zeros_like(logits), *settings[2:])
    assert (remask_amused(*even) == MASK).sum(dim=1).tolist() == [0, 0]
    assert (remask_muse(*even) == MASK).sum(dim=1).tolist() == [4, 3]


def test_cross_entropy_counts_masked_tokens_alone() -> None:
    logits, tokens = torch.zeros(1, 3, MASK), torch.tensor([[1, 2, 3]])
    logits[0, 2, 3] = 100.0
    masked = torch.tensor([[True, False, False]])
    assert math.isclose(float(masked_cross_entropy(logits, tokens, masked)), math.log(MASK), rel_tol=1e-6)


# The port of StyleDrop

Case = tuple[dict[str, Tensor], dict[str, Any]]


@pytest.fixture(scope="module")
def case() -> Case:
    return load_reference("styledrop")


def network(case: Case) -> PortUViT:
    prefix = "uvit.w."
    weights = {name.removeprefix(prefix): t.float() for name, t in case[0].items() if name.startswith(prefix)}
    return PortUViT(weights, case[1]["config"])


def adapter(case: Case, prefix: str = "uvit.w.adapter.") -> dict[str, Tensor]:
    found = {name.removeprefix(prefix): t.float() for name, t in case[0].items() if name.startswith(prefix)}
    return {name.removesuffix(".weight"): tensor for name, tensor in found.items()}


SHARED = "adapter_shared.w."


def test_the_ports_rows_are_shared_in_the_second_half(case: Case) -> None:
    _, known = case
    used = [row for row in rows_of(known["config"]["depth"], shared_out_rows=True) if row is not None]
    assert used == known["adapter_rows_used"]
    assert rows_of(6, shared_out_rows=False) == [0, 1, 2, None, 3, 4, 5]


@pytest.mark.parametrize(("prefix", "out"), [("uvit.w.adapter.", "out"), (SHARED, "out_shared")])
def test_a_bottleneck_is_the_ports(case: Case, prefix: str, out: str) -> None:
    frozen, known = case
    x = frozen["adapter_unit.x"]
    layers = [name for name in frozen if name.startswith(f"adapter_unit.{out}.layer")]
    assert layers
    for name in layers:
        pair = down_and_up(adapter(case, prefix), int(name.rpartition("layer")[2]), known["config"]["embed_dim"])
        assert furthest(x + bottleneck(x, *pair), frozen[name]) <= 1e-5


def test_logits_are_the_ports(case: Case) -> None:
    frozen, _ = case
    model, ids, context = network(case), frozen["in.ids"], frozen["in.context"]
    assert furthest(model.logits(ids, context), frozen["out.logits_base"]) <= 1e-4
    assert furthest(model.logits(ids, frozen["in.empty_context"]), frozen["out.logits_uncond"]) <= 1e-4
    assert furthest(model.logits(ids, context, adapter(case)), frozen["out.logits_adapter"]) <= 1e-4
    shared = model.logits(ids, context, adapter(case, SHARED))
    assert furthest(shared, frozen["out.logits_adapter_shared"]) <= 1e-4


def test_rows_counted_on_give_other_logits(case: Case) -> None:
    frozen, known = case
    rows = rows_of(known["config"]["depth"], shared_out_rows=False)
    other = network(case).logits(frozen["in.ids"], frozen["in.context"], adapter(case), rows)
    assert furthest(other, frozen["out.logits_adapter"]) > 1e-2


def test_guidance_is_the_ports(case: Case) -> None:
    frozen, known = case
    tuned, base, unconditional = (frozen[f"out.logits_{side}"] for side in ("adapter", "base", "uncond"))
    scales = known["config"]["lA"], known["config"]["lB"]
    both = two_scale_guidance(tuned, base, unconditional, *scales)
    assert furthest(both, frozen["out.guidance_two_scale"]) <= 1e-4
    none = two_scale_guidance(tuned, base, unconditional, 0.0, 0.0)
    assert furthest(none, frozen["out.guidance_zero_lambdas"]) <= 1e-6
    plain = two_scale_guidance(base, base, unconditional, 0.0, 3.0)
    assert furthest(plain, frozen["out.guidance_plain_cfg_scale3"]) <= 1e-4


def guided(case: Case, ids: Tensor, step: Mapping[str, Any]) -> Tensor:
    """The logits of one step: by both scales where the step has them, which are 0 at the first, else by plain CFG."""
    frozen, _ = case
    model, context, empty = network(case), frozen["in.context"], frozen["in.empty_context"]
    base, unconditional = model.logits(ids, context), model.logits(ids, empty)
    if step["lambdaA"] is None:
        return two_scale_guidance(base, base, unconditional, 0.0, step["scale"])
    tuned = model.logits(ids, context, adapter(case))
    return two_scale_guidance(tuned, base, unconditional, step["lambdaA"], step["lambdaB"])


@pytest.mark.parametrize(("kind", "result"), [("plain", "plain_cfg"), ("adapter", "adapter")])
def test_decoded_tokens_are_the_ports(case: Case, kind: str, result: str) -> None:
    frozen, known = case
    config, mask = known["config"], known["mask_id"]
    steps, ratios = config["steps"], mask_ratios(config["steps"], torch.float64)
    ids = torch.full_like(frozen["in.ids"], mask)
    found = ids
    for step in known[f"decode_{kind}"]:
        number = step["step"]
        assert torch.equal(ids, frozen[f"decode.{kind}.ids_in"][number])
        assert (ids == mask).sum(dim=1).tolist() == step["masked_in"]
        logits = guided(case, ids, step)
        name = f"decode.{kind}.logits_step{number}"
        if name in frozen:
            assert furthest(logits, frozen[name]) <= 1e-4
        warmth = config["temp"] * (1 - (number + 1) / steps)
        drawn = draw_tokens_muse(logits, warmth, frozen[f"decode.{kind}.gumbel_tokens"][number])
        found = drawn.where(ids == mask, ids)
        noise = frozen[f"decode.{kind}.gumbel_confidence"][number]
        ids = remask_muse(ids, logits, drawn, mask, ratios[number + 1], warmth, noise)
    assert torch.equal(found.reshape(frozen[f"decode.result_{result}"].shape), frozen[f"decode.result_{result}"])


def test_loss_and_gradients_are_the_ports(case: Case) -> None:
    frozen, known = case
    mask = known["mask_id"]
    tokens = frozen["train.x0"]
    shown, masked = mask_for_tuning(tokens, frozen["train.draw_t"], frozen["train.draw_perm"], mask)
    assert torch.equal(shown, frozen["train.masked_ids"])
    assert torch.equal(tokens[masked], frozen["train.labels"][masked])
    weights = {name: tensor.requires_grad_() for name, tensor in adapter(case).items()}
    logits = network(case).logits(shown, frozen["in.context"], weights)
    loss = masked_cross_entropy(logits, tokens, masked, known["config"]["smoothing"])
    assert math.isclose(float(loss.detach()), known["train_loss"], rel_tol=1e-5)
    loss.backward()
    for name in ("WD", "WU"):
        gradient = weights[name].grad
        assert gradient is not None and furthest(gradient, frozen[f"train.grad.{name}"]) <= 1e-5
