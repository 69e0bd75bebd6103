"""The page kit: one base template, one stylesheet, and tables and colours as data, for every HTML page of alpose.

A page is a Jinja template that extends ``base.html.j2`` and takes its macros from ``kit.html.j2``. It is one file that
loads nothing from the network, in a light and a dark form, for a screen, a phone and paper. The same arguments give the
same bytes. Nothing here imports torch or matplotlib.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from ..methods.catalog import Look
from . import formatting as fmt

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""The Content-Security-Policy of a page: a browser that follows it loads nothing and runs no script."""


@dataclass(frozen=True, slots=True)
class Palette:
    """How everything on a page is drawn; each name has a CSS variable, so that one drawing is light and dark."""

    looks: Mapping[str, Look]

    def variable(self, name: str) -> str:
        """The CSS variable of a name: ``--m0``, ``--m1``, …"""
        return f"--m{list(self.looks).index(name)}"

    def css(self) -> str:
        """The variables with their colours."""

        def block(colours: list[str]) -> str:
            return ":root { " + " ".join(f"--m{place}: {colour};" for place, colour in enumerate(colours)) + " }\n"

        light, dark = ([getattr(look, side) for look in self.looks.values()] for side in ("light", "dark"))
        return f"{block(light)}@media screen and (prefers-color-scheme: dark) {{ {block(dark)}}}\n" if light else ""


@dataclass(frozen=True, slots=True)
class Column:
    """The title of one column."""

    text: str
    small: str = ""
    hover: str = ""
    style: str = ""
    """A CSS class, also of the cells below."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One value of a table; what is not marked as safe is escaped."""

    text: str | Markup
    small: str = ""
    """A second, smaller line."""
    best: bool = False
    """Printed in bold."""
    span: int = 1
    """Columns that it covers."""
    style: str = ""
    """A CSS class, in place of the column's."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table; a row without cells is the heading of those below it."""

    title: str
    cells: tuple[Cell, ...] = ()
    small: str = ""
    mark: str | None = None
    """A name of the palette, whose line is drawn before the title."""
    reference: bool = False
    """Set apart: an oracle or a published row, which takes no part in a comparison."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table with its notes."""

    corner: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    style: str = ""
    """CSS classes: ``words`` sets cells from the left, ``stack`` turns rows into blocks on a phone."""


def cells(*texts: str | Markup) -> tuple[Cell, ...]:
    """A plain cell for each text."""
    return tuple(map(Cell, texts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """The frame of a page: what stands above its sections."""

    title: str
    """Of the window."""
    kicker: str
    """What kind of page it is, in a few words."""
    heading: str
    subheading: str = ""
    findings: tuple[str, ...] = ()
    """The result in sentences, the most important first."""
    warnings: tuple[str, ...] = ()
    warnings_title: str = "Not all of the run is here"
    facts: tuple[tuple[str, str], ...] = ()
    """What the page is about, as names and values."""
    palette: Palette = Palette({})

    def render(self, template: str, *, styles: Sequence[str] = (), script: str = "", **values: Any) -> str:
        """The page as HTML.

        Args:
            template: ``package:file`` of a template that extends ``base.html.j2``.
            styles: ``package:file`` of stylesheets that follow the base one.
            script: the page's own script, which is the only one that it allows.
            values: what the template shows.
        """
        css = "".join([self.palette.css(), *(read(name) for name in ("base.css", *styles))])
        policy = POLICY
        if (
            script
        ):  # a page with a script shows text from other people's files: it allows this style and this script alone
            policy = policy.replace("img-src data:", "img-src data: file: 'self'")
            policy = policy.replace("'unsafe-inline'", f"{_digest(css)}; script-src {_digest(script)}")
        page = _environment().get_template(template)
        return page.render(page=self, css=Markup(css), script=Markup(script), policy=policy, **values)  # our own files


@functools.cache
def _environment() -> Environment:
    """Jinja that escapes what is not marked as safe and refuses a name that is not given."""
    made = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=FunctionLoader(read)
    )
    made.globals.update(fmt=fmt)
    return made


def read(name: str) -> str:
    """A text file that ships with alpose, ``package:file``; without a package, one of the kit's."""
    package, _, file = name.rpartition(":")
    return resources.files(package or __package__).joinpath(file).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def pretty(value: Any) -> str:
    """JSON for people."""
    return json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True, default=str)
