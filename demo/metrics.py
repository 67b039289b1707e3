"""How pictures of the drawn world are judged: by its ground truth and by a classifier trained apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from semblance.metrics.scores import Measure

from .colour import srgb_to_lab
from .training.judge import Judge, Verdict, figure_of, overlap, place_of
from .world import Drawing, Scenes, draw, texture_spectrum

DIRECTIONS = 32


@dataclass(frozen=True, eq=False)
class Measures:
    """What was measured on each picture: (pictures,) each."""

    shape_right: Tensor
    """Whether the asked shape is seen."""
    place_right: Tensor
    """Whether it is seen where it was asked for."""
    shape_leaked: Tensor
    """Whether the reference's shape is seen instead of the asked one."""
    place_leaked: Tensor
    """Whether the figure stands where the reference's does, in pictures whose prompt leaves the place open."""
    palette: Tensor
    """Distance in Delta E between the colours of the picture and those it should have."""
    texture: Tensor
    """Distance 0..1 between the spectra of the two pictures' lightness."""
    gram: Tensor
    """Distance between the correlations of the classifier's features."""

    def __getitem__(self, name: str) -> Tensor:
        return getattr(self, name).float()


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3g} ({self.low:.3g} to {self.high:.3g})"


@torch.no_grad()
def measure(made: Tensor, asked: Scenes, reference: Scenes, judge: Judge) -> Measures:
    """Compares pictures (pictures, 3, height, width) with the drawing of the asked content in the reference's style."""
    ideal = draw(Scenes(asked.content, reference.style), made.shape[-1]).pictures
    verdict, right = judge(made), judge(ideal)
    shape, other = asked.content.shape[:, 0], reference.content.shape[:, 0]
    seen, place = verdict.shape.argmax(1), verdict.place.argmax(1)
    return Measures(
        shape_right=seen == shape,
        place_right=place == place_of(asked.content),
        shape_leaked=(seen == other) & (other != shape),
        place_leaked=place == place_of(reference.content),
        palette=palette_distance(made, ideal),
        texture=texture_distance(made, ideal),
        gram=gram_distance(verdict, right),
    )


def palette_distance(first: Tensor, second: Tensor) -> Tensor:
    """How far the colours of one picture lie from another's, wherever they are: (pictures,) in Delta E.

    The sliced Wasserstein-1 distance between the clouds of pixels in CIE Lab.
    """
    generator = torch.Generator().manual_seed(0)
    axes = functional.normalize(torch.randn((3, DIRECTIONS), generator=generator), dim=0).to(first)
    clouds = [(srgb_to_lab(p.flatten(2).transpose(1, 2)) @ axes).sort(dim=1).values for p in (first, second)]
    return (clouds[0] - clouds[1]).abs().mean(dim=(1, 2)) * 2  # a projection shortens a distance in space by half


def texture_distance(first: Tensor, second: Tensor) -> Tensor:
    """Total variation between the spectra of lightness: 0 the same, 1 nothing in common, (pictures,)."""
    spectra = [texture_spectrum(srgb_to_lab(p.permute(0, 2, 3, 1))[..., 0]) for p in (first, second)]
    return (spectra[0] - spectra[1]).abs().sum(dim=1) / 2


def gram_distance(first: Verdict, second: Verdict) -> Tensor:
    """Relative difference of the Gram matrices of the two finest levels of features (arXiv:1508.06576): (pictures,)."""
    levels = []
    for one, other in zip(first.features[:2], second.features[:2], strict=True):
        one, other = _gram(one), _gram(other)
        scale = (one.norm(dim=(1, 2)) + other.norm(dim=(1, 2))) / 2
        levels.append((one - other).norm(dim=(1, 2)) / scale)
    return torch.stack(levels).mean(dim=0)


def figure_overlap(judge: Judge, made: Tensor, drawing: Drawing) -> Tensor:
    """Intersection over union of the figure seen in each picture with the one drawn: (pictures,)."""
    return overlap(judge(made), figure_of(drawing.masks))


def subject_distance(judge: Judge, first: Tensor, second: Tensor) -> Tensor:
    """How far the figure's colours in one picture lie from the figure's colours in another: (pictures,) in Delta E.

    Each figure's colours are taken where the classifier sees it; places and sizes do not matter.
    """
    return colour_distance(*(colours_inside(pictures, judge(pictures).figure) for pictures in (first, second)))


def colour_distance(first: Tensor, second: Tensor) -> Tensor:
    """The distance between colours as `colours_inside` gives them: (...) in Delta E."""
    return (first - second).abs().mean(dim=(-2, -1)) * 2


def colours_inside(pictures: Tensor, figure: Tensor, count: int = 64) -> Tensor:
    """Colours where `figure` (pictures, height, width) is above 0, along DIRECTIONS axes of Lab, as quantiles.

    (pictures, count, DIRECTIONS). Of a figure nowhere above 0 its highest point counts.
    """
    whole = functional.interpolate(figure[:, None], pictures.shape[-2:], mode="bilinear")[:, 0]
    generator = torch.Generator().manual_seed(0)
    axes = functional.normalize(torch.randn((3, DIRECTIONS), generator=generator), dim=0).to(pictures)
    at = (torch.arange(count) + 0.5) / count
    rows = []
    for picture, mask in zip(pictures, whole, strict=True):
        inside = mask > 0 if (mask > 0).any() else mask >= mask.max()
        rows.append((srgb_to_lab(picture[:, inside].T) @ axes).quantile(at, dim=0))
    return torch.stack(rows)


def estimate(values: Tensor, groups: int = 1, seed: int = 0) -> Estimate:
    """The mean of values that belong together in runs of `groups`, with its bootstrap interval.

    Whole groups are resampled: pictures of one reference are not independent.
    """
    means = Measure("", tuple(values.float().unflatten(0, (-1, groups)).mean(dim=1).tolist()), higher_is_better=True)
    return Estimate(means.mean, *means.interval(seed))


def _gram(features: Tensor) -> Tensor:
    flat = features.flatten(2)
    return flat @ flat.transpose(1, 2) / flat.shape[2]
