"""Clock, processor and memory of the machine. Pure functions of facts."""

from __future__ import annotations

import time
from collections.abc import Iterator

from .environment import Environment
from .report import Finding, failed, ok, warning

YEARS = (2025, 2100)
"""A clock that shows another year was never set."""
HOT_C = 85.0
LITTLE_MEMORY = 256 << 20
DYNAMIC = frozenset({"intel_pstate", "intel_cpufreq", "amd-pstate", "amd-pstate-epp", "amd_pstate"})
"""Drivers whose governor called powersave changes the frequency by load, as others' ondemand does."""


def check_machine(here: Environment) -> tuple[Finding, ...]:
    """Every finding about the machine."""
    return (_clock(here), *_processor(here), *_memory(here))


def _clock(here: Environment) -> Finding:
    shown = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(here.wall_s))
    year = time.gmtime(here.wall_s).tm_year
    set_it = "sudo timedatectl set-ntp true"
    if not YEARS[0] <= year <= YEARS[1]:
        return failed("clock", shown, "it was never set: capture times, ages and limits by age would be wrong", set_it)
    if abs(here.clock_rate - 1) > 0.05:
        return warning("clock", f"{shown}; it ran at {here.clock_rate:.2f} times the speed of the monotonic clock",
                       "it is being set just now, or is wrong: times of records may jump")  # fmt: skip
    if here.synchronised is False:
        return warning("clock", f"{shown}, not synchronised", "times of several devices will not agree", set_it)
    return ok("clock", shown + (", synchronised" if here.synchronised else ""))


def _processor(here: Environment) -> Iterator[Finding]:
    cores = f"{here.cores:g} core{'s' * (here.cores != 1)}"
    governors = ", ".join(sorted(set(here.governors)))
    slow = "powersave" in here.governors and not DYNAMIC & set(here.scaling_drivers)
    if slow:
        mend = "sudo nvpmodel -m 0 && sudo jetson_clocks" if here.jetson else \
            "echo schedutil | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"  # fmt: skip
        yield warning(
            "processor", f"{cores}, governor {governors}", "its cores are held at their lowest frequency", mend
        )
    elif here.cores < 1:
        yield warning("processor", cores, "a container grants less than one core: frames will wait for their turn",
                      "docker run --cpus 2 …")  # fmt: skip
    else:
        yield ok("processor", cores + (f", governor {governors}" if governors else ""))
    heat = f"{here.temperature_c:.0f} °C" if here.temperature_c is not None else ""
    if here.throttled:
        yield warning("heat", f"{heat + ', ' * bool(heat)}slowed down for heat {here.throttled} times since the start",
                      "latency rises when it does: better cooling, or fewer frames a second")  # fmt: skip
    elif here.temperature_c is not None and here.temperature_c >= HOT_C:
        yield warning("heat", heat, "processors slow down at about this temperature")
    elif heat:
        yield ok("heat", heat)


def _memory(here: Environment) -> Iterator[Finding]:
    if here.memory_free_bytes is None:
        return
    found = f"{here.memory_free_bytes / 2**30:.1f} GiB available"
    if here.memory_free_bytes < LITTLE_MEMORY:
        yield warning("memory", found, "the kernel may end the process when a frame needs more")
    else:
        yield ok("memory", found)
