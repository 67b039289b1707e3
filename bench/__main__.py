"""`nox -s bench`: the cost of InstantStyle at the real widths, as a ratio to the plain model.

SD 1.5 at 256 px on the CPU; SDXL at 1024 px where there is a GPU. The weights are random: time does not depend on
them. Every figure is of whole runs of the sampler (2 steps, guidance on), so what is done once a run is in it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping

import torch

from hosting.library import use_library

Run = Callable[[], object]


def measure(runs: Mapping[str, Run], rounds: int) -> dict[str, list[float]]:
    """Seconds of each run, taken in turn so that a machine that slows down slows all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def flops(run: Run) -> int:
    """Floating-point operations of the matrix products in one run."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def report(title: str, runs: Mapping[str, Run], rounds: int) -> None:
    """Prints a table in Markdown: operations and median wall time of each run against the first."""
    seconds = measure(runs, rounds)
    operations = {name: flops(run) for name, run in runs.items()}
    plain = next(iter(runs))
    print(f"\n{title}; median of {rounds} interleaved rounds, plain takes {statistics.median(seconds[plain]):.2f} s\n")
    print("| run | operations / plain | wall time / plain | (min - max of the rounds) |")
    print("|---|---|---|---|")
    for name in runs:
        ratios = [mine / other for mine, other in zip(seconds[name], seconds[plain], strict=True)]
        spread = f"{min(ratios):.3f} - {max(ratios):.3f}"
        print(f"| {name} | {operations[name] / operations[plain]:.4f} | {statistics.median(ratios):.3f} | {spread} |")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds of every run")
    rounds = parser.parse_args().rounds
    on_gpu = torch.cuda.is_available()
    use_library(cpu=not on_gpu)
    from .instantstyle import instantstyle_runs  # ComfyUI can be imported from here on

    torch.set_grad_enabled(False)
    if on_gpu:
        report("SDXL, 1024 px, fp16, on the GPU", instantstyle_runs("sdxl", 1024, torch.float16), rounds)
    else:
        report("SD 1.5, 256 px, fp32, on the CPU", instantstyle_runs("sd15", 256, torch.float32), rounds)


if __name__ == "__main__":
    main()
