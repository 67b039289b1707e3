"""Finding, starting and driving a real ComfyUI; used by the tests, the demo and the benchmarks, not by the pack."""
