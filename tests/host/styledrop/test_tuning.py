"""What is learnt, that it can be gone on with, and that nothing else changes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import comfy.model_management
import comfy.sd
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_torch_compile import TorchCompileModel

from semblance.attention.adapters.style_adapter import FORMS, StyleAdapter
from semblance.host.binding.model import add_patch, patches_on
from semblance.host.styledrop.memory import estimate
from semblance.host.styledrop.tuning import Tuned, TuningStep, tune
from semblance.tests.support.endings import Fault, raise_fault, raise_interrupt
from semblance.tests.support.speeds import slow, slow_but
from semblance.tests.support.studio import relative_error
from semblance.tests.tiny_models import Family, ksampler, make_conditioning, random_latent
from semblance.tests.tiny_models.unets import base_model, patcher_around, unet_config

from .conftest import examples, recipe

Models = Callable[..., ModelPatcher]
each_form = pytest.mark.parametrize("form", FORMS)


def same(one: StyleAdapter, other: StyleAdapter) -> bool:
    """To the bit, the optimiser's state included."""
    assert one.state is not None and other.state is not None
    pairs = (
        (one.tensors, other.tensors),
        (one.state.first_moments, other.state.first_moments),
        (one.state.second_moments, other.state.second_moments),
    )
    return one.state.step == other.state.step and all(
        mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
        for mine, theirs in pairs
    )


def sampled(model: Any, kind: Family = "sd15") -> torch.Tensor:
    positive, negative = (make_conditioning(kind, seed=seed) for seed in (1, 2))
    with torch.no_grad():
        return ksampler(model, positive, negative, random_latent(1, 8, 8), steps=2)


@pytest.mark.parametrize(
    ("form", "prediction"), slow_but(itertools.product(FORMS, ("eps", "v", "flow")), [("bottleneck", "eps")])
)
def test_the_loss_falls_below_that_of_the_frozen_model(model_of: Models, form: Any, prediction: str) -> None:
    model = model_of("sd15", prediction)
    length = {"steps": 16} if (form, prediction) == ("bottleneck", "eps") else {"steps": 24, "batch": 2}
    settings = {"form": form, "blocks": "all", "width": 8, **length}
    frozen = tune(model, examples(), recipe(model, **settings | {"learning_rate": 1e-12})).losses
    tuned = tune(model, examples(), recipe(model, **settings | {"learning_rate": 2e-2})).losses
    assert tuned[0] == frozen[0]
    assert sum(tuned[-8:]) < 0.93 * sum(frozen[-8:])


@pytest.mark.parametrize("kind", ["sd15", slow("sdxl")])
@each_form
def test_going_on_equals_never_having_stopped(model_of: Models, kind: Family, form: Any) -> None:
    model = model_of(kind)
    settings = {"form": form, "batch": 2, "weight_decay": 0.01, "seed": 7}
    given = examples(kind, 2)
    whole = tune(model, given, recipe(model, steps=5, **settings))
    half = tune(model, given, recipe(model, steps=2, **settings))
    rest = tune(model, given, recipe(model, steps=3, **settings), start=half.adapter)
    assert same(rest.adapter, whole.adapter) and half.losses + rest.losses == whole.losses
    assert rest.adapter.settings["steps"] == 5 and half.adapter.state.step == 2


def test_the_same_recipe_gives_the_same_adapter_and_another_seed_another(model_of: Models) -> None:
    model = model_of()
    first, second = (tune(model, examples(), recipe(model)) for _ in range(2))
    assert same(first.adapter, second.adapter) and first.losses == second.losses
    assert not same(first.adapter, tune(model, examples(), recipe(model, seed=1)).adapter)


@each_form
def test_before_its_first_step_an_adapter_changes_nothing(model_of: Models, form: Any) -> None:
    model = model_of()
    pictures: list[torch.Tensor] = []

    def sample(step: TuningStep) -> bool:
        pictures.append(sampled(step.model))
        return True

    tune(model, examples(), recipe(model, form=form, steps=1, learning_rate=1e-30), on_step=sample)
    assert torch.equal(pictures[0], sampled(model))


@each_form
@pytest.mark.parametrize("ending", ["success", "error", "interrupt"])
def test_the_model_and_its_modules_stay_as_they_were(model_of: Models, form: Any, ending: str) -> None:
    model = model_of()
    before, weights = sampled(model), {name: w.clone() for name, w in model.model.state_dict().items()}
    act = {"success": lambda _: False, "error": raise_fault, "interrupt": raise_interrupt}[ending]
    settings = recipe(model, form=form, gradient_checkpointing=True, steps=2)
    try:
        tune(model, examples(), settings, on_step=act)
    except (Fault, comfy.model_management.InterruptProcessingException):
        assert ending != "success"
    assert comfy.model_management.in_training is False and patches_on(model) == ()
    assert all(torch.equal(weights[name], weight) for name, weight in model.model.state_dict().items())
    assert not any(weight.requires_grad for weight in model.model.parameters())
    for module in model.model.modules():
        assert "forward" not in vars(module) and not module._forward_hooks and not module._forward_pre_hooks
    assert torch.equal(sampled(model), before)


def test_what_was_learnt_until_an_interrupt_is_handed_over(model_of: Models) -> None:
    model, kept = model_of(), []

    def stop_at_two(step: TuningStep) -> bool:
        if step.done == 2:
            raise_interrupt()
        return False

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        tune(model, examples(), recipe(model), on_step=stop_at_two, keep=kept.append)
    (adapter,) = kept
    assert same(adapter, tune(model, examples(), recipe(model, steps=2)).adapter)
    assert adapter.style_words == "in pencil"


def test_cancelling_in_the_browser_stops_between_steps(model_of: Models) -> None:
    model, kept = model_of(), []

    def cancel(step: TuningStep) -> bool:
        comfy.model_management.interrupt_current_processing(True)
        return False

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        tune(model, examples(), recipe(model), on_step=cancel, keep=kept.append)
    assert kept[0].state.step == 1


def test_a_loss_that_is_no_number_stops_the_tuning_before_the_step(model_of: Models) -> None:
    model, kept = model_of(), []
    with pytest.raises(ValueError, match=r"At step 2 the \w+ is not a number .* learning rate 1e\+25.*lower rate"):
        tune(model, examples(), recipe(model, learning_rate=1e25), keep=kept.append)
    assert kept[0].state.step == 1 and all(tensor.isfinite().all() for tensor in kept[0].tensors.values())


@pytest.mark.parametrize("kind", ["sd15", slow("sdxl")])
@each_form
def test_with_checkpointing_the_same_is_learnt(model_of: Models, kind: Family, form: Any) -> None:
    """Also in several blocks: the host tells them apart by numbers that change while gradients are taken."""
    model = model_of(kind)
    settings = {"form": form, "blocks": "all", "steps": 3}
    plain, checkpointed = (
        tune(model, examples(kind), recipe(model, gradient_checkpointing=on, **settings)) for on in (False, True)
    )
    assert checkpointed.losses == pytest.approx(plain.losses, rel=1e-4)
    for name, tensor in plain.adapter.state.first_moments.items():
        other = checkpointed.adapter.state.first_moments[name]
        assert (other - tensor).norm() <= 1e-2 * tensor.norm() + 1e-9, name


@pytest.mark.parametrize("kind", ["sd15", slow("sdxl")])
def test_a_tuned_lora_is_what_the_hosts_loader_makes_of_its_weights(model_of: Models, kind: Family) -> None:
    model = model_of(kind)
    seen: dict[str, torch.Tensor] = {}

    def sample(step: TuningStep) -> bool:
        seen["tuned"] = sampled(step.model, kind)
        return True

    settings = recipe(model, form="lora", steps=1, learning_rate=0.1, blocks="all")
    adapter = tune(model, examples(kind), settings, on_step=sample).adapter
    names = {"down": "lora_down.weight", "up": "lora_up.weight"}
    file = {
        f"{module}.{names[part]}": adapter.tensors[f"{module}.{part}"] for module in adapter.modules for part in names
    }
    loaded, _ = comfy.sd.load_lora_for_models(model, None, file, 1.0, 0.0)
    assert relative_error(sampled(loaded, kind), seen["tuned"]) <= 1e-5
    assert relative_error(sampled(model, kind), seen["tuned"]) > 1e-3


def test_a_tuned_bottleneck_on_the_model_is_what_was_tuned(model_of: Models) -> None:
    from semblance.attention.engine.scope import Scope
    from semblance.attention.methods.styledrop import StyleDrop

    model, settings = model_of(), recipe(model_of(), steps=2)
    seen: list[torch.Tensor] = []
    tuned = tune(model, examples(), settings, on_step=lambda step: seen.append(sampled(step.model)) or True)
    patch = StyleDrop(tuned.adapter.tensors, Scope(dict.fromkeys(settings.blocks, 1.0)))
    assert torch.equal(sampled(add_patch(model, patch)), seen[-1])
    assert not torch.equal(seen[0], seen[-1])


def test_pictures_of_several_sizes_and_captions_of_several_lengths_are_tuned_on_together(model_of: Models) -> None:
    model = model_of()
    given = examples("sd15", 4, sizes=((8, 8), (9, 13)), tokens=(77, 77, 154))
    result = tune(model, given, recipe(model, batch=6, steps=2))
    assert all(loss > 0 for loss in result.losses) and len(result.losses) == 2


def test_flips_look_at_the_mirror_image_half_of_the_time(model_of: Models) -> None:
    model, given = model_of(), examples()
    (example,) = given.each
    with_flips, without = (tune(model, given, recipe(model, flips=flips, steps=4)) for flips in (True, False))
    none = replace(given, each=(replace(example, mirrored=None),))
    assert tune(model, none, recipe(model, steps=4)).losses == without.losses
    assert with_flips.losses != without.losses


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@each_form
def test_a_model_in_half_precision_is_tuned_by_an_adapter_in_float32(
    model_of: Models, form: Any, dtype: torch.dtype
) -> None:
    model = model_of("sd15", "eps", dtype)
    result = tune(model, examples(), recipe(model, form=form, gradient_checkpointing=True))
    single = tune(model_of(), examples(), recipe(model, form=form))
    assert {tensor.dtype for tensor in result.adapter.tensors.values()} == {torch.float32}
    assert result.losses == pytest.approx(single.losses, rel=0.05)
    assert model.model.get_dtype() == dtype


@each_form
def test_a_model_in_fp8_is_tuned_as_the_host_casts_it(model_of: Models, form: Any) -> None:
    def build(disable_dynamic: bool = False) -> ModelPatcher:
        model = base_model("sd15", unet_config("sd15"), torch.float8_e4m3fn, cast=torch.float32)
        weights = model_of().model.diffusion_model.state_dict()
        with torch.no_grad():
            for name, weight in model.diffusion_model.named_parameters():
                weight.copy_(weights[name].to(weight.dtype))
        return patcher_around(model)

    model = build()
    model.cached_patcher_init = (build, ())
    losses = tune(model, examples(), recipe(model, form=form)).losses
    assert losses == pytest.approx(tune(model_of(), examples(), recipe(model, form=form)).losses, rel=0.05)
    kept, twice = (estimate(model, examples().each, recipe(model, gradient_checkpointing=on)) for on in (False, True))
    assert kept.activations - twice.activations > 4 * model.model_size() and kept.weights == model.model_size()


def test_it_runs_where_comfyui_runs_nodes(model_of: Models) -> None:
    """In inference mode, whose tensors no gradient can be taken beside."""
    model = model_of()
    with torch.inference_mode():
        given = examples()
        inside = tune(model, given, recipe(model))
    outside = tune(model, given, recipe(model))
    assert same(inside.adapter, outside.adapter)
    assert not any(tensor.is_inference() for tensor in inside.adapter.tensors.values())


def test_a_lora_on_the_model_is_part_of_what_is_tuned_against(model_of: Models) -> None:
    from semblance.tests.tiny_models import with_lora

    model = with_lora(model_of())
    result: Tuned = tune(model, examples(), recipe(model))
    assert result.losses[0] != tune(model_of(), examples(), recipe(model)).losses[0]


def as_the_node_compiles(model: ModelPatcher) -> ModelPatcher:
    return TorchCompileModel.execute(model, "eager")[0]


def as_an_object(model: ModelPatcher) -> ModelPatcher:
    exchanged = model.clone()
    exchanged.add_object_patch("diffusion_model", torch.compile(model.model.diffusion_model, backend="eager"))
    return exchanged


@pytest.mark.parametrize("compiling", [as_the_node_compiles, as_an_object])
@each_form
def test_a_compiled_model_is_tuned_as_it_was_written_and_stays_compiled(
    model_of: Models, form: Any, compiling: Callable[[ModelPatcher], ModelPatcher]
) -> None:
    """What is compiled are the modules of the model itself, on which nothing may be tuned."""
    model, pictures = model_of(), []

    def look(step: TuningStep) -> bool:
        pictures.append(sampled(step.model))
        return True

    settings = recipe(model, form=form, steps=2, learning_rate=0.1)
    compiled = compiling(model)
    found, plain = (tune(each, examples(), settings, on_step=look) for each in (compiled, model))
    assert same(found.adapter, plain.adapter) and torch.equal(pictures[1], pictures[3])
    assert compiled.get_all_wrappers(WrappersMP.APPLY_MODEL) or compiled.object_patches
