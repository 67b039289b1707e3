"""What the user sees: schemas, tooltips and wiring; tensors are computed elsewhere."""

from comfy_api.latest import ComfyExtension, io

from ..host.files import register_folders
from .adain import AdaINLatent
from .adapter_kind import LoadAdapterKind
from .apply_adapter import ApplyAdapter
from .clip_score import CLIPScore
from .consistory import ConsiStory
from .demo import LoadDemo
from .each_block import EachBlock
from .edit_friendly import InvertEditFriendly
from .evaluate_pairs import CFSD, LPIPS
from .evaluate_sets import FID, ArtFID
from .frame_weights import WeightsOverFrames
from .inspect import ShowPatches
from .instantstyle import InstantStyle
from .inversion import InvertImage, LoadTrajectory, SaveTrajectory
from .load import LoadAdapter, LoadTextTower
from .masked import LoadMaskedTransformer, MaskedSampler
from .masks import SubjectMasks
from .pick_images import PickImages
from .picture_grid import PictureGrid
from .picture_parts import CombineReferences, EncodePicture, NoisePicture
from .picture_regions import CombineRegions, Region
from .picture_tiles import ApplyAdapterTiles
from .prepare_picture import PreparePicture
from .prompts import StoryPrompts
from .reference import EncodeReference, LoadReference, SaveReference, SubtractContent
from .reference_style import ReferenceStyle
from .replacements import register_replacements
from .score_table import ScoreTable
from .style_adapter import ApplyStyleAdapter, StyleDropGuider
from .style_adapter_files import LoadStyleAdapter, SaveStyleAdapter
from .styleid import StyleID
from .subject import ApplySubject, LoadSubject, RecordSubject, SaveSubject
from .tune_style import TuneStyle

register_folders()  # before a schema lists what is in them

NODES: list[type[io.ComfyNode]] = [
    LoadAdapter,
    LoadTextTower,
    EncodeReference,
    SubtractContent,
    SaveReference,
    LoadReference,
    InstantStyle,
    ApplyAdapter,
    LoadAdapterKind,
    PreparePicture,
    EncodePicture,
    CombineReferences,
    Region,
    CombineRegions,
    ApplyAdapterTiles,
    NoisePicture,
    WeightsOverFrames,
    InvertImage,
    InvertEditFriendly,
    StyleID,
    ReferenceStyle,
    AdaINLatent,
    SaveTrajectory,
    LoadTrajectory,
    StoryPrompts,
    ConsiStory,
    SubjectMasks,
    RecordSubject,
    ApplySubject,
    SaveSubject,
    LoadSubject,
    TuneStyle,
    ApplyStyleAdapter,
    StyleDropGuider,
    SaveStyleAdapter,
    LoadStyleAdapter,
    CLIPScore,
    PickImages,
    ScoreTable,
    PictureGrid,
    EachBlock,
    LPIPS,
    FID,
    ArtFID,
    CFSD,
    LoadMaskedTransformer,
    MaskedSampler,
    LoadDemo,
    ShowPatches,
]
"""Every node, in the order of the menu."""


class SemblanceExtension(ComfyExtension):
    async def on_load(self) -> None:
        await register_replacements()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> SemblanceExtension:
    return SemblanceExtension()
