"""The ``alpose-monitor`` command. What a command needs is imported inside it: ``--help`` answers at once."""

from __future__ import annotations

import click

from alpose import __version__

from ..command_line import WITH_ENVIRONMENT, OneLineErrors, show_log
from .doctor import doctor
from .queue import queue
from .replay import replay_command as replay
from .run import run


@click.group(cls=OneLineErrors, context_settings=WITH_ENVIRONMENT)
@click.version_option(__version__, prog_name="alpose-monitor")
@click.option("-v", "--verbose", is_flag=True, help="Also log what is tried and passed over.")
def main(verbose: bool) -> None:
    """Watch a camera with a bundle, keep the frames on which its model is wrong, and look after them.

    \b
    alpose-monitor run driver.alpose --source 0 --track --queue flagged.db --budget 20/hour
    alpose-monitor queue ls flagged.db          what was kept, and why
    alpose-monitor replay flagged.db --trigger "Episodes(Budget(50))"
    alpose-monitor doctor driver.alpose         does everything work on this machine?

    Every option can be given by the environment: ALPOSE_RUN_QUEUE is --queue of run.

    Exit status of every command: 0 success, 1 an error or something FAILED, 2 wrong usage; run has one more.
    """
    show_log(verbose)


for command in (run, queue, replay, doctor):
    main.add_command(command)
