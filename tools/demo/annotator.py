"""An annotator who knows the truth: corrects an exported batch as people do in a tool."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from alpose.runtime.io import read_json

from ..annotation import id_in
from ..formats import coco
from ..inbox import Inbox
from .devices import Stream


def correct(batch: Path, inbox: Inbox, streams: Mapping[str, Stream]) -> Path:
    """Put every joint of a COCO batch where it truly is; hidden ones are marked so. Returns the corrected file."""
    (path,) = (batch / "annotations").glob("*.json")
    document: dict[str, Any] = read_json(path)
    names = {image["id"]: str(image["file_name"]) for image in document["images"]}
    for annotation in document["annotations"]:
        id_ = id_in(names[annotation["image_id"]])
        assert id_ is not None
        (entry,) = inbox.entries([id_])
        stream = streams[entry.record.device]
        data, row = stream.person(stream.number_of(entry.record.captured_ns))
        frame = next(fact for fact in entry.pictures if fact.position == 0)
        image_J2 = (data.joints_NJ2[row] - np.asarray(frame.origin)) / frame.scale - 0.5
        visibility_J = np.where(data.labelled_NJ[row], np.where(data.visible_NJ[row], 2, 1), 0)
        annotation["keypoints"] = coco.flat(image_J2, visibility_J)
        annotation["num_keypoints"] = int((visibility_J > 0).sum())
    corrected = batch / "corrected.json"
    corrected.write_text(json.dumps(document))
    return corrected
