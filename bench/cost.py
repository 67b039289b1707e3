"""What a run of the sampler costs, and tables of it as ratios inside one session of measuring."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

Run = Callable[[], object]


@dataclass(frozen=True)
class Cost:
    """Seconds of one run: on the clock, and of the processor, which other programs cannot stretch."""

    wall: float
    processor: float


def measure(runs: Mapping[str, Run], rounds: int) -> dict[str, list[Cost]]:
    """The cost of each run, taken in turn so that a machine that slows down slows all alike."""
    costs: dict[str, list[Cost]] = {name: [] for name in runs}
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
    operations = {name: flops(run) for name, run in runs.items()}  # and every run is warm
    costs = measure(runs, rounds)
    plain = next(iter(runs))
    seconds = statistics.median(cost.wall for cost in costs[plain])
    print(f"\n{title}; medians of {rounds} interleaved rounds, a plain run takes {seconds:.2f} s\n")
    rows = [
        [name, f"{operations[name] / operations[plain]:.4f}", *map(spread, ratios(costs[name], costs[plain]))]
        for name in runs
    ]
    table(["run", "operations / plain", "processor time / plain", "wall time / plain"], rows)


def ratios(costs: Sequence[Cost], others: Sequence[Cost], share: float = 1.0) -> tuple[list[float], list[float]]:
    """Processor time and wall time of each round against that of another run in it, times `share`."""
    pairs = list(zip(costs, others, strict=True))
    return (
        [share * mine.processor / other.processor for mine, other in pairs],
        [share * mine.wall / other.wall for mine, other in pairs],
    )


def spread(found: Sequence[float]) -> str:
    """The median, with the lowest and the highest."""
    return f"{statistics.median(found):.3f} ({min(found):.3f} - {max(found):.3f})"


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints a table in Markdown."""
    print(f"| {' | '.join(heads)} |")
    print("|---" * len(heads) + "|")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |")
