"""``python -m alpose.runtime``: the same as ``alpose-monitor``."""

from .commands import main

main(prog_name="alpose-monitor")
