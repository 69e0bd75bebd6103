"""From a checkpoint, or anybody's net, to a verified bundle for devices.

Building a TensorRT engine and verifying a bundle happen on devices, where there is no torch: what needs it is imported
when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .write import export, export_checkpoint

__all__ = ["export", "export_checkpoint"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from . import write

        return getattr(write, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
