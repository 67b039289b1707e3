"""A small classifier of shape and place, trained apart on drawings: it judges pictures it had no part in making."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..captions import PLACE_WORDS
from ..shapes import SHAPES
from ..world import LARGEST_SHIFT, Content, draw, sample_scenes
from .loop import Plan, best_device, export, seed_everything, train, use_averaged_weights
from .parts import load_part

PLACES = tuple(PLACE_WORDS)
SEEN_SIZE = 64  # pixels


class Judge(nn.Module):
    """Pictures (pictures, 3, height, width) in 0..1 to logits of SHAPES and of PLACES."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 96, 128)
        layers: list[nn.Module] = []
        for before, after in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.ReLU()]
            layers += [nn.Conv2d(after, after, 3, padding=1), nn.GroupNorm(8, after), nn.ReLU()]
        self.features = nn.Sequential(*layers, nn.Flatten())
        self.hidden = nn.Linear(128 * (SEEN_SIZE // 16) ** 2, 128)
        self.shape = nn.Linear(128, len(SHAPES))
        self.place = nn.Linear(128, len(PLACES))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        seen = functional.interpolate(pictures, (SEEN_SIZE, SEEN_SIZE), mode="bilinear", antialias=True) * 2 - 1
        hidden = self.hidden(self.features(seen)).relu()
        return self.shape(hidden), self.place(hidden)


def place_of(content: Content) -> Tensor:
    """The index into PLACES of each picture's first shape: (pictures,)."""
    cells = (content.centre[:, 0] / LARGEST_SHIFT).round().clamp(-1, 1)
    table = torch.tensor(PLACES)
    return (cells[:, None] == table).all(dim=2).int().argmax(dim=1)


def train_judge(plan: Plan, batch: int = 64) -> None:
    seed_everything(plan.seed)
    device = best_device()
    judge = Judge().to(device)

    def loss_of(step: int) -> Tensor:
        pictures, shape, place = _examples(batch, plan.seed + step, "train", device)
        with torch.autocast(device.type, torch.bfloat16):
            shapes, places = judge(worn(pictures))
        return functional.cross_entropy(shapes.float(), shape) + functional.cross_entropy(places.float(), place)

    run = train(plan, judge, loss_of, lambda step: judge_drawings(judge, device))
    use_averaged_weights(run)
    export(run, judge.state_dict(), judge_drawings(judge, device, count=1024))


def load_judge(device: torch.device) -> Judge:
    return load_part(Judge(), "judge", device)


def worn(pictures: Tensor) -> Tensor:
    """Blurs half of the pictures a little and adds grain, so that small faults of a maker do not matter."""
    side = pictures.shape[-1]
    small = functional.interpolate(pictures, (side // 3, side // 3), mode="bilinear", antialias=True)
    blurred = functional.interpolate(small, (side, side), mode="bilinear")
    chosen = torch.rand((len(pictures), 1, 1, 1), device=pictures.device) < 0.5
    return torch.where(chosen, blurred, pictures) + 0.04 * torch.randn_like(pictures)


@torch.no_grad()
def judge_drawings(judge: Judge, device: torch.device, count: int = 256) -> dict[str, float]:
    """The share of held-out drawings whose shape and place are told rightly."""
    pictures, shape, place = _examples(count, 31337, "held_out", device)
    shapes, places = judge(pictures)
    return {
        "shape_right": (shapes.argmax(1) == shape).float().mean().item(),
        "place_right": (places.argmax(1) == place).float().mean().item(),
    }


def _examples(count: int, seed: int, split: str, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures of one shape, with the shape's and the place's number."""
    scenes = sample_scenes(count * 5 // 4 + 8, seed, split)
    single = (scenes.content.shape[:, 1] < 0).nonzero()[:count, 0]
    scenes = scenes.take(single)
    pictures = draw(scenes, size=SEEN_SIZE * 3 // 2, device=device).pictures
    return pictures, scenes.content.shape[:, 0].to(device), place_of(scenes.content).to(device)
