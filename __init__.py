"""Semblance: likeness of style and of subject for ComfyUI. This file only hands the nodes over."""

from comfy_api.latest import ComfyExtension, io

from .nodes import NODES

WEB_DIRECTORY = "./web"


class SemblanceExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> SemblanceExtension:
    return SemblanceExtension()
