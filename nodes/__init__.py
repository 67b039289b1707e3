"""What the user sees: schemas, tooltips and wiring; tensors are computed elsewhere."""

from comfy_api.latest import ComfyExtension, io

from ..host.files import register_folders
from .adain import AdaINLatent
from .clip_score import CLIPScore
from .consistory import ConsiStory
from .demo import LoadDemo
from .edit_friendly import InvertEditFriendly
from .evaluate_pairs import CFSD, LPIPS
from .evaluate_sets import FID, ArtFID
from .inspect import ShowPatches
from .instantstyle import InstantStyle
from .inversion import InvertImage, LoadTrajectory, SaveTrajectory
from .load import LoadAdapter, LoadTextTower
from .masks import SubjectMasks
from .pick_images import PickImages
from .picture_grid import PictureGrid
from .prompts import StoryPrompts
from .reference import EncodeReference, LoadReference, SaveReference, SubtractContent
from .score_table import ScoreTable
from .styleid import StyleID
from .subject import ApplySubject, LoadSubject, RecordSubject, SaveSubject

register_folders()  # before a schema lists what is in them

NODES: list[type[io.ComfyNode]] = [
    LoadAdapter,
    LoadTextTower,
    EncodeReference,
    SubtractContent,
    SaveReference,
    LoadReference,
    InstantStyle,
    InvertImage,
    InvertEditFriendly,
    StyleID,
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
    CLIPScore,
    PickImages,
    ScoreTable,
    PictureGrid,
    LPIPS,
    FID,
    ArtFID,
    CFSD,
    LoadDemo,
    ShowPatches,
]
"""Every node, in the order of the menu."""


class SemblanceExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> SemblanceExtension:
    return SemblanceExtension()
