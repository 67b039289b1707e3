"""What the models do, in numbers: judged by the drawn truth and by the classifier trained apart."""

import argparse
import json
from dataclasses import dataclass

import torch
from torch import Tensor

from .adapter import IPAdapter
from .captions import content_captions, full_captions
from .colour import srgb_to_lab
from .judge import load_judge, place_of
from .models import build_unet
from .parts import Autoencoder, VisionEmbedder, load_part
from .training import MODELS_FOLDER, best_device
from .unet import Denoiser
from .world import Scenes, draw, sample_scenes, texture_spectrum


@dataclass(frozen=True, eq=False)
class Measures:
    """Per picture: (pictures,)."""

    shape_right: Tensor
    place_right: Tensor
    leaked: Tensor  # the reference's shape is seen instead of the asked one
    palette: Tensor  # Delta E between the clouds of colours
    texture: Tensor  # 0..1, total variation between the spectra

    def summary(self) -> dict[str, float]:
        return {name: round(value.float().mean().item(), 3) for name, value in vars(self).items()}


def palette_distance(first: Tensor, second: Tensor, directions: int = 32) -> Tensor:
    """How far the colours of one picture lie from another's: sliced Wasserstein-1 in CIE Lab, in Delta E, (pictures,).

    The places of the colours do not matter.
    """
    generator = torch.Generator().manual_seed(0)
    axes = torch.nn.functional.normalize(torch.randn((3, directions), generator=generator), dim=0).to(first)
    clouds = [(srgb_to_lab(p.flatten(2).transpose(1, 2)) @ axes).sort(dim=1).values for p in (first, second)]
    return (clouds[0] - clouds[1]).abs().mean(dim=(1, 2)) * 2  # |projection| averages half of a distance in space


def texture_distance(first: Tensor, second: Tensor) -> Tensor:
    """Total variation between the texture spectra of the pictures' lightness: 0 the same, 1 disjoint, (pictures,)."""
    spectra = [texture_spectrum(srgb_to_lab(p.permute(0, 2, 3, 1))[..., 0]) for p in (first, second)]
    return (spectra[0] - spectra[1]).abs().sum(dim=1) / 2


def measure(made: Tensor, asked: Scenes, reference: Scenes, judge) -> Measures:
    """Compares pictures with the drawing that has the asked content in the reference's style."""
    ideal = draw(Scenes(asked.content, reference.style)).pictures
    shapes, places = (logits.argmax(1) for logits in judge(made))
    shape, other = asked.content.shape[:, 0], reference.content.shape[:, 0]
    return Measures(
        shape_right=shapes == shape,
        place_right=places == place_of(asked.content),
        leaked=(shapes == other) & (other != shape),
        palette=palette_distance(made, ideal),
        texture=texture_distance(made, ideal),
    )


def single_shapes(count: int, seed: int, split: str) -> Scenes:
    """Scenes of one shape each."""
    scenes = sample_scenes(count * 3 // 2 + 8, seed, split)
    return scenes.take((scenes.content.shape[:, 1] < 0).nonzero()[:count, 0])


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.measure", description=__doc__)
    parser.add_argument("--topology", choices=["sdxl", "sd15"], default="sdxl")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = best_device()
    results = _text_figures(arguments.topology, arguments.count, device)
    print(json.dumps(results, indent=2))
    (MODELS_FOLDER / f"measures_{arguments.topology}.json").write_text(json.dumps(results, indent=2) + "\n")


def _text_figures(topology: str, count: int, device: torch.device) -> dict[str, dict[str, float]]:
    judge = load_judge(device)
    unet = load_part(build_unet(topology), f"unet_{topology}", device)
    denoiser, autoencoder = Denoiser(unet, topology, device), Autoencoder.load(topology, device)
    asked, references = single_shapes(count, 901, "held_out"), single_shapes(count, 902, "held_out")
    drawn = draw(references).pictures
    rebuilt = autoencoder.decode(autoencoder.encode(drawn))
    figures = {
        "drawings themselves": measure(draw(asked).pictures, asked, asked, judge).summary(),
        "another drawing (chance)": measure(drawn, asked, asked, judge).summary(),
        "autoencoder alone": measure(rebuilt, references, references, judge).summary(),
    }
    for guidance in (1.0, 3.0, 5.0):
        made = autoencoder.decode(denoiser.sample(full_captions(asked), 11, guidance))
        figures[f"text alone, guidance {guidance}"] = measure(made, asked, asked, judge).summary()
        made = autoencoder.decode(denoiser.sample(content_captions(asked), 11, guidance))
        figures[f"content alone, guidance {guidance}"] = measure(made, asked, references, judge).summary()
    if (MODELS_FOLDER / f"ip_adapter_{topology}.safetensors").exists():
        figures |= _adapter_figures(topology, denoiser, autoencoder, judge, asked, references, device)
    return figures


def _adapter_figures(topology, denoiser, autoencoder, judge, asked: Scenes, references: Scenes, device):
    adapter = load_part(IPAdapter(denoiser.unet, topology), f"ip_adapter_{topology}", device)
    embeds = VisionEmbedder(device)(draw(references).pictures)
    both = torch.cat([torch.zeros_like(embeds), embeds])
    blocks = {"all": adapter.sites} | {
        f"{part} {n}": [s for s in adapter.sites if s[:2] == (part, n)]
        for part, n in dict.fromkeys(site[:2] for site in adapter.sites)
    }
    figures = {}
    for name, sites in blocks.items():
        replace = adapter.replacements(both, sites=sites)
        made = autoencoder.decode(denoiser.sample(content_captions(asked), 11, replace=replace))
        figures[f"adapter on {name}"] = measure(made, asked, references, judge).summary()
        print(name, figures[f"adapter on {name}"], flush=True)
    return figures


if __name__ == "__main__":
    main()
