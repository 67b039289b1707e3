"""One training run, whatever is trained: seeded, resumable, with progress and final figures."""

import json
import math
import random
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from .muon import Muon

DEMO = Path(__file__).resolve().parents[1]
MODELS_FOLDER = DEMO / "models"
RUNS_FOLDER = DEMO / "runs"
LATENT_CHANNELS = 4


@dataclass(frozen=True)
class Plan:
    """How long, how fast and from which seed a model is trained."""

    name: str
    steps: int
    learning_rate: float
    seed: int
    warmup: int = 100
    weight_decay: float = 0.01
    average: float = 0.0  # decay of the weights' running average; 0 keeps none
    checkpoint_every: int = 200
    muon: float = 0.0  # the factor of Muon's rate for matrices; 0 leaves all to AdamW

    @property
    def folder(self) -> Path:
        return RUNS_FOLDER / self.name

    def rate_at(self, step: int) -> float:
        """The learning rate of `step`: a linear rise, then half a cosine down to one hundredth."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        progress = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


@dataclass
class Run:
    """The state of a training run; everything in it is in its checkpoint."""

    plan: Plan
    model: nn.Module
    optimizer: torch.optim.Optimizer
    averaged: dict[str, Tensor]
    step: int = 0
    seconds: float = 0.0
    loss: float = 0.0  # running mean


Loss = Callable[[int], Tensor]  # of the step; draws its own examples, seeded by it
Validate = Callable[[int], Mapping[str, float]]


def train(plan: Plan, model: nn.Module, loss_of: Loss, validate: Validate) -> Run:
    """Trains up to `plan.steps`, from the last checkpoint if there is one."""
    run = _open(plan, model)
    with tqdm(total=plan.steps, initial=run.step, desc=plan.name, mininterval=5) as progress:
        while run.step < plan.steps:
            began = time.perf_counter()
            _advance(run, loss_of)
            run.seconds += time.perf_counter() - began
            progress.set_postfix(loss=f"{run.loss:.4f}", refresh=False)
            progress.update()
            if run.step % plan.checkpoint_every == 0 or run.step == plan.steps:
                _save(run)
                figures = validate(run.step)
                if figures:
                    progress.write(f"{run.step}: { ({name: round(value, 4) for name, value in figures.items()}) }")
    return run


def use_averaged_weights(run: Run) -> None:
    """Puts the weights' running average into the model, as it will be shipped."""
    if run.averaged:
        run.model.load_state_dict(run.averaged, strict=False)


def export(
    run: Run, weights: Mapping[str, Tensor], figures: Mapping[str, float], config: Mapping[str, Any] | None = None
) -> Path:
    """Writes the fp16 weights and, beside them, the figures of the run; returns the weights' path.

    `config` goes into the file's metadata: what a reader needs to build the network.
    """
    path = MODELS_FOLDER / f"{run.plan.name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    halves = {
        name: (value.detach().half() if value.is_floating_point() else value).cpu().contiguous()
        for name, value in weights.items()
    }
    save_file(halves, path, {"format": "pt", "config": json.dumps(dict(config or {}))})
    record = {
        **asdict(run.plan),
        "parameters": sum(value.numel() for value in weights.values()),
        "steps_done": run.step,
        "loss": run.loss,
        "seconds": round(run.seconds),
        "device": next(run.model.parameters()).device.type,
        "torch": torch.__version__,
        "git_commit": _git_commit(),
        "figures": dict(figures),
    }
    path.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
    return path


def half_precision(device: torch.device) -> torch.autocast:
    """Autocast to bf16 where the device computes in it. Elsewhere a CPU imitates it, seven times slower than fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=_fast_in_bfloat16(device))


def _fast_in_bfloat16(device: torch.device) -> bool:
    return device.type != "cpu" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)


def _open(plan: Plan, model: nn.Module) -> Run:
    optimizer = _optimizer(plan, model)
    averaged = {name: p.detach().clone() for name, p in model.named_parameters()} if plan.average else {}
    run = Run(plan, model, optimizer, averaged)
    checkpoint = plan.folder / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=next(model.parameters()).device, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        run.averaged, run.step, run.seconds, run.loss = (
            saved["averaged"],
            saved["step"],
            saved["seconds"],
            saved["loss"],
        )
    return run


def _optimizer(plan: Plan, model: nn.Module) -> torch.optim.Optimizer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not plan.muon:
        return torch.optim.AdamW(
            trained, lr=plan.learning_rate, betas=(0.9, 0.99), weight_decay=plan.weight_decay, fused=True
        )
    # The first and the last layer, of few channels, are better left to Adam; patches of latents are two by two.
    inner = [p for p in trained if p.ndim > 1 and min(p.shape[:2]) > 4 * LATENT_CHANNELS]
    ids = {id(parameter) for parameter in inner}
    rest = [parameter for parameter in trained if id(parameter) not in ids]
    dtype = torch.bfloat16 if _fast_in_bfloat16(next(model.parameters()).device) else torch.float32
    return Muon(inner, rest, plan.learning_rate, plan.muon, dtype=dtype)


def _save(run: Run) -> None:
    run.plan.folder.mkdir(parents=True, exist_ok=True)
    state = {
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "averaged": run.averaged,
        "step": run.step,
        "seconds": run.seconds,
        "loss": run.loss,
    }
    # Written aside first, so that a run killed while writing still finds a whole checkpoint.
    torch.save(state, run.plan.folder / "checkpoint.new")
    (run.plan.folder / "checkpoint.new").replace(run.plan.folder / "checkpoint.pt")


def _advance(run: Run, loss_of: Loss) -> None:
    for group in run.optimizer.param_groups:
        group["lr"] = run.plan.rate_at(run.step)
    run.optimizer.zero_grad(set_to_none=True)
    torch.manual_seed(run.plan.seed + run.step)  # so that a resumed run goes on as if it had never stopped
    loss = loss_of(run.step)
    loss.backward()
    nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    run.optimizer.step()
    run.step += 1
    share = max(0.01, 1 / run.step)
    run.loss += share * (loss.item() - run.loss)
    _average(run)


@torch.no_grad()
def _average(run: Run) -> None:
    if not run.averaged:
        return
    decay = min(run.plan.average, (run.step + 1) / (run.step + 10))
    for name, parameter in run.model.named_parameters():
        run.averaged[name].lerp_(parameter, 1 - decay)


def _git_commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"
