"""What the user sees: schemas, tooltips and wiring; tensors are computed elsewhere."""

from comfy_api.latest import io

from ..attention.host.files import register_folders

register_folders()  # before the nodes list what is in them

from .consistory import ConsiStory  # noqa: E402
from .demo import LoadDemo  # noqa: E402
from .edit_friendly import InvertEditFriendly  # noqa: E402
from .inspect import ShowPatches  # noqa: E402
from .instantstyle import InstantStyle  # noqa: E402
from .inversion import AdaINLatent, InvertImage, LoadTrajectory, SaveTrajectory  # noqa: E402
from .load import LoadAdapter, LoadTextTower  # noqa: E402
from .masks import SubjectMasks  # noqa: E402
from .prompts import StoryPrompts  # noqa: E402
from .reference import EncodeReference, LoadReference, SaveReference, SubtractContent  # noqa: E402
from .styleid import StyleID  # noqa: E402
from .subject import ApplySubject, LoadSubject, RecordSubject, SaveSubject  # noqa: E402

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
    LoadDemo,
    ShowPatches,
]
"""Every node, in the order of the menu."""
