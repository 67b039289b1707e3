"""The version of the pack and of the oldest ComfyUI that it works with, as in pyproject.toml."""

VERSION = "0.2.0"
OLDEST_COMFYUI = (0, 30, 0)
