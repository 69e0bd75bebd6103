"""``python -m alpose.export``: the same as ``alpose-export``."""

from .cli import main

main()
