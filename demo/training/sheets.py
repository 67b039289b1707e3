"""Contact sheets: many small pictures on one."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor


def contact_sheet(pictures: Tensor, columns: int, gap: int = 4) -> Tensor:
    """Lays (pictures, 3, height, width) out in rows on white: (3, sheet_height, sheet_width)."""
    count, _, height, width = pictures.shape
    rows = -(-count // columns)
    sheet = torch.ones(3, rows * (height + gap) - gap, columns * (width + gap) - gap)
    for number, picture in enumerate(pictures):
        top, left = (number // columns) * (height + gap), (number % columns) * (width + gap)
        sheet[:, top : top + height, left : left + width] = picture.clamp(0, 1).float().cpu()
    return sheet


def save_picture(picture: Tensor, path: Path) -> None:
    """Writes (3, height, width) in 0..1 as an 8-bit file, its kind told by the name's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous()
    Image.fromarray(pixels.numpy()).save(path)
