"""Load IP-Adapter by Kind: the adapter and image encoder that fit a MODEL."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..host.ip_adapter.finding import find_adapter, folders_state
from ..host.ip_adapter.presets import PRESETS
from . import sockets
from .inputs import IP_ADAPTER_CATEGORY
from .reports import reported


class LoadAdapterKind(io.ComfyNode):
    """IP-Adapter (arXiv:2308.06721), its files by kind. Template one_node_style; help page SemblanceLoadAdapterKind."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceLoadAdapterKind",
            display_name="Load IP-Adapter by Kind",
            category=IP_ADAPTER_CATEGORY,
            description="Finds the IP-Adapter of a kind for a model, and the image encoder that goes with it, by the "
            "contents of your files, whatever their names. Reports what it chose. If one is missing, the error names "
            "the file, its folder and where it is published.",
            search_aliases=[
                *("ipadapter unified loader", "ipadapter unified loader community", "ipadapter loader"),
                *("ip-adapter", "image prompt", "clip vision"),
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model that the adapter is for. It comes out as it is."),
                io.Combo.Input(
                    "preset",
                    options=list(PRESETS),
                    default=PRESETS[1],
                    tooltip="The kind of adapter. STANDARD reads the picture as a whole; PLUS reads its parts and "
                    "follows it more closely; VIT-G is as STANDARD with a larger image encoder; the FACE kinds were "
                    "trained on portraits, Composition on layouts.",
                ),
            ],
            outputs=[
                io.Model.Output("model", tooltip="The same model."),
                sockets.Adapter.Output(
                    "ipadapter", tooltip="The adapter with its image encoder, for Apply IP-Adapter."
                ),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def fingerprint_inputs(cls, model: Any, preset: str) -> str:
        return folders_state()

    @classmethod
    def execute(cls, model: Any, preset: str) -> io.NodeOutput:
        adapter, report = find_adapter(model, preset)
        return reported(cls, report, model, adapter)
