"""StyleID on the real sampler equals the authors' LDM code on every frozen run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from semblance.attention.engine.bank import FeatureBank
from semblance.attention.engine.call import AttentionCall
from semblance.attention.engine.scope import Scope
from semblance.attention.methods.styleid.method import CONTENT, STYLE, StyleID
from semblance.host.binding.model import add_patch
from semblance.host.conditioning import Text
from semblance.host.inversion.ddim import invert, sampling_sigmas
from semblance.host.inversion.runs import Inversion
from semblance.host.inversion.styleid_start import start_of
from semblance.tests.support.frozen_cases import furthest, load_reference
from semblance.tests.support.oracles import oracle_unet
from semblance.tests.support.speeds import slow_but
from semblance.tests.support.studio import record_calls
from semblance.tests.tiny_models import sampler_custom

CASE, FACTS = load_reference("styleid")
RUNS = FACTS["runs"]
SHORTEST = min(RUNS, key=lambda name: RUNS[name]["N"])
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def model() -> Any:
    return oracle_unet("sd15")


@pytest.fixture(scope="module")
def text() -> Text:
    empty = [[CASE["in.context_empty"], {}]]
    return Text(empty, empty)


class Run:
    """One frozen run, inverted once here."""

    def __init__(self, name: str, model: Any, text: Text) -> None:
        self.name, self.model, self.text = name, model, text
        self.facts = RUNS[name]
        out = model.model.process_latent_out
        self.content, self.style = (
            invert(model, out(CASE[f"in.{which}_latent"]), self.facts["N"], "styleid", text)
            for which in ("content", "style")
        )

    def __getitem__(self, key: str) -> Tensor:
        return CASE[f"{self.name}.{key}"]

    def scope(self) -> Scope:
        return Scope({f"output.{layer}": 1.0 for layer in self.facts["layers"]})

    def patched(self, **changes: Any) -> Any:
        settings = {"gamma": self.facts["gamma"], "temperature": self.facts["T"], **changes}
        patch = StyleID(self.content.trajectory, self.style.trajectory, self.scope(), **settings)
        return add_patch(self.model, patch)

    def sample(self, model: Any, latent: Tensor, sigmas: Tensor) -> Tensor:
        """The final latent as the authors' code gives it: scaled, on the level of timestep 0."""
        made = sampler_custom(model, self.text.positive, self.text.negative, {"samples": latent}, sigmas)
        return model.model.process_latent_in(made) / (1 + sigmas[-1] ** 2) ** 0.5


@pytest.fixture(scope="module", params=slow_but(sorted(RUNS), (SHORTEST,)))
def run(request: pytest.FixtureRequest, model: Any, text: Text) -> Iterator[Run]:
    yield Run(request.param, model, text)


@pytest.mark.parametrize("which", ["content", "style"])
def test_inversion_equals_theirs_at_every_level(run: Run, which: str) -> None:
    inversion: Inversion = getattr(run, which)
    theirs = run[f"inv_{which}"].flip(0)  # from low to high; they do not keep the picture itself
    ours = inversion.trajectory.latents[1:, 0]
    assert len(ours) == len(theirs)
    for level, (mine, expected) in enumerate(zip(ours, theirs, strict=True)):
        assert furthest(mine, expected) <= TOLERANCE, level
    levels = [1, *reversed(run.facts["level_of_inv_index"])]
    assert inversion.trajectory.sigmas == pytest.approx(run.model.model.model_sampling.sigmas[levels].tolist())


def test_start_equals_theirs(run: Run) -> None:
    pair = (run.content.trajectory, run.style.trajectory)
    for mode, name in (("official", "start_adain_level999"), ("exact", "start_adain_exact")):
        start = start_of(run.model, *pair, mode)
        scaled = run.model.model.process_latent_in(start.latent) / (1 + start.sigmas[0] ** 2) ** 0.5
        assert furthest(scaled, run[name]) <= TOLERANCE


def test_official_run_equals_theirs_with_its_quirk(run: Run) -> None:
    start = start_of(run.model, run.content.trajectory, run.style.trajectory, "official")
    assert len(start.sigmas) - 1 == len(run.facts["sampling_calls_t"])
    model, calls = record_calls(run.patched())
    final = run.sample(model, start.latent, start.sigmas)
    assert furthest(final, run["final_official"]) <= TOLERANCE
    for call, theirs in zip(calls[1:], run["traj_official"][:-1], strict=True):
        assert furthest(call["x"][0] / (1 + call["sigma"] ** 2) ** 0.5, theirs) <= TOLERANCE
    plain = run.sample(run.model, start.latent, start.sigmas)
    assert furthest(plain, run["final_official_no_injection"]) <= TOLERANCE
    assert furthest(plain, run["final_official"]) > 0.1


def test_exact_run_equals_theirs(run: Run) -> None:
    start = start_of(run.model, run.content.trajectory, run.style.trajectory, "exact")
    assert len(start.sigmas) - 1 == len(run.facts["sampling_calls_full_t"])
    final = run.sample(run.patched(), start.latent, start.sigmas)
    assert furthest(final, run["final_exact"]) <= TOLERANCE


def test_without_adain_and_from_the_wrong_level_it_equals_theirs_too(run: Run) -> None:
    pair = (run.content.trajectory, run.style.trajectory)
    bare = start_of(run.model, *pair, "official", adain_strength=0.0)
    assert furthest(run.sample(run.patched(), bare.latent, bare.sigmas), run["final_official_no_adain"]) <= TOLERANCE
    start = start_of(run.model, *pair, "official")
    whole = sampling_sigmas(run.model, pair[0])
    latent = start.latent * ((1 + whole[0] ** 2) / (1 + start.sigmas[0] ** 2)) ** 0.5
    final = run.sample(run.patched(), latent, whole)
    assert furthest(final, run["final_full_from_level999"]) <= TOLERANCE


def test_round_trips_equal_theirs(run: Run) -> None:
    content = run.content.trajectory
    exact = start_of(run.model, content, content, "exact", adain_strength=0.0)
    assert furthest(run.sample(run.model, exact.latent, exact.sigmas), run["recon_content_exact"]) <= TOLERANCE
    official = start_of(run.model, content, content, "official", adain_strength=0.0)
    made = run.sample(run.model, official.latent, official.sigmas)
    assert furthest(made, run["recon_content_official"]) <= TOLERANCE


def test_what_a_layer_is_given_equals_theirs_at_the_step_they_kept(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content's queries, and the style's keys and values, (heads, tokens, head_dim)."""
    seen: dict[str, Tensor] = {}
    edit_inputs, timestep = StyleID.edit_inputs, run.facts["feature_t"]
    level = float(run.model.model.model_sampling.sigmas[timestep])

    def watched(patch: StyleID, call: AttentionCall, bank: FeatureBank) -> AttentionCall:
        if call.moment.sigma == pytest.approx(level):
            content, style = (call.layout.guest_rows(patch, name) for name in (CONTENT, STYLE))
            rows = {"q_content": call.query[content], "k_style": call.key[style], "v_style": call.value[style]}
            for name, (row,) in rows.items():
                seen[f"{call.site.number}.{name}"] = row.unflatten(1, (call.heads, -1)).transpose(0, 1)
        return edit_inputs(patch, call, bank)

    monkeypatch.setattr(StyleID, "edit_inputs", watched)
    start = start_of(run.model, run.content.trajectory, run.style.trajectory, "official")
    run.sample(run.patched(), start.latent, start.sigmas)
    assert {int(name.partition(".")[0]) for name in seen} == set(run.facts["layers"])
    for name, found in seen.items():
        assert furthest(found, run[f"feat.t{timestep}.output_block_{name}"]) <= TOLERANCE, name


def test_one_call_equals_theirs_with_and_without_injection(run: Run) -> None:
    sigma = run.model.model.model_sampling.sigmas[run.facts["feature_t"]]
    x = run["unit.x"] * (1 + sigma**2) ** 0.5
    for model, name in ((run.model, "plain"), (run.patched(), "injected")):
        options = {**model.model_options["transformer_options"], "cond_or_uncond": [0]}
        with torch.no_grad():
            clean = model.model.apply_model(
                x, sigma.expand(1), c_crossattn=CASE["in.context_empty"], transformer_options=options
            )
        assert furthest((x - clean) / sigma, run[f"unit.eps_{name}"]) <= 1e-4, name
