"""Prompts in ComfyUI's API form: how one is followed, and what its failure means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Prompt = dict[str, Any]
"""A workflow in ComfyUI's API form: node id -> class_type and inputs."""
History = dict[str, Any]
"""What the server remembers of one finished prompt."""


@dataclass(frozen=True)
class Progress:
    """How far the node that runs now has come."""

    node_id: str
    value: float
    maximum: float


class PromptFailed(RuntimeError):
    """A prompt was refused or a node of it turned red."""

    def __init__(self, reason: str, node_id: str = "", node_type: str = "") -> None:
        self.reason, self.node_id, self.node_type = reason, node_id, node_type
        super().__init__(f"{node_type} (node {node_id}): {reason}" if node_id else reason)


class PromptInterrupted(PromptFailed):
    """Somebody stopped the prompt while it ran."""


def progress_of(event: dict[str, Any]) -> Progress | None:
    if event["type"] == "executing":
        return Progress(event["node"], 0, 1)
    if event["type"] == "progress":
        return Progress(event["node"], event["value"], event["max"])
    return None


def prompt_refusal(answer: dict[str, Any], prompt: Prompt) -> PromptFailed:
    """The first complaint of a refused prompt; a node's own complaint says more than the summary."""
    for node_id, complaint in answer.get("node_errors", {}).items():
        error = complaint["errors"][0]
        return PromptFailed(f"{error['message']}: {error['details']}", node_id, complaint["class_type"])
    error = answer["error"]
    node_id = (error.get("extra_info") or {}).get("node_id", "")
    return PromptFailed(error["message"], node_id, prompt.get(node_id, {}).get("class_type", "unknown node"))


def raise_for_red_node(history: History) -> None:
    for kind, event in history["status"]["messages"]:
        if kind == "execution_error":
            raise PromptFailed(event["exception_message"].strip(), event["node_id"], event["node_type"])
        if kind == "execution_interrupted":
            raise PromptInterrupted("interrupted", event["node_id"], event["node_type"])
