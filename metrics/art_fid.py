"""ArtFID: how much of the content is kept and how close the style comes, in one number (arXiv:2207.12280)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .frechet import SMALLEST_SUBSET, FeatureStatistics, frechet_distance, frechet_infinity

PUBLISHED_POINTS = 8
"""Of the line for FID-infinity: the authors' command line passes its number of workers there, by default 8."""


def art_fid(content_distance: float, style_distance: float) -> float:
    """(1 + content distance) (1 + FID), at least 1; lower is better."""
    return (1 + content_distance) * (1 + style_distance)


@dataclass(frozen=True)
class ArtFID:
    """Both forms of ArtFID of one set of stylised pictures, with what they are made of."""

    content: float
    """The mean LPIPS (AlexNet) between each stylised picture and its content."""
    fid: float
    """Between the stylised and the style pictures, on features of Art-Inception."""
    count: int
    """Of stylised pictures."""
    fid_infinity: float | None = None
    """FID for endless sets; none up to 5,000 pictures, where it is the plain FID."""

    @classmethod
    def of(cls, content: Tensor, stylised: Tensor, style: Tensor, generator: torch.Generator | None = None) -> ArtFID:
        """From content distances (pictures,) and features (pictures, 2048) of the stylised and the style pictures.

        Up to 5,000 pictures the constructor does with statistics of features alone, which can be merged
        from batches. Raises ValueError where the numbers of distances and features differ, or there is one picture.
        """
        if len(content) != len(stylised):
            raise ValueError(
                f"There are {len(content)} content distances for {len(stylised)} stylised pictures. Give each "
                "stylised picture its content."
            )
        fid = frechet_distance(FeatureStatistics.of(stylised), FeatureStatistics.of(style))
        many = len(stylised) > SMALLEST_SUBSET
        endless = frechet_infinity(stylised, style, PUBLISHED_POINTS, generator) if many else None
        return cls(float(content.double().mean()), fid, len(stylised), endless)

    @property
    def plain(self) -> float:
        """With the plain FID."""
        return art_fid(self.content, self.fid)

    @property
    def published(self) -> float:
        """With FID-infinity, as the authors' code computes it by default and papers report it."""
        return art_fid(self.content, self.fid if self.fid_infinity is None else self.fid_infinity)

    @property
    def meaning(self) -> str:
        """Which form the published number is, in a sentence."""
        if self.fid_infinity is None:
            return (
                f"ArtFID with the plain FID and as published are the same for {self.count} pictures: up to "
                f"{SMALLEST_SUBSET}, every subset of FID-infinity is the whole set."
            )
        return f"ArtFID as published takes FID-infinity; with the plain FID it is {self.plain:.4g}."
