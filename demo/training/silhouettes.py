"""Silhouettes of figures that everybody can name, from icons of two npm packages, as grids of signed distances.

    npm pack @phosphor-icons/core @fortawesome/fontawesome-free     (and unpack both)
    python -m demo.training.silhouettes PHOSPHOR FONTAWESOME

Needs resvg-py, scipy and Pillow beside what the demo needs. It is run again only when a figure is added.
"""

import argparse
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from ..shapes import GRID_REACH, SHAPES, SILHOUETTES_FILE

PHOSPHOR = "assets/fill/{}-fill.svg"  # MIT
FONTAWESOME = "svgs/solid/{}.svg"  # CC BY 4.0
ICONS: dict[str, tuple[str, str]] = {
    "cat": (FONTAWESOME, "cat"),
    "dog": (FONTAWESOME, "dog"),
    "fish": (FONTAWESOME, "fish-fins"),
    "bird": (PHOSPHOR, "bird"),
    "frog": (FONTAWESOME, "frog"),
    "hippo": (FONTAWESOME, "hippo"),
    "kiwi": (FONTAWESOME, "kiwi-bird"),
    "horse": (FONTAWESOME, "horse"),
    "rabbit": (PHOSPHOR, "rabbit"),
    "ghost": (PHOSPHOR, "ghost"),
    "tree": (FONTAWESOME, "tree"),
    "house": (PHOSPHOR, "house"),
    "rocket": (PHOSPHOR, "rocket"),
    "boat": (PHOSPHOR, "sailboat"),
    "car": (FONTAWESOME, "car-side"),
    "cactus": (PHOSPHOR, "cactus"),
    "flower": (PHOSPHOR, "flower"),
    "butterfly": (PHOSPHOR, "butterfly"),
    "leaf": (PHOSPHOR, "leaf"),
    "snowman": (FONTAWESOME, "snowman"),
    "moon": (PHOSPHOR, "moon"),
    "star": (PHOSPHOR, "star"),
    "heart": (PHOSPHOR, "heart"),
    "dove": (FONTAWESOME, "dove"),
}
GRID = 64  # cells a side, as stored
FINE = 512  # pixels a side, at which distances are measured


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.training.silhouettes", description=__doc__)
    parser.add_argument("phosphor", type=Path, help="the unpacked package @phosphor-icons/core")
    parser.add_argument("fontawesome", type=Path, help="the unpacked package @fortawesome/fontawesome-free")
    folders = parser.parse_args(given)
    grids = []
    for figure in SHAPES:
        pattern, name = ICONS[figure]
        folder = folders.phosphor if pattern is PHOSPHOR else folders.fontawesome
        grids.append(distance_grid(solid(folder / pattern.format(name))))
    save_file({"distance": torch.stack(grids).half()}, SILHOUETTES_FILE, {"shapes": " ".join(SHAPES)})


def solid(path: Path) -> np.ndarray:
    """Where the icon is inked, cut to its bounds: (height, width) of booleans."""
    import resvg_py  # pyright: ignore[reportMissingImports]

    drawn = bytes(resvg_py.svg_to_bytes(svg_string=path.read_text(), width=2 * FINE))
    ink = np.asarray(Image.open(io.BytesIO(drawn)).convert("RGBA"))[..., 3] > 127
    rows, columns = np.where(ink)
    return ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def distance_grid(ink: np.ndarray) -> Tensor:
    """Signed distances (GRID, GRID) to an icon fitted into the square from -1 to 1; the grid reaches further out."""
    from scipy.ndimage import distance_transform_edt

    longest = FINE / GRID_REACH
    scale = longest / max(ink.shape)
    height, width = (max(1, round(side * scale)) for side in ink.shape)
    fitted = (
        np.asarray(Image.fromarray(ink.astype(np.uint8) * 255).resize((width, height), Image.Resampling.LANCZOS)) > 127
    )
    canvas = np.zeros((FINE, FINE), bool)
    top, left = (FINE - height) // 2, (FINE - width) // 2
    canvas[top : top + height, left : left + width] = fitted
    outside, inside = np.asarray(distance_transform_edt(~canvas)), np.asarray(distance_transform_edt(canvas))
    cells = (
        torch.from_numpy(((outside - inside) / (longest / 2)).astype(np.float32))
        .unflatten(0, (GRID, -1))
        .unflatten(2, (GRID, -1))
    )
    return cells.mean(dim=(1, 3))


if __name__ == "__main__":
    main()
