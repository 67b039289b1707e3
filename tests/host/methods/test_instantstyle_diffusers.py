"""InstantStyle equals diffusers live: fresh random weights, latents and scales at every run, both families."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from semblance.attention.adapters.checkpoint import flatten
from semblance.attention.engine.scope import ImageMask, Scope
from semblance.attention.methods.instantstyle import InstantStyle
from semblance.attention.references.style import StyleReference
from semblance.host.binding.model import add_patch, map_model
from semblance.host.instantstyle.adapter import LoadedAdapter, manage_adapter
from semblance.nodes.parsing import parse_block_weights
from semblance.tests.support.speeds import FAMILIES, one_family, slow_but
from semblance.tests.tiny_models import (
    CONTEXT_WIDTH,
    POOLED_WIDTH,
    Family,
    adapter_state_dict,
    diffusers_unet,
    make_unet,
)
from semblance.tests.tiny_models.adapters import nested
from semblance.tests.tiny_models.unets import NARROW, WIDE, unet_config

REGIONS = Path(__file__).parents[2] / "workflows" / "instantstyle_regions.json"
SIDE = 16
PATCHES = 17


@dataclass
class Scene:
    """One call of the UNet, the unconditional rows first, on fresh random numbers."""

    kind: Family
    seed: int
    channels: int = NARROW

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        self.model = make_unet(self.kind, self.seed, channels=self.channels)
        self.latent = torch.randn((4, 4, SIDE, SIDE), generator=generator)
        self.context = torch.randn((4, 77, CONTEXT_WIDTH[self.kind]), generator=generator)
        self.pooled = torch.randn((4, POOLED_WIDTH), generator=generator)
        self.generator = generator

    def adapter(self, variant: str) -> LoadedAdapter:
        config = unet_config(self.kind, self.channels)
        state = adapter_state_dict(self.kind, variant, seed=self.seed + len(variant), unet_config=config)  # pyright: ignore[reportArgumentType]
        return manage_adapter(variant, flatten(state))

    def reference(self, adapter: LoadedAdapter, pictures: int) -> StyleReference:
        shape = (1, adapter.layout.clip_width) if adapter.layout.is_global else (1, PATCHES, adapter.layout.clip_width)
        seen = tuple(torch.randn(shape, generator=self.generator) for _ in range(pictures))
        negative = torch.zeros(shape) if adapter.layout.is_global else torch.randn(shape, generator=self.generator)
        return StyleReference(seen, negative, (1.0,) * pictures)

    @property
    def vector(self) -> Tensor | None:
        if self.kind == "sd15":
            return None
        sizes = dict(width=128, height=128, crop_w=0, crop_h=0, target_width=128, target_height=128)
        encode: Any = self.model.model.encode_adm
        return encode(pooled_output=self.pooled, **sizes)

    def ours(self, patches: list[tuple[InstantStyle, LoadedAdapter]], timestep: int) -> Tensor:
        model = self.model
        for patch, _ in patches:
            model = add_patch(model, patch)
        sigma = model.model.model_sampling.sigmas[timestep]
        x = self.latent * (1 + sigma**2).sqrt()
        options = {**model.model_options["transformer_options"], "cond_or_uncond": [1, 0]}
        with torch.no_grad():
            clean = model.model.apply_model(
                x, sigma.expand(4), c_crossattn=self.context, y=self.vector, transformer_options=options
            )
        return (x - clean) / sigma

    def diffusers(
        self,
        adapters: list[tuple[LoadedAdapter, StyleReference]],
        scales: list[Any],
        timestep: int,
        masks: list[Tensor] | None = None,
    ) -> Tensor:
        from diffusers.loaders.ip_adapter import IPAdapterMixin

        unet: Any = diffusers_unet(self.kind, self.model.model.diffusion_model)
        unet._load_ip_adapter_weights([nested(adapter.patcher.model.state_dict()) for adapter, _ in adapters])
        IPAdapterMixin.set_ip_adapter_scale(SimpleNamespace(unet=unet, unet_name="unet"), scales)
        added: dict[str, Any] = {"image_embeds": [both_sides(reference) for _, reference in adapters]}
        if self.kind == "sdxl":
            sizes = torch.tensor([[128.0, 128.0, 0.0, 0.0, 128.0, 128.0]]).repeat(4, 1)
            added |= {"text_embeds": self.pooled, "time_ids": sizes}
        with torch.no_grad():
            return unet(
                self.latent,
                torch.tensor(timestep),
                encoder_hidden_states=self.context,
                added_cond_kwargs=added,
                cross_attention_kwargs={"ip_adapter_masks": masks} if masks else None,
            ).sample


def both_sides(reference: StyleReference) -> Tensor:
    """diffusers' image embeddings: (rows, pictures, ...), the unconditional rows first."""
    seen = torch.stack([picture[0] for picture in reference.pictures])
    unseen = reference.negative.expand(len(seen), *reference.negative.shape[1:])
    return torch.stack([unseen, unseen, seen, seen])


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.fixture
def seed() -> int:
    seed = int(torch.seed() % 2**31)
    print(f"seed {seed}")  # shown when the test fails
    return seed


STYLE = {
    "sd15": ({"up": {"block_1": 1.0}}, "output.3=1, output.4=1, output.5=1"),
    "sdxl": ({"up": {"block_0": [0.0, 1.0, 0.0]}}, "output.1=1"),
}


@pytest.mark.parametrize(
    ("kind", "variant", "pictures", "channels"),
    slow_but(
        [
            *itertools.product(FAMILIES, ["base", "plus", "full-face"], [1, 3], [NARROW]),
            ("sdxl", "base", 1, WIDE),
        ],
        [("sd15", "base", 1, NARROW), ("sd15", "full-face", 3, NARROW), ("sdxl", "plus", 3, NARROW)],
    ),
)
def test_every_block_and_the_style_block_equal_diffusers(
    kind: Family, variant: str, pictures: int, channels: int, seed: int
) -> None:
    scene = Scene(kind, seed, channels)
    adapter = scene.adapter(variant)
    reference = scene.reference(adapter, pictures)
    model_map = map_model(scene.model)
    timestep = 1 + seed % 998
    everywhere = model_map.family.preset("all")
    style, named = STYLE[kind]
    for scale, blocks, strength in ((0.7, everywhere, 0.7), (style, parse_block_weights(named, everywhere), 1.0)):
        patch = InstantStyle(
            adapter.image_tokens(reference), adapter, adapter.numbers_for(model_map), Scope(blocks), strength
        )
        expected = scene.diffusers([(adapter, reference)], [scale], timestep)
        plain = scene.ours([], timestep)
        assert relative_error(scene.ours([(patch, adapter)], timestep), expected) <= 1e-4
        assert relative_error(plain, expected) > 1e-3  # the adapter does act here


@one_family()
def test_two_adapters_with_masked_pictures_equal_diffusers(kind: Family, seed: int) -> None:
    scene = Scene(kind, seed)
    adapters = [scene.adapter("plus"), scene.adapter("base")]
    references = [scene.reference(adapters[0], 1), scene.reference(adapters[1], 2)]
    model_map = map_model(scene.model)
    masks = [torch.ones(1, 1, 128, 128), torch.rand((1, 2, 128, 128), generator=scene.generator).round()]
    patches: list[tuple[InstantStyle, LoadedAdapter]] = []
    for adapter, reference, mask in zip(adapters, references, masks, strict=True):
        scope = Scope(model_map.family.preset("all"), mask=ImageMask(mask[0], feather=False))
        tokens = adapter.image_tokens(reference)
        patches.append((InstantStyle(tokens, adapter, adapter.numbers_for(model_map), scope, 0.6), adapter))
    pairs = list(zip(adapters, references, strict=True))
    expected = scene.diffusers(pairs, [0.6, [0.6, 0.6]], 500, masks)
    assert relative_error(scene.ours(patches, 500), expected) <= 1e-4


def test_the_regions_template_equals_diffusers(seed: int) -> None:
    """A composition adapter everywhere and three masked style pictures, each with block scales of its own."""
    from diffusers.image_processor import IPAdapterMaskProcessor
    from PIL import Image

    scene = Scene("sdxl", seed)
    composition, style = scene.adapter("plus"), scene.adapter("base")
    seen, styles = scene.reference(composition, 1), scene.reference(style, 3)
    graph = RegionsGraph(scene.model, {"composition": (composition, seen), "style": (style, styles)})
    model = graph.model_before_the_sampler()
    masks = [Image.fromarray((mask[0] * 255).byte().numpy()) for mask in graph.masks]
    fitted = IPAdapterMaskProcessor().preprocess(masks, height=8 * SIDE, width=8 * SIDE)
    # Left and middle speak to the style block alone, right to every block.
    style_scales = {"down": [[0.0, 0.0, 1.0]], "mid": [[0.0, 0.0, 1.0]]}
    style_scales["up"] = {"block_0": [[0.0, 0.0, 1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 1.0]], "block_1": [[0.0, 0.0, 1.0]]}  # pyright: ignore[reportArgumentType]
    whole = torch.ones(1, 1, 8 * SIDE, 8 * SIDE)
    expected = scene.diffusers(
        [(composition, seen), (style, styles)],
        [1.0, style_scales],
        601,
        [whole, fitted.reshape(1, 3, 8 * SIDE, 8 * SIDE)],
    )
    scene.model = model
    assert relative_error(scene.ours([], 601), expected) <= 1e-4


class RegionsGraph:
    """Runs the template's own nodes, with the widgets' values in the template, on a tiny model and given references."""

    def __init__(self, model: Any, seen: dict[str, tuple[LoadedAdapter, StyleReference]]) -> None:
        self.nodes: dict[str, dict[str, Any]] = json.loads(REGIONS.read_text(encoding="utf-8"))
        self.model, self.seen = model, seen
        self.masks: list[Tensor] = []

    def model_before_the_sampler(self) -> Any:
        sampler = next(node for node in self.nodes.values() if node["class_type"] == "KSampler")
        return self.value(sampler["inputs"]["model"])

    def value(self, entry: Any) -> Any:
        """What an input of a node holds: its widget's value, or the result of the node it is linked to."""
        if not isinstance(entry, list):
            return entry
        node = self.nodes[entry[0]]
        return getattr(self, node["class_type"])(node)

    def CheckpointLoaderSimple(self, node: dict[str, Any]) -> Any:  # noqa: N802
        return self.model

    def SemblanceInstantStyle(self, node: dict[str, Any]) -> Any:  # noqa: N802
        from semblance.nodes.instantstyle import InstantStyle as Node

        inputs = {name: self.value(entry) for name, entry in node["inputs"].items()}
        blocks = {"blocks": inputs.pop("blocks"), "weights": inputs.pop("blocks.weights", None)}
        curve = {"curve": inputs.pop("curve")}
        if "mask" in inputs:
            self.masks.append(inputs["mask"])
        return Node.execute(**inputs, blocks=blocks, curve=curve)[0]

    def SemblanceEncodeReference(self, node: dict[str, Any]) -> Any:  # noqa: N802
        from semblance.host.instantstyle.encoding import EncodedStyle

        file = self.nodes[node["inputs"]["adapter"][0]]["inputs"]["file"]
        adapter, reference = self.seen["composition" if "composition" in file else "style"]
        # The chain is walked from its end, so a node's masks are gathered after those of the nodes before it.
        place = len(self.masks) if len(reference.pictures) > 1 else 0
        return EncodedStyle(
            StyleReference(reference.pictures[place : place + 1], reference.negative, (1.0,)), adapter, ""
        )

    def SolidMask(self, node: dict[str, Any]) -> Any:  # noqa: N802
        from comfy_extras.nodes_mask import SolidMask

        return SolidMask.execute(**node["inputs"])[0]

    def MaskComposite(self, node: dict[str, Any]) -> Any:  # noqa: N802
        from comfy_extras.nodes_mask import MaskComposite

        return MaskComposite.execute(**{name: self.value(entry) for name, entry in node["inputs"].items()})[0]
