"""``python -m alpose.trainer``: the same as ``alpose-train``, for ``torchrun -m``."""

from .cli import main

main()
