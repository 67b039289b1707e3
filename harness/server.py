"""A real ComfyUI server for as long as a `with` block lasts, isolated in a folder of its own.

>>> with ComfyUIServer() as server:
...     pictures = server.outputs(server.run(prompt, on_progress=print))
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import websocket

from .pinned import ROOT, find_host
from .prompts import (
    History,
    Progress,
    Prompt,
    PromptFailed,
    PromptInterrupted,
    progress_of,
    prompt_refusal,
    raise_for_red_node,
)

__all__ = ["ComfyUIServer", "History", "Progress", "Prompt", "PromptFailed", "PromptInterrupted", "ServerFailed"]
PACK_NAME = "semblance"
BASE_FOLDERS = ("models", "custom_nodes", "input", "output", "user", "temp")
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__")
LOG_LINES_SHOWN = 40


class ServerFailed(RuntimeError):
    """The server did not start, did not answer or ended too early; the message ends with its log's last lines."""


class ComfyUIServer:
    """Starts ComfyUI on the CPU with the pack in it, answers for it, and stops it on every way out."""

    def __init__(
        self,
        *,
        pack: Path | None = ROOT,
        extra_nodes: Sequence[Path] = (),
        arguments: Sequence[str] = ("--cpu",),
        start_timeout: float = 300.0,
    ) -> None:
        """`pack` may be None, for a host without it; `extra_nodes` are further custom node folders, each under its own
        name; `arguments` go to ComfyUI's command line."""
        self.pack = pack
        self.extra_nodes = extra_nodes
        self.arguments = arguments
        self.start_timeout = start_timeout
        self.base_directory = Path()
        self.port = 0
        self._client_id = uuid.uuid4().hex
        self._process: subprocess.Popen[bytes] | None = None
        self._exit = ExitStack()

    def __enter__(self) -> ComfyUIServer:
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="semblance-", ignore_cleanup_errors=True))
            self.base_directory = Path(folder).resolve()
            self._lay_out_base_directory()
            stack.enter_context(self._running())
            self._wait_until_it_answers()
            self._exit = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.close()

    # What a caller asks of it

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str) -> Any:
        """The JSON the server answers at `path`."""
        return self._request(path)

    def object_info(self) -> dict[str, Any]:
        """Every node the server knows, by id."""
        return self.get("/object_info")

    def queue(self, prompt: Prompt) -> str:
        """Queues `prompt` and returns its id; a prompt the server refuses raises PromptFailed."""
        try:
            return self._request("/prompt", {"prompt": prompt, "client_id": self._client_id})["prompt_id"]
        except HTTPError as refusal:
            raise prompt_refusal(json.loads(refusal.read()), prompt) from None

    def run(
        self, prompt: Prompt, on_progress: Callable[[Progress], None] | None = None, timeout: float = 600.0
    ) -> History:
        """Queues `prompt`, follows it to its end and returns its history; a red node raises PromptFailed."""
        with self._listening() as events:
            prompt_id = self.queue(prompt)
            deadline = time.monotonic() + timeout
            while True:
                event = self._next_event(events, deadline)
                if event.get("prompt_id") != prompt_id:
                    continue
                if event["type"] == "executing" and event["node"] is None:
                    break
                if on_progress and (progress := progress_of(event)):
                    on_progress(progress)
        history = self.get(f"/history/{prompt_id}")[prompt_id]
        raise_for_red_node(history)
        return history

    def interrupt(self) -> None:
        """Stops the prompt that runs now."""
        self._request("/interrupt", {})

    def add_input(self, picture: Path) -> str:
        """Puts a copy of `picture` among the server's inputs and returns the name LoadImage knows it by."""
        shutil.copy(picture, self.base_directory / "input" / picture.name)
        return picture.name

    def models(self, folder: str) -> Path:
        """The server's folder for one kind of model, e.g. `checkpoints`."""
        path = self.base_directory / "models" / folder
        path.mkdir(parents=True, exist_ok=True)
        return path

    def outputs(self, history: History, kind: str = "output") -> list[Path]:
        """The pictures a prompt saved, in node order; kind "temp" gives its previews."""
        pictures = [picture for node in history["outputs"].values() for picture in node.get("images", [])]
        return [
            self.base_directory / kind / picture["subfolder"] / picture["filename"]
            for picture in pictures
            if picture["type"] == kind
        ]

    @property
    def log(self) -> str:
        """Everything the server has said so far, without its colours."""
        text = (self.base_directory / "comfyui.log").read_text(encoding="utf-8", errors="replace")
        return re.sub(r"\x1b\[[\d;]*m", "", text)

    @property
    def log_tail(self) -> str:
        return "\n".join(self.log.splitlines()[-LOG_LINES_SHOWN:])

    # How it starts and stops

    def _lay_out_base_directory(self) -> None:
        for name in BASE_FOLDERS:
            (self.base_directory / name).mkdir()
        if self.pack is not None:
            link(self.pack, self.base_directory / "custom_nodes" / PACK_NAME)
        for nodes in self.extra_nodes:
            link(nodes.resolve(), self.base_directory / "custom_nodes" / nodes.name)

    @contextmanager
    def _running(self) -> Iterator[None]:
        """The server's process, ended by its own id whatever happens."""
        self.port = free_port()
        host = find_host()
        with (self.base_directory / "comfyui.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(host / "main.py"), *self._command_line()],
                cwd=host,
                env={"OMP_NUM_THREADS": "1", **os.environ},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            try:
                yield
            finally:
                stop(self._process)

    def _command_line(self) -> list[str]:
        isolation = ["--base-directory", str(self.base_directory), "--database-url", "sqlite:///:memory:"]
        address = ["--listen", "127.0.0.1", "--port", str(self.port)]
        return [*address, *isolation, "--disable-api-nodes", *self.arguments]

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + self.start_timeout
        while time.monotonic() < deadline:
            self._raise_if_ended()
            try:
                self.get("/system_stats")
                return
            except (URLError, ConnectionError, TimeoutError):
                time.sleep(0.2)
        raise self._failed(f"did not answer within {self.start_timeout:.0f} s")

    def _raise_if_ended(self) -> None:
        if self._process is None or self._process.poll() is not None:
            raise self._failed("is not running")

    def _failed(self, what: str) -> ServerFailed:
        return ServerFailed(f"The ComfyUI server {what}. The end of its log:\n{self.log_tail}")

    # How it talks

    def _request(self, path: str, body: dict[str, Any] | None = None) -> Any:
        content = None if body is None else json.dumps(body).encode()
        request = Request(self.url + path, content, {"Content-Type": "application/json"})
        with urlopen(request, timeout=60) as response:
            answer = response.read()
        return json.loads(answer) if answer else None

    @contextmanager
    def _listening(self) -> Iterator[websocket.WebSocket]:
        address = f"ws://127.0.0.1:{self.port}/ws?clientId={self._client_id}"
        events = websocket.create_connection(address, timeout=60.0)
        events.settimeout(1.0)
        try:
            yield events
        finally:
            events.close()

    def _next_event(self, events: websocket.WebSocket, deadline: float) -> dict[str, Any]:
        """The server's next message with its type, or an empty one while it has nothing to say."""
        if time.monotonic() > deadline:
            self.interrupt()
            raise self._failed("did not finish the prompt in time")
        try:
            message = events.recv()
        except websocket.WebSocketTimeoutException:
            self._raise_if_ended()
            return {}
        except (websocket.WebSocketException, OSError):
            raise self._failed("broke off the connection") from None
        if isinstance(message, bytes):  # a preview picture
            return {}
        event = json.loads(message)
        return {"type": event["type"], **event["data"]}


def link(source: Path, target: Path) -> None:
    """Links `source` to `target`, or copies it where links are not allowed (Windows without developer mode)."""
    try:
        target.symlink_to(source, target_is_directory=source.is_dir())
    except OSError:
        shutil.copytree(source, target, ignore=NOT_COPIED)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def stop(process: subprocess.Popen[bytes], patience: float = 10.0) -> None:
    process.terminate()
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
