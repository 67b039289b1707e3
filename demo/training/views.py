"""Training on the world of figures: its text encoder, and a UNet of SDXL's topology whose kernels are cut.

Files go to `models/figures`, beside those of the world of shapes, whose autoencoder they stand on.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..figures import FIGURES
from ..layout_captions import plain_captions, view_captions
from ..layouts import ARRANGEMENT_NAMES, TOLD, Layouts, Views, draw_views, sample_views
from ..world import EDGES, PALETTE_NAMES, TEXTURES
from .carried import carried
from .encoders import contrast, norm_loss, texture_direction
from .kernels import cut_kernels, stock_weights
from .loop import RUNS_FOLDER, Plan, Run, best_device, export, seed_everything, train, use_averaged_weights
from .networks import EMBED_WIDTH, TEXT_CONFIG, build_text_encoder, build_unet, unet_config
from .parts import V_PREDICTION_KEY, Autoencoder, TextContext, load_part, load_weights
from .places import teach_places
from .sheets import contact_sheet, save_picture
from .tokens import tokenize
from .unet import EMPTY_SHARE, UNPOOLED_SHARE, Denoiser, denoising_loss, picture_sizes

TEXT = "figures/text_encoder"
UNET = "figures/unet_sdxl"
CONFIG = "sdxl_figures"
SHARD = 512  # views drawn, encoded and written at a time
SHARDS = 32
SIDE = 16  # latents
LATER = 0.5  # towards the noise, by which examples lean more than those of the world of shapes: looks are settled there


def cell_numbers(layouts: Layouts) -> Tensor:
    """Each told place as a number 0 to 8: (pictures, 3)."""
    return 3 * (layouts.place[..., 0] + 1) + layouts.place[..., 1] + 1


def told_places(layouts: Layouts) -> Tensor:
    """Ones at the places that the caption tells, of nine: (pictures, 9)."""
    ones = functional.one_hot(cell_numbers(layouts), 9).float()
    told = torch.tensor([TOLD.get(name, 0) for name in ARRANGEMENT_NAMES])[layouts.arrangement]
    return (ones * (torch.arange(3) < told[:, None])[..., None]).sum(dim=1)


class ViewTruth:
    """What a caption may tell of a view, and what it may not, as numbers and choices."""

    CHOICES = (
        len(FIGURES),
        len(ARRANGEMENT_NAMES),
        10,
        len(TEXTURES),
        len(TEXTURES),
        len(EDGES),
        len(PALETTE_NAMES) + 1,
    )
    NUMBERS = 15 + 2 + 2 + 2 + 9 + 2  # five colours in Lab, two directions, a place, the told places, an edge
    WIDTH = NUMBERS + sum(CHOICES)

    def __init__(self, views: Views) -> None:
        layouts, subject, ground = views.layouts, views.subject, views.ground
        alone = layouts.arrangement == ARRANGEMENT_NAMES.index("one")
        colours = torch.cat([subject.palette_lab()[:, 2:], ground.palette_lab()[:, :2]], dim=1)
        numbers = [colours.flatten(1) / 30]
        numbers += [texture_direction(style) * (style.texture > 0)[:, None] for style in (subject, ground)]
        numbers += [
            layouts.centre[:, 0] * 2.5 * alone[:, None],
            told_places(layouts),
            torch.stack([subject.softness, subject.outline], 1) * 30,
        ]
        self.numbers = torch.cat(numbers, dim=1)
        place = torch.where(alone, cell_numbers(layouts)[:, 0], 9)
        palette = torch.where(subject.palette_name == ground.palette_name, subject.palette_name, -1) + 1
        told = [layouts.figure, layouts.arrangement, place]
        self.choices = [*told, subject.texture, ground.texture, subject.edge, palette]

    def vector(self) -> Tensor:
        """Everything side by side, choices as ones among zeros: (views, WIDTH)."""
        ones = [functional.one_hot(c, n).float() for c, n in zip(self.choices, self.CHOICES, strict=True)]
        return torch.cat([self.numbers, *ones], dim=1)

    def loss(self, readout: Tensor) -> Tensor:
        numbers, *choices = readout.split([self.NUMBERS, *self.CHOICES], dim=1)
        chosen = [functional.cross_entropy(c, true) for c, true in zip(choices, self.choices, strict=True)]
        return 2 * (numbers - self.numbers).pow(2).mean() + 0.2 * torch.stack(chosen).sum()

    def told_loss(self, readout: Tensor) -> Tensor:
        """Of figure, arrangement and place alone, which every caption tells."""
        choices = readout.split(self.CHOICES[:3], dim=1)
        return torch.stack([functional.cross_entropy(c, t) for c, t in zip(choices, self.choices, strict=False)]).sum()


class TextAndView(nn.Module):
    """What the text's training trains; all but `text` serves training only."""

    def __init__(self) -> None:
        super().__init__()
        self.text = build_text_encoder()
        self.scene = nn.Sequential(nn.Linear(ViewTruth.WIDTH, 256), nn.GELU(), nn.Linear(256, EMBED_WIDTH))
        self.readout = nn.Linear(EMBED_WIDTH, ViewTruth.WIDTH)
        self.told = nn.Linear(EMBED_WIDTH, sum(ViewTruth.CHOICES[:3]))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))


def train_view_text(plan: Plan, batch: int = 96) -> None:
    """Trains the text encoder on, from that of the world of shapes, beside an encoder of the drawn truth."""
    seed_everything(plan.seed)
    model = TextAndView()
    model.text.load_state_dict(load_weights("text_encoder"), strict=False)

    def loss_of(step: int) -> Tensor:
        views = sample_views(batch, plan.seed + step)
        tokens = tokenize(view_captions(views, step))
        truth, text = ViewTruth(views), model.text(tokens[:, :40]).text_embeds
        scene = model.scene(truth.vector())
        loss = contrast(text, scene, model.logit_scale) + truth.loss(model.readout(scene)) + norm_loss(text, scene)
        return loss + 0.3 * truth.told_loss(model.told(text))

    run = train(plan, model, loss_of, lambda step: {})
    use_averaged_weights(run)
    weights = {name: value for name, value in model.text.state_dict().items() if "position_ids" not in name}
    export(run, weights, _text_figures(model), TEXT_CONFIG)


@torch.no_grad()
def _text_figures(model: TextAndView) -> dict[str, float]:
    """How often figure, arrangement and place are read rightly from captions of new views."""
    views = sample_views(512, 4242)
    readout = model.told(model.text(tokenize(view_captions(views, 4242))).text_embeds)
    choices = readout.split(ViewTruth.CHOICES[:3], dim=1)
    names, true = ("figure", "arrangement", "place"), ViewTruth(views).choices
    return {
        f"read_{n}": (c.argmax(1) == t).float().mean().item() for n, c, t in zip(names, choices, true, strict=False)
    }


class ViewPool:
    """Latents of drawn views, encoded once and kept in files of SHARD rows, with one caption each."""

    def __init__(self, seed: int, text: TextContext, device: torch.device) -> None:
        folder = RUNS_FOLDER / "pool" / f"views_{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        autoencoder = Autoencoder.load("sdxl", device)
        shards, captions = [], []
        for number in range(SHARDS):
            views, path = sample_views(SHARD, seed + number), folder / f"{number:04d}.pt"
            if not path.exists():
                pictures = draw_views(views).pictures.to(device)
                torch.save(torch.cat([autoencoder.encode(part).half().cpu() for part in pictures.split(32)]), path)
            shards.append(torch.load(path, weights_only=True))
            captions += view_captions(views, seed + number)
        self.latents = torch.cat(shards)
        words = sorted({*captions, ""})
        encoded = [text(words[start : start + 128]) for start in range(0, len(words), 128)]
        self.contexts = torch.cat([context.half() for context, _ in encoded])
        self.pooled = torch.cat([pooled for _, pooled in encoded])
        numbers = {caption: number for number, caption in enumerate(words)}
        self.caption = torch.tensor([numbers[caption] for caption in captions])

    def conditions(self, rows: Tensor, empty: Tensor, unpooled: Tensor) -> tuple[Tensor, Tensor]:
        """Context and pooled text of these rows, as `CaptionedPool` gives them; row 0 of the words is the empty one."""
        words = torch.where(empty, 0, self.caption[rows]).to(self.pooled.device)
        return self.contexts[words].float(), self.pooled[torch.where(unpooled.to(words.device), 0, words)]


def train_view_unet(plan: Plan, batch: int = 24) -> None:
    """Trains a UNet with cut kernels on views; every 1,000 steps it tells what its attention carries."""
    seed_everything(plan.seed)
    device = best_device()
    unet = build_unet(CONFIG)
    places = cut_kernels(unet)
    unet = unet.to(device)
    if not (plan.folder / "checkpoint.pt").exists():
        teach_places(unet, places, SIDE)
    places.held = True
    text = TextContext(load_part(build_text_encoder(), TEXT, device), "sdxl")
    denoiser, autoencoder = Denoiser(unet, "sdxl", device, text), Autoencoder.load("sdxl", device)

    @cache
    def pool() -> ViewPool:
        return ViewPool(plan.seed, text, device)

    def loss_of(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(plan.seed + step)
        rows = torch.randint(len(pool().latents), (batch,), generator=generator)
        empty = torch.rand(batch, generator=generator) < EMPTY_SHARE
        unpooled = torch.rand(batch, generator=generator) < UNPOOLED_SHARE
        prompt = denoiser.conditions(*pool().conditions(rows, empty, unpooled), picture_sizes(batch, generator))
        latents = pool().latents[rows].float().to(device)
        return denoising_loss(lambda x, t: denoiser(x, t, prompt), latents, generator, LATER)

    def validate(step: int) -> dict[str, float]:
        if step % 1000:
            return {}
        _show(denoiser, autoencoder, plan)
        return carried(denoiser, autoencoder)

    run: Run = train(plan, unet, loss_of, validate)
    use_averaged_weights(run)
    _show(denoiser, autoencoder, plan)
    weights: dict[str, Any] = {**stock_weights(unet), V_PREDICTION_KEY: torch.zeros(1)}
    export(run, weights, carried(denoiser, autoencoder), unet_config(CONFIG))


@torch.no_grad()
def _show(denoiser: Denoiser, autoencoder: Autoencoder, plan: Plan) -> None:
    """Writes drawn views above samples for their captions."""
    views = sample_views(24, 5)
    made = autoencoder.decode(denoiser.sample(plain_captions(views), seed=1)).cpu()
    drawn = draw_views(views).pictures
    rows = [part for s in (0, 12) for part in (drawn[s : s + 12], made[s : s + 12])]
    save_picture(contact_sheet(torch.cat(rows), 12), plan.folder / "samples.png")
