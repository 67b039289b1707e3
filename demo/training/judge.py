"""A small classifier of shape, place and figure, trained apart on drawings: it judges pictures it had no part in."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..captions import PLACE_WORDS
from ..shapes import SHAPES
from ..world import LARGEST_SHIFT, Content, draw, single_shapes
from .loop import Plan, best_device, export, half_precision, seed_everything, train, use_averaged_weights
from .parts import load_part

PLACES = tuple(PLACE_WORDS)
SEEN_SIZE = 64  # pixels
MASK_SIZE = SEEN_SIZE // 2
WIDTHS = (24, 48, 96, 128)


@dataclass(frozen=True, eq=False)
class Verdict:
    """What is seen in pictures, as logits."""

    shape: Tensor
    """(pictures, shapes)"""
    place: Tensor
    """(pictures, places)"""
    figure: Tensor
    """(pictures, MASK_SIZE, MASK_SIZE): where the figure is."""
    features: tuple[Tensor, ...]
    """Of each level, finest first: (pictures, channels, height, width)."""


class Judge(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        inputs = (3, *WIDTHS[:-1])
        self.down = nn.ModuleList(_level(before, after, 2) for before, after in zip(inputs, WIDTHS, strict=True))
        self.hidden = nn.Linear(WIDTHS[-1] * (SEEN_SIZE // 16) ** 2, 96)
        self.shape = nn.Linear(96, len(SHAPES))
        self.place = nn.Linear(96, len(PLACES))
        finer = tuple(reversed(WIDTHS[:-1]))
        coarser = (WIDTHS[-1], 32, 32)
        self.up = nn.ModuleList(_level(here + below, 32, 1) for here, below in zip(finer, coarser, strict=True))
        self.figure = nn.Conv2d(32, 1, 3, padding=1)

    def forward(self, pictures: Tensor) -> Verdict:
        """Pictures (pictures, 3, height, width) in 0..1 of any size."""
        seen = functional.interpolate(pictures, (SEEN_SIZE, SEEN_SIZE), mode="bilinear", antialias=True) * 2 - 1
        levels: list[Tensor] = []
        for level in self.down:
            seen = level(seen)
            levels.append(seen)
        hidden = self.hidden(seen.flatten(1)).relu()
        for level, finer in zip(self.up, reversed(levels[:-1]), strict=True):
            seen = level(torch.cat([functional.interpolate(seen, scale_factor=2.0), finer], dim=1))
        return Verdict(self.shape(hidden), self.place(hidden), self.figure(seen)[:, 0], tuple(levels))


def _level(before: int, after: int, stride: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(before, after, 3, stride, padding=1), nn.GroupNorm(8, after), nn.ReLU()]
    if stride > 1:
        layers += [nn.Conv2d(after, after, 3, padding=1), nn.GroupNorm(8, after), nn.ReLU()]
    return nn.Sequential(*layers)


def place_of(content: Content) -> Tensor:
    """The index into PLACES of each picture's first shape: (pictures,)."""
    cells = (content.centre[:, 0] / LARGEST_SHIFT).round().clamp(-1, 1)
    table = torch.tensor(PLACES)
    return (cells[:, None] == table).all(dim=2).int().argmax(dim=1)


def overlap(verdict: Verdict, figure: Tensor) -> Tensor:
    """Intersection over union of the figures seen with those drawn, as `figure_of` gives them: (pictures,)."""
    seen, true = verdict.figure > 0, figure > 0.5
    return (seen & true).sum(dim=(1, 2)) / (seen | true).sum(dim=(1, 2)).clamp_min(1)


def figure_of(masks: Tensor) -> Tensor:
    """Drawn masks (pictures, slots, height, width) as a verdict's figure would be if it were right: 0..1."""
    whole = masks.amax(dim=1, keepdim=True)
    return functional.interpolate(whole, (MASK_SIZE, MASK_SIZE), mode="bilinear", antialias=True)[:, 0]


def train_judge(plan: Plan, batch: int = 64) -> None:
    seed_everything(plan.seed)
    device = best_device()
    judge = Judge().to(device)

    def loss_of(step: int) -> Tensor:
        pictures, shape, place, figure = _examples(batch, plan.seed + step, "train", device)
        with half_precision(device):
            verdict = judge(worn(pictures))
        told = functional.cross_entropy(verdict.shape.float(), shape)
        placed = functional.cross_entropy(verdict.place.float(), place)
        return told + placed + functional.binary_cross_entropy_with_logits(verdict.figure.float(), figure)

    run = train(plan, judge, loss_of, lambda step: judge_drawings(judge, device))
    use_averaged_weights(run)
    export(run, judge.state_dict(), judge_drawings(judge, device, count=1024))


def load_judge(device: torch.device | None = None) -> Judge:
    return load_part(Judge(), "judge", device or torch.device("cpu"))


def worn(pictures: Tensor) -> Tensor:
    """Blurs half of the pictures a little and adds grain, so that small faults of a maker do not matter."""
    side = pictures.shape[-1]
    small = functional.interpolate(pictures, (side // 3, side // 3), mode="bilinear", antialias=True)
    blurred = functional.interpolate(small, (side, side), mode="bilinear")
    chosen = torch.rand((len(pictures), 1, 1, 1), device=pictures.device) < 0.5
    return torch.where(chosen, blurred, pictures) + 0.04 * torch.randn_like(pictures)


@torch.no_grad()
def judge_drawings(judge: Judge, device: torch.device, count: int = 256) -> dict[str, float]:
    """On held-out drawings: the share whose shape and place are told rightly, and the figure's overlap."""
    pictures, shape, place, figure = _examples(count, 31337, "held_out", device)
    verdict = judge(pictures)
    return {
        "shape_right": (verdict.shape.argmax(1) == shape).float().mean().item(),
        "place_right": (verdict.place.argmax(1) == place).float().mean().item(),
        "figure_iou": overlap(verdict, figure).mean().item(),
    }


def _examples(count: int, seed: int, split: str, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pictures of one shape, with the shape's and the place's number and the figure."""
    scenes = single_shapes(count, seed, split)
    drawing = draw(scenes, size=SEEN_SIZE * 3 // 2, device=device)
    shape, place = scenes.content.shape[:, 0].to(device), place_of(scenes.content).to(device)
    return drawing.pictures, shape, place, figure_of(drawing.masks)
