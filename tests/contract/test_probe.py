"""What Semblance takes for granted in ComfyUI, one thing at a time: after an update, the failing test names what moved.

Nothing of Semblance runs here. Where a test fails, the place to mend is named in its message.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import comfy.context_windows
import comfy.ldm.modules.attention as host_attention
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.patcher_extension
import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import folder_paths
import pytest
import torch
from comfy.ldm.modules.attention import BasicTransformerBlock, SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor

from semblance.tests.tiny_models import empty_latent, ksampler, make_conditioning, make_unet

BLOCK = ("output", 5)
OURS = object()
BINDING, STYLE = "host/binding/", "host/instantstyle/"


def argument_names(function: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


WRAPPED = ("OUTER_SAMPLE", "PREPARE_SAMPLING", "PREDICT_NOISE", "CALC_COND_BATCH", "APPLY_MODEL", "DIFFUSION_MODEL")


@pytest.mark.parametrize(
    ("name", "value", "function", "arguments"),
    [
        (
            "OUTER_SAMPLE",
            "outer_sample",
            comfy.samplers.CFGGuider.outer_sample,
            ["noise", "latent_image", "sampler", "sigmas"],
        ),
        (
            "PREDICT_NOISE",
            "predict_noise",
            comfy.samplers.CFGGuider.predict_noise,
            ["x", "timestep", "model_options", "seed"],
        ),
        (
            "CALC_COND_BATCH",
            "calc_cond_batch",
            comfy.samplers._calc_cond_batch,
            ["model", "conds", "x_in", "timestep", "model_options"],
        ),
        (
            "PREPARE_SAMPLING",
            "prepare_sampling",
            comfy.sampler_helpers.prepare_sampling,
            ["model", "noise_shape", "conds", "model_options"],
        ),
        (
            "APPLY_MODEL",
            "apply_model",
            comfy.model_base.BaseModel._apply_model,
            ["x", "t", "c_concat", "c_crossattn", "control", "transformer_options"],
        ),
        (
            "DIFFUSION_MODEL",
            "diffusion_model",
            UNetModel._forward,
            ["x", "timesteps", "context", "y", "control", "transformer_options"],
        ),
    ],
)
def test_wrappers_have_the_names_and_arguments_we_give_them(
    name: str, value: str, function: Callable[..., Any], arguments: list[str]
) -> None:
    assert getattr(comfy.patcher_extension.WrappersMP, name, None) == value, (
        f"comfy.patcher_extension.WrappersMP.{name} is gone or renamed; see {BINDING}model.py"
    )
    found = argument_names(function)[: len(arguments)]
    assert found == arguments, (
        f"{function.__qualname__} now takes {found}; see the wrapper in {BINDING}wrappers.py or step.py"
    )


@pytest.fixture(scope="module")
def run() -> dict[str, list[Any]]:
    """One step of the tiny SD 1.5 through the real sampler, with everything we hook into written down."""
    seen: dict[str, list[Any]] = {}
    model = make_unet("sd15").clone()

    def recorder(kind: str) -> Callable[..., Any]:
        def record(executor: Any, *arguments: Any, **named: Any) -> Any:
            seen.setdefault(kind, []).append((executor, arguments, named))
            return executor(*arguments, **named)

        return record

    def replacement(query: Tensor, key: Tensor, value: Tensor, extra: dict[str, Any]) -> Tensor:
        seen.setdefault("extra", []).append(extra)
        return query

    for kind in WRAPPED:
        value = getattr(comfy.patcher_extension.WrappersMP, kind)
        comfy.patcher_extension.add_wrapper_with_key(value, "probe", recorder(kind), model.model_options, True)
    model.set_model_attn2_replace(replacement, *BLOCK)
    model.model_options["transformer_options"]["a name of ours"] = OURS
    ksampler(model, make_conditioning(seed=1), make_conditioning(seed=2), empty_latent(1, 8, 8), steps=1)
    return seen


def test_every_wrapper_is_called_in_a_run(run: dict[str, list[Any]]) -> None:
    for kind in WRAPPED:
        assert kind in run, f"a {kind} wrapper in model_options is no longer called; see WRAPPERS in {BINDING}model.py"


def test_wrappers_get_their_arguments_by_place(run: dict[str, list[Any]]) -> None:
    for kind, count in (
        ("OUTER_SAMPLE", 4),
        ("PREPARE_SAMPLING", 3),
        ("CALC_COND_BATCH", 5),
        ("APPLY_MODEL", 6),
        ("DIFFUSION_MODEL", 6),
    ):
        _, arguments, named = run[kind][0]
        assert len(arguments) >= count, (
            f"{kind} wrappers now get {sorted(named)} by name; see {BINDING}wrappers.py, step.py"
        )


def test_the_guider_behind_a_run_shows_its_model_options_and_conditionings(run: dict[str, list[Any]]) -> None:
    executor, arguments, _ = run["OUTER_SAMPLE"][0]
    guider = executor.class_obj
    for name in ("model_patcher", "model_options"):
        assert hasattr(guider, name), f"a guider has no {name} any more; see outer_sample in {BINDING}wrappers.py"
    assert "transformer_options" in guider.model_options, "a guider's model_options hold no transformer_options"
    sigmas = arguments[3]
    assert isinstance(sigmas, Tensor) and sigmas.ndim == 1, "OUTER_SAMPLE's fourth argument is not the ladder of sigmas"
    assert "self.conds" in inspect.getsource(comfy.samplers.CFGGuider), (
        f"a guider keeps its conditionings elsewhere than in conds; see outer_sample in {BINDING}wrappers.py"
    )


def test_conditionings_come_as_lists_of_dictionaries_with_a_uuid(run: dict[str, list[Any]]) -> None:
    _, (_, conds, *_), _ = run["CALC_COND_BATCH"][0]
    assert len(conds) == 2 and all(isinstance(group, list) for group in conds), (
        "conds are no list for each conditioning"
    )
    assert all("uuid" in cond for group in conds for cond in group), "a conditioning has no uuid; see Run._read"
    _, (_, _, _, _, options), _ = run["CALC_COND_BATCH"][0]
    assert "transformer_options" in options, "CALC_COND_BATCH's fifth argument is not model_options"


def test_the_model_behind_a_call_shows_its_noise_schedule(run: dict[str, list[Any]]) -> None:
    executor, _, _ = run["APPLY_MODEL"][0]
    assert hasattr(executor.class_obj, "model_sampling"), f"APPLY_MODEL's object is no model; see {BINDING}wrappers.py"
    executor, _, _ = run["DIFFUSION_MODEL"][0]
    for name in ("input_blocks", "middle_block", "output_blocks"):
        assert hasattr(executor.class_obj, name), f"the UNet has no {name}; see attention_sites in {BINDING}unet.py"


@pytest.mark.parametrize(
    "name",
    [
        "n_heads",
        "dim_head",
        "attn_precision",
        "activations_shape",
        "original_shape",
        "block",
        "block_index",
        "cond_or_uncond",
        "uuids",
        "sigmas",
        "sample_sigmas",
    ],
)
def test_a_replacement_is_told(run: dict[str, list[Any]], name: str) -> None:
    (extra,) = run["extra"]
    assert name in extra, (
        f"extra_options has no '{name}' any more; see BoundSite in {BINDING}unet.py and _layout in step.py"
    )


def test_what_a_replacement_is_told_means_what_it_did(run: dict[str, list[Any]]) -> None:
    (extra,) = run["extra"]
    assert list(extra["activations_shape"]) == [2, 128, 2, 2], (
        "activations_shape is not (rows, channels, height, width)"
    )
    assert (*extra["block"], extra["block_index"]) == (*BLOCK, 0), "block and block_index do not name the site"
    assert extra["cond_or_uncond"] == [1, 0], "a call no longer sends the negative rows first; harmless, but look"
    assert len(extra["uuids"]) == 2, "uuids do not go with cond_or_uncond"
    assert extra["sigmas"].shape == (1,), "sigmas is not one noise level for each image"
    assert extra["n_heads"] * extra["dim_head"] == 128, "n_heads times dim_head is not the width of the layer"
    assert "patches" not in extra and "patches_replace" not in extra, "extra_options hold the patches themselves"


def test_what_lies_under_a_name_of_ours_reaches_the_model_as_it_is(run: dict[str, list[Any]]) -> None:
    ((_, arguments, _),) = run["DIFFUSION_MODEL"]
    found = next(part for part in arguments if isinstance(part, dict) and "cond_or_uncond" in part)
    assert found.get("a name of ours") is OURS, f"transformer_options copies objects now; see {BINDING}carried.py"


def test_a_context_window_tells_which_images_it_shows() -> None:
    window = comfy.context_windows.IndexListContextWindow([2, 3], dim=0, total_frames=5)
    window.causal_anchor_index = 1
    shown = window.get_tensor(torch.arange(5)).tolist()
    assert (shown, window.index_list, window.total_frames) == ([1, 2, 3], [2, 3], 5), (
        f"context windows show other images than they say; see window_of in {BINDING}conditionings.py"
    )


def block_options(**patches: Any) -> dict[str, Any]:
    replaced = {name: patches.pop(name) for name in list(patches) if name in ("attn1", "attn2")}
    return {
        "block": BLOCK,
        "patches": {name: [patch] for name, patch in patches.items()},
        "patches_replace": replaced,
    }


@torch.no_grad()
def run_block(options: dict[str, Any], depth: int = 1) -> Tensor:
    sizes = {"depth": depth, "context_dim": 12, "dtype": torch.float32, "device": "cpu"}
    transformer = SpatialTransformer(32, 2, 16, operations=comfy.ops.manual_cast, **sizes)
    for parameter in transformer.parameters():
        torch.nn.init.constant_(parameter, 0.01)
    return transformer(torch.ones(3, 32, 4, 5), context=torch.ones(3, 7, 12), transformer_options=options)


def test_patches_at_a_site_are_called_in_order_with_the_tensors_we_expect() -> None:
    order: list[tuple[str, list[tuple[int, ...]]]] = []

    def record(name: str, result: Callable[..., Any]) -> Callable[..., Any]:
        def patch(*arguments: Any) -> Any:
            *tensors, extra = arguments
            assert isinstance(extra, dict), (
                f"{name} no longer gets extra_options last; see _SHIELDS in {BINDING}guests.py"
            )
            order.append((name, [tuple(tensor.shape) for tensor in tensors]))
            return result(*tensors)

        return patch

    run_block(
        block_options(
            attn1_patch=record("attn1_patch", lambda *tensors: tensors),
            attn2_patch=record("attn2_patch", lambda *tensors: tensors),
            attn1_output_patch=record("attn1_output_patch", lambda output: output),
            attn2_output_patch=record("attn2_output_patch", lambda output: output),
            middle_patch=record("middle_patch", lambda output: output),
            attn1={(*BLOCK, 0): record("attn1 replacement", lambda query, key, value: query)},
            attn2={BLOCK: record("attn2 replacement", lambda query, key, value: query)},
        )
    )
    tokens, text = (3, 20, 32), (3, 7, 12)
    assert order == [
        ("attn1_patch", [tokens, tokens, tokens]),
        ("attn1 replacement", [tokens, tokens, tokens]),
        ("attn1_output_patch", [tokens]),
        ("middle_patch", [tokens]),
        ("attn2_patch", [tokens, text, text]),
        ("attn2 replacement", [tokens, (3, 7, 32), (3, 7, 32)]),
        ("attn2_output_patch", [tokens]),
    ], f"BasicTransformerBlock calls its patches otherwise; see {BINDING}unet.py and guests.py"


def test_of_two_keys_for_a_site_the_three_part_one_runs() -> None:
    ran: list[str] = []

    def replacement(name: str) -> Callable[..., Tensor]:
        return lambda query, *_: ran.append(name) or query

    replaced = {BLOCK: replacement("two parts"), (*BLOCK, 1): replacement("three parts")}
    run_block(block_options(attn2=replaced), depth=2)
    assert ran == ["two parts", "three parts"], (
        f"keys of patches_replace are looked up otherwise; see bound_sites in {BINDING}unet.py"
    )


def test_attention_layers_are_where_we_look_for_their_widths() -> None:
    block = BasicTransformerBlock(32, 2, 16, context_dim=12, operations=comfy.ops.manual_cast)
    for name in ("attn1", "attn2"):
        for layer in ("to_q", "to_k"):
            assert hasattr(getattr(block, name, None), layer), (
                f"{name}.{layer} is gone; see map_model in {BINDING}model.py"
            )
    assert (block.attn2.to_k.in_features, block.attn2.to_q.out_features) == (12, 32), "to_k, to_q have other sizes"


@pytest.mark.parametrize("name", ["optimized_attention", "optimized_attention_masked"])
def test_attention_takes_what_we_hand_it(name: str) -> None:
    attention = getattr(host_attention, name, None)
    assert attention is not None, f"comfy.ldm.modules.attention.{name} is gone; see _attend in {BINDING}unet.py"
    query = torch.randn(2, 5, 32)
    calls: list[Any] = []

    def override(function: Callable[..., Tensor], *arguments: Any, **named: Any) -> Tensor:
        calls.append(named)
        return function(*arguments, **named)

    options = {"optimized_attention_override": override}
    mask = torch.zeros(1, 1, 1, 5)
    found = attention(query, query, query, 2, mask=mask, attn_precision=None, transformer_options=options)
    assert found.shape == query.shape, f"{name} no longer returns heads packed"
    assert len(calls) == 1, f"{name} no longer asks optimized_attention_override; see _attend in {BINDING}unet.py"
    split = query.unflatten(2, (2, 16)).transpose(1, 2)
    expected = torch.nn.functional.scaled_dot_product_attention(split, split, split).transpose(1, 2).flatten(2)
    torch.testing.assert_close(found, expected, msg=f"{name} is not plain attention any more")


def test_a_float_mask_is_added_to_the_scores() -> None:
    query = torch.randn(2, 6, 32)
    mask = torch.zeros(1, 1, 1, 6)
    mask[..., 3:] = torch.finfo(torch.float32).min / 2
    masked = host_attention.optimized_attention_masked(query, query, query, 2, mask=mask)
    gathered = host_attention.optimized_attention(query, query[:, :3], query[:, :3], 2)
    torch.testing.assert_close(
        masked, gathered, msg=f"a float mask means something else now; see _attend in {BINDING}unet.py"
    )


def test_a_clone_of_model_options_copies_lists_and_dictionaries_and_shares_all_else() -> None:
    thing = object()
    options = {"transformer_options": {"patches": {"name": [thing]}, "run": thing}}
    clone = comfy.model_patcher.create_model_options_clone(options)
    clone["transformer_options"]["patches"]["name"].append(1)
    clone["transformer_options"]["new"] = 1
    assert options == {"transformer_options": {"patches": {"name": [thing]}, "run": thing}}, (
        f"create_model_options_clone no longer copies deeply; see outer_sample in {BINDING}wrappers.py"
    )
    assert clone["transformer_options"]["run"] is thing, f"objects are copied; see Run in {BINDING}run.py"


def test_a_model_clone_has_options_of_its_own() -> None:
    model = make_unet("sd15")
    model.clone().set_model_patch(object(), "name")
    assert "patches" not in model.model_options["transformer_options"], "ModelPatcher.clone shares its options"


def test_weights_are_managed_by_the_class_we_look_up() -> None:
    patcher = getattr(comfy.model_patcher, "CoreModelPatcher", None)
    assert patcher is not None, f"comfy.model_patcher.CoreModelPatcher is gone; see manage_adapter in {STYLE}adapter.py"
    taken = argument_names(patcher.__init__)
    assert {"model", "load_device", "offload_device"} <= set(taken), (
        f"CoreModelPatcher takes {taken}; see {STYLE}adapter.py"
    )
    assert hasattr(patcher, "is_dynamic"), f"is_dynamic is gone; see manage_adapter in {STYLE}adapter.py"


def test_networks_of_other_libraries_are_managed_as_they_are() -> None:
    """A plain patcher loads layers that are not of `comfy.ops`, and is told what they take besides."""
    where = "see host/evaluation/networks.py"
    layer = torch.nn.Conv2d(3, 4, 1)
    patcher = comfy.model_patcher.ModelPatcher(
        layer,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
    assert "memory_required" in argument_names(comfy.model_management.load_models_gpu), where
    comfy.model_management.load_models_gpu([patcher], memory_required=1)
    assert layer.weight.device == torch.device(patcher.load_device), where


def test_layers_that_cast_their_weights_to_the_input_are_there() -> None:
    for name in ("Linear", "LayerNorm"):
        assert hasattr(comfy.ops.manual_cast, name), f"comfy.ops.manual_cast.{name} is gone; see {STYLE}adapter.py"
    layer = comfy.ops.manual_cast.Linear(4, 2, dtype=torch.float16)
    torch.nn.init.ones_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    assert layer(torch.ones(1, 4)).dtype == torch.float32, "manual_cast no longer casts weights to the input's dtype"


@pytest.mark.parametrize(
    "name",
    [
        "load_models_gpu",
        "load_model_gpu",
        "get_torch_device",
        "unet_offload_device",
        "throw_exception_if_processing_interrupted",
    ],
)
def test_memory_is_managed_by_the_functions_we_call(name: str) -> None:
    assert hasattr(comfy.model_management, name), (
        f"comfy.model_management.{name} is gone; see {STYLE}adapter.py, vision.py"
    )


def test_percentages_turn_into_noise_levels_as_the_window_needs() -> None:
    sampling: Any = make_unet("sd15").get_model_object("model_sampling")
    where = f"see NoiseSchedule in {BINDING}run.py"
    levels = [float(sampling.percent_to_sigma(percent)) for percent in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert levels == sorted(levels, reverse=True), f"percent_to_sigma does not fall; {where}"
    assert levels[0] > float(sampling.sigma_max), f"percent 0 is not above every noise level any more; {where}"
    assert levels[-1] < float(sampling.sigma_min), f"percent 1 is not below every noise level any more; {where}"


@pytest.mark.parametrize(
    ("module", "name", "arguments"),
    [
        (comfy.utils, "load_torch_file", {"safe_load"}),
        (comfy.utils, "save_torch_file", {"metadata"}),
        (comfy.utils, "weight_dtype", set()),
        (folder_paths, "get_full_path", set()),
        (folder_paths, "get_folder_paths", set()),
        (folder_paths, "get_filename_list", set()),
        (folder_paths, "recursive_search", {"directory"}),
        (folder_paths, "get_input_directory", set()),
        (folder_paths, "get_output_directory", set()),
    ],
)
def test_files_are_opened_by_the_functions_we_call(module: Any, name: str, arguments: set[str]) -> None:
    function = getattr(module, name, None)
    assert function is not None, f"{module.__name__}.{name} is gone; see host/files.py"
    taken = set(argument_names(function))
    assert arguments <= taken, f"{module.__name__}.{name} takes {sorted(taken)}; see host/files.py"


def test_folders_for_models_are_registered_where_we_add_ours() -> None:
    paths, extensions = folder_paths.folder_names_and_paths["loras"]
    assert isinstance(paths, list) and ".safetensors" in extensions, (
        "folder_paths.folder_names_and_paths is built otherwise; see register_folders in host/files.py"
    )
    assert ".safetensors" in folder_paths.supported_pt_extensions, "folder_paths.supported_pt_extensions is gone"


def test_a_prompt_is_masked_as_the_core_node_masks_it() -> None:
    from node_helpers import conditioning_set_values

    import nodes

    prompts, mask = make_conditioning(), torch.ones(1, 8, 8)
    (expected,) = nodes.ConditioningSetMask().append(prompts, mask, "default", 0.7)
    found = conditioning_set_values(prompts, {"mask": mask, "set_area_to_bounds": False, "mask_strength": 0.7})
    assert found == expected, "ConditioningSetMask sets other values; see host/ip_adapter/regions.py"


def test_an_output_that_was_not_made_can_say_why() -> None:
    from comfy_execution.graph_utils import ExecutionBlocker

    assert ExecutionBlocker("because").message == "because", "ExecutionBlocker changed; see host/blocked.py"
