"""The ``alpose-harvest`` command. What a command needs is loaded inside it, so that help is quick and needs no extra."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any, ClassVar

import click

from alpose import __version__
from alpose.runtime.command_line import WITH_ENVIRONMENT, OneLineErrors, show_log

from .commands.annotation import export, import_, report
from .commands.frames import gallery, mcap, select
from .commands.pull import pull, status, unseal


class Harvest(OneLineErrors):
    """The commands in the order of work."""

    packages: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("apsw", "aiohttp", "cv2", "fsspec", "jinja2", "matplotlib", "paramiko", "s3fs", "scipy", "tqdm"), "harvest"
    ) | {"nacl": "crypto", "PIL": "harvest"}
    wanted_by: ClassVar[str] = "alpose-harvest"
    interrupted: ClassVar[str] = "Stopped. The same command goes on from here."

    def invoke(self, ctx: click.Context) -> Any:
        """Also of an inbox whose database was damaged where nothing had looked before."""
        try:
            return super().invoke(ctx)
        except sqlite3.Error as error:
            raise click.ClickException(
                f"the database of the inbox cannot be used: {error}. Restore its inbox.db, or pull into another folder"
            ) from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of work."""
        return list(self.commands)


@click.group(cls=Harvest, context_settings=WITH_ENVIRONMENT)
@click.version_option(__version__, prog_name="alpose-harvest")
@click.option("-v", "--verbose", is_flag=True, help="Also log what is tried and passed over.")
def main(verbose: bool) -> None:
    """From a fleet's queues to annotated data.

    \b
    alpose-harvest pull car-17/flagged.db --into inbox/
    alpose-harvest select inbox/ --budget 500
    alpose-harvest export inbox/ --to cvat
    alpose-harvest import exported.zip --into dataset/
    alpose-harvest report dataset/

    Every option can be given by the environment: ALPOSE_SELECT_BUDGET is --budget of select.

    Exit status of every command: 0 well done, 1 an error, 2 wrong usage.
    """
    show_log(verbose)


for command in (pull, status, unseal, select, gallery, mcap, export, import_, report):
    main.add_command(command)
