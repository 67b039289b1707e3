"""Training of IP-Adapters (arXiv:2308.06721) on a frozen UNet: image tokens with keys and values of their own."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from semblance.attention.adapters.projections import LinearProjection, Resampler
from semblance.attention.engine.call import AttentionSite
from semblance.attention.families import adapter_numbers

from ..captions import content_captions, write_captions
from ..world import draw, sample_scenes
from .attention import attend
from .loop import Plan, best_device, export, seed_everything, train, use_averaged_weights
from .networks import EMBED_WIDTH, VISION_CONFIG, build_unet, cross_attention_widths, fresh_weights, unet_config
from .parts import Autoencoder, PictureEmbedder, Variant, load_part, load_weights, part_exists
from .pool import open_pool
from .sheets import contact_sheet, save_picture
from .unet import POOL_SIZE, CaptionedPool, Denoiser, denoising_loss, picture_sizes

TOKENS: Mapping[Variant, int] = {"base": 4, "plus": 8}
STATES_WIDTH = VISION_CONFIG["hidden_size"]
STYLE_SUFFIX = "_style"
"""Of the name of an adapter for some blocks alone."""


class IPAdapter(nn.Module):
    """The weights in the published layout: `image_proj.*` and `ip_adapter.{odd}.to_k_ip / to_v_ip`.

    With `blocks` ("output.1") only those take part; the others keep values of zero, so that the file is whole.
    """

    def __init__(self, unet: Any, topology: str, variant: Variant, blocks: Collection[str] = ()) -> None:
        super().__init__()
        context = unet_config(topology)["context_dim"]
        self.image_proj = fresh_weights(_projector(variant, context))
        widths = cross_attention_widths(unet)
        self.numbers = adapter_numbers(widths)
        self.trained_sites = [site for site in widths if not blocks or site.block in blocks]
        self.ip_adapter = nn.ModuleDict()
        for site, number in sorted(self.numbers.items(), key=lambda item: item[1]):
            pair = {name: nn.Linear(context, widths[site], bias=False) for name in ("to_k_ip", "to_v_ip")}
            self.ip_adapter[str(number)] = nn.ModuleDict(pair).requires_grad_(site in self.trained_sites)
            nn.init.zeros_(pair["to_v_ip"].weight)

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Takes over the projector, and of the blocks those that are trained."""
        trained = {str(self.numbers[site]) for site in self.trained_sites}
        kept = {n: w for n, w in weights.items() if not n.startswith("ip_adapter.") or n.split(".")[1] in trained}
        self.load_state_dict(kept, strict=False)

    def replacements(
        self, seen: Tensor, strength: float = 1.0, sites: Iterable[AttentionSite] | None = None
    ) -> dict[tuple[str, int, int], Any]:
        """Cross-attention replacements for the host: text attention plus attention to the image tokens.

        `seen` is what the image encoder gave, a row a picture.
        """
        tokens = self.image_proj(seen)
        chosen = self.trained_sites if sites is None else sites
        return {(site.part, site.number, site.depth): self._image_attention(site, tokens, strength) for site in chosen}

    def _image_attention(self, site: AttentionSite, tokens: Tensor, strength: float) -> Any:
        pair: Any = self.ip_adapter[str(self.numbers[site])]
        key, value = pair["to_k_ip"](tokens), pair["to_v_ip"](tokens)

        def replace(query: Tensor, text_key: Tensor, text_value: Tensor, extra: Mapping[str, Any]) -> Tensor:
            heads = extra["n_heads"]
            return attend(query, text_key, text_value, heads) + strength * attend(query, key, value, heads)

        return replace


def train_adapter(plan: Plan, topology: str, variant: Variant, blocks: Collection[str] = (), batch: int = 32) -> None:
    """Trains the projector and the image keys and values on the pool; a picture's reference is the picture itself."""
    seed_everything(plan.seed)
    device = best_device()
    pool = open_pool(POOL_SIZE, plan.seed, device)
    embedder = PictureEmbedder(variant, device)
    seen, unseen = pool.seen(embedder, device), embedder.unseen()
    unet = load_part(build_unet(topology), f"unet_{topology}", device)
    denoiser = Denoiser(unet, topology, device)
    adapter = IPAdapter(unet, topology, variant, blocks).to(device)
    donor = plan.name.removesuffix(STYLE_SUFFIX)  # what was there, or for some blocks alone the adapter of all
    if part_exists(donor):
        adapter.start_from(load_weights(donor))
    captioned = CaptionedPool(pool.latents, write_captions(pool.scenes, plan.seed), denoiser.text)

    def loss_of(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(plan.seed + step)
        rows = torch.randint(len(pool), (batch,), generator=generator)
        chance = torch.rand(batch, generator=generator)
        # The paper's code drops text and picture together in 5 % of the examples, and either alone in another 5 %.
        hidden = ((chance < 0.05) | (chance >= 0.95)).to(device)
        pictures = torch.where(hidden.view(-1, *[1] * (seen.ndim - 1)), unseen, seen[rows].to(device).float())
        prompt = denoiser.conditions(*captioned.conditions(rows, chance < 0.1), picture_sizes(batch))
        replace = adapter.replacements(pictures)
        return denoising_loss(
            lambda x, t: denoiser(x, t, prompt, replace), captioned.latents(rows, topology), generator
        )

    def show(name: str) -> dict[str, float]:
        return show_transfers(adapter, denoiser, embedder, plan.folder / f"{name}.png")

    run = train(plan, adapter, loss_of, lambda step: show(f"transfers_{step:06d}") if step % 600 == 0 else {})
    use_averaged_weights(run)
    metadata = {"topology": topology, "variant": variant, "blocks": " ".join(blocks) or "all"}
    export(run, adapter.state_dict(), show("transfers_final"), metadata)


@torch.no_grad()
def show_transfers(adapter: IPAdapter, denoiser: Denoiser, embedder: PictureEmbedder, path: Any) -> dict[str, float]:
    """Writes references above samples with the adapter, prompted with another picture's content alone."""
    scenes, asked = sample_scenes(24, 6, "held_out"), sample_scenes(24, 7, "any")
    references = draw(scenes).pictures
    seen = embedder(references.to(denoiser.device))
    replace = adapter.replacements(torch.cat([embedder.unseen().expand_as(seen), seen]))
    autoencoder = Autoencoder.load(denoiser.topology, denoiser.device)
    made = autoencoder.decode(denoiser.sample(content_captions(asked), seed=2, replace=replace)).cpu()
    rows = [part for s in (0, 12) for part in (references[s : s + 12], made[s : s + 12])]
    save_picture(contact_sheet(torch.cat(rows), 12), path)
    return {"mean_colour_error": (made.mean(dim=(2, 3)) - references.mean(dim=(2, 3))).abs().mean().item()}


def _projector(variant: Variant, context: int) -> nn.Module:
    if variant == "base":
        return LinearProjection(EMBED_WIDTH, context, TOKENS["base"])
    projector = Resampler(STATES_WIDTH, context, TOKENS["plus"], width=STATES_WIDTH, depth=2, heads=1)
    nn.init.normal_(projector.latents, std=STATES_WIDTH**-0.5)
    return projector
