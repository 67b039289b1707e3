"""`nox -s bench`: the cost of the patches as a ratio to the plain model.

InstantStyle and StyleID at the real widths: SD 1.5 at 256 px on the CPU; SDXL at 1024 px where there is a GPU.
ConsiStory, whose batches are larger and runs longer, on a stand-in for SDXL. The weights are random: time does not
depend on them. Every figure is of whole runs of the sampler with guidance on, so what is done once a run is in it.
"""

from __future__ import annotations

import argparse

import torch

from harness.library import use_library

STORY_ROUNDS = 3
"""Of ConsiStory's runs, which are long."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "what", nargs="?", choices=["all", "sizes"], default="all", help="sizes: without a GPU, unmeasured"
    )
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds of every run")
    asked = parser.parse_args()
    rounds = asked.rounds
    if asked.what == "sizes":
        use_library(cpu=True)
        from .references import report_references
        from .sizes import report_sizes
        from .styledrop import report_adapters
        from .tuning import report_tuning_sizes

        report_sizes()
        report_adapters()
        report_references()
        report_tuning_sizes()
        return
    on_gpu = torch.cuda.is_available()
    use_library(cpu=not on_gpu)
    import comfy.utils  # ComfyUI can be imported from here on

    from .consistory import report_consistory
    from .cost import report
    from .instantstyle import instantstyle_runs
    from .models import real_model
    from .styleid import kept_bytes, styleid_runs
    from .tuning import tuning_runs

    comfy.utils.PROGRESS_BAR_ENABLED = False
    torch.set_grad_enabled(False)  # but in tuning
    kind, pixels, dtype = ("sdxl", 1024, torch.float16) if on_gpu else ("sd15", 256, torch.float32)
    model = real_model(kind, dtype)
    title = "SDXL, 1024 px, fp16, on the GPU" if on_gpu else "SD 1.5, 256 px, fp32, on the CPU"
    report(f"InstantStyle: {title}", instantstyle_runs(model, kind, pixels), rounds)
    report(f"StyleID: {title}", styleid_runs(model, kind, pixels), rounds)
    report(f"Tune Style, one step: {title}", tuning_runs(model, kind, pixels), rounds)
    kept = kept_bytes(50, 512) / 2**20
    print(f"\nStyleID keeps {kept:.1f} MB of trajectories for two pictures of 512 px in 50 steps, and no features.")
    report_consistory(min(rounds, STORY_ROUNDS))


if __name__ == "__main__":
    main()
