"""Semblance: likeness of style and of subject for ComfyUI. This file only hands the nodes over."""

import logging

from .host.supported import refusal

WEB_DIRECTORY = "./web"

if sentence := refusal():
    logging.error(sentence)
    NODE_CLASS_MAPPINGS: dict[str, type] = {}  # by which ComfyUI knows a pack, also one without nodes
else:
    from .nodes import comfy_entrypoint as comfy_entrypoint
