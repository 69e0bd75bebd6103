"""How often ``track=True`` has the person in its crop: on a video whose people were labelled by hand, and on rendered people who walk.

    python -m bench.tracking VIDEO.mp4 tests/fixtures/video-people.json --net lsp=lsp.alpose --net movenet=movenet.alpose
    python -m bench.tracking --walking 4 --net lsp=lsp.alpose

A frame counts as covered when the crop holds nine tenths of the person's box and is no longer than two and a half times the
box's longer side: a search window of the whole frame covers everybody and helps nobody. Frames in which less than a third of
the person is in the picture are left out. The tracker is tuned on rendered people (:mod:`bench.parts.walking`), the video judges.
``--name`` says which tracker it was, so that two checkouts can be compared in one file.

Shapes: boxes are (x0, y0, x1, y1) in frame pixels.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import numpy.typing as npt

from alpose import runtime

from .parts.walking import CAMERAS, FPS, Scene

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


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """A frame, RGB, at a time, and who is on it if that is known."""

    frame_HW3: npt.NDArray[np.uint8]
    time_s: float
    index: int
    known: bool
    box_4: Box | None


def filmed(video: Path, document: dict[str, Any], mirrored: bool, every: int) -> Iterator[Labelled]:
    """A video with its labels; frames without one are watched too."""
    width, rate = document["size"][0], document["frames_per_second"]
    labelled = {row["frame"]: row for row in document["labels"]}
    capture = cv2.VideoCapture(str(video))
    for index in range(round(capture.get(cv2.CAP_PROP_FRAME_COUNT))):
        read, frame_HW3 = capture.read()
        row = labelled.get(index)
        if not read or (index % every and row is None):
            continue
        box = None if row is None or row["box"] is None else row["box"]
        if box and mirrored:
            box = (width - 1 - box[2], box[1], width - 1 - box[0], box[3])
        frame_HW3 = np.ascontiguousarray(frame_HW3[:, :: -1 if mirrored else 1, ::-1])
        yield Labelled(frame_HW3, index / rate, index, row is not None and not row.get("partial"), box)


def rendered(scene: Scene) -> Iterator[Labelled]:
    """A scene of :mod:`bench.parts.walking`, every frame of it labelled."""
    for index, shot in enumerate(scene.shots()):
        yield Labelled(shot.frame_HW3, index / FPS, index, not shot.partial, shot.box_4)


def look(bundle: Path, frames: Iterable[Labelled]) -> dict[str, list[int]]:
    """The labelled frames by what the tracker did on them."""
    found: dict[str, list[int]] = {name: [] for name in ("covered", "elsewhere", "searching", "quiet", "nobody")}
    with runtime.Monitor(bundle, track=True, engine="cpu", threads=1) as monitor:
        for one in frames:
            verdict = monitor(one.frame_HW3, time_ns=10**18 + round(one.time_s * 1e9))
            if not one.known:
                continue
            followed = verdict.place in ("track", "motion")
            if one.box_4 is None:
                found["nobody" if followed else "quiet"].append(one.index)
                continue
            covered = followed and covers(verdict.box, one.box_4, monitor.bundle.crop.margin)
            found["covered" if covered else "elsewhere" if followed else "searching"].append(one.index)
    return found


def of_video(bundle: Path, video: Path, labels: Path) -> dict[str, dict[str, Any]]:
    """The numbers of each variant of the video, with the frames."""
    document = json.loads(labels.read_text())
    results: dict[str, dict[str, Any]] = {}
    for variant, (mirrored, every) in VARIANTS.items():
        found = look(bundle, filmed(video, document, mirrored, every))
        results[variant] = {**_sums({name: len(frames) for name, frames in found.items()}), **found}
    return results


def of_walking(bundle: Path, scenes: int) -> dict[str, dict[str, int]]:
    """The numbers of each camera over so many scenes."""
    results: dict[str, dict[str, int]] = {}
    for number, camera in enumerate(CAMERAS):
        counts = dict.fromkeys(("covered", "elsewhere", "searching", "quiet", "nobody"), 0)
        for seed in range(scenes):
            for name, frames in look(bundle, rendered(Scene(1000 * number + seed, camera))).items():
                counts[name] += len(frames)
        results[f"walking, {camera} camera"] = {**_sums(counts), **counts}
    return results


def _sums(counts: dict[str, int]) -> dict[str, int]:
    return {
        "people": counts["covered"] + counts["elsewhere"] + counts["searching"], "empty": counts["quiet"] + counts["nobody"]
    }  # fmt: skip


def _count(value: Any) -> int:
    return value if isinstance(value, int) else len(value)


@click.command()
@click.argument("video", type=click.Path(exists=True, path_type=Path), required=False)
@click.argument("labels", type=click.Path(exists=True, path_type=Path), required=False)
@click.option("--net", "nets", multiple=True, required=True, help="NAME=BUNDLE.alpose; may be given several times.")
@click.option("--walking", default=0, show_default=True, help="Rendered scenes for each kind of camera.")
@click.option("--name", default="now", show_default=True, help="Of this tracker in the result file.")
@click.option("--out", type=click.Path(path_type=Path), help="A JSON file to which the results are added.")
def main(
    video: Path | None, labels: Path | None, nets: tuple[str, ...], walking: int, name: str, out: Path | None
) -> None:
    """Print how many people are covered in VIDEO, whose people stand in LABELS, mirrored and with half of its frames; and in rendered scenes."""
    held: dict[str, Any] = json.loads(out.read_text()) if out is not None and out.exists() else {}
    held |= {"held": HELD, "longest": LONGEST}
    for each in nets:
        net, _, path = each.rpartition("=")
        bundle, results = Path(path), dict[str, dict[str, Any]]()
        if video is not None and labels is not None:
            held["video"] = video.name
            results |= of_video(bundle, video, labels)
        results |= of_walking(bundle, walking) if walking else {}
        net = net or bundle.stem
        for variant, row in results.items():
            print(f"{net}, {variant}: {_count(row['covered'])} of {row['people']} people covered, {_count(row['elsewhere'])} followed "
                  f"elsewhere, {_count(row['searching'])} searched for; {_count(row['nobody'])} of {row['empty']} empty frames followed",
                  flush=True)  # fmt: skip
        held.setdefault("nets", {}).setdefault(net, {}).setdefault(name, {}).update(results)
    if out is not None:
        out.write_text(json.dumps(held, separators=(",", ":")).replace('},"', '},\n"') + "\n")


if __name__ == "__main__":
    main()
