"""The engine on a masked transformer: patches at every self- and cross-attention, and their laws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.samplers
import pytest
import torch
from torch import Tensor

from semblance.attention.engine.bank import FeatureBank
from semblance.attention.engine.call import AttentionCall, AttentionSite
from semblance.attention.engine.moment import Moment
from semblance.attention.engine.patch import Attend, AttentionPatch
from semblance.attention.functional.bottleneck import bottleneck
from semblance.host.binding.describe import describe
from semblance.host.binding.model import add_patch, map_model
from semblance.host.binding.run import Run
from semblance.host.identity import subject_stamp
from semblance.host.masked.loading import MaskedFiles, load_masked
from semblance.host.masked.sampler import MaskSchedule, masked_sampler
from semblance.tests.support.amused import CODEBOOK, TRANSFORMER, Amused
from semblance.tests.support.amused_runs import NEGATIVE, POSITIVE, sampled

from .conftest import Pair

LAYERS: int = TRANSFORMER["num_hidden_layers"]
CHANNELS: int = TRANSFORMER["hidden_size"]
SCHEDULE = MaskSchedule(4, (2.0, 0.0))


@dataclass(frozen=True, eq=False)
class Bottlenecks(AttentionPatch):
    """A bottleneck after chosen attentions, on conditional rows alone; notes whom it met."""

    sites: Sequence[AttentionSite]
    strength: float
    met: list[tuple[AttentionSite, tuple[str, ...], int, int]]

    def applies_to(self, site: AttentionSite, moment: Moment) -> bool:
        return site in self.sites and self.strength != 0

    def edit_output(self, call: AttentionCall, output: Tensor, attend: Attend, bank: FeatureBank) -> Tensor:
        bank.once("seen", lambda: call.site)
        self.met.append((call.site, tuple(c.role for c in call.layout.chunks), call.height, call.width))
        weights = torch.randn(2, 4, CHANNELS, generator=torch.Generator().manual_seed(call.site.number)).to(output)
        edited = output.clone()
        for rows in call.layout.conditional_rows:
            edited[rows] = edited[rows] + self.strength * bottleneck(output[rows], weights[0], weights[1].mT)
        return edited


def with_bottlenecks(model: Any, strength: float = 1.0, sites: Sequence[AttentionSite] | None = None) -> Any:
    patch = Bottlenecks(map_model(model).sites if sites is None else sites, strength, [])
    return add_patch(model, patch), patch.met


def run(model: Any, cfg: float = 4.0) -> Tensor:
    """The logits of the first step and the latent at the end."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(POSITIVE.conditioning, NEGATIVE.conditioning)
    guider.set_cfg(cfg)
    first: list[Tensor] = []
    predict = guider.predict_noise

    def noting(x: Tensor, *rest: Any, **named: Any) -> Tensor:
        first.append(predict(x, *rest, **named))
        return first[-1]

    guider.predict_noise = noting
    latent = torch.zeros(2, CODEBOOK, 6, 4)
    made = guider.sample(latent, latent, masked_sampler(SCHEDULE), SCHEDULE.sigmas(), disable_pbar=True, seed=1)
    return torch.cat([first[0].flatten(), made.flatten()])


def test_every_self_and_cross_attention_is_a_site(pair: Pair) -> None:
    model = pair[1].model
    known = map_model(model)
    assert known.name == "aMUSEd"
    assert known.sites == tuple(
        AttentionSite(kind, "middle", layer) for layer in range(LAYERS) for kind in ("self", "cross")
    )
    assert set(known.family.preset("all")) == {f"middle.{layer}" for layer in range(LAYERS)}
    assert set(known.widths.values()) == {CHANNELS}
    patched, met = with_bottlenecks(model)
    run(patched)
    tokens = (3, 2) if model.model.settings.resamples else (6, 4)
    assert [site for site, *_ in met[: 2 * LAYERS]] == list(known.sites)
    assert {(height, width) for *_, height, width in met} == {tokens}
    assert {roles for _, roles, *_ in met} == {("negative", "positive")}


@pytest.mark.parametrize("kind", ["self", "cross"])
@pytest.mark.parametrize("layer", range(LAYERS))
def test_a_bottleneck_acts_at_each_layer_alone(pair: Pair, kind: Any, layer: int) -> None:
    model = pair[1].model
    patched, met = with_bottlenecks(model, sites=[AttentionSite(kind, "middle", layer)])
    assert not torch.equal(run(patched), run(model))
    assert {site for site, *_ in met} == {AttentionSite(kind, "middle", layer)}


def test_it_is_what_the_formula_says(pair: Pair) -> None:
    """A bottleneck by the engine equals one written into the module's forward."""
    model = pair[1].model
    site = AttentionSite("cross", "middle", 1)
    patched, _ = with_bottlenecks(model, sites=[site])
    found = run(patched, cfg=1.0)
    layer = model.model.diffusion_model.transformer_layers[1].attn2
    down, up = torch.randn(2, 4, CHANNELS, generator=torch.Generator().manual_seed(1))

    def added(_: Any, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (inputs[0] + bottleneck(inputs[0], down, up.mT),)

    hook = layer.to_out[0].register_forward_pre_hook(added)
    try:
        expected = run(model, cfg=1.0)
    finally:
        hook.remove()
    assert torch.allclose(found, expected, atol=1e-5)


def test_strength_zero_leaves_the_model_untouched(pair: Pair) -> None:
    model = pair[1].model
    plain = run(model)
    patched, met = with_bottlenecks(model, strength=0.0)
    assert torch.equal(run(patched), plain) and not met
    with_bottlenecks(model)
    assert torch.equal(run(model), plain)


def test_conditionings_sent_apart_give_the_same(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    patched, met = with_bottlenecks(pair[1].model)
    together = run(patched)
    monkeypatch.setattr("comfy.model_patcher.ModelPatcher.get_free_memory", lambda self, device: 1)
    met.clear()
    apart = run(patched)
    assert {roles for _, roles, *_ in met} == {("negative",), ("positive",)}
    assert (together - apart).norm() < 1e-4 * together.norm()


def test_at_cfg_1_the_positive_side_runs_alone(pair: Pair) -> None:
    patched, met = with_bottlenecks(pair[1].model)
    run(patched, cfg=1.0)
    assert {roles for _, roles, *_ in met} == {("positive",)}


@pytest.mark.parametrize("ends", ["success", "error", "interrupt"])
def test_nothing_is_kept_after_a_run(pair: Pair, ends: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[Run] = []
    bank_of = Run.bank_of
    monkeypatch.setattr(Run, "bank_of", lambda self, patch: (runs.append(self), bank_of(self, patch))[1])
    patched, met = with_bottlenecks(pair[1].model)
    faults: dict[str, type[BaseException]] = {
        "error": RuntimeError,
        "interrupt": comfy.model_management.InterruptProcessingException,
    }
    if ends in faults:
        fails = faults[ends]

        def failing(*_: Any, **__: Any) -> Tensor:
            raise fails("stopped")

        monkeypatch.setattr(Bottlenecks, "edit_output", failing)
        with pytest.raises(fails):
            run(patched)
    else:
        run(patched)
    assert runs and all(not run._banks for run in runs)


def test_other_packs_patches_of_attention_act_too(pair: Pair) -> None:
    model = pair[1].model.clone()
    seen: list[str] = []
    model.set_model_attn1_patch(lambda n, context, value, extra: (seen.append("inputs"), (n, context, value))[1])
    model.set_model_attn2_output_patch(lambda n, extra: (seen.append("output"), n)[1])
    model.set_model_attn1_replace(lambda q, k, v, extra: (seen.append(str(extra["block"])), v)[1], "middle", 1)
    patched, met = with_bottlenecks(model)
    changed = run(patched)
    assert {"inputs", "output", "('middle', 1)"} == set(seen)
    assert not torch.equal(changed, run(with_bottlenecks(pair[1].model)[0]))
    assert len({site for site, *_ in met}) == 2 * LAYERS


def test_an_attention_override_is_asked(pair: Pair) -> None:
    model = pair[1].model.clone()
    calls: list[int] = []

    def override(function: Any, *arguments: Any, **named: Any) -> Tensor:
        calls.append(1)
        return function(*arguments, **named)

    model.model_options["transformer_options"]["optimized_attention_override"] = override
    assert torch.equal(run(model), run(pair[1].model))
    assert calls


def test_show_patches_and_the_stamp_know_the_family(pair: Pair) -> None:
    model = pair[1].model
    told = describe(model)
    assert told.splitlines()[0] == f"aMUSEd: {LAYERS} blocks with attention, {2 * LAYERS} layers"
    assert "Another node" not in told
    stamp = subject_stamp(model)
    assert stamp.family == "aMUSEd" and stamp == subject_stamp(model.clone())


def test_a_patch_keeps_half_precision(tmp_path: Path) -> None:
    files = Amused.of("512").files(tmp_path)
    named = MaskedFiles(files["diffusion_models"], files["vae"], files["text_encoders"], torch.float16)
    model = load_masked(named).model
    patched, _ = with_bottlenecks(model)
    half, plain = run(patched), run(model)
    assert torch.isfinite(half).all() and not torch.equal(half, plain)


def test_the_same_seed_gives_the_same_picture(pair: Pair) -> None:
    parts = pair[1]
    assert torch.equal(sampled(parts, 4.0, SCHEDULE, 4), sampled(parts, 4.0, SCHEDULE, 4))
