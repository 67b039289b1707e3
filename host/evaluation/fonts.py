"""Which font can draw a text. Pillow's own, which is the same everywhere, knows little more than English letters."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import ImageFont
from PIL.ImageFont import FreeTypeFont

FOLDERS = (
    "~/.fonts",
    "~/.local/share/fonts",
    "/usr/local/share/fonts",
    "/usr/share/fonts",
    "/run/current-system/sw/share/X11/fonts",
    "~/Library/Fonts",
    "/Library/Fonts",
    "/System/Library/Fonts",
    "~/AppData/Local/Microsoft/Windows/Fonts",
    os.path.join(os.environ.get("WINDIR", "C:/Windows"), "Fonts"),
)
"""Where Linux, macOS and Windows keep their fonts."""
ENDINGS = (".ttf", ".otf", ".ttc")
PREFERRED = (
    "dejavusans",
    "segoeui",
    "helvetica",
    "arial",
    "notosanscjk",
    "notosanssc",
    "sourcehansans",
    "wqymicrohei",
    "wqyzenhei",
    "pingfang",
    "hiraginosansgb",
    "stheiti",
    "msyh",
    "simhei",
    "simsun",
    "yugoth",
    "meiryo",
    "malgun",
    "droidsansfallback",
    "notosans",  # a file for each script of the world
)
"""Beginnings of file names, in small letters and without spaces: plain fonts that draw much, the first one first."""
FANCY = re.compile(r"bold|italic|oblique|light|thin|black|heavy|medium|condensed|mono|serif")
MOST_TRIED = 400
"""How many fonts are opened for one text at most."""
TRIAL_SIZE = 16
NEVER_A_CHARACTER = "\U0010ffff"
"""What every font draws as its box for what it has not."""


@dataclass(frozen=True)
class Typeface:
    """One font for all texts of a picture."""

    path: Path | None = None
    """None: Pillow's own."""
    missing: str = ""
    """Characters of those texts that no font here has."""

    def font(self, size: int) -> FreeTypeFont:
        return _opened(self.path, size)

    def drawable(self, text: str) -> str:
        """The text on one line, with what would be drawn as a box replaced: by its plain letter, or else by "?"."""
        return "".join(_plain(character) if character in self.missing else character for character in one_line(text))

    def warning(self) -> str:
        """A sentence that names what cannot be drawn; empty if all can."""
        if not self.missing:
            return ""
        shown = self.missing if len(self.missing) <= 20 else f"{self.missing[:20]}..."
        return (
            f"No font on this computer has {shown}, so these are drawn as plain letters or as '?'. Install a font that "
            "has them, e.g. Noto Sans CJK for Chinese, Japanese and Korean, and restart ComfyUI."
        )


def typeface_for(texts: Iterable[str]) -> Typeface:
    """The font that draws the most of these texts; of equal ones Pillow's own, then the plainest."""
    return _typeface("".join(sorted({character for text in texts for character in one_line(text)})))


def one_line(text: str) -> str:
    """The text with each run of white space and control characters as one space, as captions are drawn."""
    replaced = {"Cc": " ", "Zl": " ", "Zp": " ", "Cs": "?"}  # Cs: half of a character, which cannot be written at all
    return " ".join("".join(replaced.get(unicodedata.category(c), c) for c in text).split())


@lru_cache(maxsize=64)
def _typeface(characters: str) -> Typeface:
    best = Typeface(None, _not_in(None, characters))
    for path in islice(_font_files(), MOST_TRIED) if best.missing else ():
        missing = _not_in(path, characters)
        if len(missing) < len(best.missing):
            best = Typeface(path, missing)
        if not missing:
            break
    return best


def _not_in(path: Path | None, characters: str) -> str:
    """Those of the characters that a font lacks; all of them if it cannot be opened at every size."""
    try:
        font = _opened(path, TRIAL_SIZE)
        box = _shape(font, NEVER_A_CHARACTER)
        return "".join(c for c in characters if _lacks(font, c, box))
    except (OSError, ValueError):
        return characters


def _lacks(font: FreeTypeFont, character: str, box: tuple[tuple[int, int], bytes]) -> bool:
    # Joiners, marks and spaces have no shape of their own.
    return unicodedata.category(character) not in ("Cf", "Mn", "Me", "Zs") and _shape(font, character) == box


def _shape(font: FreeTypeFont, character: str) -> tuple[tuple[int, int], bytes]:
    mask: Any = font.getmask(character)  # Pillow does not declare that it has bytes
    return mask.size, bytes(mask)


@lru_cache(maxsize=64)
def _opened(path: Path | None, size: int) -> FreeTypeFont:
    # Not ImageFont.truetype: in place of a damaged file it opens another one of the same name.
    font = ImageFont.load_default(size=size) if path is None else FreeTypeFont(str(path), size)
    if not isinstance(font, FreeTypeFont):
        raise OSError("Pillow was built without FreeType, so it draws no text. Install Pillow from PyPI.")
    return font


def _font_files() -> Iterator[Path]:
    """The fonts of this computer, those that draw much and plainly first."""
    found = (path for folder in FOLDERS for path in _files_under(Path(folder).expanduser()))
    return iter(sorted(found, key=_rank))


def _files_under(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):  # a folder that is not there or not readable holds none
        yield from (Path(parent, name) for name in names if name.lower().endswith(ENDINGS))


def _rank(path: Path) -> tuple[int, bool, int, str]:
    name = re.sub(r"[\s_-]", "", path.stem.lower())
    rank = max((len(start), place) for place, start in enumerate(("", *PREFERRED)) if name.startswith(start))[1]
    return rank or len(PREFERRED) + 1, bool(FANCY.search(name)), len(name), name


def _plain(character: str) -> str:
    bare = "".join(c for c in unicodedata.normalize("NFKD", character) if c.isascii() and c.isprintable())
    return bare or "?"
