"""What a user shows an adapter, encoded: pictures, or a reference that holds encoded ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...attention.adapters.flux_checkpoint import FLUX
from ...attention.references.style import StyleReference
from ..instantstyle.adapter import LoadedAdapter
from ..instantstyle.encoding import EncodedStyle
from ..instantstyle.vision import check_encoder
from ..pictures import check_picture
from .encoding import EncodedPictures, encode_in_tiles, encode_nothing, encode_pictures

Source = Tensor | EncodedStyle
"""Pictures (images, height, width, 3) in [0, 1], or a reference."""


@dataclass(frozen=True, eq=False)
class PictureReader:
    """An adapter with the image encoder that pictures go through before they reach it."""

    adapter: LoadedAdapter
    encoder: Any = None
    """A CLIP_VISION; None for the one that was loaded along with the adapter, if there is one."""
    tiles: int = 1
    """Into how many by how many parts a picture is cut besides, each of them encoded too."""
    ratio: float = 1.0
    """How much of the whole picture is kept beside its parts."""

    def both_sides(self, image: Source, negative: Source | None = None) -> EncodedPictures:
        """Pictures with what they are set against: `negative`, else a reference's own negative, else nothing.

        Raises ValueError for pictures and references that cannot be used, and where an encoder is missing or wrong.
        """
        if isinstance(image, EncodedStyle):
            reference = self._fitting(image)
            if self.tiles > 1:
                raise ValueError(
                    "enhance_tiles cuts pictures up before they are encoded, and a reference is encoded already. "
                    "Connect the picture itself, or set enhance_tiles to 1."
                )
            own = (reference.negative,)
            others = own if negative is None else self._negatives(negative)
            return EncodedPictures(reference.pictures, others, reference.weights)
        return EncodedPictures(self._pictures(image), self._negatives(negative))

    def _pictures(self, images: Tensor) -> tuple[Tensor, ...]:
        check_picture(images, "The image")
        if self.tiles > 1:
            return encode_in_tiles(self.fitting_encoder, images, self._is_global, self.tiles, self.ratio)
        return encode_pictures(self.fitting_encoder, images, self._is_global)

    def _negatives(self, negative: Source | None) -> tuple[Tensor, ...]:
        if negative is None:
            return encode_nothing(self.fitting_encoder, self._is_global)
        if isinstance(negative, EncodedStyle):
            return _alike(self._fitting(negative))
        check_picture(negative, "The negative image")
        return encode_pictures(self.fitting_encoder, negative, self._is_global)

    @property
    def _is_global(self) -> bool:
        return self.adapter.layout.is_global

    @property
    def fitting_encoder(self) -> Any:
        """The image encoder. Raises ValueError where there is none, or one that does not fit the adapter."""
        self._refuse_flux()
        encoder = self.adapter.encoder if self.encoder is None else self.encoder
        if encoder is None:
            raise ValueError(
                "The adapter came without an image encoder. Connect Load CLIP Vision to clip_vision, or use Load "
                "IP-Adapter by Kind."
            )
        check_encoder(encoder, self.adapter.layout)
        return encoder

    def _refuse_flux(self) -> None:
        if self.adapter.layout.family == FLUX:
            raise ValueError(
                f"The adapter '{self.adapter.name}' is made for {FLUX}, which the nodes of this group do not know. Use "
                "Encode Style Reference and InstantStyle with it."
            )

    def _fitting(self, style: EncodedStyle) -> StyleReference:
        reference, layout = style.reference, self.adapter.layout
        if (reference.width, reference.is_global) != (layout.clip_width, layout.is_global):
            raise ValueError(
                f"The reference was made for an adapter of the kind '{style.adapter.layout}', but the adapter "
                f"connected is '{self.adapter.name}': {layout}. Load an adapter of the reference's kind."
            )
        return reference


def _alike(reference: StyleReference) -> tuple[Tensor, ...]:
    """The pictures of a reference as negatives, which count alike and are one square each."""
    if len(set(reference.weights)) > 1 or any(len(picture) > 1 for picture in reference.pictures):
        raise ValueError(
            "A negative reference counts its pictures alike and takes each as one square, but this one weighs them or "
            "cuts them into tiles. Encode it without weights and with the fit 'crop' or 'pad'."
        )
    return reference.pictures
