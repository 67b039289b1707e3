"""Content words are embedded by the tower that belongs to the image encoder, projected and not normalised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import comfy.sd
import folder_paths
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from semblance.attention.functional.embeddings import mean_phrase, subtract_text
from semblance.host.files import UnreadableFile
from semblance.host.instantstyle.content_words import Phrase, embed_phrases, parse_phrases
from semblance.host.instantstyle.text_towers import load_text_tower
from semblance.nodes.reference import SubtractContent
from semblance.tests.tiny_models import make_clip
from semblance.tests.tiny_models.encoders import TEXT_WIDTH
from semblance.tests.tiny_models.weights import seeded_tensor

RABBIT = [Phrase("a rabbit on green grass")]
H, BIGG, L = TEXT_WIDTH["h"], TEXT_WIDTH["g"], TEXT_WIDTH["l"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    known = {name: ([str(tmp_path / name)], {".safetensors", ".bin"}) for name in ("clip_vision", "text_encoders")}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", known)
    for name in known:
        (tmp_path / name).mkdir()
    return tmp_path / "clip_vision"


@pytest.fixture(scope="module")
def full_clip() -> Any:
    """A whole CLIP of transformers' own, both towers and both projections, with OpenCLIP's activation."""
    from transformers import CLIPConfig, CLIPModel

    text = {
        "hidden_size": 128,
        "intermediate_size": 192,
        "num_attention_heads": 2,
        "num_hidden_layers": 3,
        "hidden_act": "gelu",
        "bos_token_id": 49406,
        "eos_token_id": 49407,
    }
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    sizes = {"image_size": 28, "patch_size": 14}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision | sizes, projection_dim=H)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(seeded_tensor(name, tuple(parameter.shape), 1))
    return model


def written(model: Any, path: Path, **changes: Tensor | None) -> Path:
    """The model's file; a tensor changed to None is left out."""
    tensors = {name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}
    save_file({name: tensor for name, tensor in (tensors | changes).items() if tensor is not None}, path)
    return path


def official_features(model: Any, words: str) -> Tensor:
    from transformers import CLIPTokenizer

    host_tokenizer = Path(comfy.__path__[0]) / "sd1_tokenizer"
    tokens = CLIPTokenizer.from_pretrained(host_tokenizer)(words, return_tensors="pt")
    with torch.no_grad():
        features = model.get_text_features(**tokens)
    return features.pooler_output if hasattr(features, "pooler_output") else features


# The text half of a full CLIP file


@pytest.mark.parametrize("words", ["a rabbit", "a rabbit, on green grass, under the (old) oak", "x"])
def test_text_tower_equals_transformers_own_features(full_clip: Any, folder: Path, words: str) -> None:
    written(full_clip, folder / "full.safetensors")
    found = embed_phrases(load_text_tower("full.safetensors"), [Phrase(words)], H)
    expected = official_features(full_clip, words.replace("(", "").replace(")", ""))[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert abs(float(found.norm()) - 1) > 0.1  # not normalised


def square_text_model(config: dict[str, Any]) -> dict[str, Tensor]:
    """A text encoder file in transformers' layout whose projection is square, as all published ones are."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    with torch.device("meta"):
        model = CLIPTextModelWithProjection(CLIPTextConfig(**config, projection_dim=config["hidden_size"]))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if "position_ids" not in name}
    return {name: seeded_tensor(name, shape, 2) for name, shape in shapes.items()}


def test_text_tower_reads_half_precision_and_bin_files(full_clip: Any, folder: Path) -> None:
    exact = {name: tensor.half() for name, tensor in full_clip.state_dict().items()}
    save_file(exact, folder / "half.safetensors")
    torch.save(exact, folder / "half.bin")
    expected = embed_phrases(load_text_tower("half.safetensors"), RABBIT, H)
    assert expected.dtype == torch.float32
    assert torch.equal(embed_phrases(load_text_tower("half.bin"), RABBIT, H), expected)


def test_file_with_position_ids_of_older_transformers_is_read(full_clip: Any, folder: Path) -> None:
    ids = torch.arange(77).unsqueeze(0)
    written(full_clip, folder / "old.safetensors", **{"text_model.embeddings.position_ids": ids})
    assert load_text_tower("old.safetensors").width == H


def test_image_encoder_alone_is_no_text_tower(full_clip: Any, folder: Path) -> None:
    image_half = {name: tensor for name, tensor in full_clip.state_dict().items() if name.startswith("vision_model.")}
    save_file({name: tensor.clone() for name, tensor in image_half.items()}, folder / "vision.safetensors")
    with pytest.raises(
        UnreadableFile, match="'vision.safetensors' has no CLIP text tower with a projection.*laion/CLIP"
    ):
        load_text_tower("vision.safetensors")


def test_text_tower_without_projection_is_refused(full_clip: Any, folder: Path) -> None:
    written(full_clip, folder / "bare.safetensors", **{"text_projection.weight": None})
    with pytest.raises(UnreadableFile, match="needs .*text_projection.weight.*Use a full CLIP file"):
        load_text_tower("bare.safetensors")


@pytest.mark.parametrize(
    "missing",
    ["text_model.encoder.layers.0.mlp.fc1.weight", "text_model.encoder.layers.1.self_attn.q_proj.weight"]
    + ["text_model.final_layer_norm.bias"],
)
def test_text_tower_with_a_tensor_missing_is_refused_with_its_name(full_clip: Any, folder: Path, missing: str) -> None:
    written(full_clip, folder / "holed.safetensors", **{missing: None})
    with pytest.raises(UnreadableFile, match=f"'holed.safetensors' is incomplete.*{missing}.*Download") as refusal:
        load_text_tower("holed.safetensors")
    assert "\n" not in str(refusal.value)


def test_text_tower_of_another_length_is_refused(full_clip: Any, folder: Path) -> None:
    written(
        full_clip,
        folder / "long.safetensors",
        **{"text_model.embeddings.position_embedding.weight": torch.ones(248, 128)},
    )
    with pytest.raises(UnreadableFile, match="'long.safetensors' .*position_embedding"):
        load_text_tower("long.safetensors")


def test_truncated_text_tower_is_called_damaged(full_clip: Any, folder: Path) -> None:
    path = written(full_clip, folder / "cut.safetensors")
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(UnreadableFile, match="'cut.safetensors' cannot be read.*damaged.*Download it again"):
        load_text_tower("cut.safetensors")


def test_missing_text_tower_is_named_with_folders_and_publisher(folder: Path) -> None:
    with pytest.raises(UnreadableFile, match=rf"'gone.safetensors' is not in {folder} or .*text_encoders.*huggingface"):
        load_text_tower("gone.safetensors")


def test_only_the_text_half_of_the_file_is_kept(full_clip: Any, folder: Path) -> None:
    written(full_clip, folder / "full.safetensors")
    tower = load_text_tower("full.safetensors")
    assert not any("vision" in name for name in tower.model.state_dict())
    assert not any(parameter.requires_grad for parameter in tower.model.parameters())


# A stock CLIP socket


@pytest.mark.parametrize(("kind", "key", "width"), [("sdxl", "g", BIGG), ("sd2", "h", H), ("sd15", "l", L)])
def test_clip_socket_gives_the_projected_pooled_output(kind: str, key: str, width: int) -> None:
    clip = make_clip(kind)
    found = embed_phrases(clip, RABBIT, width)
    tower = getattr(clip.cond_stage_model, f"clip_{key}")
    tower.set_clip_options({"projected_pooled": False})
    _, unprojected = tower.encode_token_weights(clip.tokenize(RABBIT[0].words)[key])
    expected = unprojected @ tower.transformer.text_projection.weight.T
    torch.testing.assert_close(found, expected[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "width"), [("sdxl", BIGG), ("sd2", H)])
def test_clip_socket_equals_the_pooled_output_comfyui_gives(kind: str, width: int) -> None:
    clip = make_clip(kind)
    _, pooled = clip.encode_from_tokens(clip.tokenize(RABBIT[0].words), return_pooled=True)
    torch.testing.assert_close(embed_phrases(clip, RABBIT, width), pooled[0], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "sd2"])
def test_asking_for_words_changes_nothing_in_what_the_clip_encodes_later(kind: str) -> None:
    clip = make_clip(kind)
    clip.clip_layer(-2)
    width = {"sd15": L, "sdxl": BIGG, "sd2": H}[kind]

    def encoded() -> tuple[Tensor, Tensor]:
        return clip.encode_from_tokens(clip.tokenize("a fox"), return_pooled=True)

    before = encoded()
    embed_phrases(clip, RABBIT, width)
    assert all(torch.equal(new, old) for new, old in zip(encoded(), before, strict=True))


def test_sd3s_clip_gives_its_bigg_tower_alone() -> None:
    """Its own pooled output is that of two towers, side by side."""
    from comfy.text_encoders.sd3_clip import SD3ClipModel, SD3Tokenizer

    from semblance.tests.tiny_models.encoders import TEXT_CONFIGS, clip_target

    target = clip_target("sdxl")
    target.tokenizer = SD3Tokenizer
    target.clip = lambda *, model_options, **named: SD3ClipModel(
        t5=False, model_options={**model_options, **TEXT_CONFIGS}, **named
    )
    clip, sdxl = comfy.sd.CLIP(target, model_options={"dtype": torch.float32}), make_clip("sdxl")
    clip.cond_stage_model.clip_g.load_state_dict(sdxl.cond_stage_model.clip_g.state_dict())
    assert torch.equal(embed_phrases(clip, RABBIT, BIGG), embed_phrases(sdxl, RABBIT, BIGG))


def test_clip_l_is_refused_for_a_reference_seen_by_vit_h() -> None:
    clip = make_clip("sd15")
    clip.cond_stage_model.clip_l.transformer.text_projection = torch.nn.Linear(768, 768, bias=False)
    with pytest.raises(
        ValueError, match=r"OpenCLIP ViT-H \(1024-wide\), but .* CLIP ViT-L \(768-wide\).*SD 2.x text enc"
    ):
        embed_phrases(clip, RABBIT, 1024)


def test_vit_h_is_refused_for_a_reference_seen_by_bigg() -> None:
    clip = make_clip("sd2")
    clip.cond_stage_model.clip_h.transformer.text_projection = torch.nn.Linear(1024, 1024, bias=False)
    with pytest.raises(ValueError, match=r"ViT-bigG \(1280-wide\), but .* OpenCLIP ViT-H .*CLIP of an SDXL checkpoint"):
        embed_phrases(clip, RABBIT, 1280)


def test_text_tower_of_another_space_is_refused(full_clip: Any, folder: Path) -> None:
    written(full_clip, folder / "full.safetensors")
    with pytest.raises(ValueError, match="the text tower 'full.safetensors' is .*cannot be compared"):
        embed_phrases(load_text_tower("full.safetensors"), RABBIT, BIGG)


def tiny_t5() -> comfy.sd.CLIP:
    from comfy.sd1_clip import SD1ClipModel, SDClipModel
    from comfy.supported_models_base import ClipTarget
    from comfy.text_encoders.sa_t5 import SAT5Tokenizer
    from comfy.text_encoders.t5 import T5

    config_file = Path(comfy.__path__[0]) / "text_encoders" / "t5_config_base.json"
    config = json.loads(config_file.read_text()) | {"d_model": 64, "d_ff": 64, "num_layers": 1, "num_heads": 1}

    def build(*, model_options: dict[str, Any], **named: Any) -> Any:
        def tower(*, model_options: dict[str, Any], **inner: Any) -> SDClipModel:
            return SDClipModel(textmodel_json_config=config, model_class=T5, model_options=model_options, **inner)

        return SD1ClipModel(name="t5base", clip_model=tower, model_options=model_options, **named)

    return comfy.sd.CLIP(ClipTarget(SAT5Tokenizer, build), model_options={"dtype": torch.float32})


def test_t5_is_refused_as_no_clip() -> None:
    with pytest.raises(ValueError, match="SD1ClipModel.* is not a CLIP.*Connect the CLIP of an SDXL checkpoint"):
        embed_phrases(tiny_t5(), RABBIT, 1024)


# Files that load without an error and give garbage

NARROW = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 1, "hidden_act": "gelu"}
TOWERS = {"h": {"num_hidden_layers": 24, **NARROW}, "g": {"num_hidden_layers": 32, **NARROW}}


def clip_from(path: Path, tower: str) -> comfy.sd.CLIP:
    """Through ComfyUI's own loader, which tells H from bigG by the number of layers."""
    # ComfyUI puts `model_config` in the place of the configuration of bigG.
    options = {f"clip_{tower}_model_config": TOWERS[tower], "model_config": dict(TOWERS[tower])}
    return comfy.sd.load_clip([str(path)], model_options=options | {"dtype": torch.float32})


def without(tensors: dict[str, Tensor], *endings: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not any(part in name for part in endings)}


@pytest.mark.parametrize("tower", TOWERS)
def test_whole_text_encoder_file_gives_the_same_on_either_socket(folder: Path, tower: str) -> None:
    save_file(square_text_model(TOWERS[tower]), folder / "whole.safetensors")
    through_clip = embed_phrases(clip_from(folder / "whole.safetensors", tower), RABBIT, 64)
    through_tower = embed_phrases(load_text_tower("whole.safetensors"), RABBIT, 64)
    torch.testing.assert_close(through_clip, through_tower, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".sft"])
def test_text_encoder_file_without_a_projection_is_refused(folder: Path, tower: str, suffix: str) -> None:
    """ComfyUI leaves the matrix as raw memory and says nothing."""
    tensors = without(square_text_model(TOWERS[tower]), "text_projection")
    path = folder / f"bare{suffix}"
    (torch.save if suffix == ".bin" else save_file)(tensors, path)
    clip = clip_from(path, tower)
    raw_memory(getattr(clip.cond_stage_model, f"clip_{tower}").transformer.text_projection.weight)
    with pytest.raises(
        ValueError, match=f"no projection .text_projection. for clip_{tower}.*cannot be compared.*Use a"
    ):
        embed_phrases(clip, RABBIT, 64)


def raw_memory(weight: Tensor) -> None:
    """What uninitialised memory may hold; the zeros it often holds are tried elsewhere."""
    with torch.no_grad():
        weight.fill_(5e24)


@pytest.mark.parametrize("garbage", [0.0, 5e24, float("nan")])
def test_projection_of_raw_memory_is_refused_where_no_file_is_known(garbage: float) -> None:
    clip = make_clip("sd2")
    with torch.no_grad():
        clip.cond_stage_model.clip_h.transformer.text_projection.weight.fill_(garbage)
    with pytest.raises(ValueError, match="no projection"):
        embed_phrases(clip, RABBIT, H)


def test_text_encoder_file_without_its_last_layer_is_refused(folder: Path) -> None:
    """diffusers' SD 2.x encoders end one layer early: ComfyUI fills in raw memory there, too."""
    tensors = without(square_text_model(TOWERS["h"]), ".layers.23.")
    save_file(tensors, folder / "short.safetensors")
    with pytest.raises(ValueError, match="no last layer .*for clip_h.*cannot be compared.*Use a"):
        embed_phrases(clip_from(folder / "short.safetensors", "h"), RABBIT, 64)


def test_openclip_file_is_understood(folder: Path) -> None:
    """The layout of open_clip's own files and of SD 2.x checkpoints: resblocks, a projection without `.weight`."""
    tensors: dict[str, Tensor] = {}
    names = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    names |= {"self_attn.out_proj": "attn.out_proj"}
    ours = square_text_model(TOWERS["h"])
    for layer in range(24):
        old, new = f"text_model.encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
        for part in ("weight", "bias"):
            for name, theirs in names.items():
                tensors[f"{new}{theirs}.{part}"] = ours[f"{old}{name}.{part}"]
            joined = torch.cat([ours[f"{old}self_attn.{side}_proj.{part}"] for side in "qkv"])
            tensors[f"{new}attn.in_proj_{part}"] = joined
    tensors["positional_embedding"] = ours["text_model.embeddings.position_embedding.weight"]
    tensors["token_embedding.weight"] = ours["text_model.embeddings.token_embedding.weight"]
    for part in ("weight", "bias"):
        tensors[f"ln_final.{part}"] = ours[f"text_model.final_layer_norm.{part}"]
    tensors["text_projection"] = ours["text_projection.weight"].T.contiguous()
    save_file(tensors, folder / "open_clip.safetensors")
    save_file(ours, folder / "transformers.safetensors")
    found, expected = (
        embed_phrases(clip_from(folder / name, "h"), RABBIT, 64)
        for name in ("open_clip.safetensors", "transformers.safetensors")
    )
    assert torch.equal(found, expected)
    del tensors["text_projection"]
    save_file(tensors, folder / "open_clip.safetensors")
    with pytest.raises(ValueError, match="no projection"):
        embed_phrases(clip_from(folder / "open_clip.safetensors", "h"), RABBIT, 64)


# Words


def test_phrases_stand_one_a_line_with_weights() -> None:
    text = "a rabbit\n\n  (green grass:0.5)  \n(two: words: -1)\n(not weighed)\n(a:b)"
    expected = [("a rabbit", 1.0), ("green grass", 0.5), ("two: words", -1.0), ("(not weighed)", 1.0), ("(a:b)", 1.0)]
    assert [(phrase.words, phrase.weight) for phrase in parse_phrases(text)] == expected


@pytest.mark.parametrize("text", ["", "   ", "\n \n", "( :0.5)"])
def test_no_words_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no content words to subtract. Write what the reference shows, e.g. a rabbit"):
        parse_phrases(text)


def test_phrases_print_as_they_are_written() -> None:
    assert [str(phrase) for phrase in parse_phrases("a rabbit\n(grass:0.5)")] == ["a rabbit", "(grass:0.5)"]


@pytest.mark.parametrize("kind", ["sdxl", "tower"])
def test_words_too_long_for_one_block_are_refused(kind: str, full_clip: Any, folder: Path) -> None:
    if kind == "tower":
        written(full_clip, folder / "full.safetensors")
    encoder, width = (load_text_tower("full.safetensors"), H) if kind == "tower" else (make_clip("sdxl"), BIGG)
    embed_phrases(encoder, [Phrase("rabbit " * 75)], width)
    with pytest.raises(ValueError, match="'rabbit rabbit.*too long: CLIP reads 75 tokens. Name the content briefly"):
        embed_phrases(encoder, [Phrase("rabbit " * 76)], width)


def test_one_phrase_is_itself_and_several_are_their_weighted_sum_over_their_number() -> None:
    clip = make_clip("sdxl")
    rabbit, grass = (embed_phrases(clip, [Phrase(words)], BIGG) for words in ("a rabbit", "grass"))
    both = embed_phrases(clip, [Phrase("a rabbit"), Phrase("grass", 0.5)], BIGG)
    torch.testing.assert_close(both, (rabbit + 0.5 * grass) / 2, atol=1e-6, rtol=1e-6)
    assert torch.equal(mean_phrase(rabbit[None], [1.0]), rabbit)


def test_subtraction_is_the_authors_formula() -> None:
    embedding, text = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([0.5, -1.0, 4.0])
    assert torch.equal(subtract_text(embedding, text, 0.5), torch.tensor([[0.75, 2.5, 1.0]]))


def test_node_offers_both_kinds_of_text_encoder() -> None:
    socket = next(entry for entry in SubtractContent.define_schema().inputs if entry.id == "text_encoder")
    assert socket.get_io_type() == "CLIP,SEMBLANCE_TEXT_TOWER"
