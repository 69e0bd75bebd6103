"""The pictures of README and docs, made from a finished demo: ``python -m bench.pictures runs/demo``.

It writes ``docs/pictures/``: the loop and the flow of a frame as SVG, the overlay on two rendered frames, and the tops of
four pages as a browser shows them (chromium must be installed). Each file is smaller than 80 kB.
"""

from __future__ import annotations

import itertools
import subprocess
import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path

import click
import cv2
import numpy as np
import numpy.typing as npt

from alpose.runtime.camera.overlay import Letters, Overlay
from alpose.runtime.monitor import Monitor
from alpose.runtime.skeleton import LSP
from alpose.runtime.triggers import Threshold
from alpose.runtime.types import Verdict
from alpose.trainer.data.records import PoseData
from alpose.trainer.data.synthetic import read_people

MAX_BYTES = 80_000
PAGES = {"report": "benchmark/report.html", "card": "first.alpose/card.html", "gallery": "gallery.html",
         "field": "dataset/field/report.html"}  # fmt: skip
VIEW = 1280, 800
SHOWN_WIDTH = 960
DRAWN_SIDE, SIDE = 640, 440
"""Of a rendered frame where the overlay is drawn, and in the picture."""

Image = npt.NDArray[np.uint8]
Box = tuple[str, str, int, int]
"""Heading, small words, left, top."""

STYLE = """
text{font:13px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;fill:#1c2430}
.head{font-weight:650;font-size:16px}.small{fill:#5a6574;font-size:12px}.file{fill:#00569c;font-size:12px}
rect{fill:#f5f7f9;stroke:#c9d0d9}path{fill:none;stroke:#5a6574;stroke-width:1.6}marker path{fill:#5a6574;stroke:none}
@media (prefers-color-scheme:dark){text{fill:#e8edf4}.small{fill:#9ba8b9}.file{fill:#7ab8ff}
rect{fill:#18202a;stroke:#3a4553}path{stroke:#9ba8b9}marker path{fill:#9ba8b9}}
"""
WIDTH, HEIGHT = 200, 62

LOOP_BOXES: tuple[Box, ...] = (
    ("train", "a pose net and its loss head", 0, 0), ("export", "one calibrated ONNX graph", 320, 0),
    ("watch", "on the device: flag failures", 640, 0), ("harvest", "pull from the fleet, choose", 640, 124),
    ("annotate", "CVAT, Label Studio, COCO", 320, 124), ("measure", "accuracy in the field", 0, 124),
)  # fmt: skip
LOOP_ARROWS = ((0, 1, "checkpoint"), (1, 2, "bundle"), (2, 3, "queue"), (3, 4, "batch"), (4, 5, "dataset"),
               (5, 0, "dataset"))  # fmt: skip
FRAME_BOXES: tuple[Box, ...] = (
    ("take", "frames.py: from CPU or GPU", 0, 0), ("locate", "tracking.py: where to look", 320, 0),
    ("cut", "crop.py: exact resampling", 640, 0), ("infer", "engines/: one graph", 640, 124),
    ("decide", "triggers/: keep this frame?", 320, 124), ("record", "recording.py, queue/", 0, 124),
)  # fmt: skip
FRAME_ARROWS = ((0, 1, "frame"), (1, 2, "box"), (2, 3, "uint8 crop"), (3, 4, "Outputs"), (4, 5, "Decision"))


def diagram(boxes: Sequence[Box], arrows: Sequence[tuple[int, int, str]], label: str) -> str:
    """Boxes and the files or values that go from one to the next, light and dark."""
    parts = []
    for head, small, x, y in boxes:
        parts.append(f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="9"/>'
                     f'<text class="head" x="{x + 14}" y="{y + 26}">{escape(head)}</text>'
                     f'<text class="small" x="{x + 14}" y="{y + 46}">{escape(small)}</text>')  # fmt: skip
    for start, end, words in arrows:
        (_, _, x0, y0), (_, _, x1, y1) = boxes[start], boxes[end]
        if y0 == y1:
            left, right = (x0 + WIDTH + 6, x1 - 12) if x1 > x0 else (x0 - 6, x1 + WIDTH + 12)
            middle = y0 + HEIGHT // 2
            path, place = (
                f"M{left} {middle}H{right}",
                f'x="{(left + right) // 2}" y="{middle - 8}" text-anchor="middle"',
            )
        else:
            top, bottom = (y0 + HEIGHT + 6, y1 - 12) if y1 > y0 else (y0 - 6, y1 + HEIGHT + 12)
            x = x0 + WIDTH // 2
            path, place = f"M{x} {top}V{bottom}", f'x="{x + 10}" y="{(top + bottom) // 2 + 4}"'
        parts.append(f'<path d="{path}" marker-end="url(#end)"/><text class="file" {place}>{escape(words)}</text>')
    width, height = max(x for *_, x, _ in boxes) + WIDTH, max(y for *_, y in boxes) + HEIGHT
    marker = '<marker id="end" viewBox="0 0 8 8" refX="4" refY="4" markerWidth="7" markerHeight="7" orient="auto"><path d="M0 0l8 4-8 4z"/></marker>'
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-4 -4 {width + 8} {height + 8}" role="img" '
            f'aria-label="{escape(label)}"><style>{STYLE}</style><defs>{marker}</defs>{"".join(parts)}</svg>\n')  # fmt: skip


def overlay(bundle: Path) -> Image:
    """The surest pose and the most probable failure of some rendered people, as an annotated video shows them."""
    shown = []
    with Monitor(bundle, trigger=Threshold(0.4)) as monitor:
        for domain in ("easy", "hard"):
            people = read_people(seed=77, count=40, domain=domain)
            seen = []
            for row in range(len(people)):
                frame_HW3, box = square(people, row)
                if box[0] >= 0 and box[1] >= 0 and max(box) <= len(frame_HW3):
                    seen.append((monitor(frame_HW3, box=box), frame_HW3))
            best = (min if domain == "easy" else max)(seen, key=lambda pair: pair[0].failure_probability)
            shown.append(draw(*best))
    return np.concatenate(shown, axis=1)


def square(people: PoseData, row: int) -> tuple[Image, tuple[float, float, float, float]]:
    """The largest square of a frame around its person, and the person's box in it."""
    image_HW3 = people.image(row)
    x0, y0, x1, y1 = people.boxes_N4[row].tolist()
    side = min(image_HW3.shape[:2])
    left, top = (round(min(max(centre - side / 2, 0), length - side))
                 for centre, length in (((x0 + x1) / 2, image_HW3.shape[1]), ((y0 + y1) / 2, image_HW3.shape[0])))  # fmt: skip
    frame_HW3 = np.ascontiguousarray(image_HW3[top : top + side, left : left + side])
    return frame_HW3, (x0 - left, y0 - top, x1 - left, y1 - top)


def draw(verdict: Verdict, frame_HW3: Image) -> Image:
    """One frame with its overlay, BGR."""
    scale = DRAWN_SIDE / len(frame_HW3)
    large = np.asarray(cv2.resize(frame_HW3, (DRAWN_SIDE, DRAWN_SIDE), interpolation=cv2.INTER_CUBIC), dtype=np.uint8)
    drawn = Overlay(LSP, Letters(cv2)).draw(large[..., ::-1], verdict, 0.0, scale=scale, threshold=0.4)
    height = SIDE * len(drawn) // DRAWN_SIDE
    return np.asarray(cv2.resize(drawn, (SIDE, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def screenshot(page: Path, browser: str) -> Image:
    """The top of a page as a browser shows it, BGR."""
    with tempfile.TemporaryDirectory() as scratch:
        picture = Path(scratch) / "page.png"
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                   "--virtual-time-budget=8000", f"--window-size={VIEW[0]},{VIEW[1]}", f"--screenshot={picture}",
                   page.resolve().as_uri()]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        image = cv2.imread(str(picture))
    assert image is not None, f"{browser} made no picture of {page}"
    height = SHOWN_WIDTH * VIEW[1] // VIEW[0]
    return np.asarray(cv2.resize(image, (SHOWN_WIDTH, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def webp(image_bgr_HW3: Image) -> bytes:
    """The picture in at most ``MAX_BYTES``, at the best quality that allows it."""
    for quality in itertools.count(90, -5):
        data = cv2.imencode(".webp", image_bgr_HW3, [cv2.IMWRITE_WEBP_QUALITY, quality])[1].tobytes()
        if len(data) < MAX_BYTES:
            return data
    raise AssertionError


@click.command()
@click.argument("demo", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--out", default="docs/pictures", show_default=True, type=click.Path(path_type=Path, file_okay=False))
@click.option("--browser", default="chromium", show_default=True)
def main(demo: Path, out: Path, browser: str) -> None:
    """Make all pictures from the folder that the demo filled."""
    out.mkdir(parents=True, exist_ok=True)
    loop = diagram(LOOP_BOXES, LOOP_ARROWS, "train, export, watch, harvest, annotate, measure, and train again")
    (out / "loop.svg").write_text(loop, encoding="utf-8")
    frame = diagram(FRAME_BOXES, FRAME_ARROWS, "the way of a frame through runtime/pipeline.py")
    (out / "frame.svg").write_text(frame, encoding="utf-8")
    (out / "overlay.webp").write_bytes(webp(overlay(demo / "first.alpose")))
    for name, page in PAGES.items():
        (out / f"{name}.webp").write_bytes(webp(screenshot(demo / page, browser)))
    for file in sorted(out.iterdir()):
        click.echo(f"{file}: {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
