"""What the commands write besides their results: one line of progress on a terminal, and problems, both on stderr."""

from __future__ import annotations

import time

import click

from alpose.runtime.command_line import LiveLine, bar

EVERY_S = 0.1


class Progress(LiveLine):
    """How far something has come; nothing where stderr is no terminal.

    Args:
        what: the thing, such as a source.
    """

    def __init__(self, what: str) -> None:
        super().__init__()
        self._what = plain(what)
        self._next_s = 0.0

    def __enter__(self) -> Progress:
        super().__enter__()
        return self

    def step(self, name: str, done: int, of: int) -> None:
        """Some of it is done."""
        now_s = time.monotonic()
        if not self.active or (now_s < self._next_s and done < of):
            return
        self._next_s = now_s + EVERY_S
        numbers = f" {name} {bar(done / of if of else 1.0, 20, self.unicode)} {done:,} of {of:,}"
        room = self.columns - len(numbers) - 1
        self.show(f"{self._what if len(self._what) <= room else '…' + self._what[1 - room :]}{numbers}")


def problem(text: str) -> None:
    """Something that somebody should look at."""
    click.echo(plain(text), err=True)


def plain(text: str) -> str:
    """Without control characters: a name comes from elsewhere, and a terminal obeys what is written to it."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
