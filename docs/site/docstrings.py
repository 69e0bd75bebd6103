"""Docstrings as the site shows them: the roles and literal blocks of reStructuredText in Markdown's form."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|data|mod|exc|attr):`~?([^`]+)`")
SHARED = re.compile(
    r"^(?P<indent>[ ]+)(?P<names>\w+(?:, \w+)+): (?P<words>.*\n?(?:(?P=indent)[ ]+.*\n?)*)", re.MULTILINE
)
"""Parameters that are described together: ``store, clip, max_bytes: settings of …``."""
LITERAL = re.compile(r"^(?P<indent>[ \t]*)(?P<words>.*?)::[ \t]*$", re.MULTILINE)


def markdown(text: str) -> str:
    """``:class:`Queue``` becomes code, and ``words::`` before an indented block becomes ``words:``."""
    text = SHARED.sub(_each, text)
    text = ROLE.sub(lambda role: f"`{role[1].removeprefix('alpose.')}`", text)
    return LITERAL.sub(lambda line: f"{line['indent']}{line['words']}:" if line["words"] else "", text)


def _each(entry: re.Match[str]) -> str:
    words = entry["words"].rstrip("\n")
    return "".join(f"{entry['indent']}{name}: {words}\n" for name in entry["names"].split(", "))


class Docstrings(griffe.Extension):
    """Rewrites every docstring after it was collected."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Griffe calls it once for each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)
