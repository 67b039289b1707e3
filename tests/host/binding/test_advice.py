"""A window that meets no step of a run says so, on the node that samples and in the log, and stops nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from comfy_execution.utils import CurrentNodeContext

from semblance.attention.engine.scope import ScheduleWindow
from semblance.attention.families import CONSISTORY
from semblance.attention.methods.consistory.method import ConsiStory
from semblance.attention.methods.consistory.settings import Injection, StepRange
from semblance.attention.subjects.words import SubjectWords
from semblance.host.binding.model import add_patch
from semblance.tests.support.studio import Studio

BETWEEN = ScheduleWindow(0.95, 0.96)


class Browser:
    """What the server sends to the nodes."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str]] = []

    def send_progress_text(self, text: str, node_id: str) -> None:
        self.sent.append((node_id, text))


@pytest.fixture
def browser(monkeypatch: pytest.MonkeyPatch) -> Browser:
    from server import PromptServer

    shown = Browser()
    monkeypatch.setattr(PromptServer, "instance", shown, raising=False)
    return shown


def story(studio: Studio, **settings: Any) -> ConsiStory:
    words = SubjectWords(("a fox",), ("a fox", "a fox asleep"), (((2,),), ((3,),)), 77)
    return ConsiStory(words, studio.model_map.family.choice(CONSISTORY), **settings)


@pytest.mark.parametrize("name", ["instantstyle", "styleid"])
def test_a_window_between_two_steps_is_named_on_the_sampler(
    sd15: Studio, browser: Browser, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    patched, plain = sd15.with_patch(name, scope=replace(sd15.everywhere(), window=BETWEEN)), sd15.sample(sd15.model)
    with CurrentNodeContext("prompt", "7"):
        assert torch.equal(sd15.sample(patched), plain)
    ((node, text),) = browser.sent
    assert node == "7" and "no step has a weight between start 0.95 and end 0.96" in text and text in caplog.text


def test_nothing_is_said_of_a_window_that_meets_a_step_or_a_patch_that_is_off(sd15: Studio, browser: Browser) -> None:
    with CurrentNodeContext("prompt", "7"):
        sd15.sample(sd15.with_patch("instantstyle"))
        sd15.sample(sd15.with_patch("instantstyle", strength=0.0, scope=replace(sd15.everywhere(), window=BETWEEN)))
    assert not browser.sent


def test_a_story_names_what_it_leaves_out(sd15: Studio, browser: Browser) -> None:
    late = Injection(window=StepRange(0.8, 0.9))  # three steps of "simple" end at two thirds of the noise
    with CurrentNodeContext("prompt", "7"):
        sd15.sample(add_patch(sd15.model, story(sd15, injection=late)), images=2, steps=3)
        sd15.sample(add_patch(sd15.model, story(sd15)), images=2, steps=1)
    (_, copies), (_, shares) = browser.sent
    assert "No features are copied" in copies and "share nothing" not in copies
    assert "share nothing" in shares
