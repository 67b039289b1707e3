"""CFSD: whether a stylised picture keeps which places of the content look alike (StyleID, arXiv:2312.09008).

https://github.com/jiwoogit/StyleID, `PatchSimi` in `evaluation/image_metrics.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from .pictures import checked_pairs, checked_size
from .trunks import Trunk, filled, vgg19

RELU3_1 = 11
"""The layer of torchvision's VGG-19 whose features are compared: 256 channels at a quarter of the size."""
VGG16_LAYER = "features.17.weight"
"""Which VGG-19 does not have. Up to ReLU 3-1 both have tensors of the same shapes."""
CHUNK_BYTES = 64_000_000
"""What one chunk of rows of a similarity matrix may take; a few of its size are alive at once."""
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's colours."""


class CFSD(nn.Module):
    """The distance between pictures by their features in VGG-19."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk = trunk

    @classmethod
    def from_state(cls, weights: Mapping[str, Tensor]) -> CFSD:
        """With the weights of torchvision's VGG-19, of which `features.0` to `features.10` are needed.

        Raises ValueError where they are missing or of another network.
        """
        if VGG16_LAYER in weights:
            raise ValueError(
                f"CFSD is defined by VGG-19, but these weights are of VGG-16: they have a '{VGG16_LAYER}'. Its first "
                "layers have the same shapes and give other numbers. Choose vgg19."
            )
        return cls(filled(vgg19([RELU3_1]), weights, "The VGG-19 for CFSD"))

    def forward(self, stylised: Tensor, content: Tensor, at_each_chunk: Callable[[], None] | None = None) -> Tensor:
        """The published distance of each pair, (pairs,) from 0 up; lower is better. The paper's is `per_place` of it.

        Both are (pairs, 3, height, width) in [0, 1], of one size. `at_each_chunk` is called before each chunk of rows
        and may stop the work by raising. Raises ValueError for what is not.
        """
        stylised, content = checked_pairs(stylised, content, "The stylised pictures", "The content pictures")
        checked_size(content, 4, "CFSD")
        return similarity_divergence(self.features(content), self.features(stylised), at_each_chunk=at_each_chunk)

    def per_place(self, stylised: Tensor, content: Tensor, at_each_chunk: Callable[[], None] | None = None) -> Tensor:
        """The mean over places of the features, as the paper's formula has it, (pairs,).

        The authors' code divides by the batch where the formula divides by the places, so that the numbers in their
        tables are sums over places.
        """
        places = (content.shape[2] // 4) * (content.shape[3] // 4)
        return self(stylised, content, at_each_chunk) / places

    def features(self, pictures: Tensor) -> Tensor:
        """(pictures, 3, height, width) in [0, 1] -> (pictures, 256, height // 4, width // 4)."""
        mean, deviation = (pictures.new_tensor(color).view(3, 1, 1) for color in (MEAN, DEVIATION))
        (features,) = self.trunk((pictures - mean) / deviation)
        return features


def similarity_divergence(
    content: Tensor,
    stylised: Tensor,
    chunk_bytes: int = CHUNK_BYTES,
    at_each_chunk: Callable[[], None] | None = None,
) -> Tensor:
    """KL(S_content || S_stylised) summed over places, (pairs,), of features (pairs, channels, height, width).

    Row i of S is the softmax of place i's products with all places, of features divided by their number of channels.
    At 512 x 512 pixels S has 16,384 rows of as many, so it is taken a chunk of rows at a time.
    """
    return torch.stack(
        [
            _divergence(first, second, chunk_bytes, at_each_chunk)
            for first, second in zip(content, stylised, strict=True)
        ]
    )


def _divergence(
    content: Tensor, stylised: Tensor, chunk_bytes: int, at_each_chunk: Callable[[], None] | None
) -> Tensor:
    content, stylised = (features.flatten(1).T / len(features) for features in (content, stylised))
    # The rows are nearly uniform, so the terms cancel: float32 leaves three digits. Apple's devices have no float64.
    precise = torch.float32 if content.device.type == "mps" else torch.float64
    rows = max(1, chunk_bytes // (precise.itemsize * len(content)))
    total = torch.zeros((), dtype=precise, device=content.device)
    for start in range(0, len(content), rows):
        if at_each_chunk is not None:
            at_each_chunk()
        here = slice(start, start + rows)
        kept, found = (
            (features[here] @ features.T).to(precise).log_softmax(dim=1) for features in (content, stylised)
        )  # -> (rows, places)
        total += (kept.exp() * (kept - found)).sum()
    return total
