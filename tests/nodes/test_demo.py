"""Load Demo Model: real ComfyUI objects that draw, see and read as they were trained to."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from comfy.model_base import ModelType
from safetensors.torch import load_file

import nodes
from semblance.attention.families import DEMO_SD15, DEMO_SDXL
from semblance.attention.families.family import ModelFamily
from semblance.attention.functional.masked_tokens import one_hot
from semblance.demo.captions import full_captions
from semblance.demo.style_picture import style_picture
from semblance.demo.training import masked
from semblance.demo.training.diffusion import alphas_cumprod
from semblance.demo.training.flow import FlowModel
from semblance.demo.training.flux import FluxShape, FluxTransformer
from semblance.demo.training.masked import SETTINGS, MaskedPainter
from semblance.demo.training.networks import build_unet
from semblance.demo.training.parts import LATENT_SCALE, TextContext, load_part
from semblance.demo.training.unet import Denoiser
from semblance.demo.world import draw, single_shapes
from semblance.host import demo_models
from semblance.host.binding.model import map_model, map_transformer
from semblance.host.demo_models import FLUX_WORDS, TOPOLOGIES, DemoModel, Topology, load_demo
from semblance.host.files import DEMO_ADAPTERS, DEMO_MODELS, UnreadableFile, file_names
from semblance.host.instantstyle.adapter import load_adapter
from semblance.host.instantstyle.content_words import embed_phrases, parse_phrases
from semblance.host.instantstyle.encoding import encode_style
from semblance.host.masked.transformer import MaskedTransformer
from semblance.host.styledrop.training_copy import check_tunable
from semblance.nodes.demo import LoadDemo
from semblance.nodes.instantstyle import InstantStyle

UNETS: dict[Topology, str] = {"SDXL": "sdxl", "SD 1.5": "sd15"}
TEXTS: dict[Topology, str] = {**UNETS, "Flux": "flux", "aMUSEd": "amused"}
BY_NOISE: tuple[Topology, ...] = ("SDXL", "SD 1.5", "Flux")
"""What is sampled from noise, on one autoencoder."""
ADAPTERS = {"SDXL": "semblance_demo_sdxl.safetensors", "SD 1.5": "semblance_demo_sd15.safetensors"}
LORA = "semblance_demo_words.safetensors"
LIMIT = 46.5e6  # bytes, without the judge, which an install does not have


@pytest.fixture(scope="module", params=TOPOLOGIES)
def topology(request: pytest.FixtureRequest) -> Topology:
    return request.param


def loaded(topology: Topology) -> DemoModel:
    outputs: Any = LoadDemo.execute(topology)
    return DemoModel(*outputs.result)


@pytest.fixture(scope="module")
def demo(topology: Topology) -> DemoModel:
    return loaded(topology)


@pytest.fixture(scope="module")
def flux() -> DemoModel:
    return loaded("Flux")


@pytest.fixture(scope="module")
def amused() -> DemoModel:
    return loaded("aMUSEd")


def read_by(demo: DemoModel, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Context and pooled text of captions, a row each, by the CLIP."""
    read = [demo.clip.encode_from_tokens(demo.clip.tokenize(caption), return_pooled=True) for caption in captions]
    context, pooled = zip(*read, strict=True)
    return torch.cat(context), torch.cat(pooled)


def pictures(count: int = 8) -> torch.Tensor:
    return draw(single_shapes(count, 41, "held_out")).pictures


@pytest.mark.parametrize(("topology", "family"), [("SDXL", DEMO_SDXL), ("SD 1.5", DEMO_SD15)])
def test_the_unet_is_known_as_a_demo_and_predicts_v(topology: Topology, family: ModelFamily) -> None:
    model = loaded(topology).model
    assert map_model(model).family is family
    assert model.model.model_type == ModelType.V_PREDICTION


def test_the_transformer_is_a_flux(flux: DemoModel) -> None:
    family = map_transformer(flux.model)
    assert family.name == "Flux"
    assert family.blocks == ("double.0", "double.1", "single.0", "single.1", "single.2", "single.3")
    assert flux.model.model.model_type == ModelType.FLUX


@pytest.mark.parametrize("topology", UNETS)
def test_comfyui_denoises_as_the_trained_unet_does(topology: Topology) -> None:
    """From words to the picture's latent: tokenizer, towers, size vector, schedule and prediction are all the same."""
    demo, ours = loaded(topology), UNETS[topology]
    captions = full_captions(single_shapes(4, 43))
    device = torch.device("cpu")
    denoiser = Denoiser(load_part(build_unet(ours), f"unet_{ours}", device), ours, device)
    prompt = denoiser.prompt(captions)
    noisy = torch.randn((4, 4, 16, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        velocity = denoiser.unet(noisy, torch.full((4,), 500.0), transformer_options={}, **prompt)
    kept = alphas_cumprod()[500]
    expected = kept.sqrt() * noisy - (1 - kept).sqrt() * velocity

    context, pooled = read_by(demo, captions)
    model = demo.model.model
    vector = (
        model.encode_adm(pooled_output=pooled, width=128, height=128, device=device) if topology == "SDXL" else None
    )
    sigma = model.model_sampling.sigmas[500]
    from comfy.model_management import load_models_gpu

    load_models_gpu([demo.model])
    with torch.no_grad():
        made = model.apply_model(noisy / kept.sqrt(), sigma.expand(4), c_crossattn=context, y=vector)
    assert (made - expected).norm() / expected.norm() < 2e-3


def test_comfyui_denoises_as_the_trained_transformer_does(flux: DemoModel) -> None:
    from comfy.model_management import load_models_gpu

    captions = ["", *full_captions(single_shapes(3, 43))]
    device = torch.device("cpu")
    trained = FlowModel(load_part(FluxTransformer(FluxShape()), "transformer_flux", device), device)
    noisy = torch.randn((4, 4, 16, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = noisy - 0.7 * trained.network(noisy, torch.full((4,), 0.7), *trained.text(captions))
    context, pooled = read_by(flux, captions)
    load_models_gpu([flux.model])
    with torch.no_grad():
        made = flux.model.model.apply_model(noisy, torch.full((4,), 0.7), c_crossattn=context, y=pooled)
    assert (made - expected).norm() / expected.norm() < 2e-3


def test_comfyui_predicts_tokens_as_the_trained_masked_transformer_does(
    amused: DemoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from comfy.model_management import load_models_gpu

    monkeypatch.setattr(masked, "half_precision", lambda device: nullcontext())
    captions, device = ["", *full_captions(single_shapes(3, 43))], torch.device("cpu")
    trained = MaskedPainter(load_part(MaskedTransformer(SETTINGS), "transformer_amused", device), device)
    tokens = torch.randint(SETTINGS.codebook + 1, (4, 256), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = trained.logits(tokens, *trained.text(captions)).mT.unflatten(2, (16, 16))
    context, pooled = read_by(amused, captions)
    load_models_gpu([amused.model])
    latent, model = one_hot(tokens.unflatten(1, (16, 16)), SETTINGS.codebook), amused.model.model
    conds = model.extra_conds(noise=latent, device=device, cross_attn=context, pooled_output=pooled)
    named = {name: conds[name].cond for name in ("c_crossattn", "y", "micro")}
    with torch.no_grad():
        made = model.apply_model(latent, torch.ones(4), **(named | {"micro": named["micro"].expand(4, -1)}))
    assert (made - expected).norm() / expected.norm() < 2e-3


def test_tokens_hold_what_a_drawing_shows(amused: DemoModel) -> None:
    seen = pictures().movedim(1, -1)
    tokens = amused.vae.encode(seen)
    assert tokens.shape == (8, 512, 16, 16) and torch.equal(tokens.sum(dim=1), torch.ones(8, 16, 16))
    assert -10 * (amused.vae.decode(tokens) - seen).pow(2).mean().log10() > 20  # dB


def test_the_text_is_read_as_in_training(demo: DemoModel, topology: Topology) -> None:
    caption = "a small moon at the top right, night colours, striped"
    context, pooled = TextContext.load(TEXTS[topology], torch.device("cpu"))([caption])
    made, _ = demo.clip.encode_from_tokens(demo.clip.tokenize(caption), return_pooled=True)
    assert made.shape[1] == (FLUX_WORDS if topology == "Flux" else 77)
    assert torch.allclose(made, context, atol=2e-3)
    assert pooled.shape == (1, 64)


def test_a_long_prompt_is_read_whole_by_the_transformer(flux: DemoModel) -> None:
    """In further stretches of as many tokens, as ComfyUI does with any prompt that is longer than its encoder."""
    long = ", ".join(["a small moon at the top right and a fish at the bottom left, night colours, striped"] * 2)
    made, _ = flux.clip.encode_from_tokens(flux.clip.tokenize(long), return_pooled=True)
    assert made.shape == (1, 2 * FLUX_WORDS, 64)


@pytest.mark.parametrize("topology", BY_NOISE)
def test_the_stock_vae_loader_opens_the_autoencoder(topology: Topology, monkeypatch: pytest.MonkeyPatch) -> None:
    demo = loaded(topology)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "vae", ([str(DEMO_MODELS)], {".safetensors"}))
    (stock,) = nodes.VAELoader().load_vae("autoencoder.safetensors")
    seen = pictures().movedim(1, -1)
    rebuilt = stock.decode(stock.encode(seen))
    assert torch.equal(rebuilt, demo.vae.decode(demo.vae.encode(seen)))
    assert -10 * (rebuilt - seen).pow(2).mean().log10() > 25  # dB
    # The scale that the network was trained at.
    assert 1.2 < (demo.vae.encode(seen) * LATENT_SCALE["sdxl"]).std() < 2.2


@pytest.mark.parametrize("topology", UNETS)
def test_words_and_pictures_share_one_space(topology: Topology) -> None:
    demo = loaded(topology)
    scenes = single_shapes(32, 47, "held_out")
    adapter = load_adapter(ADAPTERS[topology])
    seen = []
    for picture in draw(scenes).pictures.movedim(1, -1):
        style, _ = encode_style(adapter, demo.clip_vision, {"picture0": picture[None]}, "average", "crop", [])
        seen.append(style.reference.check_global().pictures[0])
    read = [embed_phrases(demo.clip, parse_phrases(caption), 64) for caption in full_captions(scenes)]
    likeness = (
        torch.nn.functional.normalize(torch.stack(seen).flatten(1), dim=1)
        @ torch.nn.functional.normalize(torch.stack(read).flatten(1), dim=1).T
    )
    assert (likeness.argmax(1) == torch.arange(32)).float().mean() > 0.7


@pytest.mark.parametrize("topology", UNETS)
def test_its_adapters_are_offered_and_fit_no_other_model(topology: Topology) -> None:
    assert set(ADAPTERS.values()) < set(file_names(DEMO_ADAPTERS))
    demo = loaded(topology)
    (other,) = set(UNETS) - {topology}
    picture = {"picture0": pictures(1).movedim(1, -1)}
    style, _ = encode_style(load_adapter(ADAPTERS[other]), demo.clip_vision, picture, "average", "crop", [])
    with pytest.raises(ValueError, match="is made for Semblance demo"):
        InstantStyle.execute(demo.model, style, {"blocks": "style"}, 1.0, 0.0, 1.0, {"curve": "constant"})


def test_an_adapter_of_a_unet_names_the_transformer_it_does_not_fit(flux: DemoModel) -> None:
    """Though both read text of one width, by which UNets are told apart."""
    picture = {"picture0": pictures(1).movedim(1, -1)}
    style, _ = encode_style(load_adapter(ADAPTERS["SD 1.5"]), flux.clip_vision, picture, "average", "crop", [])
    with pytest.raises(ValueError, match=r"but the model is Flux \(64-wide text, 6 layers\). Load an adapter for Flux"):
        InstantStyle.execute(flux.model, style, {"blocks": "style"}, 1.0, 0.0, 1.0, {"curve": "constant"})


def test_tuning_names_the_transformer_and_does_not_take_it_for_an_inpainting_model(flux: DemoModel) -> None:
    """A transformer counts the channels of a patch, which are four times those of a latent."""
    with pytest.raises(ValueError, match="This model is a Flux transformer.*Reference Style"):
        check_tunable(flux.model)


def test_the_stock_loader_finds_the_lora_and_knows_each_of_its_layers(caplog: pytest.LogCaptureFixture) -> None:
    assert LORA in folder_paths.get_filename_list("loras")
    model = load_demo("SDXL").model
    (taught,) = nodes.LoraLoaderModelOnly().load_lora_model_only(model, LORA, 1.0)
    layers = {name for name in load_file(DEMO_MODELS / "loras" / LORA) if name.endswith("alpha")}
    assert len(taught.patches) == len(layers) == 24 and not model.patches
    assert "lora key not loaded" not in caplog.text


def weights_in(patcher: Any) -> dict[str, torch.Tensor]:
    return patcher.model.state_dict()


def test_comfyui_can_load_each_part_anew(demo: DemoModel, topology: Topology) -> None:
    """As it does for training, compiling, hooks on words and a second device."""
    for part in (demo.model, demo.clip.patcher, demo.vae.patcher):
        again, twin = part.clone(force_deepcopy=True), part.clone()
        assert twin.model is part.model and again.model is not part.model
        mine, theirs = weights_in(part), weights_in(again)
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.slow
@pytest.mark.parametrize("bypass", [False, True])
@pytest.mark.parametrize("topology", BY_NOISE)
def test_comfyuis_train_lora_trains_on_it(topology: Topology, bypass: bool) -> None:
    from comfy_extras.nodes_train import LoraModelLoader, TrainLoraNode

    demo = loaded(topology)
    before = {name: weight.clone() for name, weight in weights_in(demo.model).items()}
    settings = {
        "batch_size": 1, "steps": 2, "grad_accumulation_steps": 1, "learning_rate": 0.05, "rank": 2,
        "optimizer": "AdamW", "loss_function": "MSE", "seed": 1, "training_dtype": "bf16", "lora_dtype": "fp32",
        "quantized_backward": False, "algorithm": "LoRA", "gradient_checkpointing": True, "checkpoint_depth": 1,
        "offloading": False, "existing_lora": "[None]", "bucket_mode": False, "bypass_mode": bypass,
    }  # fmt: skip
    lists = {name: [value] for name, value in settings.items()}
    with torch.inference_mode():  # as ComfyUI runs every node
        latents = [{"samples": demo.vae.encode(pictures(2).movedim(1, -1))}]
        prompts = [nodes.CLIPTextEncode().encode(demo.clip, "a small moon, night colours")[0]]
        trained: Any = TrainLoraNode.execute([demo.model], latents, prompts, **lists)
    lora, losses, steps = trained.result
    assert steps == 2 and len(losses["loss"]) == 2 and all(torch.isfinite(torch.tensor(losses["loss"])))
    assert lora and any(weight.abs().sum() > 0 for name, weight in lora.items() if "up" in name)
    assert all(torch.equal(weight, before[name]) for name, weight in weights_in(demo.model).items())
    taught_model: Any = LoraModelLoader.execute(demo.model, lora, 1.0)
    (taught,) = taught_model.result
    assert len(taught.patches) > 0 and not demo.model.patches


def test_the_style_picture_is_the_drawing_that_the_project_makes(demo: DemoModel) -> None:
    assert demo.style_picture.shape == (1, 128, 128, 3)
    assert (demo.style_picture[0].movedim(-1, 0) - style_picture()).abs().max() < 1 / 255


def test_the_users_own_loras_come_first() -> None:
    assert Path(folder_paths.get_folder_paths("loras")[0]) != DEMO_MODELS / "loras"


def test_a_damaged_file_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_models, "DEMO_MODELS", tmp_path)
    with pytest.raises(UnreadableFile, match=r"'unet_sdxl.safetensors', which comes with Semblance.*Install the pack"):
        load_demo("SDXL")
    with pytest.raises(UnreadableFile, match=r"'style_picture.png', which comes with Semblance"):
        demo_models.load_style_picture()
    (tmp_path / "unet_sdxl.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(UnreadableFile, match="is not whole"):
        load_demo("SDXL")


def test_the_files_stay_small() -> None:
    files = [path for path in DEMO_MODELS.rglob("*.safetensors") if path.stem != "judge"]
    assert sum(path.stat().st_size for path in files) <= LIMIT


def test_opening_it_leaves_comfyuis_list_of_models_alone() -> None:
    import comfy.supported_models

    before: list[Any] = list(comfy.supported_models.models)
    load_demo("SDXL")
    assert comfy.supported_models.models == before
