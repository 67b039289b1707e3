"""Style adapters as files of our own, with all that a tuning needs to go on, and as LoRA files for other loaders."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...attention.adapters.style_adapter import FORMS, StyleAdapter, TuningState
from ...attention.references.trajectory import ModelStamp
from ..files import (
    LORAS,
    STYLE_ADAPTERS,
    UnreadableFile,
    find_file,
    free_path,
    read_saved,
    save_tensors,
    saved_name,
)
from ..thumbnails import picture_of, thumbnail_of
from .lora import lora_file

FORMAT = "semblance.style_adapter.1"
POSITION = "before the output projection"
"""Where a bottleneck stands in an attention. The paper's stands after the projection, and would not fit here."""
Contents = Literal["adapter and tuning state", "adapter", "adapter in float16"]
CONTENTS: tuple[Contents, ...] = get_args(Contents)
"""What a file holds. The tuning state is needed to go on as if the tuning had never stopped."""
FIRST, SECOND = "first_moment.", "second_moment."
OTHERS: Mapping[str, tuple[str, str]] = {
    "semblance style 1": ("a style", "Load Style"),
    "semblance.subject.1": ("a recorded subject", "Load Subject"),
    "semblance.trajectory.1": ("an inverted picture", "Load Trajectory"),
    "semblance.statistics.1": ("a file of statistics for FID", "FID"),
}
"""What a file of ours is by its format, and the node that takes it."""
BY_KEYS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("image_proj.", "ip_adapter."), "an IP-Adapter", "Load IP-Adapter"),
    ((".lora_down.", ".lora_up.", ".lora_A.", ".lora_B.", ".hada_w", ".lokr_w"), "a LoRA", "Load LoRA"),
    (("model.diffusion_model.",), "a checkpoint", "Load Checkpoint"),
)
"""What else a file may be, by a part of the names of its tensors."""
LORA_BASES: Mapping[str, tuple[str, str]] = {
    "SD 1.5": ("sd_v1", "stable-diffusion-v1/lora"),
    "SD 2.x": ("sd_v2", "stable-diffusion-v2-768-v/lora"),
    "SDXL": ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora"),
}
"""What lists of LoRAs call the base of a family: kohya's name, and that of the model specification."""


@dataclass(frozen=True)
class SavedAdapter:
    """The file of a style adapter that was saved."""

    name: str
    bytes: int


def save_adapter(adapter: StyleAdapter, name: str, version: str, contents: Contents) -> SavedAdapter:
    """Writes a style adapter as one safetensors file in models/semblance/adapters.

    Raises UnwritableFile for a name or a folder that cannot be written.
    """
    state = adapter.state if contents == CONTENTS[0] else None
    entries: dict[str, Any] = {
        "format": FORMAT,
        "semblance": version,
        "form": adapter.form,
        "stamp": asdict(adapter.stamp),
        "content_words": adapter.content_words,
        "style_words": adapter.style_words,
        "settings": dict(adapter.settings),
        "modelspec.thumbnail": thumbnail_on(adapter),
    }
    if adapter.form == "bottleneck":
        entries["position"] = POSITION
    tensors = _as_stored(adapter.tensors, contents)
    if state is not None:
        entries["state"] = {"step": state.step, "seed": state.seed}
        for mark, moments in ((FIRST, state.first_moments), (SECOND, state.second_moments)):
            tensors |= {f"{mark}{key}": moment.contiguous() for key, moment in moments.items()}
    path = free_path(STYLE_ADAPTERS, name)
    save_tensors(path, tensors, _as_texts(entries))
    return SavedAdapter(saved_name(STYLE_ADAPTERS, path), _bytes(tensors.values()))


def save_lora(adapter: StyleAdapter, name: str, version: str, contents: Contents = "adapter") -> SavedAdapter:
    """Writes an adapter of the form *lora* as an ordinary LoRA file into the folder of LoRAs.

    Raises ValueError for a bottleneck or for layers that no loader of LoRAs knows, and UnwritableFile like
    `save_adapter`.
    """
    if adapter.form != "lora":
        raise ValueError("A bottleneck is no change of weights, so there is no LoRA of it. Save it as a style adapter.")
    tensors = _as_stored(lora_file(adapter), contents)
    kohya, specified = LORA_BASES.get(adapter.stamp.family, ("", ""))
    entries: dict[str, Any] = {
        "semblance": version,
        "ss_network_module": "networks.lora",
        "ss_network_dim": adapter.width,
        "ss_network_alpha": float(adapter.width),
        "ss_base_model_version": kohya,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": specified,
        "modelspec.title": name,
        "modelspec.trigger_phrase": adapter.style_words,
        "modelspec.thumbnail": thumbnail_on(adapter),
    }
    path = free_path(LORAS, name)
    save_tensors(path, tensors, {key: text for key, text in _as_texts(entries).items() if text})
    return SavedAdapter(saved_name(LORAS, path), _bytes(tensors.values()))


def load_adapter(name: str) -> StyleAdapter:
    """Opens a saved style adapter. Raises UnreadableFile for a missing, damaged or foreign file."""
    path = find_file(name, STYLE_ADAPTERS)
    _refuse_others(path, name)
    tensors, metadata = read_saved(STYLE_ADAPTERS, path, name, FORMAT)
    try:
        if metadata["form"] == FORMS[0] and metadata["position"] != POSITION:
            raise ValueError(f"its bottlenecks stand at another position: {metadata['position']}")
        return StyleAdapter(
            form=metadata["form"],  # pyright: ignore[reportArgumentType] (which it checks)
            tensors=_own(tensors),
            stamp=ModelStamp.read(json.loads(metadata["stamp"])),
            content_words=metadata["content_words"],
            style_words=metadata["style_words"],
            settings=dict(json.loads(metadata["settings"])),
            state=_state(tensors, metadata),
            thumbnail=_thumbnail(metadata["modelspec.thumbnail"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as fault:
        raise UnreadableFile(f"'{name}' is damaged ({fault}). Save the style adapter again.") from fault


def thumbnail_on(adapter: StyleAdapter) -> str:
    """The first picture it was tuned on as a small JPEG data URL; empty if it has none."""
    return "" if adapter.thumbnail is None else thumbnail_of(adapter.thumbnail[None].float() / 255)


def described(adapter: StyleAdapter) -> str:
    """What an adapter is, was tuned on and needs, for people."""
    lines = [f"{adapter.form} of {adapter.width}, {adapter.parameters:,} parameters at {len(adapter.modules)} layers"]
    lines.append(f"tuned on an {adapter.stamp.family} model")
    if adapter.style_words:
        lines.append(f"words of the style, for prompts: {adapter.style_words}")
    if adapter.content_words:
        lines.append(f"words of its picture's content: {adapter.content_words}")
    state = adapter.state
    lines.append(
        "cannot be tuned on from where it stopped" if state is None else f"can be tuned on from step {state.step}"
    )
    return "\n".join(lines)


def _refuse_others(path: Path, name: str) -> None:
    """Raises UnreadableFile for a file of another kind, naming the kind and the node that takes it."""
    try:
        with safe_open(str(path), framework="pt") as file:
            written_as, keys = (file.metadata() or {}).get("format", ""), list(file.keys())
    except (SafetensorError, OSError):
        return  # it is read once more, by what says how it is damaged
    if written_as == FORMAT:
        return
    by_keys = ((what, node) for parts, what, node in BY_KEYS if any(part in key for key in keys for part in parts))
    kind = OTHERS.get(written_as) or next(by_keys, None)
    if kind is not None:
        raise UnreadableFile(
            f"'{name}' is {kind[0]} and not a style adapter. Move it to the folder of its kind and open it by "
            f"{kind[1]}; Load Style Adapter opens what Save Style Adapter wrote."
        )


def _as_stored(tensors: Mapping[str, Tensor], contents: Contents) -> dict[str, Tensor]:
    dtype = torch.float16 if contents == "adapter in float16" else torch.float32
    return {key: tensor.to(dtype).contiguous() for key, tensor in tensors.items()}


def _own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The adapter's own tensors, in the precision that they are used in."""
    return {key: tensor.to(torch.float32) for key, tensor in tensors.items() if not key.startswith((FIRST, SECOND))}


def _moments(tensors: Mapping[str, Tensor], mark: str) -> dict[str, Tensor]:
    return {key.removeprefix(mark): tensor for key, tensor in tensors.items() if key.startswith(mark)}


def _state(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> TuningState | None:
    if "state" not in metadata:
        return None
    kept = json.loads(metadata["state"])
    moments = _moments(tensors, FIRST), _moments(tensors, SECOND)
    own = {key: tensor.shape for key, tensor in _own(tensors).items()}
    for those in moments:
        if {key: tensor.shape for key, tensor in those.items()} != own:
            raise ValueError("the optimiser's state does not belong to its tensors")
    return TuningState(int(kept["step"]), int(kept["seed"]), *moments)


def _thumbnail(url: str) -> Tensor | None:
    picture = picture_of(url) if url else None
    return None if picture is None else (picture[0] * 255).round().to(torch.uint8)


def _as_texts(entries: Mapping[str, Any]) -> dict[str, str]:
    return {key: entry if isinstance(entry, str) else json.dumps(entry) for key, entry in entries.items()}


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
