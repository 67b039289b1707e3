"""The drawn world: pictures whose content and style are known exactly.

*Content* is which shape stands where and how large. *Style* is palette x texture x edge treatment; hues, angles,
frequencies, widths are continuous, so the words of a caption never name a style completely. Lengths are in units of
half a picture side (the picture spans -1..1, y upwards), angles in radians, frequencies in cycles per picture side.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import Self

from .colour import oklch_to_srgb, srgb_to_lab
from .shapes import SHAPES, signed_distance
from .strewing import strewn

PICTURE_SIZE = 128  # pixels
LARGEST_SHIFT = 0.44  # how far from the middle a shape of its own may stand
LOWEST_FREQUENCY = 2.6  # and not above 4.9: a period is then 3.3 latents or more, which a small UNet can keep in step
TEXTURES = ("plain", "dots", "stripes", "checks", "waves", "grid", "motifs")
EDGES = ("crisp", "outlined", "soft", "wobbly")
PALETTE_SLOTS = ("ground", "ground accent", "figure", "figure accent", "ink")

# Ground and figure of each named palette in OKLCH: lightness, chroma, hue in degrees. Free palettes have no name.
PALETTES: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "ocean": ((0.42, 0.09, 238.0), (0.82, 0.09, 190.0)),
    "forest": ((0.40, 0.08, 148.0), (0.80, 0.13, 115.0)),
    "sunset": ((0.58, 0.16, 30.0), (0.88, 0.13, 88.0)),
    "candy": ((0.85, 0.08, 350.0), (0.58, 0.11, 165.0)),
    "desert": ((0.82, 0.07, 80.0), (0.50, 0.11, 48.0)),
    "night": ((0.26, 0.08, 278.0), (0.88, 0.11, 98.0)),
    "berry": ((0.40, 0.13, 325.0), (0.76, 0.12, 8.0)),
    "ice": ((0.91, 0.03, 215.0), (0.55, 0.11, 255.0)),
    "ink": ((0.95, 0.01, 90.0), (0.45, 0.02, 270.0)),
    "woodcut": ((0.87, 0.06, 85.0), (0.40, 0.06, 45.0)),
    "pastel": ((0.93, 0.04, 70.0), (0.76, 0.09, 10.0)),
    "neon": ((0.22, 0.06, 300.0), (0.85, 0.18, 150.0)),
    "comic": ((0.90, 0.14, 98.0), (0.60, 0.19, 28.0)),
    "blueprint": ((0.40, 0.11, 257.0), (0.87, 0.04, 235.0)),
}
PALETTE_NAMES = tuple(PALETTES)
FREE_PALETTE = -1
NAMED_STYLES: dict[str, tuple[str, str, str]] = {
    "ink drawing": ("ink", "plain", "outlined"),
    "woodcut": ("woodcut", "stripes", "wobbly"),
    "pastel": ("pastel", "plain", "soft"),
    "neon": ("neon", "plain", "outlined"),
    "comic": ("comic", "dots", "outlined"),
    "blueprint": ("blueprint", "grid", "outlined"),
}
"""Styles with a name of their own: palette, texture and edge."""
NAMED_SHARE = 0.15  # the share of styles that have one


@dataclass(frozen=True, eq=False)
class Rows:
    """Values of many pictures, one row each."""

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    def take(self, rows: Tensor) -> Self:
        """Keeps these rows, in this order (an index or a boolean tensor)."""
        return self._map(lambda value: value[rows])

    def to(self, device: torch.device | str) -> Self:
        return self._map(lambda value: value.to(device))

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        return cls(**{field.name: torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)})

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        return type(self)(**{field.name: function(getattr(self, field.name)) for field in fields(self)})


@dataclass(frozen=True, eq=False)
class Content(Rows):
    """What is drawn. The second of the two slots is empty (shape -1) in most pictures."""

    shape: Tensor  # (pictures, 2) index into SHAPES, -1 for none
    centre: Tensor  # (pictures, 2, 2) x, y
    radius: Tensor  # (pictures, 2)
    turn: Tensor  # (pictures, 2) radians anticlockwise


@dataclass(frozen=True, eq=False)
class Style(Rows):
    """How it is drawn."""

    palette_name: Tensor  # (pictures,) index into PALETTE_NAMES, or FREE_PALETTE
    oklch: Tensor  # (pictures, 5, 3) the colours of PALETTE_SLOTS
    texture: Tensor  # (pictures,) index into TEXTURES
    angle: Tensor  # (pictures,) direction of the texture's wave vector, 0..pi
    frequency: Tensor  # (pictures,) cycles per picture side
    phase: Tensor  # (pictures, 2) radians
    contrast: Tensor  # (pictures,) 0..1, how far the accent colours come through
    edge: Tensor  # (pictures,) index into EDGES
    softness: Tensor  # (pictures,) width of the edge's fading
    outline: Tensor  # (pictures,) width of the ink line
    wobble: Tensor  # (pictures,) amplitude of the edge's displacement

    def palette(self) -> Tensor:
        """The five colours in sRGB 0..1: (pictures, 5, 3), in the order of PALETTE_SLOTS."""
        return oklch_to_srgb(self.oklch)

    def palette_lab(self) -> Tensor:
        """The five colours in CIE Lab: (pictures, 5, 3)."""
        return srgb_to_lab(self.palette())


@dataclass(frozen=True, eq=False)
class Scenes:
    """Pictures before they are drawn; any content goes with any style of equal length."""

    content: Content
    style: Style

    def __len__(self) -> int:
        return len(self.content)

    def take(self, rows: Tensor) -> "Scenes":
        return Scenes(self.content.take(rows), self.style.take(rows))


@dataclass(frozen=True, eq=False)
class Drawing:
    """Pictures with their ground truth."""

    pictures: Tensor  # (pictures, 3, height, width) sRGB 0..1
    masks: Tensor  # (pictures, 2, height, width) coverage 0..1 of each of the two shape slots
    textures: Tensor  # (pictures, height, width) the texture field 0..1 before colour


def sample_scenes(count: int, seed: int, split: str = "train") -> Scenes:
    """Draws `count` scenes at random: of the "train" or the "held_out" combinations, or of "any"."""
    generator = torch.Generator().manual_seed(seed)
    scenes = _sample(count, generator)
    if split == "any":
        return scenes
    while (wrong := held_out(scenes) != (split == "held_out")).any():
        fresh = _sample(count, generator)
        scenes = _replace_rows(scenes, fresh, wrong)
    return scenes


def single_shapes(count: int, seed: int, split: str = "train") -> Scenes:
    """As `sample_scenes`, but scenes of one shape each."""
    scenes = sample_scenes(count * 3 // 2 + 8, seed, split)
    return scenes.take((scenes.content.shape[:, 1] < 0).nonzero()[:count, 0])


def held_out(scenes: Scenes) -> Tensor:
    """Which pictures (pictures,) show a shape x palette x texture never drawn for training: one in eight.

    Every pair of the three is drawn, also with free palettes, which count as a ninth name; the third is what is new.
    """
    shape, style = scenes.content.shape, scenes.style
    mark = (shape + 3 * style.palette_name[:, None] + 5 * style.texture[:, None]) % 8 == 0
    return (mark & (shape >= 0)).any(dim=1)


def draw(scenes: Scenes, size: int = PICTURE_SIZE, device: torch.device | str = "cpu") -> Drawing:
    """Draws all scenes at once, anti-aliased, `size` pixels square."""
    content, style = scenes.content.to(device), scenes.style.to(device)
    x, y = pixel_centres(size, device)
    x, y = x.expand(len(content), -1, -1), y.expand(len(content), -1, -1)
    texture = texture_field(style, x, y)
    pictures, figure = textured(style, "ground", texture), textured(style, "figure", texture)
    masks = []
    for slot in range(2):
        distance = _distance(content, style, slot, x, y)
        pictures, mask = drawn_over(pictures, figure, style, distance, pixel=2.0 / size)
        masks.append(mask)
    return Drawing(pictures, torch.stack(masks, dim=1), texture)


def texture_spectrum(field: Tensor, lowest: float = 2.0, highest: float = 20.0) -> Tensor:
    """The power spectrum of grey fields (pictures, height, width), summing to 1: (pictures, radii * directions).

    Bins are logarithmic in frequency (cycles per side) and 15 degrees wide in direction; a Hann window stands against
    the borders. What lies below `lowest` belongs to the content.
    """
    height, width = field.shape[-2:]
    window = torch.outer(torch.hann_window(height, device=field.device), torch.hann_window(width, device=field.device))
    mean = (field * window).sum(dim=(-2, -1), keepdim=True) / window.sum()
    power = torch.fft.fft2((field - mean) * window).abs() ** 2
    fy = torch.fft.fftfreq(height, 1 / height, device=field.device)[:, None]
    fx = torch.fft.fftfreq(width, 1 / width, device=field.device)[None, :]
    radius, direction = torch.hypot(fx, fy), torch.remainder(torch.atan2(-fy, fx), math.pi)
    radii, directions = 10, 12
    ring = (radii * (radius / lowest).clamp_min(1e-6).log() / math.log(highest / lowest)).floor()
    sector = (direction / math.pi * directions).round() % directions
    wanted = (ring >= 0) & (ring < radii)
    number = (ring * directions + sector)[wanted].long()
    bins = power.new_zeros(len(field), radii * directions).index_add_(1, number, power[:, wanted])
    return bins / bins.sum(dim=1, keepdim=True).clamp_min(1e-12)


def _sample(count: int, generator: torch.Generator) -> Scenes:
    return Scenes(sample_content(count, generator), sample_style(count, generator))


def sample_content(count: int, generator: torch.Generator, two_shapes: float = 0.15) -> Content:
    """Shapes, places and sizes at random; `two_shapes` is the share of pictures with a second shape opposite."""
    shape = torch.randint(len(SHAPES), (count, 2), generator=generator)
    pair = torch.rand(count, generator=generator) < two_shapes
    shape[~pair, 1] = -1
    place = torch.randint(-1, 2, (count, 2), generator=generator).float()
    jitter = _uniform((count, 2, 2), -0.07, 0.07, generator)
    alone = place * LARGEST_SHIFT
    upright = (torch.rand(count, generator=generator) < 0.4).float()
    apart = torch.stack([1 - upright, -upright], dim=1) * -0.47  # first shape on the left or at the top
    first = torch.where(pair[:, None], apart, alone)
    centre = torch.stack([first, -apart], dim=1) + jitter
    radius = _uniform((count, 2), 0.38, 0.6, generator)
    radius = torch.where(pair[:, None], _uniform((count, 2), 0.32, 0.44, generator), radius)
    return Content(shape, centre, radius, _uniform((count, 2), -0.22, 0.22, generator))


def sample_style(
    count: int, generator: torch.Generator, free_palettes: float = 0.3, named_styles: float = NAMED_SHARE
) -> Style:
    """Palettes, textures and edges at random.

    `free_palettes` is the share of palettes without a name, `named_styles` that of styles with one.
    """
    palette_name = torch.randint(len(PALETTES), (count,), generator=generator)
    free = torch.rand(count, generator=generator) < free_palettes
    palette_name[free] = FREE_PALETTE
    texture = torch.randint(len(TEXTURES), (count,), generator=generator)
    edge = torch.randint(len(EDGES), (count,), generator=generator)
    named = torch.rand(count, generator=generator) < named_styles
    one = _named_styles()[torch.randint(len(NAMED_STYLES), (count,), generator=generator)]
    palette_name, texture, edge = torch.where(named, one.T, torch.stack([palette_name, texture, edge]))
    none = torch.zeros(count)
    return Style(
        palette_name=palette_name,
        oklch=_sample_palettes(palette_name, generator),
        texture=texture,
        angle=_uniform((count,), 0.0, math.pi, generator),
        frequency=LOWEST_FREQUENCY * torch.exp2(_uniform((count,), 0.0, 0.9, generator)),
        phase=_uniform((count, 2), 0.0, 2 * math.pi, generator),
        contrast=_uniform((count,), 0.8, 1.0, generator),
        edge=edge,
        softness=torch.where(edge == EDGES.index("soft"), _uniform((count,), 0.05, 0.12, generator), none),
        outline=torch.where(edge == EDGES.index("outlined"), _uniform((count,), 0.03, 0.06, generator), none),
        wobble=torch.where(edge == EDGES.index("wobbly"), _uniform((count,), 0.02, 0.035, generator), none),
    )


def _named_styles() -> Tensor:
    """Palette, texture and edge of each named style as indices: (styles, 3)."""
    rows = [(PALETTE_NAMES.index(p), TEXTURES.index(t), EDGES.index(e)) for p, t, e in NAMED_STYLES.values()]
    return torch.tensor(rows)


def _sample_palettes(name: Tensor, generator: torch.Generator) -> Tensor:
    """Five colours for each palette name: (pictures, 5, 3) in OKLCH."""
    count = len(name)
    centres = torch.tensor(list(PALETTES.values()))  # (names, 2, 3)
    spread = torch.tensor([0.05, 0.02, 14.0])
    named = centres[name.clamp_min(0)] + spread * _uniform((count, 2, 3), -1.0, 1.0, generator)
    colours = torch.where((name == FREE_PALETTE)[:, None, None], _free_colours(count, generator), named)
    colours[..., 2] *= math.pi / 180
    ground, figure = colours.unbind(1)
    ink_lightness = torch.where((ground[:, 0] + figure[:, 0]) / 2 > 0.62, 0.2, 0.97)
    ink = torch.stack([ink_lightness, torch.full((count,), 0.03), figure[:, 2]], dim=1)
    return torch.stack([ground, _accent(ground, generator), figure, _accent(figure, generator), ink], dim=1)


def _free_colours(count: int, generator: torch.Generator) -> Tensor:
    """Ground and figure of any hue, at least 0.28 apart in lightness: (pictures, 2, 3), hue in degrees."""
    low, high = _uniform((count,), 0.28, 0.55, generator), _uniform((count,), 0.0, 1.0, generator)
    high = low + 0.28 + high * (0.92 - 0.28 - low)
    swap = torch.rand(count, generator=generator) < 0.5
    lightness = torch.stack([torch.where(swap, high, low), torch.where(swap, low, high)], dim=1)
    chroma = _uniform((count, 2), 0.03, 0.14, generator)
    return torch.stack([lightness, chroma, _uniform((count, 2), 0.0, 360.0, generator)], dim=2)


def _accent(colour: Tensor, generator: torch.Generator) -> Tensor:
    """A second tone of `colour`: lighter or darker, whichever has room, and turned a little in hue."""
    count = len(colour)
    step = _uniform((count,), 0.17, 0.25, generator) * torch.where(colour[:, 0] > 0.6, -1.0, 1.0)
    turn = _uniform((count,), -0.5, 0.5, generator)
    return colour + torch.stack([step, torch.zeros(count), turn], dim=1)


def texture_field(style: Style, x: Tensor, y: Tensor) -> Tensor:
    """The texture of every picture, 0 where the main colour is and 1 where the accent is: (pictures, height, width)."""
    cos, sin = style.angle.cos()[:, None, None], style.angle.sin()[:, None, None]
    turn = (math.pi * style.frequency)[:, None, None]  # radians per unit of length: the side is 2 long
    u = turn * (x * cos + y * sin) + style.phase[:, 0, None, None]
    v = turn * (y * cos - x * sin) + style.phase[:, 1, None, None]
    waves = (
        torch.full_like(u, -9.0),
        u.cos() + v.cos() - 0.75,
        u.cos(),
        2.0 * (u / math.sqrt(2)).cos() * (v / math.sqrt(2)).cos(),
        (u + 1.6 * (0.5 * v).sin()).cos(),
        torch.maximum(u.cos(), v.cos()) - 0.72,
        torch.full_like(u, -9.0),
    )
    field = torch.zeros_like(u)
    for number, wave in enumerate(waves):
        rows = style.texture == number
        field[rows] = torch.sigmoid(5.0 * wave[rows])
    if (rows := style.texture == TEXTURES.index("motifs")).any():
        field[rows] = strewn(style.frequency[rows], style.phase[rows], x[rows], y[rows])
    return field


def _distance(content: Content, style: Style, slot: int, x: Tensor, y: Tensor) -> Tensor:
    """Signed distance to one shape slot; far outside where the slot is empty: (pictures, height, width)."""
    shape, radius = content.shape[:, slot], content.radius[:, slot]
    u, v = own_coordinates(content.centre[:, slot], radius, content.turn[:, slot], x, y)
    distance = signed_distance(shape.clamp_min(0), u, v) * radius[:, None, None]
    phase = style.phase[:, :, None, None]
    ripple = (19.0 * x + phase[:, 0]).sin() * (19.0 * y + phase[:, 1]).sin()
    distance = distance + style.wobble[:, None, None] * ripple
    return torch.where((shape < 0)[:, None, None], torch.full_like(distance, 9.0), distance)


def own_coordinates(centre: Tensor, radius: Tensor, turn: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels as a figure sees them, at the origin, upright and of radius 1: u and v, (pictures, height, width)."""
    cos, sin = turn[:, None, None].cos(), turn[:, None, None].sin()
    dx, dy = ((axis - centre[:, n, None, None]) / radius[:, None, None] for n, axis in enumerate((x, y)))
    return cos * dx + sin * dy, cos * dy - sin * dx


def textured(style: Style, slot: Literal["ground", "figure"], field: Tensor) -> Tensor:
    """A colour of the palette with its accent where the texture's `field` is: (pictures, 3, height, width)."""
    first = PALETTE_SLOTS.index(slot)
    colour, accent = style.palette()[:, first : first + 2, :, None, None].unbind(1)
    return torch.lerp(colour, accent, (style.contrast[:, None, None] * field)[:, None])


def drawn_over(pictures: Tensor, figure: Tensor, style: Style, distance: Tensor, pixel: float) -> tuple[Tensor, Tensor]:
    """`pictures` with the colours of `figure` and the ink line over them, and how far these cover each pixel."""
    fill, ink = _coverage(style, distance, pixel)
    line = style.palette()[:, PALETTE_SLOTS.index("ink"), :, None, None]
    filled = torch.lerp(pictures, figure, fill[:, None])
    return torch.lerp(filled, line, ink[:, None]), torch.maximum(fill, ink)


def _coverage(style: Style, distance: Tensor, pixel: float) -> tuple[Tensor, Tensor]:
    """How far the figure's colour and the ink line cover each pixel, 0..1; `pixel` is a pixel's side."""
    fading = style.softness.clamp_min(pixel)[:, None, None]
    fill = torch.sigmoid(-4.0 * distance / fading)
    outline = style.outline[:, None, None]
    ink = ((outline - distance.abs()) / pixel + 0.5).clamp(0.0, 1.0) * (outline > 0)
    return fill, ink


def pixel_centres(size: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    line = (torch.arange(size, device=device) + 0.5) * (2.0 / size) - 1.0
    return line[None, None, :], -line[None, :, None]


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def _replace_rows(scenes: Scenes, fresh: Scenes, rows: Tensor) -> Scenes:
    parts = []
    for old, new in ((scenes.content, fresh.content), (scenes.style, fresh.style)):
        values = {}
        for field in fields(old):
            value = getattr(old, field.name).clone()
            value[rows] = getattr(new, field.name)[rows]
            values[field.name] = value
        parts.append(type(old)(**values))
    return Scenes(*parts)
