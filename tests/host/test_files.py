"""Files of strangers are opened safely; what cannot be opened is refused in a sentence."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import comfy.utils  # noqa: F401  (puts ComfyUI on the path)
import folder_paths
import pytest
import torch
from safetensors.torch import save, save_file

from semblance.harness.pinned import ROOT
from semblance.host.files import (
    ADAPTERS,
    STYLES,
    UnreadableFile,
    UnwritableFile,
    file_names,
    find_file,
    free_path,
    load_tensors,
    register_folders,
    save_tensors,
    saved_name,
    shapes_in,
)

WEIGHTS = {"a": torch.arange(600.0), "b": torch.ones(3, 3)}


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    known = {
        ADAPTERS: ([str(tmp_path / "adapters"), str(tmp_path / "more")], {".bin", ".safetensors"}),
        STYLES: ([str(tmp_path / "styles")], {".safetensors"}),
    }
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", known)
    for name in ("adapters", "more", "styles"):
        (tmp_path / name).mkdir()
    return tmp_path


class Bomb:
    """A pickle that writes a file when it is run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.write_text, (self.mark, "boom")


@pytest.mark.parametrize("name", ["adapter.bin", "adapter.pt", "adapter.ckpt"])
@pytest.mark.parametrize("protocol", [0, 2])
def test_code_in_a_pickle_does_not_run(folders: Path, name: str, protocol: int) -> None:
    mark, path = folders / "mark", folders / name
    path.write_bytes(pickle.dumps({"image_proj": WEIGHTS, "x": Bomb(mark)}, protocol=protocol))
    with pytest.raises(
        UnreadableFile, match=f"'{name}' was not opened: it holds program code .*Download .*safetensors"
    ):
        load_tensors(path)
    assert not mark.exists()
    pickle.loads(path.read_bytes())  # the bomb is a real one
    assert mark.read_text() == "boom"


def test_code_in_a_file_written_by_torch_does_not_run(folders: Path) -> None:
    mark, path = folders / "mark", folders / "adapter.bin"
    torch.save({"image_proj": WEIGHTS, "x": Bomb(mark)}, path)
    with pytest.raises(UnreadableFile, match="was not opened"):
        load_tensors(path)
    assert not mark.exists()


def truncated(content: bytes, share: float) -> bytes:
    return content[: int(len(content) * share)]


@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.5, 0.99])
def test_truncated_safetensors_is_called_damaged(folders: Path, share: float) -> None:
    path = folders / "adapter.safetensors"
    path.write_bytes(truncated(save(WEIGHTS), share))
    with pytest.raises(UnreadableFile, match=r"'adapter.safetensors' cannot be read: .*incomplete.*Download it again"):
        load_tensors(path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_bin_is_refused(folders: Path, share: float, zipped: bool) -> None:
    path = folders / "adapter.bin"
    torch.save(WEIGHTS, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(truncated(path.read_bytes(), share))
    with pytest.raises(UnreadableFile, match="'adapter.bin' .*Download"):
        load_tensors(path)


@pytest.mark.parametrize("name", ["adapter.bin", "adapter.safetensors"])
@pytest.mark.parametrize(
    "content",
    [
        b"<!DOCTYPE html><html>Sign in to continue</html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        b"\x00" * 64,
        b"\xff" * 64,
        b"PK\x03\x04 not a zip",
        bytes(range(256)) * 4,
    ],
    ids=["web page", "lfs pointer", "zeros", "ones", "broken zip", "noise"],
)
def test_what_is_no_model_file_is_refused_in_a_sentence(folders: Path, name: str, content: bytes) -> None:
    path = folders / name
    path.write_bytes(content)
    with pytest.raises(UnreadableFile, match=f"'{name}' .*Download") as refusal:
        load_tensors(path)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 400


@pytest.mark.parametrize(
    "content",
    [
        [torch.ones(1), torch.ones(2)],
        [torch.ones(1)],
        torch.ones(3),
        {0: torch.ones(1), 1: torch.ones(1)},
        "text",
        None,
    ],
    ids=["two tensors", "one tensor", "tensor", "numbers for names", "text", "nothing"],
)
def test_weights_without_names_are_refused_in_a_sentence(folders: Path, content: Any) -> None:
    path = folders / "adapter.bin"
    torch.save(content, path)
    with pytest.raises(UnreadableFile, match="'adapter.bin' .*Download"):
        load_tensors(path)


def test_missing_file_is_named_with_every_folder_and_the_publisher(folders: Path) -> None:
    with pytest.raises(UnreadableFile) as refusal:
        find_file("ip.safetensors", ADAPTERS, published="example.org/ip")
    message = str(refusal.value)
    for part in ("'ip.safetensors'", str(folders / "adapters"), str(folders / "more"), "press R", "example.org/ip"):
        assert part in message


@pytest.mark.parametrize("name", ["", None])
def test_no_file_chosen_is_said_so(folders: Path, name: str | None) -> None:
    with pytest.raises(UnreadableFile, match=f"No file is in {folders / 'styles'}. Put it there"):
        find_file(name, STYLES)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/../../secret.safetensors"])
def test_names_do_not_lead_out_of_the_folder(folders: Path, name: str) -> None:
    (folders / "secret.safetensors").touch()
    with pytest.raises(UnreadableFile, match="is not in"):
        find_file(name, STYLES)


def test_files_of_several_folders_are_listed_once(folders: Path) -> None:
    for folder in ("adapters", "more", "styles"):
        (folders / folder / "a.safetensors").touch()
    (folders / "more" / "b.bin").touch()
    assert file_names(ADAPTERS, STYLES) == ["a.safetensors", "b.bin"]


def test_folders_of_other_packs_are_made_known_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines of docs/files.md, in ComfyUI's own reader; ComfyUI reads them before it imports any pack."""
    from utils.extra_config import load_extra_path_config

    page = (ROOT / "docs" / "files.md").read_text(encoding="utf-8")
    lines = page.partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "extra_model_paths.yaml").write_text(lines, encoding="utf-8")
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {})
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    for folder in ("ipadapter", "ipadapter-flux", "xlabs/ipadapters"):
        path = tmp_path / "models" / folder
        path.mkdir(parents=True)
        save_file(WEIGHTS, path / f"{path.name}.safetensors")
        (path / "notes.txt").touch()
    load_extra_path_config(str(tmp_path / "extra_model_paths.yaml"))
    register_folders()
    assert file_names(ADAPTERS) == ["ipadapter-flux.safetensors", "ipadapter.safetensors", "ipadapters.safetensors"]
    found = find_file("ipadapters.safetensors", ADAPTERS)
    assert found == tmp_path / "models" / "xlabs" / "ipadapters" / "ipadapters.safetensors"


def test_style_names_already_taken_get_a_number(folders: Path) -> None:
    for expected in ("ink.safetensors", "ink 2.safetensors", "ink 3.safetensors"):
        path = free_path(STYLES, "ink")
        assert path == folders / "styles" / expected
        path.touch()


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("ink", "ink.safetensors"),
        ("  ink.safetensors ", "ink.safetensors"),
        ("inks/blue", "inks/blue.safetensors"),
        ("inks\\blue", "inks/blue.safetensors"),
        ("v1.5", "v1.5.safetensors"),
        ("水彩", "水彩.safetensors"),
    ],
)
def test_style_names_become_files_in_the_styles_folder(folders: Path, name: str, file: str) -> None:
    path = free_path(STYLES, name)
    assert path == folders / "styles" / file and path.parent.is_dir()


@pytest.mark.parametrize(
    "name",
    [
        "",
        "  ",
        ".",
        "..",
        "../x",
        "a/../../x",
        "..\\..\\x",
        "/etc/x",
        ".safetensors",
        "C:\\x",
        "a:b",
        "what?",
        "a\0b",
        "x\ny",
    ]
    + ['"quoted"', "a|b", "a*", "<a>"],
)
def test_style_names_that_lead_out_or_that_some_system_forbids_are_refused(folders: Path, name: str) -> None:
    before = sorted(folders.rglob("*"))
    with pytest.raises(UnwritableFile, match="is not a name for a style. Use letters, digits and spaces"):
        free_path(STYLES, name)
    assert sorted(folders.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "why"),
    [
        *((name, "Windows keeps it for a device") for name in ("CON", "nul", "com1", "a/LPT9", "aux.old", "con/a")),
        *((name, "no dot and no space at the end") for name in ("ink.", "ink /blue", "inks./blue", "v1 .safetensors")),
    ],
)
def test_names_that_windows_does_not_take_are_refused_everywhere(folders: Path, name: str, why: str) -> None:
    with pytest.raises(UnwritableFile, match=f"is not a name for a style: Windows .*{why}|{why}.*Use letters"):
        free_path(STYLES, name)
    assert free_path(STYLES, "console") and free_path(STYLES, "com10") and free_path(STYLES, "nullarbor")


def test_file_that_cannot_be_written_whole_is_not_there(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folders / "styles" / "ink.safetensors"

    def half(_tensors: Any, name: str, **_: Any) -> None:
        Path(name).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(comfy.utils, "save_torch_file", half)
    with pytest.raises(UnwritableFile, match=r"'ink.safetensors' cannot be written to .*styles \(no space left"):
        save_tensors(path, WEIGHTS, {})
    assert file_names(STYLES) == [] and list((folders / "styles").iterdir()) == []


@pytest.mark.parametrize("folder", [ADAPTERS, STYLES])
def test_names_with_backslashes_from_windows_are_found(folders: Path, folder: str) -> None:
    path = folders / folder_paths.get_folder_paths(folder)[-1] / "old" / "inks" / "blue.safetensors"
    path.parent.mkdir(parents=True)
    path.touch()
    for name in ("old\\inks\\blue.safetensors", "old\\inks/blue.safetensors", "old/inks/blue.safetensors"):
        assert find_file(name, ADAPTERS, STYLES) == path
    with pytest.raises(UnreadableFile, match="is not in"):
        find_file("..\\secret.safetensors", STYLES)


def test_a_backslash_that_is_part_of_a_name_stays_one(folders: Path) -> None:
    path = folders / "styles" / "a\\b.safetensors"
    path.touch()
    assert find_file("a\\b.safetensors", STYLES) == path


def test_the_pack_writes_slashes(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = free_path(STYLES, "inks\\blue")
    path.touch()
    assert saved_name(STYLES, path) == "inks/blue.safetensors"
    monkeypatch.setattr(os, "sep", "\\")
    monkeypatch.setattr(folder_paths, "get_filename_list", lambda folder: ["inks\\blue.safetensors"])
    assert file_names(STYLES) == ["inks/blue.safetensors"]


def test_a_subfolder_that_is_linked_can_be_saved_to_and_loaded_from(folders: Path) -> None:
    (folders / "elsewhere").mkdir()
    (folders / "styles" / "shared").symlink_to(folders / "elsewhere")
    path = free_path(STYLES, "shared/ink")
    save_tensors(path, WEIGHTS, {})
    assert (folders / "elsewhere" / "ink.safetensors").exists()
    assert saved_name(STYLES, path) == "shared/ink.safetensors"
    assert find_file("shared/ink.safetensors", STYLES) == path
    assert free_path(STYLES, "shared/ink").name == "ink 2.safetensors"


def test_a_folder_of_styles_that_is_itself_linked_can_be_saved_to(folders: Path) -> None:
    (folders / "styles").rmdir()
    (folders / "elsewhere").mkdir()
    (folders / "styles").symlink_to(folders / "elsewhere")
    assert saved_name(STYLES, free_path(STYLES, "inks/blue")) == "inks/blue.safetensors"


def test_a_name_too_long_for_a_file_is_refused_in_a_sentence(folders: Path) -> None:
    name = "水" * 80
    save_tensors(free_path(STYLES, name), WEIGHTS, {})
    for long in (f"{name}彩彩", f"{name}彩彩彩彩彩彩/ink"):
        with pytest.raises(UnwritableFile, match=r"holds a name that is too long: .*255 bytes.*Choose a shorter"):
            free_path(STYLES, long)


def test_a_folder_that_cannot_be_written_is_named_with_the_mend(folders: Path) -> None:
    (folders / "styles" / "inks").write_text("a file where a folder should be")
    with pytest.raises(UnwritableFile, match=r"'blue.safetensors' cannot be written to .*/styles/inks \(.*Let ComfyUI"):
        free_path(STYLES, "inks/blue")
    with pytest.raises(UnwritableFile, match=r"'blue.safetensors' cannot be written to .*/styles/inks \(.*Let ComfyUI"):
        save_tensors(folders / "styles" / "inks" / "blue.safetensors", WEIGHTS, {})
    with pytest.raises(UnwritableFile, match=r"cannot be written to /proc/sys \(.*Let ComfyUI"):
        save_tensors(Path("/proc/sys/ink.safetensors"), WEIGHTS, {})


def test_file_is_read_back_as_it_was_written(folders: Path) -> None:
    path = folders / "styles" / "ink.safetensors"
    save_tensors(path, WEIGHTS, {"format": "x"})
    found = load_tensors(path)
    assert found.keys() == WEIGHTS.keys() and all(torch.equal(found[name], WEIGHTS[name]) for name in WEIGHTS)
    save_file(WEIGHTS, path)  # and may be replaced


def test_the_shapes_in_a_pickle_are_known_without_its_weights(tmp_path: Path) -> None:
    """InstantX's adapter for Flux is one of five gigabytes, which a search through the folder must not read."""
    path = tmp_path / "ip-adapter.bin"
    torch.save(
        {"image_proj": {"norm.weight": torch.ones(3)}, "ip_adapter": {"0.to_k_ip.weight": torch.ones(4, 3)}}, path
    )
    found = shapes_in(path)["ip_adapter"]["0.to_k_ip.weight"]
    assert (tuple(found.shape), found.device.type) == ((4, 3), "meta")
