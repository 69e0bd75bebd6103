"""How often ``track=True`` has the person in its crop: a bundle on a video whose people were labelled by hand.

    python -m bench.tracking lsp.alpose VIDEO.mp4 tests/fixtures/video-people.json --name now --out bench/results/tracking.json

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


VARIANTS = {"as it is": (False, 1), "mirrored": (True, 1), "every second frame": (False, 2)}


def look(bundle: Path, video: Path, document: dict[str, Any], mirrored: bool, every: int) -> dict[str, list[int]]:
    """The labelled frames by what the tracker did on them."""
    width = document["size"][0]
    labelled = {row["frame"]: row for row in document["labels"]}
    found: dict[str, list[int]] = {name: [] for name in ("covered", "elsewhere", "searching", "quiet", "nobody")}
    capture = cv2.VideoCapture(str(video))
    with runtime.Monitor(bundle, track=True, engine="cpu", threads=1, frame_format="bgr") as monitor:
        for index in range(round(capture.get(cv2.CAP_PROP_FRAME_COUNT))):
            read, frame_HW3 = capture.read()
            row = labelled.get(index)
            if not read or (index % every and row is None):
                continue
            if mirrored:
                frame_HW3 = frame_HW3[:, ::-1].copy()
            verdict = monitor(frame_HW3, time_ns=10**18 + round(index * 1e9 / document["frames_per_second"]))
            if row is None or row.get("partial"):
                continue
            followed = verdict.place in ("track", "motion")
            if row["box"] is None:
                found["nobody" if followed else "quiet"].append(index)
                continue
            x0, y0, x1, y1 = row["box"]
            box_4 = (width - 1 - x1, y0, width - 1 - x0, y1) if mirrored else (x0, y0, x1, y1)
            covered = followed and covers(verdict.box, box_4, monitor.bundle.crop.margin)
            found["covered" if covered else "elsewhere" if followed else "searching"].append(index)
    return found


@click.command()
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.argument("video", type=click.Path(exists=True, path_type=Path))
@click.argument("labels", type=click.Path(exists=True, path_type=Path))
@click.option("--name", help="Of this checkout in the result file.")
@click.option("--out", type=click.Path(path_type=Path), help="A JSON file to which the result is added under --name.")
def main(bundle: Path, video: Path, labels: Path, name: str | None, out: Path | None) -> None:
    """Print how many of the labelled frames are covered: as they are, mirrored, and with every second frame left out."""
    document: dict[str, Any] = json.loads(labels.read_text())
    results = {}
    for variant, (mirrored, every) in VARIANTS.items():
        found = look(bundle, video, document, mirrored, every)
        people = len(found["covered"]) + len(found["elsewhere"]) + len(found["searching"])
        empty = len(found["quiet"]) + len(found["nobody"])
        print(f"{variant}: {len(found['covered'])} of {people} people covered, {len(found['elsewhere'])} followed elsewhere, "
              f"{len(found['searching'])} searched for; {len(found['nobody'])} of {empty} empty frames followed")  # fmt: skip
        results[variant] = {"people": people, "empty": empty, **found}
    if out is not None:
        held = (
            json.loads(out.read_text())
            if out.exists()
            else {"video": video.name, "bundle": bundle.name, "held": HELD, "longest": LONGEST}
        )
        held[name or "now"] = results
        out.write_text(json.dumps(held, indent=None, separators=(",", ":")).replace('},"', '},\n"') + "\n")


if __name__ == "__main__":
    main()
