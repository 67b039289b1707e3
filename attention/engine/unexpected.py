"""A model call that cannot be served, because another node made something else of it."""

from __future__ import annotations


class UnexpectedCall(ValueError):
    """Says what was seen in a call and what to do. What is on the model is told by the host, which knows it."""

    def __init__(self, seen: str, remedy: str) -> None:
        super().__init__(f"{seen} {remedy}")
        self.seen, self.remedy = seen, remedy

    def beside(self, others: str) -> str:
        """The whole message, with the sentence that tells what other nodes do on the model."""
        return f"{self.seen} {others} {self.remedy}"
