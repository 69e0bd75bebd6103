"""A minute at full load: does latency drift, does memory grow, does the machine get hot?"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..bundle import Bundle
from .environment import resident_bytes, temperature_c, throttled
from .report import Finding, ok, warning

DRIFT = 1.25
"""Median latency of the last quarter over that of the first, from which it is told."""
GROWTH_BYTES = 16 << 20
"""Of memory, between the first quarter and the end, from which it is told."""
FEWEST = 40
"""Frames without which nothing is said about drift."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SoakFacts:
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
) -> SoakFacts:  # fmt: skip
    """Call ``step`` again and again, at least once.

    Args:
        step: works on one frame.
        seconds: how long.
        clock, memory: for tests.
        progress: told the share that is done, a few times a second.
    """
    taken: list[float] = []
    heat, slowed = temperature_c(), throttled()
    began = last = clock()
    told, quarter_memory = began, None
    while not taken or last - began < seconds:
        step()
        now = clock()
        taken.append(now - last)
        if quarter_memory is None and now - began >= seconds / 4:
            quarter_memory = memory()
        if progress is not None and now - told > 0.25:
            progress(min(1.0, (now - began) / seconds))
            told = clock()
        last = clock()
    times = np.array(taken)
    quarter = len(times) // 4
    p50, p99, p999 = (float(value) for value in np.quantile(times, [0.5, 0.99, 0.999]))
    end_memory, end_heat = memory(), temperature_c()
    return SoakFacts(
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


def check_soak(facts: SoakFacts) -> Finding:
    """Judge a soak."""
    said = [
        f"{facts.frames} frames in {facts.seconds:.0f} s: {facts.frames / max(facts.seconds, 1e-9):.0f}/s",
        f"p50 {1e3 * facts.p50_s:.1f} ms, p99 {1e3 * facts.p99_s:.1f} ms, p99.9 {1e3 * facts.p999_s:.1f} ms",
    ]
    wrong = []
    if np.isfinite(facts.drift):
        said.append(f"last quarter {100 * (facts.drift - 1):+.0f} % against the first")
        if facts.drift > DRIFT:
            wrong.append("frames take longer and longer: heat, or another process")
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

    size = bundle.golden.size_px
    frames = [np.zeros((480, 640, 3), dtype=np.uint8) for _ in range(len(bundle.golden))]
    for frame_HW3, crop_SS3 in zip(frames, bundle.golden.frames_GSS3, strict=True):
        frame_HW3[:size, :size] = crop_SS3[:480, :640]
    box = (0.0, 0.0, float(min(size, 640) - 1), float(min(size, 480) - 1))
    with (
        tempfile.TemporaryDirectory(prefix=".alpose-doctor-", dir=folder) as beside,
        Monitor(bundle, queue=Path(beside) / "soak.db", trigger=Control(rate=0.05), engine=engine, threads=threads)
        as monitor,
    ):  # fmt: skip
        turn = itertools.cycle(frames)
        yield lambda: monitor(next(turn), box)
