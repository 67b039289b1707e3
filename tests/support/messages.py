"""What the code can say, read off its source, and whether a document quotes it rightly."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

VALUE = "\0"
"""In a sentence of the code: what is filled in at run time."""
LEFT_OUT = "\1"
"""In a quotation: the place of `...`."""
LITERAL_SHARE, LEAST_LETTERS = 0.55, 8
"""Of a quotation's letters, how many must be the code's own rather than stand for a value."""


def sentences(folders: Sequence[Path]) -> list[str]:
    """Every text in the code but its docstrings, with VALUE where a value is filled in."""
    paths = sorted(path for folder in folders for path in folder.rglob("*.py"))
    found = {text for path in paths for text in _texts(ast.parse(path.read_text(encoding="utf-8")))}
    return sorted(text for text in found if _letters(text) >= LEAST_LETTERS)


def is_said(quotation: str, among: Sequence[str]) -> bool:
    """Whether a quotation, with `...` for any words, is a part of one of the code's sentences."""
    quoted = re.sub(r"\s*\.\.\.\s*|\s*…\s*", LEFT_OUT, _plain(quotation)).rstrip(" .,:;")
    needed = max(LEAST_LETTERS, LITERAL_SHARE * _letters(quoted))
    words = set(re.findall(r"[a-z]{4,}", quoted))
    for sentence in among:
        plain = _plain(sentence)
        if 2 * sum(word in plain for word in words) >= len(words) and _shared_letters(quoted, plain) >= needed:
            return True
    return False


def _shared_letters(quoted: str, sentence: str) -> float:
    """How many letters of the quotation are the sentence's own, in the best reading; below 0 where none fits."""
    row = [0.0] * (len(sentence) + 1)  # the quotation may begin anywhere
    for mark in quoted:
        for place, own in enumerate(sentence):
            if own == VALUE or mark == LEFT_OUT:  # the value ends here, or the quotation leaves this out
                row[place + 1] = max(row[place + 1], row[place])
        if mark == LEFT_OUT:
            continue
        following = [float("-inf")] * len(row)
        for place, own in enumerate(sentence):
            if own == VALUE:
                following[place] = max(following[place], row[place])
            elif own == mark:
                following[place + 1] = row[place] + mark.isalpha()
        row = following
    return max(row)


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _letters(text: str) -> int:
    return sum(map(str.isalpha, text))


def _texts(tree: ast.AST) -> Iterator[str]:
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr | ast.BinOp | ast.Constant) and id(node) not in docstrings:
            text = _text(node)
            if text.strip(VALUE):
                yield text


def _text(node: ast.expr) -> str:
    """A literal with VALUE for all that is not one."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_text, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    return VALUE
