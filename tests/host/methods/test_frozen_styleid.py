"""StyleID on the real sampler equals the authors' LDM code on every frozen run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from torch import Tensor

from semblance.attention.engine.scope import Scope
from semblance.attention.methods.styleid import StyleID
from semblance.host.binding.model import add_patch
from semblance.host.conditioning import Text
from semblance.host.inversion.ddim import invert, sampling_sigmas
from semblance.host.inversion.runs import Inversion
from semblance.host.inversion.styleid_start import start_of
from semblance.tests.support.frozen_cases import load_reference
from semblance.tests.support.oracles import oracle_unet
from semblance.tests.support.speeds import slow_but
from semblance.tests.tiny_models import sampler_custom

CASE, FACTS = load_reference("styleid")
RUNS = FACTS["runs"]
SHORTEST = min(RUNS, key=lambda name: RUNS[name]["N"])
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
