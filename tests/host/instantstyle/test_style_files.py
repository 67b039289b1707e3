"""A style on disk holds numbers and words, is read back bit for bit, and a stranger's file is refused in a sentence."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import comfy.utils  # noqa: F401  (puts ComfyUI on the path)
import folder_paths
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from semblance.attention.adapters.checkpoint import AdapterLayout
from semblance.attention.references.style import StyleReference, Subtraction
from semblance.host.files import STYLES, UnreadableFile, UnwritableFile
from semblance.host.instantstyle.adapter import LoadedAdapter
from semblance.host.instantstyle.encoding import EncodedStyle
from semblance.host.instantstyle.style_files import load_style, save_style
from semblance.host.thumbnails import picture_of, thumbnail_of


def adapter_of(variant: str = "base", clip_width: int = 24) -> LoadedAdapter:
    return LoadedAdapter("tiny.safetensors", AdapterLayout(variant, 4, clip_width, 768, {1: 320}), None)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def style_of(variant: str = "base") -> EncodedStyle:
    patches = () if variant == "base" else (5,)
    pictures = tuple(noise(crops, *patches, 24, seed=crops) for crops in (1, 3))
    words = (Subtraction("a rabbit", 0.5), Subtraction("grass; 'tall' \"green\" 草", 1.25))
    reference = StyleReference(pictures, noise(1, *patches, 24), (1.0, 0.1), words)
    return EncodedStyle(reference, adapter_of(variant), thumbnail_of(noise(2, 56, 56, 3).sigmoid()))


@pytest.fixture
def styles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "styles"
    folder.mkdir()
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {STYLES: ([str(folder)], {".safetensors"})})
    return folder


def parts(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.mark.parametrize("variant", ["base", "plus"])
def test_style_is_read_back_bit_for_bit(styles: Path, variant: str) -> None:
    saved = style_of(variant)
    loaded = load_style(save_style(saved, "ink", "1.2.3"), adapter_of(variant))
    assert all(torch.equal(*pair) for pair in zip(loaded.reference.pictures, saved.reference.pictures, strict=True))
    assert torch.equal(loaded.reference.negative, saved.reference.negative)
    assert loaded.reference.weights == saved.reference.weights
    assert loaded.reference.subtracted == saved.reference.subtracted
    assert loaded.thumbnail == saved.thumbnail and repr(loaded) == repr(saved)


def test_more_than_ten_pictures_keep_their_order(styles: Path) -> None:
    pictures = tuple(noise(1, 24, seed=seed) for seed in range(12))
    reference = StyleReference(pictures, noise(1, 24), tuple(float(share) for share in range(1, 13)))
    loaded = load_style(save_style(replace(style_of(), reference=reference), "many", "1"), adapter_of())
    assert all(torch.equal(*pair) for pair in zip(loaded.reference.pictures, pictures, strict=True))


def test_metadata_says_what_the_style_is(styles: Path) -> None:
    style = style_of()
    _, metadata = parts(styles / save_style(style, "ink", "1.2.3"))
    assert metadata["semblance"] == "1.2.3"
    assert metadata["adapter"] == str(style.adapter.layout) and "base" in metadata["adapter"]
    assert "needs an image encoder (24-wide embeddings)" in metadata["adapter"]
    assert json.loads(metadata["subtracted"])[1] == {"words": "grass; 'tall' \"green\" 草", "strength": 1.25}


def test_thumbnail_is_a_small_jpeg(styles: Path) -> None:
    _, metadata = parts(styles / save_style(style_of(), "ink", "1"))
    kind, _, content = metadata["modelspec.thumbnail"].partition(",")
    picture = Image.open(io.BytesIO(base64.b64decode(content)))
    assert kind == "data:image/jpeg;base64" and picture.format == "JPEG"
    assert picture.size == (112, 56) and len(content) < 50_000


@pytest.mark.parametrize(("pictures", "size"), [(1, (192, 192)), (3, (576, 192)), (9, (768, 192))])
def test_thumbnail_shows_up_to_four_pictures(pictures: int, size: tuple[int, int]) -> None:
    shown = picture_of(thumbnail_of(torch.rand(pictures, 224, 224, 3)))
    assert shown is not None and shown.shape == (1, size[1], size[0], 3) and 0 <= shown.min() <= shown.max() <= 1


def test_taken_names_get_a_number_and_nothing_is_overwritten(styles: Path) -> None:
    assert [save_style(style_of(), "ink", "1") for _ in range(3)] == [f"ink{n}.safetensors" for n in ("", " 2", " 3")]
    assert len(list(styles.iterdir())) == 3


def test_style_in_a_folder_is_returned_with_its_folder(styles: Path) -> None:
    """So that Load Style knows it by the name Save Style gave."""
    name = save_style(style_of(), "inks/blue", "1")
    assert Path(name) == Path("inks") / "blue.safetensors" and (styles / name).is_file()
    assert load_style(name, adapter_of()).thumbnail == style_of().thumbnail


@pytest.mark.parametrize("name", ["../ink", "/tmp/ink", "", "a/../../ink"])
def test_style_is_not_saved_elsewhere(styles: Path, name: str) -> None:
    with pytest.raises(UnwritableFile, match="is not a name for a style"):
        save_style(style_of(), name, "1")
    assert list(styles.parent.rglob("*.safetensors")) == []


def test_style_of_another_adapter_is_refused(styles: Path) -> None:
    name = save_style(style_of(), "ink", "1")
    for other in (adapter_of(clip_width=32), adapter_of("plus")):
        with pytest.raises(ValueError, match="'ink.safetensors' was made for .*base.*but the adapter connected is "):
            load_style(name, other)


def test_style_of_another_family_with_the_same_encoder_is_welcome(styles: Path) -> None:
    """What is saved is what the encoder saw; SD 1.5 and SDXL adapters for one encoder read the same."""
    sdxl = LoadedAdapter("sdxl.safetensors", AdapterLayout("base", 4, 24, 2048, {1: 640}), None)
    assert load_style(save_style(style_of(), "ink", "1"), sdxl).adapter is sdxl


def test_missing_style_is_named_with_its_folder(styles: Path) -> None:
    with pytest.raises(UnreadableFile, match=f"'gone.safetensors' is not in {styles}"):
        load_style("gone.safetensors", adapter_of())


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 0.99])
def test_truncated_style_is_called_damaged(styles: Path, share: float) -> None:
    path = styles / save_style(style_of(), "ink", "1")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(
        UnreadableFile, match="'ink.safetensors' cannot be read: the file is damaged .*Save the style ag"
    ):
        load_style("ink.safetensors", adapter_of())


def test_foreign_file_is_no_style(styles: Path) -> None:
    save_file({"x": torch.ones(1)}, styles / "plain.safetensors")
    save_file({"x": torch.ones(1)}, styles / "other.safetensors", metadata={"format": "pt"})
    for name, found in (("plain", "not given"), ("other", "pt")):
        with pytest.raises(
            UnreadableFile, match=f"is not a style saved by Semblance .*'{found}'.*written by Save Style"
        ):
            load_style(f"{name}.safetensors", adapter_of())


@pytest.mark.parametrize("missing", ["picture.1", "negative"])
def test_style_with_a_tensor_missing_is_damaged(styles: Path, missing: str) -> None:
    tensors, metadata = parts(styles / save_style(style_of(), "ink", "1"))
    save_file({name: t for name, t in tensors.items() if name != missing}, styles / "ink.safetensors", metadata)
    with pytest.raises(UnreadableFile, match=f"'ink.safetensors' is damaged.*{missing}.*Save the style again"):
        load_style("ink.safetensors", adapter_of())


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("shares", None),
        ("shares", "[1.0"),
        ("shares", "7"),
        ("shares", '["a", "b"]'),
        ("subtracted", '[{"words": "x"}]'),
        ("subtracted", "null"),
        ("clip_width", "wide"),
        ("is_global", None),
        ("modelspec.thumbnail", None),
    ],
)
def test_style_with_damaged_metadata_is_refused(styles: Path, entry: str, value: str | None) -> None:
    tensors, metadata = parts(styles / save_style(style_of(), "ink", "1"))
    metadata |= {entry: value}
    kept = {name: text for name, text in metadata.items() if text is not None}
    save_file(tensors, styles / "ink.safetensors", kept)
    with pytest.raises(UnreadableFile, match="'ink.safetensors' is damaged.*Save the style again"):
        load_style("ink.safetensors", adapter_of())


@pytest.mark.parametrize(
    "damage",
    [
        {"picture.0": noise(1, 23)},
        {"picture.0": noise(24)},
        {"picture.0": noise(1, 5, 24)},
        {"negative": noise(2, 24)},
        {"negative": noise(1, 5, 24)},
        {"picture.1": torch.full((3, 24), float("nan"))},
    ],
    ids=["width", "one dimension", "patches", "two negatives", "patches in the negative", "not a number"],
)
def test_style_whose_tensors_do_not_fit_is_refused(styles: Path, damage: dict[str, Tensor]) -> None:
    tensors, metadata = parts(styles / save_style(style_of(), "ink", "1"))
    save_file(tensors | damage, styles / "ink.safetensors", metadata)
    with pytest.raises(UnreadableFile, match="'ink.safetensors' is damaged.*Save the style again"):
        load_style("ink.safetensors", adapter_of())


@pytest.mark.parametrize("thumbnail", ["", "data:image/jpeg;base64,", "data:image/jpeg;base64,%%%", "data:,aGVsbG8="])
def test_style_with_a_damaged_thumbnail_still_serves(styles: Path, thumbnail: str) -> None:
    name = save_style(replace(style_of(), thumbnail=thumbnail), "ink", "1")
    style = load_style(name, adapter_of())
    assert picture_of(style.thumbnail) is None and style.reference.pictures


def test_style_file_is_plain_numbers_that_need_no_semblance(styles: Path) -> None:
    """Read by a process that knows nothing but safetensors."""
    saved = style_of()
    path = styles / save_style(saved, "ink", "1.2.3")
    script = (
        "import json, sys; from safetensors import safe_open\n"
        "with safe_open(sys.argv[1], 'numpy') as file:\n"
        "    print(json.dumps([file.get_tensor('picture.1').tolist(), file.metadata()]))"
    )
    read = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    picture, metadata = json.loads(read.stdout)
    assert torch.equal(torch.tensor(picture), saved.reference.pictures[1]) and metadata["semblance"] == "1.2.3"
