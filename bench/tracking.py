"""How often ``track=True`` has the person in its crop: a bundle on a video whose people were labelled by hand.

    python -m bench.tracking lsp.alpose VIDEO.mp4 tests/fixtures/video-people.json [--show OUT.mp4]

A frame counts as covered when the crop holds nine tenths of the person's box and is no longer than two and a half times the
box's longer side: a search window of the whole frame covers everybody and helps nobody. Frames in which less than a third of
the person is in the picture are left out. Runs in any checkout that has ``Monitor(track=True)``, so that two can be compared.

Shapes: boxes are (x0, y0, x1, y1) in frame pixels.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import cv2

from alpose import runtime

Box = tuple[float, float, float, float]
HELD, LONGEST = 0.9, 2.5


def covers(place_4: Box, person_4: Box, margin: float) -> bool:
    """Whether the square crop around a place holds the person and shows them large enough."""
    x0, y0, x1, y1 = place_4
    side, reach = max(x1 - x0, y1 - y0) * margin, max(x1 - x0, y1 - y0) * margin / 2
    crop_4 = ((x0 + x1) / 2 - reach, (y0 + y1) / 2 - reach, (x0 + x1) / 2 + reach, (y0 + y1) / 2 + reach)
    wide = max(0.0, min(crop_4[2], person_4[2]) - max(crop_4[0], person_4[0]))
    high = max(0.0, min(crop_4[3], person_4[3]) - max(crop_4[1], person_4[1]))
    area = (person_4[2] - person_4[0]) * (person_4[3] - person_4[1])
    longer = max(person_4[2] - person_4[0], person_4[3] - person_4[1])
    return wide * high >= HELD * area and side <= LONGEST * longer


@click.command()
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.argument("video", type=click.Path(exists=True, path_type=Path))
@click.argument("labels", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--mirrored", is_flag=True, help="Mirror every frame and label: the same people on a video not seen before."
)
@click.option("--every", default=1, help="Look at each nth frame only, as a slower camera would.")
def main(bundle: Path, video: Path, labels: Path, mirrored: bool, every: int) -> None:
    """Print how many of the labelled frames are covered, and where the others were looked at."""
    document: dict[str, Any] = json.loads(labels.read_text())
    width = document["size"][0]
    labelled = {row["frame"]: row for row in document["labels"]}
    found: dict[str, list[int]] = {
        "covered": [],
        "tracked elsewhere": [],
        "searching": [],
        "tracked nobody": [],
        "quiet": [],
    }
    capture = cv2.VideoCapture(str(video))
    monitor = runtime.Monitor(bundle, track=True, engine="cpu", threads=1, frame_format="bgr")
    index = 0
    while True:
        read, frame_HW3 = capture.read()
        if not read:
            break
        row = labelled.get(index)
        if index % every == 0 or row is not None:
            if mirrored:
                frame_HW3 = frame_HW3[:, ::-1].copy()
            verdict = monitor(frame_HW3, time_ns=10**18 + round(index * 1e9 / document["frames_per_second"]))
            if row is not None and not row.get("partial"):
                box = row["box"]
                if box is not None and mirrored:
                    box = [width - 1 - box[2], box[1], width - 1 - box[0], box[3]]
                tracked = verdict.place == "track"
                if box is None:
                    found["tracked nobody" if tracked else "quiet"].append(index)
                elif tracked and covers(verdict.box, tuple(box), monitor.bundle.crop.margin):
                    found["covered"].append(index)
                else:
                    found["tracked elsewhere" if tracked else "searching"].append(index)
        index += 1
    monitor.close()
    people = sum(len(found[name]) for name in ("covered", "tracked elsewhere", "searching"))
    print(f"{bundle.name} on {video.name}{' (mirrored)' if mirrored else ''}, every {every}. frame")
    print(f"  with a person: {len(found['covered'])} of {people} covered ({100 * len(found['covered']) / people:.0f} %), "
          f"{len(found['tracked elsewhere'])} tracked elsewhere, {len(found['searching'])} searching")  # fmt: skip
    print(f"  empty: {len(found['quiet'])} quiet, {len(found['tracked nobody'])} tracked nobody")
    for name in ("tracked elsewhere", "searching", "tracked nobody"):
        print(f"  {name}: {found[name]}")


if __name__ == "__main__":
    main()
