"""``alpose-monitor run``."""

from __future__ import annotations

import logging
import math
import sys
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import command_line
from ..command_line import LiveLine, print_json
from ..engines.catalog import engine_names
from ..errors import ConfigError, DataError
from ..redaction import REDACTIONS

if TYPE_CHECKING:
    from ..bundle import Bundle
    from ..camera.overlay import AnnotatedVideo
    from ..camera.sources import SourceCounts
    from ..frames import FrameFormat
    from ..pipeline import Detect
    from ..telemetry.stats import Stats
    from ..triggers import Trigger

log = logging.getLogger("alpose.monitor")

NOT_WRITTEN = 3
"""Exit status where flagged frames could not be written to the disk before the end."""
FLUSH_S = 20.0

CONTROL_SHARE = 0.1
"""Of a --budget: so much again goes into the random control stream, which field reports rest on."""


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, file_okay=False))
@click.option("--source", required=True, metavar="0|VIDEO|FOLDER|URL",
              help="A camera's number or /dev/video0, a video, a folder of pictures, an address such as "
                   "rtsp://HOST/STREAM, or a GStreamer pipeline that ends in appsink.")  # fmt: skip
@click.option(
    "--roi",
    type=command_line.box,
    metavar="x0,y0,x1,y1",
    help="The region of the frame in which the person is, in pixels.",
)
@click.option("--track", is_flag=True, help="Follow the person; search the frame while nobody is followed.")
@click.option(
    "--people",
    is_flag=True,
    help="Watch everybody on each frame: found by --detector, or by a net that finds several itself.",
)
@click.option("--detector", "detector_path", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE.onnx",
              help="With --people: a YOLO net that finds them, as ultralytics exports it.")  # fmt: skip
@click.option("--queue", type=click.Path(path_type=Path, dir_okay=False), help="Keep flagged frames in this file.")
@click.option("--budget", type=command_line.rate, metavar="N/hour", help="Keep the frames most likely to be wrong, so many in a time: 100/hour, 2000/day; a number alone is frames an hour.  "
              "[default: 20/hour]")  # fmt: skip
@click.option("--trigger", metavar="POLICY",
              help='In place of --budget, a whole policy: "Episodes(Catch(0.9)) | Control(rate=0.001)".')  # fmt: skip
@click.option("--show", "video_path", type=click.Path(path_type=Path, dir_okay=False), metavar="OUT.mp4",
              help="Write an annotated video: .mp4, .webm (plays in browsers), .avi.")  # fmt: skip
@click.option("--engine", default="auto", show_default=True,
              help=f"What the model runs on: {engine_names()}.")  # fmt: skip
@click.option(
    "--size", "camera_size", type=command_line.frame_size, metavar="WxH", help="Ask a camera for this size: 1280x720."
)
@click.option("--rate", type=click.FloatRange(0, 1000, min_open=True), metavar="FPS",
              help="Ask a camera for so many frames a second.")  # fmt: skip
@click.option("--pixel-format", metavar="FOURCC", help="Ask a camera for this format: MJPG, YUYV, GREY.")
@click.option("--frame-format", default="bgr", show_default=True, metavar="FORMAT",
              help="Read a camera's or pipeline's frames as they come: grey, nv12, nv21, i420, yuyv or uyvy, the YUV ones "
                   "also with -bt709.")  # fmt: skip
@click.option("--verify", default="first", show_default=True, type=click.Choice(["first", "background"]),
              help="Verify the engine with the golden frames before the first frame, or beside the camera.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1), metavar="THREADS", help="Threads of ONNX Runtime.  [default: 2]")
@click.option("--allow-fallback", is_flag=True, help="Go on with the CPU where the engine asked for does not run.")
@click.option("--public-key", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="Refuse a bundle that this key did not sign.")  # fmt: skip
@click.option("--device-id", metavar="NAME", help="Name of this device in every record.  [default: kept in the queue]")
@click.option("--camera", default="", metavar="NAME", help="Name of this camera in every record.")
@click.option("--store", default="full", show_default=True, type=click.Choice(["full", "crop", "keypoints"]),
              help="What of a kept frame is stored.")  # fmt: skip
@click.option("--redact", type=click.Choice(REDACTIONS),
              help="Make faces unrecognisable before a picture is written, where the pose says that they are.")  # fmt: skip
@click.option("--seal-to", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="KEY.pub",
              help="Encrypt stored pictures to this key (queue keygen); this device cannot read them back.")  # fmt: skip
@click.option("--queue-size", "max_bytes", type=command_line.byte_count, metavar="SIZE",
              help="Largest size of the queue's file in bytes, with K, M or G: 256M, 4G. When it is full, the least valuable frames go "
                   "first.  [default: what it has; 256M for a new one]")  # fmt: skip
@click.option(
    "--max-age",
    "max_age_s",
    type=command_line.duration,
    metavar="TIME",
    help="Give records up after this time: 30d, 12h, 90min.",
)
@click.option(
    "--clip",
    default="0,0",
    type=command_line.clip,
    metavar="BEFORE,AFTER",
    help="Also keep so many frames before and after the kept one: 5,5.  [default: 0,0]",
)
@click.option("--serve", metavar="PORT|HOST:PORT",
              help="Show in a browser what it sees, on 127.0.0.1 or on the address given: 8080, 0.0.0.0:8080.")  # fmt: skip
@click.option(
    "--metrics-port", type=click.IntRange(0, 65535), metavar="PORT", help="Serve Prometheus metrics on 127.0.0.1."
)
@click.option("--metrics-file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.prom",
              help="Write metrics for node_exporter's textfile collector.")  # fmt: skip
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Stop after N frames.")
@click.option("--realtime/--fast", default=False, show_default="fast",
              help="Play a recording at its own speed, leaving frames out like a camera; or every frame, as fast as "
                   "it goes.")  # fmt: skip
@click.option("--fps", type=click.FloatRange(0, 1000, min_open=True),
              metavar="FPS", help="Frames a second of a folder, or of a video that does not say.  [default: 10 for a folder]")  # fmt: skip
@click.option("--seed", type=int, metavar="NUMBER", help="Begins the random draws, to repeat a run.")
@click.option("-q", "--quiet", is_flag=True, help="No counters while it runs.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def run(
    bundle: Path, source: str, roi: Any, track: bool, people: bool, detector_path: Path | None, queue: Path | None, budget: float | None, trigger: str | None,
    video_path: Path | None, engine: str, camera_size: Any, rate: float | None, pixel_format: str | None, frame_format: str, verify: Any, threads: int | None, allow_fallback: bool, public_key: Path | None,
    device_id: str | None, camera: str, store: Any, redact: str | None, seal_to: Path | None, max_bytes: int | None, max_age_s: float | None,
    clip: Any, serve: str | None, metrics_port: int | None, metrics_file: Path | None, limit: int | None, realtime: bool,
    fps: float | None, seed: int | None, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Watch a camera, a video or a folder of pictures with BUNDLE, and keep the frames on which it is likely wrong.

    On a terminal one line shows how it goes; in a log there is a line a minute, and a summary at the end. Ctrl-C or
    SIGTERM ends it after everything flagged is on the disk. Recordings have their own clock: --budget 100/hour keeps
    100 frames for each hour of the video, and records are stamped as if it began now.

    \b
    alpose-monitor run driver.alpose --source 0 --roi 200,40,520,460 --queue flagged.db --budget 20/hour
    alpose-monitor run driver.alpose --source drive.mp4 --track --show out.mp4
    alpose-monitor run driver.alpose --source hall.mp4 --people --detector yolo11n.onnx --show out.mp4

    Exit status: 0 the source ended or it was stopped, and everything flagged is on the disk; 1 an error,
    there was no frame to see, or the video of --show is not whole; 2 wrong usage; 3 it ended, and some flagged frames could
    not be written.
    """
    from ..bundle import Bundle
    from ..camera import capture
    from ..camera.loop import stop_signals, watch
    from ..camera.overlay import AnnotatedVideo
    from ..frames import FrameFormat
    from ..monitor import Monitor
    from ..queue import Queue

    if roi is not None and track:
        raise click.UsageError("--roi is a fixed region and --track follows: give one of them")
    if people and (roi is not None or track):
        raise click.UsageError("--people watches everybody on a frame, --roi and --track one person: give one of them")
    if detector_path is not None and not people:
        raise click.UsageError("--detector finds everybody on a frame: give --people too")
    policy = _policy(budget, trigger)
    if queue is None and (seal_to or redact or store != "full" or clip != (0, 0) or max_age_s is not None):
        raise ConfigError(
            "--store, --redact, --seal-to, --clip and --max-age say how frames are kept: give --queue too"
        )

    if video_path is not None and video_path.exists() and Path(source).exists() and video_path.samefile(source):
        raise ConfigError(f"--show {video_path} would overwrite the video that --source names: give another name")

    with ExitStack() as stack:
        live = stack.enter_context(LiveLine(wanted=not quiet))
        stop = stack.enter_context(stop_signals())
        width, height = camera_size or (None, None)
        settings = capture.CameraSettings(width=width, height=height, rate=rate, pixel_format=pixel_format,
                                          frame_format=FrameFormat.named(frame_format))  # fmt: skip
        opened = capture.open_source(source, fps=fps, realtime=realtime, settings=settings)
        stack.callback(opened.close)
        kept = None
        if queue is not None:
            kept = stack.enter_context(Queue(queue, max_bytes=max_bytes, max_age_s=max_age_s, store=store,
                                             seal_to=seal_to, clip=clip, redact=redact, open_now=False))  # fmt: skip
        opened_bundle = Bundle.open(bundle, public_key)
        detect = _detect(opened_bundle, detector_path, settings.frame_format, threads) if people else None
        monitor = Monitor(
            opened_bundle, queue=kept, trigger=policy, engine=engine, threads=threads, device_id=device_id, roi=roi,
            track=track, detect=detect, frame_format=frame_format, camera=camera, allow_fallback=allow_fallback,
            verify=verify, metrics_port=metrics_port, metrics_file=metrics_file, seed=seed,
        )  # fmt: skip
        stack.callback(monitor.close)
        if serve is not None:
            log.info("live page: %s", monitor.serve(serve).url)
        if monitor.metrics_url:
            log.info("metrics: %s", monitor.metrics_url)
        video = None
        if video_path is not None:
            video = AnnotatedVideo(video_path, monitor.bundle.skeleton, opened.fps, settings.frame_format)
            stack.callback(video.close)
        watch(monitor, opened, stop, live, video=video, limit=limit, people=people)
        live.show("writing what was flagged …")
        flushed = monitor.flush(FLUSH_S)
        stats = monitor.stats()
        problem = _finish(video)
    _summarise(stats, opened.counts, opened.name, video_path, stop.asked, flushed, as_json)
    if not opened.counts.delivered and not stop.asked:
        raise DataError(f"{opened.name} gave no frame that could be decoded: {opened.counts.broken} could not")
    if problem:
        click.echo(f"Error: {problem}", err=True)
    sys.exit(NOT_WRITTEN if not flushed else 1 if problem else 0)


def _finish(video: AnnotatedVideo | None) -> str:
    """End the video; why it is not whole, or nothing. The summary comes all the same."""
    try:
        if video is not None:
            video.close()
    except DataError as error:
        return str(error)
    return ""


def _detect(bundle: Bundle, path: Path | None, form: FrameFormat, threads: int | None) -> Detect | None:
    """What finds everybody on a frame, as the camera gives it; None where the bundle's own net does.

    Raises:
        ConfigError: nothing finds several people, or a detector was given to a net that needs none.
    """
    from ..frames import FrameFormat, accept
    from ..locate.detector import YoloDetector

    name = bundle.manifest.name
    if not bundle.crop.around_person:
        if path is not None:
            raise ConfigError(
                f"--detector: the net of {name!r} looks at the whole frame ({bundle.crop.kind}): leave it out"
            )
        if not bundle.manifest.people:
            raise ConfigError(f"--people: the net of {name!r} looks at the whole frame ({bundle.crop.kind}) and gives one pose of "
                              "it: take a bundle whose net looks at one person, and --detector")  # fmt: skip
        return None
    if path is None:
        raise ConfigError(
            f"--people: the net of {name!r} looks at one person: say with --detector FILE.onnx what finds them"
        )
    find = YoloDetector(path, bgr=form is FrameFormat.BGR, threads=threads or 2)
    return find if form is FrameFormat.BGR else lambda frame: find(accept(frame, form).to_rgb())


def _policy(budget: float | None, trigger: str | None) -> Trigger | None:
    """What --budget or --trigger ask for; None leaves it to the monitor."""
    from ..triggers import parse

    if budget is not None and trigger is not None:
        raise click.UsageError(
            "--trigger is a whole policy, which may hold a Budget: give one of --budget and --trigger"
        )
    if trigger is not None:
        return parse(trigger)
    return None if budget is None else budget_policy(budget)


def budget_policy(per_hour: float) -> Trigger:
    """The policy of ``--budget``: the monitor's own at another rate, with episodes that leave room for that rate."""
    from ..triggers import Budget, Control, Episodes

    budget = Budget(per_hour=per_hour)
    usual = Episodes(budget)
    best = max(usual.best, math.ceil(per_hour * usual.longest_s / 3600))
    # Beyond this, several frames of every moment are wanted: there is nothing to choose among.
    crowded = best * usual.gap_s > usual.longest_s
    return (budget if crowded else replace(usual, best=best)) | Control(per_hour=CONTROL_SHARE * per_hour)


def _summarise(
    stats: Stats, counts: SourceCounts, name: str, video: Path | None, stopped: str, flushed: bool, as_json: bool
) -> None:
    from ..camera.loop import source_troubles

    if as_json:
        value = {"source": {"name": name, **asdict(counts)}, "video": str(video) if video else None,
                 "stopped_by": stopped or None, "everything_written": flushed, "stats": stats.to_json()}  # fmt: skip
        print_json(value)
        return
    troubles = "; ".join(f"{what} {count}" for what, count in source_troubles(counts).items())
    ended = f", stopped by {stopped}" if stopped else ""
    click.echo(f"source     {name}: {counts.delivered} frames{ended}{'; ' + troubles if troubles else ''}")
    click.echo(str(stats))
    if video is not None:
        click.echo(f"video      {video}")
    if not flushed:
        waiting = stats.queue.waiting if stats.queue else 0
        why = f": {stats.queue.last_error}" if stats.queue and stats.queue.last_error else ""
        click.echo(
            f"NOT WRITTEN: {waiting} flagged frames did not reach the disk within {FLUSH_S:.0f} s{why}", err=True
        )
