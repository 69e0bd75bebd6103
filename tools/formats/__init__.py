"""Annotation formats: one file each, and the registry of all of them.

A format writes a batch for its tool and reads what the tool gives back. It knows nothing of inboxes and datasets: sizes of
pictures, the order of joints and who was meant are sorted out by :mod:`alpose.tools.annotation.importing` for all formats alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from alpose.runtime.errors import ConfigError, DataError

from ..batch import KIND as BATCH_KIND
from ..labels import Answers, FindId, Handout
from .coco import Coco, is_coco
from .cvat import Cvat
from .files import README, SUFFIXES, TEXT, LabelFile
from .label_studio import LabelStudio
from .yolo import YoloPose


class Format(Protocol):
    """What an annotation tool takes and gives.

    One that has ``several_people = True`` takes tasks with several people (``Task.people``); any other gets a task and a
    picture for each. One that writes files beside its labels whose names end as those of labels do has
    ``beside(file) -> bool``, which knows them again: they come back with the folder, and hold no answers.
    """

    name: str
    """As ``alpose-harvest export --to`` calls it."""
    returns: str
    """What to call the file that comes back, in the instructions for people."""

    @property
    def suffixes(self) -> Sequence[str]:
        """How the names of its label files end, to find them in archives and folders. A format without it reads ``.json``."""
        return SUFFIXES

    def write(self, handout: Handout, folder: Path) -> None:
        """Write tasks with the model's poses; the images lie in ``folder / "images"`` under their tasks' names."""
        ...

    def detect(self, file: LabelFile) -> bool:
        """Whether a file that came back is of this format, by its content. At most one format says so."""
        ...

    def read(self, file: LabelFile, find_id: FindId) -> Answers:
        """What annotators said. What cannot be used is named among the problems, and the rest goes on.

        :class:`DataError` where the whole file cannot be relied on. ``find_id`` finds the record's id in a file name.
        """
        ...


class Unrecognised(DataError):
    """No format knows a file: alone that is an error, and beside files with labels it is passed over by name."""


FORMATS: dict[str, Format] = {}
"""Every annotation format, by name."""


def register(format_: Format) -> None:
    """Add a format; one with the same name is replaced."""
    FORMATS[format_.name] = format_


def format_named(name: str) -> Format:
    """The format of that name; :class:`ConfigError` lists the known ones."""
    if name not in FORMATS:
        raise ConfigError(f"unknown annotation format {name!r}; known: {', '.join(FORMATS)}")
    return FORMATS[name]


def label_suffixes() -> tuple[str, ...]:
    """How the names of label files of all formats end."""
    return tuple(dict.fromkeys(one for format_ in FORMATS.values() for one in getattr(format_, "suffixes", SUFFIXES)))


def is_aside(file: LabelFile) -> bool:
    """Whether a file is one that an export wrote beside the labels: the batch, or what a format says of itself."""
    batch = isinstance(file.value, dict) and file.value.get("kind") == BATCH_KIND
    readme = file.name.endswith(README) and "alpose-harvest import" in file.text
    return batch or readme or any(format_.beside(file) for format_ in FORMATS.values() if hasattr(format_, "beside"))


def format_of(file: LabelFile) -> Format:
    """The format that recognises a file; :class:`Unrecognised` where none does, with what the file lacks."""
    for format_ in FORMATS.values():
        if format_.detect(file):
            return format_
    if file.name.lower().endswith(TEXT):
        hint = "a label file of YOLO-pose has a line of numbers for each person"
    elif file.problem is not None:
        hint = file.problem
    elif isinstance(file.value, list):
        hint = "Label Studio's tasks are exported as JSON, not as JSON-MIN; a COCO file needs its images and categories"
    elif is_coco(file.value):
        hint = (
            "it lacks one category with keypoints, and nobody in it has joints; from CVAT, export as COCO Keypoints 1.0"
        )
    else:
        hint = "a COCO file needs the lists images, annotations, categories"
    raise Unrecognised(f"{file.name}: no known format ({', '.join(FORMATS)}) recognises it; {hint}")


for known in (Coco(), Cvat(), LabelStudio(), YoloPose()):
    register(known)

__all__ = [
    "FORMATS", "Format", "LabelFile", "Unrecognised", "format_named", "format_of", "is_aside", "label_suffixes", "register",
]  # fmt: skip
