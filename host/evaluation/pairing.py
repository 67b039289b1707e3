"""Which pictures belong together: the rows of several sources, and whether their names agree."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from .folders import PictureFolder
from .sources import Pictures

TOGETHER = {2: "pairs", 3: "triples"}


def check_pairs(*sources: Pictures, one_for_all: bool = False, measure: str) -> None:
    """Raises ValueError unless the sources hold as many pictures each; or, `one_for_all`, some of them a single one."""
    counts = {len(source) for source in sources}
    if len(counts) > 1 and not (one_for_all and len(counts - {1}) == 1):
        told = ", ".join(f"{len(source)} in {source.name}" for source in sources)
        single = " or one against many" if one_for_all else ""
        if all(isinstance(source, PictureFolder) for source in sources):
            order, advice = "the order of their names", "under the same name, a copy of it"
        else:
            order, advice = "their order", "at the same place, once more"
        raise ValueError(
            f"{measure} pairs the pictures in {order}, so it needs as many of each{single}; found {told}. Give each "
            f"picture its partner {advice} where it has several."
        )


def row_names(sources: Sequence[Pictures], leading: Pictures) -> list[str]:
    """What each row is called: its name in the `leading` source, or those of all folders where they differ."""
    own = leading.names
    files = _files(sources) or [()] * len(own)
    return [" with ".join(names) if _differ(names) else name for name, names in zip(own, files, strict=True)]


def names_report(*sources: Pictures) -> str:
    """A sentence where folders pair pictures of different names, or nothing."""
    files = _files(sources)
    found = [names for names in files if _differ(names)]
    if not found:
        return ""
    have = "has" if len(found) == 1 else "have"
    first = " with ".join(found[0])
    return f"{len(found)} of {len(files)} {TOGETHER[len(sources)]} {have} different names, the first: {first}."


def _files(sources: Sequence[Pictures]) -> list[tuple[str, ...]]:
    """The files of each row; a batch has no names of its own, and one picture for many rows is no partner by name."""
    rows = max(map(len, sources))
    folders = [source for source in sources if isinstance(source, PictureFolder) and len(source) == rows]
    return list(zip(*(folder.names for folder in folders), strict=True))


def _differ(names: Sequence[str]) -> bool:
    """Whatever the kinds of the files: a.jpg is a.png's partner."""
    return len({PurePath(name).stem for name in names}) > 1
