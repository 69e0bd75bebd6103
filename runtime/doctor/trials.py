"""What the doctor tries for real: the bundle, every engine that this machine offers, the queue, and a minute at full load.

A list of what was compiled into a library proves nothing, so every engine is made and answers the golden frames.
"""

from __future__ import annotations

import base64
import itertools
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..bundle import Bundle, check_files
from ..bundle.golden import UNITS, GoldenReport
from ..engines.catalog import batch_cost, close_engine, default_threads, engine_kinds, verify_engine
from ..engines.onnx import OnnxEngine
from ..engines.tensorrt import TensorRTEngine
from ..engines.tensorrt_plans import rebuild, unavailable
from ..errors import AlposeError, DataNotFoundError, MissingExtraError, QueueError, WrongAnswerError
from ..types import Engine
from .facts import Environment, resident_bytes, temperature_c, throttled
from .report import Finding, failed, ok, warning

DRIFT = 1.25
"""Median latency of the last quarter over that of the first, from which a soak warns."""
GROWTH_BYTES = 16 << 20
"""Of memory, between the first quarter and the end, from which a soak warns."""
MOST_LINES = 5
"""Of what is wrong with a queue; alpose-monitor queue check has them all."""
FEWEST = 40
"""A soak of fewer frames says nothing about drift."""

NVIDIA = ("cuda", "tensorrt")
OWN = ("cpu", *NVIDIA)
"""Engines of the catalog that have checks of their own here."""
TIMED = 20

TINY = (
    b"c-oawOHaZ;5N5UownHjq2@w*E+9N0R=m{|~kwg!A^Fp@mlx*mObW0-thJWeR*6@(Z#ZBfi-)l1;=l5SG4zUqtGA1n`bj?Sp^O1!tPy4U|h7Sm#"
    b"I9p~EC_krQ7NuId_(s9Xrx%jRsEwxlBt3>P8yg#F77M;0S_UfC{aR`9R9bXHsiIXzvt^cg(o>Pj*Z=gnD}5k7QrQR9NlgzS77gvE8EKb42bAPR"
    b"F!sx}MX^UgppyA7<hBf9i<_gA)-L5_#w8Yf1dTulQdkRGFH@D|+O5Aw$|nKy(SS3jIRQO&YL&NxXzCc-6{|pU>OckhxZbyRjy=vq2MqzQ$T;7Q"
    b";a%b3E24`X4#M8CjAEEK!0l;78|?zN_ON$>mC{8Et%6ejp?EHyD)g8$#KVRE1WZh<IrcXoJBMN"
)
"""A graph with a bundle's inputs and outputs whose every answer is a mean of pixels, opset 13, zlib in base85: without a
bundle, a provider must at least compute this."""

Make = Callable[[Bundle, str], Engine]


def check_bundle(folder: Path, public_key: Path | None = None) -> tuple[Bundle | None, Finding]:
    """Open a bundle with all its checks."""
    try:
        problems = [f"{check.name}: {check.problem}" for check in check_files(folder, public_key) if check.problem]
        bundle = None if problems else Bundle.open(folder, public_key)
    except AlposeError as error:
        return None, failed("bundle", str(error), "no monitor starts with it, and no engine was tried")
    if bundle is None:
        return None, failed("bundle", "\n".join([f"{folder} is refused", *problems]), "no monitor starts with it")
    facts = f"{bundle.manifest.name}, {bundle.manifest.precision}, {len(bundle.skeleton)} joints, sha256 {bundle.sha256[:12]}"
    if bundle.calibration is None:
        return bundle, warning("bundle", facts, "exported without calibration data: its failure probabilities rank "
                               "frames and mean nothing else; there are no thresholds to catch a share of failures",
                               "alpose-export CHECKPOINT --calibration DATA -o NAME.alpose")  # fmt: skip
    return bundle, ok("bundle", facts + (", signed" if bundle.signed_by else ""))


def check_engines(bundle: Bundle | None, here: Environment, make: Make | None = None) -> Iterator[Finding]:
    """Start every provider of the installed ONNX Runtime, TensorRT's own engines and what an app has registered beside them.

    Each answers the golden frames.

    Args:
        bundle: without one, only whether a provider starts is looked at.
        here: what is installed, and whether there is a GPU that has to work.
        make: an engine for a provider; for tests.
    """
    for provider in here.providers:
        yield _onnx(provider, bundle, here, make or OnnxEngine)
    if bundle is not None and ("tensorrt" in here.packages or any(bundle.engines.glob("*"))):
        yield from _native(bundle, here)
    if bundle is not None:
        yield from _registered(bundle)


def _onnx(provider: str, bundle: Bundle | None, here: Environment, make: Make) -> Finding:
    name = f"engine {provider}"
    try:
        if bundle is None:
            _try_tiny(provider)
            return ok(name, "starts and computes; with a BUNDLE its golden frames are tried too")
        engine = make(bundle, provider)
        *_, report = verify_engine(engine, bundle.golden)
        return _judged(name, report, _seconds(engine, bundle), batch_cost(engine, "\n"))
    except Exception as error:  # whatever a library raises is what the doctor is there to tell
        why = (str(error).splitlines() or [type(error).__name__])[0]
        if provider in NVIDIA and not here.gpu:
            return ok(name, "this ONNX Runtime could use a GPU, and there is none")
        if provider == "cpu":
            return failed(name, why, "no bundle runs on this machine's processor",
                          "pip install --force-reinstall onnxruntime")  # fmt: skip
        if provider in NVIDIA:
            return failed(name, why, "this machine's GPU is not used through ONNX Runtime: see the libraries above")
        return warning(name, why, "this provider cannot be used; others can")


def _try_tiny(provider: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.onnx"
        path.write_bytes(zlib.decompress(base64.b85decode(TINY)))
        answer = OnnxEngine(path, provider)(np.full((2, 8, 8, 3), 7, dtype=np.uint8))
    if not all((values == 7).all() for values in answer.named().values()):
        raise WrongAnswerError(f"{provider} computes wrongly: the mean of sevens is {answer.predicted_loss_N}")


def _native(bundle: Bundle, here: Environment) -> Iterator[Finding]:
    reason = unavailable()
    if reason is not None:
        tell = failed if here.gpu else warning
        yield tell("engine tensorrt-native", reason, "engines of TensorRT cannot run here")
        return
    try:
        with TensorRTEngine(bundle) as engine:
            reports = verify_engine(engine, bundle.golden)
        for report in reports:
            yield _judged(f"engine {report.engine}", report, None)
    except (DataNotFoundError, MissingExtraError) as error:
        yield ok("engine tensorrt-native", str(error).splitlines()[0], "", rebuild(bundle))
    except AlposeError as error:
        yield failed("engine tensorrt-native", str(error).splitlines()[0], "no monitor takes this engine: build it again",
                     rebuild(bundle))  # fmt: skip


def _registered(bundle: Bundle) -> Iterator[Finding]:
    """Engines of the catalog that alpose does not bring itself."""
    for kind in engine_kinds():
        if kind.argument or kind.name in OWN:
            continue
        name = f"engine {kind.name}"
        try:
            if absent := kind.absent(bundle):
                yield ok(name, absent)
                continue
            engine = kind.open(bundle, "", default_threads())
            try:
                reports = verify_engine(engine, bundle.golden)
            finally:
                close_engine(engine)
            for report in reports:
                yield _judged(name, report, None)
        except Exception as error:  # whatever a library raises is what the doctor is there to tell
            yield failed(name, (str(error).splitlines() or [type(error).__name__])[0], "this engine cannot be used")


def _judged(name: str, report: GoldenReport, seconds: float | None, cost: str = "") -> Finding:
    if not report.passed:
        return failed(name, str(report), "this engine answers wrongly on this machine, and every monitor refuses it. "
                      "Another version of the library or driver may be right; until then use another engine")  # fmt: skip
    worst = ", ".join(
        f"{check.output} {check.deviation:.2g} ({check.tolerance:.2g}){UNITS.get(check.output, '') and f' {UNITS[check.output]}'}"
        for check in report.checks
    )
    speed = f"; {1e3 * seconds:.1f} ms a frame" if seconds is not None else ""
    return ok(name, f"golden frames answered rightly{speed}{cost}\nlargest deviations (allowed): {worst}")


def _seconds(engine: Engine, bundle: Bundle) -> float:
    """Median time of one crop."""
    crop_1HW3 = bundle.golden.frames_GHW3[:1]
    taken = []
    for _ in range(TIMED):
        before = time.perf_counter()
        engine(crop_1HW3)
        taken.append(time.perf_counter() - before)
    return float(np.median(taken))


# --- The queue that is already there


def check_queue(path: Path) -> Iterator[Finding]:
    """Open a queue for reading and check it; nothing in it is changed."""
    from ..queue import Queue

    if not path.parent.is_dir():  # told of the disk
        return
    if not path.exists() or (path.is_file() and not path.stat().st_size):
        yield ok("queue", f"{path} {'is empty' if path.exists() else 'does not exist'}: a monitor makes a queue of it")
        return
    try:
        with Queue(path, readonly=True, on_damage="raise") as queue:
            facts, report = queue.info(), queue.check()
    except QueueError as error:
        if error.reason == "damaged":
            yield _damaged(path, str(error))
        elif error.reason == "locked":
            yield warning("queue", str(error), "another process holds it for long: run the doctor again")
        else:
            yield failed("queue", str(error), "a monitor cannot keep frames there")
        return
    except AlposeError as error:
        yield failed("queue", str(error), "a monitor cannot keep frames there")
        return
    found = f"{path}: {facts.records} records, {facts.bytes / 1e6:.1f} MB; the file has {facts.file_bytes / 1e6:.1f} MB"
    if facts.oldest_ns is not None:
        found += f", the oldest record is {(time.time_ns() - facts.oldest_ns) / 86400e9:.1f} days old"
    given_up = facts.counters.get(("evicted_total", "full"), 0)
    if not report.ok:
        wrong = [f"damaged records: {len(report.damaged)}", f"pictures without a record: {report.orphans}"]
        wrong += [f"SQLite: {line}" for text in report.integrity for line in text.splitlines() if "***" not in line]
        more = [f"and {len(wrong) - MOST_LINES} lines more: alpose-monitor queue check {path}"] * (
            len(wrong) > MOST_LINES
        )
        yield _damaged(path, "\n".join([found, *wrong[:MOST_LINES], *more]))
    elif given_up:
        yield warning("queue", f"{found}; it was full, and gave {given_up} records up for more valuable ones",
                      "pull it more often (alpose-harvest pull), or give it more room (alpose-monitor run --queue-size)")  # fmt: skip
    else:
        yield ok("queue", f"{found}; every record is whole")


def _damaged(path: Path, found: str) -> Finding:
    into = path.with_name(f"{path.stem}-recovered{path.suffix}")
    return failed("queue", found, "it is damaged. A monitor moves it aside and begins a fresh one; what is whole in it can be "
                  "saved", f"alpose-monitor queue recover {path} --into {into}")  # fmt: skip


# --- Full load


@dataclass(frozen=True, slots=True, kw_only=True)
class SoakResult:
    """What a soak measured."""

    seconds: float
    frames: int
    p50_s: float
    p99_s: float
    p999_s: float
    drift: float
    """Median latency of the last quarter over that of the first; nan for a few frames."""
    growth_bytes: int | None
    """Resident memory at the end over that after the first quarter, when all has been loaded; None where unreadable."""
    warmer_c: float | None
    temperature_c: float | None
    throttled: int
    """How often cores were slowed down for heat meanwhile."""


def soak(
    step: Callable[[], object], seconds: float, *, clock: Callable[[], float] = time.perf_counter,
    memory: Callable[[], int | None] = resident_bytes, progress: Callable[[float], None] | None = None,
) -> SoakResult:  # fmt: skip
    """Call ``step`` again and again, at least once.

    Args:
        step: works on one frame.
        seconds: how long.
        clock, memory: for tests.
        progress: called with the share that is done, a few times a second.
    """
    taken: list[float] = []
    heat, slowed = temperature_c(), throttled()
    began = last = clock()
    reported, quarter_memory = began, None
    while not taken or last - began < seconds:
        step()
        now = clock()
        taken.append(now - last)
        if quarter_memory is None and now - began >= seconds / 4:
            quarter_memory = memory()
        if progress is not None and now - reported > 0.25:
            progress(min(1.0, (now - began) / seconds))
            reported = clock()
        last = clock()
    times = np.array(taken)
    quarter = len(times) // 4
    p50, p99, p999 = (float(value) for value in np.quantile(times, [0.5, 0.99, 0.999]))
    end_memory, end_heat = memory(), temperature_c()
    return SoakResult(
        seconds=last - began,
        frames=len(times),
        p50_s=p50,
        p99_s=p99,
        p999_s=p999,
        drift=float(np.median(times[-quarter:]) / np.median(times[:quarter])) if len(times) >= FEWEST else float("nan"),
        growth_bytes=end_memory - quarter_memory if end_memory is not None and quarter_memory is not None else None,
        warmer_c=end_heat - heat if end_heat is not None and heat is not None else None,
        temperature_c=end_heat,
        throttled=throttled() - slowed,
    )


def check_soak(facts: SoakResult) -> Finding:
    """What the measurements of a soak show."""
    said = [
        f"{facts.frames} frames in {facts.seconds:.0f} s: {facts.frames / max(facts.seconds, 1e-9):.0f}/s",
        f"a frame takes {1e3 * facts.p50_s:.1f} ms (median), {1e3 * facts.p99_s:.1f} ms (p99), {1e3 * facts.p999_s:.1f} ms (p99.9)",
    ]
    wrong = []
    if np.isfinite(facts.drift):
        said.append(f"in the last quarter of the time {100 * (facts.drift - 1):+.0f} % against the first")
        if facts.drift > DRIFT:
            wrong.append("frames take longer and longer: look for heat, or for another process that computes")
    if facts.growth_bytes is not None:
        said.append(f"memory {facts.growth_bytes / 2**20:+.1f} MiB")
        if facts.growth_bytes > GROWTH_BYTES:
            wrong.append("memory grows: if a longer soak (--soak 600) grows as fast, it would fill up")
    if facts.warmer_c is not None and facts.temperature_c is not None:
        said.append(f"{facts.temperature_c:.0f} °C ({facts.warmer_c:+.0f})")
    if facts.throttled:
        wrong.append(
            f"cores were slowed down for heat {facts.throttled} times: better cooling, or fewer frames a second"
        )
    found = "; ".join(said)
    return warning("soak", found, ". ".join(wrong)) if wrong else ok("soak", found)


@contextmanager
def monitor_loop(bundle: Bundle, folder: Path, engine: str, threads: int | None) -> Iterator[Callable[[], object]]:
    """A step of the soak: a whole monitor on one frame, a twentieth of which goes into a queue beside the real one."""
    from ..monitor import Monitor
    from ..triggers import Control

    height, width = bundle.golden.size_px
    frames = [np.zeros((480, 640, 3), dtype=np.uint8) for _ in range(len(bundle.golden))]
    for frame_HW3, crop_hw3 in zip(frames, bundle.golden.frames_GHW3, strict=True):
        frame_HW3[:height, :width] = crop_hw3[:480, :640]
    box = (0.0, 0.0, float(min(width, 640) - 1), float(min(height, 480) - 1)) if bundle.crop.around_person else None
    with (
        tempfile.TemporaryDirectory(prefix=".alpose-doctor-", dir=folder) as beside,
        Monitor(bundle, queue=Path(beside) / "soak.db", trigger=Control(rate=0.05), engine=engine, threads=threads)
        as monitor,
    ):  # fmt: skip
        turn = itertools.cycle(frames)
        yield lambda: monitor(next(turn), box)
