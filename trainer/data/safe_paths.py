"""Names that come from outside: nothing that stands in an archive, in JSON or in a MATLAB file leaves its folder."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath

from alpose.runtime.errors import DataError


def inside(folder: Path, name: str, source: Path) -> Path:
    """``folder / name``, refused when a name that came from a file would leave the folder.

    Args:
        folder: where the name belongs.
        name: what ``source`` holds.
        source: the file that the name came from, for the message.
    """
    windows = PureWindowsPath(name)
    if not name or "\0" in name or windows.drive or windows.root or ".." in windows.parts:
        raise DataError(
            f"{source}: the name {name!r} leaves the folder {folder}; it must be relative, without '..'. "
            "Nothing was read or written there"
        )
    return folder / PurePosixPath(name)
