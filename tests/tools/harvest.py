"""The command as people call it, and an annotator who works on its files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner, Result

from alpose.tools.cli import main
from alpose.tools.inbox import Inbox
from alpose.tools.pull.pull import pull
from alpose.tools.pull.sources import LocalSource

BUDGET = 10


def call(*arguments: object, fails: bool = False) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert (result.exit_code != 0) == fails, result.output
    return result


def value_of(result: Result) -> Any:
    return json.loads(result.stdout)


def bring(inbox: Path, queue: Path, **options: Any) -> None:
    with Inbox(inbox, create=True) as opened:
        pull(opened, LocalSource(queue), **options)


def correct(path: Path, moves: dict[str, Callable[[Any], None]], out: Path) -> Path:
    """An annotator on a COCO file: ``moves`` change the joints (J, 3) of some frames; other frames stay."""
    document = json.loads(path.read_text())
    names = {image["id"]: image["file_name"] for image in document["images"]}
    for annotation in document["annotations"]:
        for id_, move in moves.items():
            if id_ in names[annotation["image_id"]]:
                joints_J3 = np.array(annotation["keypoints"], dtype=np.float64).reshape(-1, 3)
                move(joints_J3)
                annotation["keypoints"] = joints_J3.ravel().tolist()
    out.write_text(json.dumps(document))
    return out


def nudge(joint: int, by_px: float) -> Callable[[Any], None]:
    def move(joints_J3: Any) -> None:
        joints_J3[joint] = [joints_J3[joint][0] + by_px, joints_J3[joint][1], 2]

    return move
