"""``python -m alpose.runtime``: the same as ``alpose-monitor``."""

from .cli import main

main(prog_name="alpose-monitor")
