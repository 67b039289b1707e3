"""The kinds of IP-Adapters under the names that users of ComfyUI_IPAdapter_plus know, and their published files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from ...attention.adapters.checkpoint import AdapterLayout, Variant
from ...attention.adapters.encoders import ENCODER_OF_EMBEDDING, VIT_BIGG
from ...attention.families import DEMO_SD15, DEMO_SDXL

H94 = "huggingface.co/h94/IP-Adapter"
OSTRIS = "huggingface.co/ostris/ip-composition-adapter"
KOLORS = "Kolors"


@dataclass(frozen=True)
class Kind:
    """A kind of adapter, and how its files are told from those of other kinds."""

    preset: str
    word: str
    """Its name in sentences."""
    variant: Variant
    files: Mapping[str, Sequence[str]]
    """Names of published files without their ending, the best first, by the family of models they are for."""
    marks: Sequence[str] = ()
    """What such a file's name holds and that of another kind of the same shapes does not."""
    published: str = H94
    instead: str = ""
    """The preset to choose where a family has no such adapter."""
    needs_bigg: bool = False
    """Whether it reads embeddings of ViT-bigG."""

    def may_be(self, layout: AdapterLayout) -> bool:
        """Whether a file of this layout can be one; light and standard, or plus and plus-face, have the same."""
        if layout.variant != self.variant or layout.is_kolors:
            return False
        known = ENCODER_OF_EMBEDDING.get(layout.clip_width) if layout.is_global else None
        return known is None or (known == VIT_BIGG) == self.needs_bigg

    def twins(self, layout: AdapterLayout, family: str) -> list[Kind]:
        """The other kinds that a file of this layout may be, so that only its name tells which it is."""
        return [kind for kind in KINDS if kind is not self and family in kind.files and kind.may_be(layout)]

    def place(self, name: str, layout: AdapterLayout, family: str) -> int | None:
        """How well a file's name fits, 0 for the best published one; None where it is the name of another kind."""
        stem = PurePosixPath(name).stem.lower()
        published = self._published(family)
        if stem in published:
            return published.index(stem)
        if any(stem in twin._published(family) or twin._is_marked(stem) for twin in self.twins(layout, family)):
            return None
        if self.marks and not self._is_marked(stem) and self.twins(layout, family):
            return None  # neither contents nor name say that it is of this kind
        return len(published)

    def _published(self, family: str) -> list[str]:
        return [file.lower() for file in self.files[family]]

    def _is_marked(self, stem: str) -> bool:
        return any(mark in stem for mark in self.marks)


KINDS = (
    Kind(
        "LIGHT - SD1.5 only (low strength)",
        "light",
        "base",
        {"SD 1.5": ("ip-adapter_sd15_light_v11", "ip-adapter_sd15_light")},
        marks=("light",),
        instead="STANDARD",
    ),
    Kind(
        "STANDARD (medium strength)",
        "standard",
        "base",
        {
            "SD 1.5": ("ip-adapter_sd15",),
            "SDXL": ("ip-adapter_sdxl_vit-h",),
            DEMO_SD15.name: ("semblance_demo_sd15",),
            DEMO_SDXL.name: ("semblance_demo_sdxl",),
        },
    ),
    Kind(
        "VIT-G (medium strength)",
        "ViT-G",
        "base",
        {"SD 1.5": ("ip-adapter_sd15_vit-G",), "SDXL": ("ip-adapter_sdxl",)},
        marks=("vit-g", "vit_g", "bigg"),
        instead="STANDARD",
        needs_bigg=True,
    ),
    Kind(
        "PLUS (high strength)",
        "plus",
        "plus",
        {
            "SD 1.5": ("ip-adapter-plus_sd15",),
            "SDXL": ("ip-adapter-plus_sdxl_vit-h",),
            DEMO_SDXL.name: ("semblance_demo_sdxl_plus",),
        },
        instead="STANDARD",
    ),
    Kind(
        "PLUS FACE (portraits)",
        "plus-face",
        "plus",
        {"SD 1.5": ("ip-adapter-plus-face_sd15",), "SDXL": ("ip-adapter-plus-face_sdxl_vit-h",)},
        marks=("face",),
        instead="PLUS",
    ),
    Kind(
        "FULL FACE - SD1.5 only (portraits stronger)",
        "full-face",
        "full",
        {"SD 1.5": ("ip-adapter-full-face_sd15",)},
        instead="PLUS FACE",
    ),
    Kind(
        "Composition",
        "composition",
        "plus",
        {"SD 1.5": ("ip_plus_composition_sd15",), "SDXL": ("ip_plus_composition_sdxl",)},
        marks=("composition",),
        published=OSTRIS,
        instead="PLUS",
    ),
)
PRESETS = (*(kind.preset for kind in KINDS), KOLORS)
"""As the user chooses them."""


def kind_for(preset: str, family: str) -> Kind:
    """The kind under a preset's name.

    Raises ValueError for Kolors, for a name that is none of them, and for kinds that a family of models does not have.
    """
    if preset == KOLORS:
        raise ValueError(
            "This preset is for Kolors, which Semblance does not know. Choose an SD 1.5 or SDXL preset and model."
        )
    kind = next((kind for kind in KINDS if kind.preset == preset), None)
    if kind is None:
        raise ValueError(f"There is no preset '{preset}'. Choose one of: {', '.join(PRESETS)}.")
    if family not in kind.files:
        models = " or ".join(other for other in ("SD 1.5", "SDXL") if other in kind.files)
        choices = ([kind.instead] if any(family in other.files for other in KINDS) and kind.instead else []) + [
            f"an {models} model"
        ]
        raise ValueError(f"There is no {kind.word} IP-Adapter for {family}. Choose {', or '.join(choices)}.")
    return kind
