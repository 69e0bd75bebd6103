"""A file that came back from annotators, whatever tool wrote it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from alpose.runtime.skeleton import Skeleton

from ..annotation import Answers
from . import coco, label_studio


@dataclass(frozen=True, slots=True, eq=False)
class Incoming:
    """Parsed, and not yet understood."""

    path: Path
    form: Literal["coco", "label-studio"]
    """CVAT's is COCO."""
    documents: coco.Documents

    @property
    def ids(self) -> frozenset[str]:
        """Ids of the records that the file speaks of."""
        return label_studio.ids_of(self.documents) if self._listed else coco.ids_of(self.documents)

    @property
    def joints(self) -> tuple[str, ...]:
        """Names of the joints in it."""
        return label_studio.joints_of(self.documents) if self._listed else coco.joints_of(self.documents)

    def read(self, skeleton: Skeleton) -> Answers:
        """What it says."""
        read = label_studio.read_documents if self._listed else coco.read_documents
        return read(self.documents, skeleton)

    @property
    def _listed(self) -> bool:
        return self.form == "label-studio"


def open_incoming(path: Path) -> Incoming:
    """Parse a file or an archive and tell its format by its content: Label Studio writes a list, COCO an object."""
    found = coco.documents(path)
    return Incoming(path, "label-studio" if isinstance(found[0][1], list) else "coco", found)
