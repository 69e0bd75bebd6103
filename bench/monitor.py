"""What watching costs: the whole Monitor beside the bare pose session, frame by frame in one run.

``python -m bench.monitor --video FILE --bundle NAME.alpose``; docs/benchmarks.md says what is timed. Everybody gets the
same frame in the same round, every second round in the opposite order; the queue is on disk and is written meanwhile.

Shapes: R rounds, P samples of the memory, J joints.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from scipy import stats

from alpose.runtime import Monitor, Queue, Verdict
from alpose.runtime.bundle import Bundle
from alpose.runtime.crop import cut
from alpose.runtime.engines.onnx import OnnxEngine
from alpose.runtime.io import write_json
from alpose.runtime.types import OUTPUT_NAMES, Outputs
from alpose.trainer.device import device_context

from .parts.export_contestants import maps_name, session, shorten
from .parts.footage import HEIGHT, PERSON, WIDTH, Footage, Recorded, box_of, footage, place_of, policy, random_bundle
from .parts.measure import RESULTS, Bench, Clock, Task, interleave, load_average, machine_facts, paired, spread, table

Seconds = npt.NDArray[np.float64]

POSE, HEAD, APP, WATCHED = "pose", "pose + loss head", "app without monitor", "Monitor"
OUTSIDE, APP_OUTSIDE, RTMLIB = "Monitor, outside inference", "app, outside inference", "rtmlib, outside inference"
MOVING = "app, outside inference, box moves"

SAYS = {
    POSE: "a bare ONNX Runtime session: the graph cut after keypoints and scores, on a crop that was cut before",
    HEAD: "the same session with the whole graph: loss head, entropy, calibration, embedding",
    APP: "what an app does anyway: cut the person from the frame, run the bare pose session, joints to frame pixels",
    WATCHED: "monitor(frame, box): the same with the whole graph, signals, trigger, drift, score log, and a queue on disk",
    OUTSIDE: "the Monitor's own share of the calls above: all of the call but the engine's answer",
    APP_OUTSIDE: "the app without the session",
    MOVING: "the same with another box on every frame: nothing of the last crop can be used again",
    RTMLIB: "rtmlib's ViTPose around the same net: its warp, normalisation and layout, and its decoding of the heatmaps",
}
RATIOS = ((HEAD, POSE), (WATCHED, APP), (WATCHED, HEAD), (OUTSIDE, RTMLIB), (OUTSIDE, APP_OUTSIDE))
"""Time of the first over that of the second: above 1 the first is slower."""

CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.thread_time}

BLOCKS = 20
"""Parts of the run: a ratio is taken in each."""
SETTLED = 0.5
"""Share of the memory's samples that are left out at the start: the queue, SQLite's caches and the allocator's arenas
fill up once, and go on doing so for several 100,000 frames."""


# --- Who runs


class ClockedEngine:
    """The engine of a bundle, and how long its last answer took by some clock."""

    def __init__(self, engine: OnnxEngine, clock: Clock) -> None:
        self.name, self.last_s = engine.name, 0.0
        self._engine, self._clock = engine, clock

    def __call__(self, frames_NHW3: npt.NDArray[np.uint8]) -> Outputs:
        """Answer."""
        began_s = self._clock()
        outputs = self._engine(frames_NHW3)
        self.last_s = self._clock() - began_s
        return outputs


@dataclass(slots=True)
class Watch:
    """The Monitor as a task that remembers what it spent outside of its engine."""

    monitor: Monitor
    engine: ClockedEngine
    frames: Iterator[npt.NDArray[np.uint8]]
    clock: Clock
    outside_s: list[float]

    def __call__(self) -> Verdict:
        """Watch the next frame."""
        frame_HW3, began_s = next(self.frames), self.clock()
        verdict = self.monitor(frame_HW3, box_of(self.monitor.bundle))
        self.outside_s.append(self.clock() - began_s - self.engine.last_s)
        return verdict


def line_up(
    bundle: Bundle, film: Footage, watch: Watch, folder: Path, threads: int
) -> tuple[dict[str, Task], dict[str, str]]:
    """Everybody as a task that goes on to its next frame at every call; and who is missing, with the reason."""
    crop, pose_path, maps_path = place_of(bundle), folder / "pose.onnx", folder / "maps.onnx"
    shorten(bundle.model_path, pose_path, OUTPUT_NAMES[:2])
    pose, whole = session(pose_path, threads), OnnxEngine(bundle, threads=threads)
    crops = [cut(frame_HW3, crop)[None] for frame_HW3 in film.frames]
    x0, y0, x1, y1 = PERSON
    moving = [bundle.crop.crop_of((x0 + step, y0 + step / 2, x1 + step, y1 + step / 2), (WIDTH, HEIGHT))
              for step in np.linspace(-20, 20, len(film))]  # fmt: skip
    joints_J2 = np.zeros((len(bundle.skeleton), 2), dtype=np.float32)

    def app(frame_HW3: npt.NDArray[np.uint8]) -> object:
        keypoints_1J2, scores_1J = pose.run(None, {"frames": cut(frame_HW3, crop)[None]})
        return crop.to_frame(keypoints_1J2[0]), scores_1J[0]

    tasks: dict[str, Task] = {
        POSE: each(lambda given: pose.run(None, {"frames": given}), crops),
        HEAD: each(whole, crops),
        APP: each(app, film.frames),
        WATCHED: watch,
        APP_OUTSIDE: each(lambda frame_HW3: (cut(frame_HW3, crop), crop.to_frame(joints_J2)), film.frames),
        MOVING: each(lambda given: (cut(*given), given[1].to_frame(joints_J2)),
                     list(zip(film.frames, moving, strict=True))),
    }  # fmt: skip
    try:
        maps = maps_name(bundle.model_path)
    except StopIteration:
        return tasks, {RTMLIB: "this net gives no heatmaps, as the one that rtmlib knows"}
    try:
        shorten(bundle.model_path, maps_path, [maps])
        maps_1JHW = session(maps_path, threads).run(None, {"frames": crops[0]})[0]
        tasks[RTMLIB] = each(rtmlib_around(maps_path, bundle.crop.width_px, maps_1JHW), film.frames)
    except ImportError:
        return tasks, {RTMLIB: "rtmlib is not installed (pip install rtmlib)"}
    return tasks, {}


def each(work: Callable[[Any], object], things: Sequence[Any]) -> Task:
    """A task that does its work on the next thing at every call, and starts again after the last."""
    turn = itertools.cycle(things)
    return lambda: work(next(turn))


def rtmlib_around(
    graph: Path, size_px: int, maps_1JHW: npt.NDArray[np.float32]
) -> Callable[[npt.NDArray[np.uint8]], object]:
    """What rtmlib does before and after a net that gives heatmaps; these are always the same, and cost it no time."""
    from rtmlib import ViTPose  # type: ignore[import-not-found, import-untyped, unused-ignore]

    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it loads
        tool = ViTPose(str(graph), model_input_size=(size_px, size_px), backend="onnxruntime")

    def work(frame_HW3: npt.NDArray[np.uint8]) -> object:
        image, centre, scale = tool.preprocess(frame_HW3, list(PERSON))
        np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32)[None]  # as its inference does
        return tool.postprocess([maps_1JHW], centre, scale)

    return work


# --- Measuring


def latencies(
    tasks: Mapping[str, Task], watch: Watch, *, rounds: int, warmup: int, clock: Clock = time.perf_counter
) -> dict[str, Seconds]:
    """Seconds of every call, (R,) each, the Monitor's time outside inference among them."""
    seconds = interleave(tasks, rounds=rounds, warmup=warmup, clock=clock)
    found = {name: np.array(seconds_R) for name, seconds_R in seconds.items()}
    found[OUTSIDE] = np.array(watch.outside_s[-rounds:])
    return found


def facts_of(seconds_R: Seconds) -> dict[str, float]:
    """Milliseconds: quantiles, mean and the longest."""
    p50, p99, p999 = (float(value) for value in np.quantile(seconds_R, (0.5, 0.99, 0.999)) * 1e3)
    return {"p50_ms": p50, "p99_ms": p99, "p99_9_ms": p999, "mean_ms": float(seconds_R.mean() * 1e3),
            "max_ms": float(seconds_R.max() * 1e3)}  # fmt: skip


def ratios(seconds: Mapping[str, Seconds]) -> list[dict[str, Any]]:
    """Median over median within each block of rounds."""
    found = []
    for one, other in RATIOS:
        if one in seconds and other in seconds:
            blocks = min(BLOCKS, len(seconds[one]))
            medians = [[float(np.median(part)) for part in np.array_split(seconds[name], blocks)]
                       for name in (one, other)]  # fmt: skip
            per_block = paired(*medians)
            found.append({"of": one, "to": other, "per_block": per_block, "ratio": asdict(spread(per_block))})
    return found


def throughput(tasks: Mapping[str, Task], monitor: Monitor, *, calls: int, blocks: int) -> list[dict[str, Any]]:
    """Frames per second and CPU seconds per frame, each contestant alone for a block, in turns.

    The process's CPU time counts all its threads, so that what the queue's thread encodes and writes is in the
    Monitor's; its block ends when everything is on disk.
    """
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in (POSE, HEAD, APP, WATCHED)}
    for _, name in itertools.product(range(blocks), took):
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        for _ in range(calls):
            tasks[name]()
        if name == WATCHED:
            monitor.flush()
        took[name].append((time.perf_counter() - wall_s, time.process_time() - cpu_s))
    return [
        {"contestant": name, "frames_per_s": asdict(spread([calls / wall_s for wall_s, _ in pairs])),
         "cpu_ms_per_frame": asdict(spread([1e3 * cpu_s / calls for _, cpu_s in pairs])),
         "cores_busy": asdict(spread([cpu_s / wall_s for wall_s, cpu_s in pairs]))}
        for name, pairs in took.items()
    ]  # fmt: skip


def soak(monitor: Monitor, film: Footage, *, frames: int, samples: int = 1000) -> dict[str, Any]:
    """Resident memory over many frames whose answers were recorded, and the slope of its second part.

    Neighbouring samples hang together, so the slope is fitted through the means of few long blocks, whose scatter
    then gives its confidence interval.
    """
    every = max(1, frames // samples)
    turn, rss_P, started_s = itertools.cycle(film.frames), [], time.perf_counter()
    for number in range(frames):
        monitor(next(turn), box_of(monitor.bundle))
        if number % every == every - 1:
            rss_P.append(resident_bytes())
    seconds = time.perf_counter() - started_s
    low, slope, high = slope_of(np.array(rss_P[int(len(rss_P) * SETTLED) :]) / every)
    return {
        "frames": frames, "seconds": seconds, "frames_per_s": frames / seconds, "rss_start_bytes": rss_P[0],
        "rss_end_bytes": rss_P[-1], "rss_max_bytes": max(rss_P),
        "bytes_per_frame": {"slope": slope, "confidence_95": [low, high], "settled": SETTLED},
        "rss_bytes": rss_P[:: max(1, len(rss_P) // 100)],
    }  # fmt: skip


def resident_bytes() -> int:
    """Resident memory of this process, from ``/proc``."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def slope_of(values_P: Seconds, confidence: float = 0.95) -> tuple[float, float, float]:
    """Lower end, slope per sample, and upper end of its confidence interval (Student's t over the block means)."""
    blocks = min(BLOCKS, len(values_P))
    if blocks < 3:
        return math.nan, math.nan, math.nan
    parts = np.array_split(np.arange(len(values_P)), blocks)
    place, mean = (np.array([given[part].mean() for part in parts]) for given in (np.arange(len(values_P)), values_P))
    fit = stats.linregress(place, mean)
    reach = float(stats.t.ppf((1 + confidence) / 2, blocks - 2) * fit.stderr)
    return float(fit.slope) - reach, float(fit.slope), float(fit.slope) + reach


# --- The run


def measure(
    bundle: Bundle, film: Footage, folder: Path, *, threads: int, share: float, rounds: int, warmup: int, calls: int,
    soak_frames: int, clock: Clock = time.perf_counter,
) -> dict[str, Any]:  # fmt: skip
    """Everything; throughput is left out without ``calls``."""
    crop = place_of(bundle)
    recorded = Recorded(OnnxEngine(bundle, threads=threads), [cut(frame_HW3, crop) for frame_HW3 in film.frames])
    trigger = policy(recorded.failure_probability_N, share)
    engine = ClockedEngine(OnnxEngine(bundle, threads=threads), clock)
    with Monitor(bundle, Queue(folder / "flagged.db"), trigger, engine) as monitor:
        watch = Watch(monitor, engine, itertools.cycle(film.frames), clock, [])
        tasks, left_out = line_up(bundle, film, watch, folder, threads)
        seconds = latencies(tasks, watch, rounds=rounds, warmup=warmup, clock=clock)
        rates = throughput(tasks, monitor, calls=calls, blocks=max(2, BLOCKS // 4)) if calls else []
        monitor.flush()
        counts = {str(count): number for count, number in monitor.stats().counts.items()}
    result: dict[str, Any] = {
        "measurements": [{"contestant": name, **facts_of(seconds_R)} for name, seconds_R in seconds.items()],
        "ratios": ratios(seconds), "throughput": rates, "policy": str(trigger), "counts": counts, "left_out": left_out,
    }  # fmt: skip
    if not soak_frames:
        left_out["soak"] = "switched off"
    elif not Path("/proc/self/statm").exists():
        left_out["soak"] = "this system does not tell its resident memory in /proc"
    else:
        # A small queue is soon full: from then on every record that comes drives another one out.
        queue = Queue(folder / "soak.db", max_bytes=16 << 20)
        with Monitor(bundle, queue, trigger, recorded) as monitor:
            recorded.play()
            result["soak"] = soak(monitor, film, frames=soak_frames)
    return result


def show(result: Mapping[str, Any]) -> str:
    """The result for people."""
    settings, keys = result["settings"], ("p50_ms", "p99_ms", "p99_9_ms", "mean_ms", "max_ms")
    rows = [(m["contestant"], *(f"{m[key]:.3f}" for key in keys)) for m in result["measurements"]]
    shares = [(f"{r['of']} / {r['to']}", *(f"{r['ratio'][key]:.3f}" for key in ("median", "min", "max")))
              for r in result["ratios"]]  # fmt: skip
    rates = [(t["contestant"], f"{t['frames_per_s']['median']:.0f}", f"{t['cpu_ms_per_frame']['median']:.3f}",
              f"{t['cores_busy']['median']:.2f}") for t in result["throughput"]]  # fmt: skip
    lines = [
        f"{settings['source']}, {WIDTH} x {HEIGHT}, bundle {settings['bundle']} ({settings['size_px']} px), "
        f"{settings['threads']} threads, {settings['rounds']} rounds, {settings['clock']} clock\n",
        table(("per call, ms", "p50", "p99", "p99.9", "mean", "max"), rows),
        "\n" + table(("ratio of the medians, by block", "median", "min", "max"), shares),
        "\n" + table(("alone", "frames/s", "CPU ms/frame", "cores busy"), rates),
    ]
    if "soak" in result:
        one = result["soak"]
        slope, (low, high) = one["bytes_per_frame"]["slope"], one["bytes_per_frame"]["confidence_95"]
        lines.append(
            f"\nmemory over {one['frames']:,} recorded frames: {slope:+.4f} bytes/frame "
            f"(95 %: {low:+.4f} to {high:+.4f}), {one['rss_start_bytes'] / 1e6:.1f} MB at the start, "
            f"{one['rss_end_bytes'] / 1e6:.1f} MB at the end, {one['frames_per_s']:.0f} frames/s"
        )
    lines += [f"\nleft out: {name}: {reason}" for name, reason in result["left_out"].items()]
    return "\n".join(lines)


@click.command(name="bench.monitor", cls=Bench)
@click.option("--video", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="Any file that OpenCV reads; a person should be about in the middle, as from a fixed camera. "
                   "[default: people rendered by alpose itself]")  # fmt: skip
@click.option("--bundle", "folder", type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="NAME.alpose, from alpose-export. [default: untrained weights of the laptop preset's size]")  # fmt: skip
@click.option("--frames", default=300, show_default=True, type=click.IntRange(2), help="Different ones, repeated.")
@click.option("--share", default=0.05, show_default=True, type=click.FloatRange(0, 1, max_open=True),
              help="Of the frames that is flagged and kept.")  # fmt: skip
@click.option("--rounds", default=20_000, show_default=True, type=click.IntRange(2))
@click.option("--warmup", default=200, show_default=True, type=click.IntRange(0), help="Rounds that do not count.")
@click.option(
    "--calls",
    default=1000,
    show_default=True,
    type=click.IntRange(0),
    help="In a block of throughput; 0 leaves it out.",
)
@click.option("--clock", "clock_name", default="wall", show_default=True, type=click.Choice(list(CLOCKS)),
              help="cpu: CPU time of the thread that watches, for a machine that is busy with other work.")  # fmt: skip
@click.option("--soak", "soak_frames", default=1_000_000, show_default=True, type=click.IntRange(0),
              help="Frames of the memory's run; 0 leaves it out.")  # fmt: skip
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1), help="Of ONNX Runtime.")
@click.option("--disk", type=click.Path(path_type=Path, exists=True, file_okay=False), default=Path(),
              show_default="here", help="Folder for the queue: on the disk that is meant.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default=RESULTS / "monitor.json")
def main(
    video: Path | None,
    folder: Path | None,
    frames: int,
    share: float,
    rounds: int,
    warmup: int,
    calls: int,
    clock_name: str,
    soak_frames: int,
    threads: int,
    disk: Path,
    out: Path,
) -> None:
    """Milliseconds per frame of the Monitor and its parts, beside the bare pose session and rtmlib."""
    before = load_average()
    used = device_context("cpu", "fp32")
    film = footage(video, frames)
    with tempfile.TemporaryDirectory(dir=disk, prefix="bench-monitor-") as scratch:
        bundle = random_bundle(Path(scratch) / "random.alpose") if folder is None else Bundle.open(folder)
        measured = measure(bundle, film, Path(scratch), threads=threads, share=share, rounds=rounds, warmup=warmup,
                           calls=calls, soak_frames=soak_frames, clock=CLOCKS[clock_name])  # fmt: skip
    result = {
        "bench": "monitor",
        "machine": machine_facts(used),
        "load_average": {"before": before, "after": load_average()},
        "settings": {"source": film.source, "frames": len(film), "frame": [HEIGHT, WIDTH], "box": list(PERSON),
                     "bundle": bundle.manifest.name, "precision": bundle.manifest.precision,
                     "size_px": bundle.crop.width_px, "head": bundle.manifest.head, "share": share, "rounds": rounds,
                     "warmup": warmup, "calls": calls, "clock": clock_name, "soak_frames": soak_frames, "threads": threads},
        "contestants": SAYS, **measured,
    }  # fmt: skip
    print(show(result))
    print(f"\nwritten: {write_json(out, result)}")


if __name__ == "__main__":
    main()
