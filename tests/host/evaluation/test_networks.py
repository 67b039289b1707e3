"""Networks run under ComfyUI's memory management: told what they take, in full precision, and let go afterwards."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management as management
import lpips as lpips_package
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from semblance.host.evaluation.networks import (
    Network,
    art_fid_network,
    cfsd_network,
    exact_convolutions,
    fid_network,
    lpips_network,
)
from semblance.host.files import UnreadableFile
from semblance.tests.support.graphs import picture
from semblance.tests.support.metric_weights import heads, inception, inception_trunk, network, put


class Peak(TorchDispatchMode):
    """Counts the bytes of all tensors that are made under it and still live, and remembers the most."""

    def __init__(self) -> None:
        super().__init__()
        self.most = self._now = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self._now += storage.nbytes()
        self.most = max(self.most, self._now)
        weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, address: int, size: int) -> None:
        self._known.discard(address)
        self._now -= size


def lpips(name: str) -> Callable[[Path], Network]:
    def make(metrics: Path) -> Network:
        put(network(name) | heads(name), metrics, "lpips.safetensors")
        return lpips_network(name)

    return make


def cfsd(metrics: Path) -> Network:
    put(network("vgg19"), metrics, "vgg19.safetensors")
    return cfsd_network()


def fid(metrics: Path) -> Network:
    put(inception(1008), metrics, "fid.safetensors")
    return fid_network()


def art_fid(metrics: Path) -> Network:
    put(inception_trunk(), metrics, "art.safetensors")
    return art_fid_network()


MAKERS: dict[str, tuple[Callable[[Path], Network], int, int]] = {
    "LPIPS alex": (lpips("alex"), 2, 256),
    "LPIPS vgg": (lpips("vgg"), 2, 128),
    "LPIPS squeeze": (lpips("squeeze"), 2, 256),
    "CFSD": (cfsd, 2, 256),
    "FID": (fid, 1, 100),
    "ArtFID": (art_fid, 1, 256),
}
"""How each is made, how many pictures it takes at once, and their side in pixels."""


@pytest.mark.parametrize("name", MAKERS)
def test_what_comfyui_is_told_is_what_it_takes(place: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, count, side = MAKERS[name]
    measured = make(place / "models" / "semblance" / "metrics")
    pictures = [picture(seed, side, side) for seed in range(count)]
    told: list[int] = []
    load = management.load_models_gpu

    def listen(models: Any, memory_required: int = 0) -> None:
        told.append(memory_required)
        load(models, memory_required=memory_required)

    monkeypatch.setattr(management, "load_models_gpu", listen)
    measured(*pictures)  # the weights are loaded
    with torch.inference_mode(), Peak() as peak:
        measured(*pictures)
    assert told[0] == told[1] == measured.memory_for(*pictures)
    assert peak.most <= told[0] <= 1.6 * peak.most


@pytest.mark.parametrize("name", ["alex", "vgg", "squeeze"])
def test_heads_of_the_version_before_are_refused(place: Path, name: str) -> None:
    """They have the same shapes and give other numbers."""
    package = Path(lpips_package.__file__).parent
    metrics = place / "models" / "semblance" / "metrics"
    put(network(name), metrics, "network.safetensors")
    (metrics / "heads.pth").write_bytes((package / "weights" / "v0.0" / f"{name}.pth").read_bytes())
    with pytest.raises(UnreadableFile, match=f"heads of LPIPS {name} .* version 0.0.*Put {name}.pth from .*v0.1 in"):
        lpips_network(name)
    (metrics / "heads.pth").write_bytes((package / "weights" / "v0.1" / f"{name}.pth").read_bytes())
    assert lpips_network(name)


def test_the_weights_are_let_go_when_the_network_is(place: Path) -> None:
    before = list(management.current_loaded_models)  # by tests of other files
    made = lpips("alex")(place / "models" / "semblance" / "metrics")
    module = weakref.ref(made.module)
    made(picture(1, 64, 64), picture(2, 64, 64))
    assert any(loaded.model is made.patcher for loaded in management.current_loaded_models)
    del made
    gc.collect()
    management.cleanup_models()
    assert module() is None and [kept for kept in management.current_loaded_models if kept not in before] == []


def test_pictures_of_half_precision_are_measured_in_full(place: Path) -> None:
    made = lpips("alex")(place / "models" / "semblance" / "metrics")
    first, second = picture(1, 64, 64).half(), picture(2, 64, 64).half()
    assert made(first, second).dtype == torch.float32
    assert torch.equal(made(first, second), made(first.float(), second.float()))


def test_convolutions_are_exact_inside_and_as_before_outside() -> None:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark
    with exact_convolutions():
        assert not torch.backends.cudnn.allow_tf32 and torch.backends.cudnn.enabled == before[1]
    assert before == (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark)
