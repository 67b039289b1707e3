"""What stands in a document: its links, its code, and the messages it quotes."""

from __future__ import annotations

import re
from collections.abc import Iterator

SAID = "the node says"
"""The heading of a table's first column that holds messages."""
TROUBLE = ("When something goes wrong", "出错了怎么办", "出错时")
"""The headings of a help page's section whose items begin with messages in bold."""
CHINESE = re.compile(r"[\u4e00-\u9fff]")


def links(markdown: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", markdown)


def code_blocks(markdown: str) -> list[str]:
    return re.findall(r"^```py\n(.*?)^```$", markdown, re.MULTILINE | re.DOTALL)


def quoted_messages(markdown: str) -> list[str]:
    """What a document gives as the words of a node: in a table under SAID, in bold under TROUBLE, or in double quotes.

    `...` stands for any words. What is partly Chinese is no message.
    """
    text = re.sub(r"^```.*?^```$", "", markdown, flags=re.MULTILINE | re.DOTALL)
    found = [*_in_tables(text), *_in_bold(text), *_in_quotes(text)]
    return [re.sub(r"[`*]", "", message).strip() for message in found if not CHINESE.search(message)]


def _in_tables(text: str) -> Iterator[str]:
    for table in re.findall(rf"^\| {SAID} \|.*\n\|.*\n((?:\|.*\n?)*)", text, re.MULTILINE):
        yield from (row.split("|")[1] for row in table.splitlines())


def _in_bold(text: str) -> Iterator[str]:
    for section in re.split(r"^## ", text, flags=re.MULTILINE):
        if section.startswith(TROUBLE):
            for head in re.findall(r"^- (\*\*.+?\*\*(?:[^*:：]*\*\*.+?\*\*)*)", section, re.MULTILINE):
                yield from re.findall(r"\*\*(.+?)\*\*", head)


def _in_quotes(text: str) -> Iterator[str]:
    without_code = re.sub(r"`[^`\n]*`", "", text)
    for quoted in re.findall(r'["“]([^"“”\n]+)["”]', without_code):
        if len(quoted.split()) > 2:
            yield quoted
