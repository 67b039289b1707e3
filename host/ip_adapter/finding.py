"""Adapters and image encoders found in their folders by what files hold, and by name where that leaves several."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import comfy.clip_vision

from ...attention.adapters.checkpoint import AdapterLayout, UnknownAdapter, flatten, recognise
from ...attention.adapters.encoders import ENCODER_OF_EMBEDDING, ENCODER_OF_PATCHES
from ...attention.adapters.flux_checkpoint import Layout
from ...attention.families import DEMO_SD15, DEMO_SDXL
from ..binding.model import ModelMap, map_unet
from ..demo_models import load_demo_encoder
from ..files import ADAPTERS, CLIP_VISION, DEMO_ADAPTERS, UnreadableFile, file_names, find_file, shapes_in
from ..instantstyle.adapter import LoadedAdapter, fits, load_adapter
from ..instantstyle.vision import check_encoder
from .presets import Kind, kind_for

REMEMBERED = 512
"""Files whose contents are remembered, while they stay as they are."""
Contents = TypeVar("Contents")


@dataclass(frozen=True)
class EncoderWidths:
    """What tells image encoders apart."""

    patches: int
    embedding: int
    """0 without a projection."""

    def fit(self, layout: Layout) -> bool:
        """Whether an adapter reads what such an encoder gives."""
        return (self.embedding if layout.is_global else self.patches) == layout.clip_width


def find_adapter(model: Any, preset: str) -> tuple[LoadedAdapter, str]:
    """The adapter of a preset for a MODEL, with its image encoder, and a report of what was chosen and why.

    Raises ValueError for a preset that the model's family does not have, and UnreadableFile, naming what to put where,
    for files that are missing.
    """
    model_map = map_unet(model)
    kind = kind_for(preset, model_map.name)
    name, why = _adapter_file(kind, model_map)
    adapter = load_adapter(name)
    is_demo = model_map.family in (DEMO_SD15, DEMO_SDXL)
    encoder, seen_by = (load_demo_encoder(), "the demo image encoder") if is_demo else _load_encoder(adapter)
    check_encoder(encoder, adapter.layout)
    report = f"{adapter}.\nImage encoder: {seen_by}.{why}"
    return replace(adapter, encoder=encoder), report


def folders_state() -> str:
    """Changes when a file comes into the folders that are searched, goes, or becomes another."""
    files = [find_file(name, folder) for folder in (ADAPTERS, CLIP_VISION) for name in file_names(folder)]
    return " ".join(f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files)


def _adapter_file(kind: Kind, model_map: ModelMap) -> tuple[str, str]:
    """The name of the best file, and why it was chosen where that could be asked."""
    layouts = _contents((ADAPTERS, DEMO_ADAPTERS), _layout_in)
    family = model_map.name
    fitting = {name: found for name, found in layouts.items() if fits(found, model_map) and kind.may_be(found)}
    places = {name: place for name, found in fitting.items() if (place := kind.place(name, found, family)) is not None}
    published = kind.files[family]
    if not places:
        raise UnreadableFile(
            f"No {kind.word} IP-Adapter for {family} is in models/ipadapter. Put {published[0]}.safetensors there "
            f"({kind.published}) and press R."
        )
    best = min(places, key=lambda name: (places[name], not name.endswith(".safetensors"), name))
    lines: list[str] = []
    if len(fitting) > 1:
        how = "its name is the published one" if places[best] < len(published) else "its name is the first that fits"
        others = ", ".join(name for name in fitting if name != best)
        lines.append(f"Chosen because {how}. Also with the shapes of this kind: {others}.")
    if twins := kind.twins(fitting[best], family):
        alike = " or ".join(twin.word for twin in twins)
        lines.append(f"Only its name says that it is {kind.word}: an adapter that is {alike} has the same shapes.")
    return best, "".join(f"\n{line}" for line in lines)


def _load_encoder(adapter: LoadedAdapter) -> tuple[Any, str]:
    """The image encoder in models/clip_vision that an adapter needs, and its name."""
    layout = adapter.layout
    known = (ENCODER_OF_EMBEDDING if layout.is_global else ENCODER_OF_PATCHES).get(layout.clip_width)
    fitting = [name for name, widths in _contents((CLIP_VISION,), _encoder_in).items() if widths.fit(layout)]
    if not fitting:
        advice = known.advice if known else "Put the image encoder there that was published with the adapter."
        raise UnreadableFile(
            f"The adapter '{adapter.name}' needs {layout.encoder}, and none is in models/clip_vision. {advice}"
        )
    published = PurePosixPath(known.file).stem.lower() if known else ""
    best = min(fitting, key=lambda name: (PurePosixPath(name).stem.lower() != published, name))
    path = find_file(best, CLIP_VISION)
    try:
        encoder = comfy.clip_vision.load(str(path))
    except Exception as fault:  # a broken file makes the readers raise almost anything
        raise UnreadableFile(f"'{best}' in models/clip_vision cannot be read ({fault}). Download it again.") from fault
    if encoder is None:
        raise UnreadableFile(
            f"'{best}' in models/clip_vision is an image encoder that ComfyUI does not know. Put the published one "
            "there, or connect yours by Load CLIP Vision to Apply IP-Adapter."
        )
    return encoder, f"{best}, {known.name}" if known else best


def _contents(folders: tuple[str, ...], read: Callable[[Path, int, int], Contents | None]) -> Mapping[str, Contents]:
    """What the files of some folders hold, by name; without those that hold nothing of the kind."""
    found: dict[str, Contents] = {}
    for name in file_names(*folders):
        path = find_file(name, *folders)
        status = path.stat()
        contents = read(path, status.st_size, status.st_mtime_ns)
        if contents is not None:
            found[name] = contents
    return found


@lru_cache(REMEMBERED)
def _layout_in(path: Path, _size: int, _changed: int) -> AdapterLayout | None:
    try:
        return recognise(flatten(shapes_in(path)))
    except (UnreadableFile, UnknownAdapter):
        return None


@lru_cache(REMEMBERED)
def _encoder_in(path: Path, _size: int, _changed: int) -> EncoderWidths | None:
    try:
        shapes = {name: tuple(tensor.shape) for name, tensor in shapes_in(path).items()}
    except UnreadableFile:
        return None
    if "vision_model.embeddings.class_embedding" in shapes:  # transformers' layout
        projection = shapes.get("visual_projection.weight", (0,))
        return EncoderWidths(shapes["vision_model.embeddings.class_embedding"][-1], projection[0])
    if "visual.class_embedding" in shapes:  # OpenCLIP's
        return EncoderWidths(shapes["visual.class_embedding"][-1], shapes.get("visual.proj", (0,))[-1])
    return None
