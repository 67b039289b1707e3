"""StyleID on the real sampler equals the authors' LDM code on every frozen run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from semblance.attention.engine.bank import FeatureBank
from semblance.attention.engine.call import AttentionCall, AttentionSite
from semblance.attention.engine.layout import BatchLayout, GuestRows
from semblance.attention.engine.moment import Moment
from semblance.attention.engine.scope import Scope
from semblance.attention.functional.statistics import adain
from semblance.attention.methods.styleid import CONTENT, STYLE, StyleID
from semblance.host.binding.model import add_patch
from semblance.host.conditioning import Text
from semblance.host.inversion.ddim import invert, sampling_sigmas
from semblance.host.inversion.runs import Inversion
from semblance.host.inversion.styleid_start import start_of
from semblance.tests.tiny_models import load_reference, oracle_unet, sampler_custom

CASE, FACTS = load_reference("styleid")
RUNS = FACTS["runs"]
TOLERANCE = 1e-3


def distance(made: Tensor, expected: Tensor) -> float:
    return ((made - expected).norm() / expected.norm()).item()


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


@pytest.fixture(scope="module", params=sorted(RUNS))
def run(request: pytest.FixtureRequest, model: Any, text: Text) -> Iterator[Run]:
    yield Run(request.param, model, text)


@pytest.mark.parametrize("which", ["content", "style"])
def test_inversion_equals_theirs_at_every_level(run: Run, which: str) -> None:
    inversion: Inversion = getattr(run, which)
    theirs = run[f"inv_{which}"].flip(0)  # from low to high; they do not keep the picture itself
    ours = inversion.trajectory.latents[1:, 0]
    assert len(ours) == len(theirs)
    for level, (mine, expected) in enumerate(zip(ours, theirs, strict=True)):
        assert distance(mine, expected) <= TOLERANCE, level
    levels = [1, *reversed(run.facts["level_of_inv_index"])]
    assert inversion.trajectory.sigmas == pytest.approx(run.model.model.model_sampling.sigmas[levels].tolist())


def test_start_equals_theirs(run: Run) -> None:
    pair = (run.content.trajectory, run.style.trajectory)
    for mode, name in (("official", "start_adain_level999"), ("exact", "start_adain_exact")):
        start = start_of(run.model, *pair, mode)
        scaled = run.model.model.process_latent_in(start.latent) / (1 + start.sigmas[0] ** 2) ** 0.5
        assert distance(scaled, run[name]) <= TOLERANCE


def test_official_run_equals_theirs_with_its_quirk(run: Run) -> None:
    start = start_of(run.model, run.content.trajectory, run.style.trajectory, "official")
    assert len(start.sigmas) - 1 == len(run.facts["sampling_calls_t"])
    final = run.sample(run.patched(), start.latent, start.sigmas)
    assert distance(final, run["final_official"]) <= TOLERANCE
    plain = run.sample(run.model, start.latent, start.sigmas)
    assert distance(plain, run["final_official_no_injection"]) <= TOLERANCE
    assert distance(plain, run["final_official"]) > 0.1


def test_exact_run_equals_theirs(run: Run) -> None:
    start = start_of(run.model, run.content.trajectory, run.style.trajectory, "exact")
    assert len(start.sigmas) - 1 == len(run.facts["sampling_calls_full_t"])
    final = run.sample(run.patched(), start.latent, start.sigmas)
    assert distance(final, run["final_exact"]) <= TOLERANCE


def test_without_adain_and_from_the_wrong_level_it_equals_theirs_too(run: Run) -> None:
    pair = (run.content.trajectory, run.style.trajectory)
    bare = start_of(run.model, *pair, "official", adain_strength=0.0)
    assert distance(run.sample(run.patched(), bare.latent, bare.sigmas), run["final_official_no_adain"]) <= TOLERANCE
    start = start_of(run.model, *pair, "official")
    whole = sampling_sigmas(run.model, pair[0])
    latent = start.latent * ((1 + whole[0] ** 2) / (1 + start.sigmas[0] ** 2)) ** 0.5
    final = run.sample(run.patched(), latent, whole)
    assert distance(final, run["final_full_from_level999"]) <= TOLERANCE


def test_round_trips_equal_theirs(run: Run) -> None:
    content = run.content.trajectory
    exact = start_of(run.model, content, content, "exact", adain_strength=0.0)
    assert distance(run.sample(run.model, exact.latent, exact.sigmas), run["recon_content_exact"]) <= TOLERANCE
    official = start_of(run.model, content, content, "official", adain_strength=0.0)
    made = run.sample(run.model, official.latent, official.sigmas)
    assert distance(made, run["recon_content_official"]) <= TOLERANCE


def test_adain_equals_theirs() -> None:
    made = adain(CASE["adain_unit.content"], CASE["adain_unit.style"])
    assert distance(made, CASE["adain_unit.out"]) <= 1e-6


@pytest.mark.parametrize("name", sorted(key for key in CASE if key.startswith("attn_unit.out.gamma")))
def test_one_attention_equals_theirs(name: str) -> None:
    """Their layer takes features of other token counts; here the guests are rows of the same call."""
    gamma, temperature = (
        float(part[len(mark) :])
        for part, mark in zip(name.removeprefix("attn_unit.out.").split("_"), ("gamma", "T"), strict=True)
    )
    unit = {key.removeprefix("attn_unit."): tensor for key, tensor in CASE.items() if key.startswith("attn_unit.")}
    heads = FACTS["attn_unit"]["heads"]
    query, key, value = (nn.functional.linear(unit["x"], unit[f"w.to_{part}.weight"]) for part in "qkv")
    content, style_key, style_value = (
        unit[f"{part}_injected"].transpose(0, 1).flatten(1)[None] for part in ("q", "k", "v")
    )
    tokens = query.shape[1]
    rows = len(query)
    # The style has more tokens than the content: two calls, one for each half of what the patch reads.
    patch = StyleID(_nothing(), _nothing(), Scope({"output.6": 1.0}), gamma, temperature)
    layout = BatchLayout.from_numbers([0], rows, (4, 6))
    guests = (GuestRows(patch, CONTENT, 1), GuestRows(patch, STYLE, 1))
    layout = BatchLayout(layout.chunks, layout.images, layout.latent, guests)
    short = style_key.new_zeros(1, style_key.shape[1] - tokens, style_key.shape[2])

    def widened(own: Tensor, of_content: Tensor) -> Tensor:
        return torch.cat([torch.cat([own, short.expand(rows, -1, -1)], 1), torch.cat([of_content, short], 1)])

    call = AttentionCall(
        AttentionSite("self", "output", 6),
        layout,
        Moment(1.0, 0, 1, 0.5, lambda share: 1e9 * (1 - share)),
        4,
        6,
        heads,
        torch.cat([query, content, content]),
        torch.cat([widened(key, content), style_key]),
        torch.cat([widened(value, content), style_value]),
    )
    edited = patch.edit_inputs(call, FeatureBank())
    parts = (
        part[:rows].unflatten(-1, (heads, -1)).transpose(1, 2) for part in (edited.query, edited.key, edited.value)
    )
    made = nn.functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
    made = nn.functional.linear(made, unit["w.to_out.0.weight"], unit["w.to_out.0.bias"])
    assert distance(made, unit[name.removeprefix("attn_unit.")]) <= 1e-5


def _nothing() -> Any:
    return None
