"""A batch as a folder for an annotation tool: images in the order of work, the model's poses, and what to do.

::

    OUT/
      batch.json                       the batch
      images/00001_ID.jpg              the order of names is the order of work
      annotations/person_keypoints_NAME.json              coco
      annotations.zip, labels.json, README.txt            cvat
      tasks.json, interface.xml, README.txt               label-studio

Where the bundles of a batch have different skeletons, each skeleton has such a folder of its own below OUT.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from alpose.runtime.errors import DataError
from alpose.runtime.io import read_json, replacing, write_atomically, write_json
from alpose.runtime.skeleton import Skeleton

from .batch import Batch
from .dataset import Item
from .formats import FormatName, coco, cvat, label_studio
from .inbox import Inbox
from .tasks import gather

BATCH, IMAGES = "batch.json", "images"
IMAGE_URL = "/data/local-files/?d=images/"
"""How Label Studio names a file below its document root."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    folders: tuple[Path, ...]
    """One a skeleton."""
    frames: int
    missing: Mapping[str, Sequence[str]]
    """Ids without a picture that can be shown, by reason."""


def export(
    inbox: Inbox, batch: Batch, to: FormatName, out: Path, *, image_url: str = IMAGE_URL, link: bool = False
) -> Exported:
    """Write a batch for an annotation tool. Doing it again brings what has been fetched since.

    Args:
        inbox: where the pictures lie.
        batch: what was chosen.
        to: the tool.
        out: a folder that does not exist, is empty, or holds this batch already; :class:`DataError` otherwise.
        image_url: what stands before each file name in Label Studio's tasks.
        link: hard-link the images in place of copying them, where the file system can.
    """
    gathered = gather(inbox, batch)
    if not gathered:
        return Exported((), 0, gathered.missing)
    _claim(out, batch)
    models = {bundle: facts.name for bundle, facts in inbox.bundles().items()}
    several = len(gathered.items) > 1
    folders = []
    for number, (skeleton, items) in enumerate(gathered.items.items(), start=1):
        folder = out / f"{number}-{_plain(skeleton.name)}" if several else out
        _write(items, skeleton, folder, to, batch.name, image_url, _model(items, models), link)
        folders.append(folder)
    return Exported(tuple(folders), len(gathered), gathered.missing)


def _claim(out: Path, batch: Batch) -> None:
    """Say in the folder what it is, so that nothing else is written over."""
    if out.exists() and any(out.iterdir()):
        mine = (out / BATCH).exists() and Batch.from_json(read_json(out / BATCH), str(out / BATCH)) == batch
        if not mine:
            raise DataError(f"{out} holds something else than batch {batch.name!r}: give another --out, or remove it")
    write_json(out / BATCH, batch.to_json())


def _write(
    items: Sequence[Item], skeleton: Skeleton, folder: Path, to: FormatName, name: str, image_url: str, model: str,
    link: bool,
) -> None:  # fmt: skip
    (folder / IMAGES).mkdir(parents=True, exist_ok=True)
    for item in items:
        _bring(item.image, folder / IMAGES / item.task.file_name, link)
    tasks = [item.task for item in items]
    if to == "coco":
        document = coco.document(tasks, skeleton)
        write_atomically(folder / "annotations" / f"person_keypoints_{name}.json", json.dumps(document).encode())
    elif to == "cvat":
        cvat.write(tasks, skeleton, folder, name)
    else:
        label_studio.write(tasks, skeleton, folder, name, image_url, model)


def _bring(image: Path, target: Path, link: bool) -> None:
    """The picture under its new name, whole or not at all; one that is there already is left alone."""
    if target.exists() and target.stat().st_size == image.stat().st_size:
        return
    with replacing(target) as temporary:
        if link:
            with suppress(OSError):  # another file system, or one without links
                os.link(image, temporary)
        if not temporary.exists():
            shutil.copyfile(image, temporary)


def _model(items: Sequence[Item], names: Mapping[str, str]) -> str:
    """Name and hash of the bundle that predicted, or of all of them."""
    bundles = dict.fromkeys(str(item.facts["bundle"]) for item in items)
    return ", ".join(f"{names.get(bundle, 'alpose')} {bundle[:8]}" for bundle in bundles)


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)[:40]
