"""InstantStyle (arXiv:2404.02733) and plain IP-Adapters: in `method.py` on UNets, in `flux.py` on Flux."""

from .flux import InstantXStyle, XLabsStyle
from .method import MASKS_BY, InstantStyle, MasksBy
from .tokens import ImageTokens

__all__ = ["MASKS_BY", "ImageTokens", "InstantStyle", "InstantXStyle", "MasksBy", "XLabsStyle"]
