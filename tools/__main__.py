"""``python -m alpose.tools``: the same as ``alpose-harvest``."""

from .cli import main

main()
