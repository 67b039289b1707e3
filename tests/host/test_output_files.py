"""New files in ComfyUI's output folder."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path

import folder_paths
import pytest

from semblance.host.files import UnwritableFile
from semblance.host.output_files import save_output


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "output"
    folder.mkdir()
    monkeypatch.setattr(folder_paths, "output_directory", str(folder))
    return folder


def test_files_are_numbered_and_nothing_is_overwritten(output: Path) -> None:
    names = [str(save_output("scores", "table", ".csv", text)) for text in (b"one", b"two")]
    assert names == ["scores_00001_.csv", "scores_00002_.csv"]
    assert [(output / name).read_bytes() for name in names] == [b"one", b"two"]


def test_a_number_that_another_run_has_just_taken_is_passed_over(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_paths, "get_save_image_path", lambda *_: (str(output), "scores", 1, "", "scores"))
    assert str(save_output("scores", "table", ".csv", b"one")) == "scores_00001_.csv"
    assert str(save_output("scores", "table", ".csv", b"two")) == "scores_00002_.csv"
    assert (output / "scores_00001_.csv").read_bytes() == b"one"


@pytest.mark.parametrize("prefix", ["a/b/scores", "a\\b\\scores", " a/b/scores "])
def test_a_slash_makes_a_folder(output: Path, prefix: str) -> None:
    assert str(save_output(prefix, "table", ".csv", b"")) == "a/b/scores_00001_.csv"
    assert (output / "a" / "b" / "scores_00001_.csv").exists()


def test_dates_are_replaced_as_in_comfyuis_own_nodes(output: Path) -> None:
    name = save_output("%year%", "table", ".csv", b"").name
    assert re.fullmatch(rf"{time.localtime().tm_year}_00001_\.csv", name)


@pytest.mark.parametrize(
    "prefix", ["", "  ", "../scores", "a/../../scores", "/tmp/scores", "C:/scores", "a?b", "CON", "a."]
)
def test_names_that_lead_out_or_that_some_system_refuses_are_refused(output: Path, prefix: str) -> None:
    with pytest.raises(UnwritableFile, match="is not a name for a table"):
        save_output(prefix, "table", ".csv", b"")
    assert list(output.rglob("*")) == []


def test_a_link_that_leads_out_of_the_output_folder_is_refused(output: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (output / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(UnwritableFile, match="leads out of ComfyUI's output folder"):
        save_output("link/scores", "table", ".csv", b"")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_name_too_long_is_refused_in_a_sentence(output: Path) -> None:
    with pytest.raises(UnwritableFile, match="too long"):
        save_output("a" * 300, "table", ".csv", b"")


def test_a_folder_that_is_a_file_is_refused_in_a_sentence(output: Path) -> None:
    (output / "taken").write_text("")
    with pytest.raises(UnwritableFile, match="cannot be written"):
        save_output("taken/scores", "table", ".csv", b"")


def test_a_file_that_could_not_be_written_whole_is_not_left_behind(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.BytesIO):
        def write(self, content: bytes, /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
            raise OSError(28, "No space left on device")

    def opened(path: Path, mode: str) -> Full:
        path.touch()
        return Full()

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(UnwritableFile, match="No space left on device"):
        save_output("scores", "table", ".csv", b"one")
    assert list(output.iterdir()) == []
