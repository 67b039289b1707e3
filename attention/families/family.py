"""What a family of models is, and which of the known ones a model belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from ..engine.call import AttentionSite
from ..subjects.blocks import StoryBlocks

PRESETS = ("style", "layout", "style + layout", "all")


class Choice(Protocol):
    """A method's choice of blocks in a family, in the form that the method needs."""

    @property
    def source(self) -> str:
        """Where the choice comes from: a paper, its authors' code, or a measurement."""
        ...


@dataclass(frozen=True)
class BlockChoice:
    """The blocks in which a method acts."""

    blocks: tuple[str, ...]
    source: str


Form = TypeVar("Form", bound=Choice, covariant=True)


@dataclass(frozen=True)
class ChoiceKey(Generic[Form]):
    """Whose choice of blocks is meant, and its form."""

    name: str
    form: type[Form]
    remedy: str = "Load a model of another family."
    """What to do with a family that has none."""


BY_HAND = "Set blocks to 'all', or name them under 'custom'."
STYLE = ChoiceKey("style", BlockChoice, BY_HAND)
"""InstantStyle's blocks of style."""
LAYOUT = ChoiceKey("layout", BlockChoice, BY_HAND)
"""InstantStyle's blocks of layout."""
STYLEID = ChoiceKey("StyleID", BlockChoice)
CONSISTORY = ChoiceKey("ConsiStory", StoryBlocks)


@dataclass(frozen=True)
class ModelFamily:
    """A family of models: its blocks with attention, and what each method chooses of them."""

    name: str
    blocks: tuple[str, ...]
    """Blocks with attention, in the order the model runs them."""
    choices: Mapping[ChoiceKey[Choice], Choice]
    """By key, such as STYLEID. A new method adds a key, and an entry in each family it supports."""
    text_width: int | None = None
    """Channels of the text, if only they distinguish this family from another with the same blocks."""

    def choice(self, key: ChoiceKey[Form]) -> Form:
        """The choice under `key`. Raises ValueError if the family has none."""
        if key not in self.choices:
            known = ", ".join(other.name for other in self.choices)
            only = f", only for {known}" if known else ""
            raise ValueError(f"Semblance knows no blocks for {key.name} in {self.name} models{only}. {key.remedy}")
        found = self.choices[key]
        assert isinstance(found, key.form)
        return found

    def weights(self, key: ChoiceKey[BlockChoice]) -> dict[str, float]:
        """Weight 1 for every block of the choice under `key`. Raises like `choice`."""
        return dict.fromkeys(self.choice(key).blocks, 1.0)

    def preset(self, name: str) -> dict[str, float]:
        """Weight 1 for every block of a preset of InstantStyle. Raises ValueError for a name not in PRESETS."""
        if name not in PRESETS:
            raise ValueError(f"There is no preset called '{name}'. The presets are: {', '.join(PRESETS)}.")
        if name == "all":
            return dict.fromkeys(self.blocks, 1.0)
        if name == "style + layout":
            return {**self.weights(LAYOUT), **self.weights(STYLE)}
        return self.weights(STYLE if name == "style" else LAYOUT)


def family_of(
    sites: Iterable[AttentionSite], known: Sequence[ModelFamily], text_width: int | None = None
) -> ModelFamily | None:
    """The first family of `known` with exactly the blocks of `sites` and, if it states one, this `text_width`."""
    blocks = {site.block for site in sites}
    fitting = (family for family in known if family.text_width in (None, text_width))
    return next((family for family in fitting if set(family.blocks) == blocks), None)


def adapter_numbers(sites: Iterable[AttentionSite]) -> dict[AttentionSite, int]:
    """The number under which IP-Adapter files keep the weights of each cross-attention.

    Files count diffusers' attention processors: down blocks, up blocks, then the middle block. Self-attentions have
    even numbers, cross-attentions odd ones. Of a transformer they count joint attentions, in the order it runs them.
    """
    sites = tuple(sites)
    joint = [site for site in sites if site.kind == "joint"]
    if joint:
        return {site: index for index, site in enumerate(joint)}
    order = ("input", "output", "middle")
    cross = sorted(
        (site for site in sites if site.kind == "cross"),
        key=lambda site: (order.index(site.part), site.number, site.depth),
    )
    return {site: 2 * index + 1 for index, site in enumerate(cross)}
