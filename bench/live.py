"""What the live page costs the camera's thread.

``python -m bench.live BUNDLE`` watches the same 1080p frames, 30 a second, without a page, with a page that nobody looks at, and
with one that a browser would poll (a picture five times a second, its numbers once). It tells the time of the whole call, and of
what the call does for the page.
"""

from __future__ import annotations

import http.client
import threading
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from alpose.runtime import Monitor
from alpose.runtime.io import write_json
from alpose.runtime.telemetry.live import LivePage
from alpose.trainer.device import device_context, environment

WAYS = ("no page", "nobody looks", "somebody looks")
FPS = 30


class Timed(LivePage):
    """A page that notes how long the camera's thread was busy with it."""

    seconds: list[float]

    def see(self, frames: Any, verdicts: Any) -> None:
        """As it is, timed."""
        began_s = time.perf_counter()
        super().see(frames, verdicts)
        self.seconds.append(time.perf_counter() - began_s)


def look(page: LivePage, stop: threading.Event) -> None:
    """Poll like the page's script."""
    at = page.url.removeprefix("http://").rstrip("/")
    turn = 0
    while not stop.wait(0.2):
        for path in ("/picture", *(["/state.json"] if turn % 5 == 0 else [])):
            connection = http.client.HTTPConnection(at, timeout=10)
            connection.request("GET", path)
            connection.getresponse().read()
            connection.close()
        turn += 1


def summary(seconds: list[float]) -> dict[str, float]:
    """Microseconds."""
    return {f"p{share}_us": round(1e6 * float(np.percentile(seconds, share)), 1) for share in (50, 99)}


def watch(monitor: Monitor, frames: list[Any], count: int) -> list[float]:
    """Seconds of each call, at a camera's pace."""
    seconds = []
    due_s = time.perf_counter()
    for number in range(count):
        due_s += 1 / FPS
        time.sleep(max(0.0, due_s - time.perf_counter()))
        began_s = time.perf_counter()
        monitor(frames[number % len(frames)])
        seconds.append(time.perf_counter() - began_s)
    return seconds


@click.command()
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--rounds", default=4, show_default=True)
@click.option("--frames", "count", default=150, show_default=True, help="Of each way in each round.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("bench/results/live.json"), show_default=True)
def main(bundle: Path, rounds: int, count: int, out: Path) -> None:
    """Measure, and write the result."""
    import alpose.runtime.telemetry.live as module

    module.LivePage = Timed  # type: ignore[misc]
    frames = [np.random.default_rng(n).integers(0, 256, (1080, 1920, 3), dtype=np.uint8) for n in range(4)]
    calls: dict[str, list[float]] = {way: [] for way in WAYS}
    own: dict[str, list[float]] = {way: [] for way in WAYS[1:]}
    with Monitor(bundle, frame_format="bgr", threads=1) as monitor:
        watch(monitor, frames, 30)
        for _ in range(rounds):
            for way in WAYS:
                stop = threading.Event()
                if way == WAYS[0]:
                    calls[way] += watch(monitor, frames, count)
                    continue
                with monitor.serve(0) as page:
                    page.seconds = []  # type: ignore[attr-defined]
                    browser = threading.Thread(target=look, args=(page, stop))
                    if way == WAYS[2]:
                        browser.start()
                    calls[way] += watch(monitor, frames, count)
                    own[way] += page.seconds  # type: ignore[attr-defined]
                    stop.set()
                    if way == WAYS[2]:
                        browser.join()
    result = {
        "frame": "1920 x 1080, bgr, 30 a second", "frames": rounds * count, "environment": environment(device_context("cpu")),
        "call": {way: summary(calls[way]) for way in WAYS},
        "for the page": {way: summary(own[way]) for way in WAYS[1:]},
    }  # fmt: skip
    write_json(out, result)
    for part in ("call", "for the page"):
        for way, numbers in result[part].items():  # type: ignore[attr-defined]
            click.echo(f"{part:14} {way:16} {numbers}")


if __name__ == "__main__":
    main()
