"""The user's weights of networks that measure, found in model folders by the shapes of their tensors."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import folder_paths
from safetensors import safe_open
from torch import Tensor

from ...metrics.lpips import trunk_name
from ..files import CLASSIFIERS, METRICS, UnreadableFile, load_tensors, shapes_in

Shapes = Mapping[str, tuple[int, ...]]
ENDINGS = (".safetensors", ".pth", ".pt", ".bin")
"""Files that may hold weights, in the order in which they are tried."""
MOST_NAMED = 2
"""How many files that nearly fit a refusal names."""


@dataclass(frozen=True)
class Foreign:
    """A tensor that only another network has, and what that network is."""

    name: str
    shape: tuple[int, ...] | None
    """None: any."""
    kind: str


@dataclass(frozen=True, eq=False)
class Part:
    """Some of a network's tensors, which lie together in one file."""

    what: str
    """E.g. "the heads of LPIPS for alex", for messages."""
    shapes: Shapes
    """Of every tensor that is needed, by the network's own names."""
    published: str
    """File names, sizes and where they are published, as the end of a sentence."""
    marks: Shapes = field(default_factory=dict)
    """Of tensors that are not needed, but that only this one has of the networks with these shapes."""
    others: tuple[Foreign, ...] = ()


def find_weights(*parts: Part) -> dict[str, Tensor]:
    """The tensors of all parts by the network's own names, float32, each part from the first file that holds it.

    Looks in models/semblance/metrics and in ComfyUI's models/classifiers, safetensors files first. Raises
    UnreadableFile for a part that no file holds, with what is missing and where it is published.
    """
    found: dict[str, Tensor] = {}
    wanted = list(parts)
    misses: dict[Part, list[str]] = {part: [] for part in parts}
    for path in _candidates():
        try:
            file = WeightsFile(path)
        except UnreadableFile as unreadable:
            for part in wanted:
                misses[part].append(str(unreadable))
            continue
        for part in list(wanted):
            why = file.lacks(part)
            if why is None:
                found |= file.tensors_of(part)
                wanted.remove(part)
            elif why:
                misses[part].append(why)
        if not wanted:
            return found
    raise UnreadableFile(_missing(wanted[0], misses[wanted[0]]))


class WeightsFile:
    """A file of weights and the shapes of its tensors, whatever its layout calls them. Raises UnreadableFile."""

    def __init__(self, path: Path) -> None:
        self.path = path
        is_header = path.suffix.lower() == ".safetensors"  # of which no weights are read yet: a folder may be large
        if not is_header:
            refuse_program(path)
        contents = shapes_in(path) if is_header else load_tensors(path)
        found = {name: tensor for name, tensor in contents.items() if isinstance(tensor, Tensor)}
        self._loaded: dict[str, Tensor] | None = None if is_header else found
        self._names: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name, tensor in found.items():
            own = own_name(name)
            self._names.setdefault(own, name)
            self.shapes.setdefault(own, tuple(tensor.shape))

    def lacks(self, part: Part) -> str | None:
        """None if it holds the part; else a sentence on why not, empty where it is another matter altogether."""
        here = [name for name, shape in part.shapes.items() if self.shapes.get(name) == shape]
        if 2 * len(here) < len(part.shapes):
            return ""
        for foreign in part.others:
            if foreign.name in self.shapes and foreign.shape in (None, self.shapes[foreign.name]):
                return f"'{self.path.name}' is {foreign.kind}, not {part.what}."
        for name, shape in {**part.shapes, **part.marks}.items():
            if name not in self.shapes:
                return f"'{self.path.name}' has no tensor '{name}': it is not whole, or not {part.what}."
            if self.shapes[name] != shape:
                return (
                    f"'{self.path.name}' is not {part.what}: its tensor '{name}' has the shape {self.shapes[name]}, "
                    f"expected {shape}."
                )
        return None

    def tensors_of(self, part: Part) -> dict[str, Tensor]:
        """Copies of the tensors of a part it holds, with its marks, by the network's own names."""
        return {name: tensor.float().clone() for name, tensor in self._read([*part.shapes, *part.marks]).items()}

    def _read(self, names: list[str]) -> dict[str, Tensor]:
        if self._loaded is not None:
            return {name: self._loaded[self._names[name]] for name in names}
        with safe_open(str(self.path), framework="pt") as file:
            return {name: file.get_tensor(self._names[name]) for name in names}


def own_name(name: str) -> str:
    """What torchvision calls a tensor that a file of another layout names after its wrapper or slice."""
    plain = re.sub(r"^(module|model)\.(?=Conv2d_|Mixed_|Aux|fc|features)", "", name)
    return trunk_name(plain)


def refuse_program(path: Path) -> None:
    """Raises UnreadableFile for a TorchScript archive, which can only be opened by running the code in it."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any("/code/" in name or name.endswith("/constants.pkl") for name in archive.namelist()):
                raise UnreadableFile(
                    f"'{path.name}' was not opened: it is a TorchScript archive, a program that would run. Use the "
                    "weights of the same network as .safetensors or .pth instead."
                )


def _candidates() -> Iterator[Path]:
    """Every file that may hold weights: by folder, ours first, then by kind, then by name."""
    for root in (Path(root) for folder in (METRICS, CLASSIFIERS) for root in _roots(folder)):
        files = [root / name for name in sorted(folder_paths.recursive_search(str(root), [".git"])[0])]
        yield from (file for ending in ENDINGS for file in files if file.suffix.lower() == ending)


def _roots(folder: str) -> list[str]:
    return folder_paths.get_folder_paths(folder) if folder in folder_paths.folder_names_and_paths else []


def _missing(part: Part, misses: list[str]) -> str:
    near = "".join(f"{miss} " for miss in misses[:MOST_NAMED])
    where = folder_paths.get_folder_paths(METRICS)[0]
    return f"{near}There is no file with {part.what} in {where}. Put {part.published} there; any file name will do."
