"""The ``alpose-harvest`` command. A command's module is loaded when it is called, and what it needs inside it."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Mapping
from typing import ClassVar

import click

from alpose import __version__
from alpose.runtime.command_line import LogHandler, OneLineErrors

log = logging.getLogger("alpose")


class Harvest(OneLineErrors):
    """Commands that are loaded when somebody calls them or asks for help."""

    modules: ClassVar[Mapping[str, tuple[str, str]]] = {
        "pull": ("pull", "pull"),
        "status": ("status", "status"),
        "unseal": ("unseal", "unseal"),
        "select": ("select", "select"),
        "gallery": ("gallery", "gallery"),
        "export": ("export", "export"),
        "import": ("import_", "import_"),
        "report": ("report", "report"),
    }
    """Module and attribute of each command, in the order of work."""
    packages: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("apsw", "aiohttp", "cv2", "fsspec", "jinja2", "matplotlib", "paramiko", "s3fs", "scipy", "tqdm"), "harvest"
    ) | {"nacl": "crypto", "PIL": "harvest"}
    wanted_by: ClassVar[str] = "alpose-harvest"
    interrupted: ClassVar[str] = "Stopped. The same command goes on from here."

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of work."""
        return list(self.modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load one."""
        if cmd_name not in self.modules:
            return None
        module, attribute = self.modules[cmd_name]
        if importlib.util.find_spec(f"{__package__}.commands.{module}") is None:
            return _absent(cmd_name)
        command = getattr(importlib.import_module(f".commands.{module}", __package__), attribute, None)
        return command if isinstance(command, click.Command) else _absent(cmd_name)


def _absent(name: str) -> click.Command:
    """A command that this installation does not have: an error when it is called, not for the others' help."""

    @click.command(name, help="(not in this installation)", context_settings={"ignore_unknown_options": True})
    @click.argument("anything", nargs=-1, type=click.UNPROCESSED)
    def command(anything: tuple[str, ...]) -> None:
        raise click.ClickException(f"this installation has no command {name}: update alpose")

    return command


@click.group(
    cls=Harvest,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 110,
        "auto_envvar_prefix": "ALPOSE",
    },
)
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
    log.setLevel(logging.DEBUG if verbose else logging.INFO)
    if not log.handlers:
        log.addHandler(LogHandler())  # above the line of progress
