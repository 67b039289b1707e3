"""The kinds of IP-Adapters under the names that users of ComfyUI_IPAdapter_plus know, and their published files."""

from __future__ import annotations

PRESETS = (
    "LIGHT - SD1.5 only (low strength)",
    "STANDARD (medium strength)",
    "VIT-G (medium strength)",
    "PLUS (high strength)",
    "PLUS FACE (portraits)",
    "FULL FACE - SD1.5 only (portraits stronger)",
    "Composition",
    "Kolors",
)
