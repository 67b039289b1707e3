"""What the files of networks that measure hold, where they are published, and what tells them apart."""

from __future__ import annotations

from torch import nn
from torchvision.models import inception_v3

from ...metrics.cfsd import RELU3_1
from ...metrics.inception import TENSORFLOW_CLASSES
from ...metrics.lpips import LAYOUTS
from ...metrics.trunks import vgg19, without_weights
from .weights import Foreign, Part, Shapes

LPIPS_FILES = {
    "alex": ("alexnet.safetensors (9.9 MB)", "alexnet-owt-7be5be79.pth (233 MB)"),
    "vgg": ("vgg.safetensors (58.9 MB)", "vgg16-397923af.pth (528 MB)"),
    "squeeze": ("squeezenet.safetensors (2.9 MB)", "squeezenet1_1-b8a52dc0.pth (4.7 MB)"),
}
"""Network and heads in one file of huggingface.co/achiru/DiffSynth-Studio-ImageMetrics; torchvision's network alone."""
LPIPS_WHOLE = "huggingface.co/achiru/DiffSynth-Studio-ImageMetrics, folder LPIPS"
LPIPS_HEADS = "github.com/richzhang/PerceptualSimilarity, folder lpips/weights/v0.1"
HEADS_OF_OLD = {"alex": 22.4343, "vgg": 1.1231, "squeeze": 8.8851}
"""The sum of `lin2` in version 0.0, whose heads have the shapes of 0.1's and give other numbers."""
TORCHVISION = "download.pytorch.org/models"
IMAGENET = "torchvision's Inception, trained on ImageNet's 1,000 classes"
TENSORFLOW = "the Inception of FID, trained in TensorFlow"
ART = "the Inception of ArtFID, trained on paintings"
OF_IMAGENET = (
    Foreign("fc.bias", (1000,), IMAGENET),
    Foreign("fc.weight", (1000, 2048), IMAGENET),
    Foreign("AuxLogits.conv0.conv.weight", None, IMAGENET),
)
OF_ANOTHER = (Foreign("fc.bias", None, "an Inception with a classifier of its own"),)
OF_PAINTINGS = (Foreign("fc1.bias", None, ART), Foreign("fc1.weight", None, ART))


def lpips_parts(name: str) -> tuple[Part, Part]:
    """Network and heads of LPIPS for `alex`, `vgg` or `squeeze`; one file may hold both."""
    layout = LAYOUTS[name]
    whole, network = LPIPS_FILES[name]
    heads = {f"lin{place}.model.1.weight": (1, channels, 1, 1) for place, channels in enumerate(layout.channels)}
    return (
        Part(
            f"the network of LPIPS {name}",
            _shapes(layout.trunk(layout.layers)),
            f"{whole} from {LPIPS_WHOLE}, or {network} from {TORCHVISION}",
            others=(Foreign("features.16.weight", None, "VGG-19"),) if name == "vgg" else (),
        ),
        Part(
            f"the heads of LPIPS {name}",
            heads,
            f"{whole} from {LPIPS_WHOLE}, or {name}.pth (under 12 kB) from {LPIPS_HEADS}",
        ),
    )


def vgg19_part() -> Part:
    """The first layers of VGG-19, whose shapes are those of VGG-16."""
    return Part(
        "the VGG-19 of CFSD",
        _shapes(vgg19([RELU3_1])),
        f"vgg19-dcbb9e9d.pth (548 MB) from {TORCHVISION}",
        marks={"features.16.bias": (256,)},
        others=(Foreign("features.17.weight", None, "VGG-16"),),
    )


def inception_part() -> Part:
    """The Inception of FID. Three Inceptions have the same shapes, but each its own classifier or none."""
    return Part(
        TENSORFLOW,
        _inception_shapes(),
        "pt_inception-2015-12-05-6726825d.pth (91 MB) from github.com/mseitzer/pytorch-fid, release fid_weights",
        marks={"fc.bias": (TENSORFLOW_CLASSES,)},
        others=(*OF_IMAGENET, *OF_PAINTINGS),
    )


def art_inception_part() -> Part:
    """The Inception of ArtFID, which may come without its two classifiers."""
    return Part(
        ART,
        _inception_shapes(),
        "art_inception.pth (about 90 MB) from huggingface.co/matthias-wright/art_inception",
        others=(*OF_IMAGENET, Foreign("fc.bias", (TENSORFLOW_CLASSES,), TENSORFLOW), *OF_ANOTHER),
    )


def every_part() -> tuple[Part, ...]:
    """All that a file may hold."""
    of_lpips = (part for name in LAYOUTS for part in lpips_parts(name))
    return (*of_lpips, vgg19_part(), inception_part(), art_inception_part())


def _inception_shapes() -> Shapes:
    shapes = _shapes(without_weights(lambda: inception_v3(weights=None, aux_logits=False, init_weights=False)))
    return {name: shape for name, shape in shapes.items() if not name.startswith("fc.")}


def _shapes(network: nn.Module) -> Shapes:
    return {
        name: tuple(tensor.shape)
        for name, tensor in network.state_dict().items()
        if not name.endswith("num_batches_tracked")  # of training alone, and absent from old files
    }
