"""`nox -s bench`: the cost of the patches at the real widths, as a ratio to the plain model.

SD 1.5 at 256 px on the CPU; SDXL at 1024 px where there is a GPU. The weights are random: time does not depend on
them. Every figure is of whole runs of the sampler (2 steps, guidance on), so what is done once a run is in it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from hosting.library import use_library

Run = Callable[[], object]


@dataclass(frozen=True)
class Cost:
    """Seconds of one run: on the clock, and of the processor, which other programs cannot stretch."""

    wall: float
    processor: float


def measure(runs: Mapping[str, Run], rounds: int) -> dict[str, list[Cost]]:
    """The cost of each run, taken in turn so that a machine that slows down slows all alike."""
    costs: dict[str, list[Cost]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            wall, processor = time.perf_counter(), time.process_time()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            costs[name].append(Cost(time.perf_counter() - wall, time.process_time() - processor))
    return costs


def flops(run: Run) -> int:
    """Floating-point operations of the matrix products in one run."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def report(title: str, runs: Mapping[str, Run], rounds: int) -> None:
    """Prints a table in Markdown: operations, and the median cost of each run against the first, round by round."""
    costs = measure(runs, rounds)
    operations = {name: flops(run) for name, run in runs.items()}
    plain = next(iter(runs))
    seconds = statistics.median(cost.wall for cost in costs[plain])
    print(f"\n{title}; medians of {rounds} interleaved rounds, a plain run takes {seconds:.2f} s\n")
    print("| run | operations / plain | processor time / plain | wall time / plain |")
    print("|---|---|---|---|")
    for name in runs:
        pairs = list(zip(costs[name], costs[plain], strict=True))
        processor = _spread([mine.processor / other.processor for mine, other in pairs])
        wall = _spread([mine.wall / other.wall for mine, other in pairs])
        print(f"| {name} | {operations[name] / operations[plain]:.4f} | {processor} | {wall} |")


def _spread(ratios: Sequence[float]) -> str:
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} - {max(ratios):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds of every run")
    rounds = parser.parse_args().rounds
    on_gpu = torch.cuda.is_available()
    use_library(cpu=not on_gpu)
    import comfy.utils  # ComfyUI can be imported from here on

    from .instantstyle import instantstyle_runs
    from .models import real_model
    from .styleid import kept_bytes, styleid_runs

    comfy.utils.PROGRESS_BAR_ENABLED = False
    torch.set_grad_enabled(False)
    kind, pixels, dtype = ("sdxl", 1024, torch.float16) if on_gpu else ("sd15", 256, torch.float32)
    model = real_model(kind, dtype)
    title = "SDXL, 1024 px, fp16, on the GPU" if on_gpu else "SD 1.5, 256 px, fp32, on the CPU"
    report(f"InstantStyle: {title}", instantstyle_runs(model, kind, pixels), rounds)
    report(f"StyleID: {title}", styleid_runs(model, kind, pixels), rounds)
    kept = kept_bytes(50, 512) / 2**20
    print(f"\nStyleID keeps {kept:.1f} MB of trajectories for two pictures of 512 px in 50 steps, and no features.")


if __name__ == "__main__":
    main()
