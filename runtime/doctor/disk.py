"""Can the place of the queue keep what it acknowledges, and how fast?"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .report import Finding, failed, ok, warning

BLOCK = bytes(4096)
ROUNDS, MOST_S = 200, 4.0

NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "fuse.sshfs", "fuse.glusterfs", "lustre",
                     "afs", "fuse.s3fs", "virtiofs", "vboxsf"})  # fmt: skip
MEMORY = frozenset({"tmpfs", "ramfs", "devtmpfs"})
FRAGILE = frozenset({"vfat", "msdos", "exfat", "fuseblk"})
"""Without a journal: power loss can take the whole file system."""

LITTLE_BYTES, NO_BYTES = 1 << 30, 64 << 20
SLOW_S = 0.5
SUSPICIOUS_S = 8e-6
"""No storage that keeps its promise answers faster: this one answers before it has written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskFacts:
    """The place where a queue is, or would be."""

    folder: str
    kind: str
    """Of the file system, as in ``/proc/mounts``; empty where unknown."""
    free_bytes: int
    sync_s: tuple[float, ...]
    """Seconds for writing 4 KiB and waiting until they are on the storage, once each."""
    problem: str = ""
    """Why nothing could be written; empty where it could."""


def examine_disk(folder: Path) -> DiskFacts:
    """Write and sync a small file there a few hundred times; it is removed again."""
    folder = folder.absolute()
    kind = _kind(folder)
    try:
        free = shutil.disk_usage(folder).free
        sync_s = tuple(_syncs(folder))
    except OSError as error:
        return DiskFacts(folder=str(folder), kind=kind, free_bytes=0, sync_s=(), problem=str(error))
    return DiskFacts(folder=str(folder), kind=kind, free_bytes=free, sync_s=sync_s)


def check_disk(disk: DiskFacts) -> tuple[Finding, ...]:
    """Every finding about the queue's place."""
    if disk.problem:
        return (failed("disk", f"{disk.folder}: {disk.problem}", "no queue can be kept there",
                       f"mkdir -p {disk.folder} && test -w {disk.folder}"),)  # fmt: skip
    return (_file_system(disk), _space(disk), _sync(disk))


def _file_system(disk: DiskFacts) -> Finding:
    found = f"{disk.folder} on {disk.kind or 'an unknown file system'}"
    if disk.kind in NETWORK:
        return warning("file system", found, "a network file system: SQLite's locks and shared memory do not work "
                       "across machines, and a lost connection stops the queue. Keep the queue on a local disk")  # fmt: skip
    if disk.kind in MEMORY:
        return warning("file system", found, "it is memory: every record is gone when the power is. Put the queue on a "
                       "disk")  # fmt: skip
    if disk.kind in FRAGILE:
        return warning("file system", found, "without a journal: power loss can damage all of it. ext4 or xfs keep what "
                       "they acknowledge")  # fmt: skip
    if disk.kind == "overlay":
        return warning("file system", found, "a container's own layer: the queue is gone with the container",
                       "docker run -v alpose:/var/lib/alpose …  and --queue /var/lib/alpose/flagged.db")  # fmt: skip
    return ok("file system", found)


def _space(disk: DiskFacts) -> Finding:
    found = f"{disk.free_bytes / 2**30:.1f} GiB free"
    if disk.free_bytes < NO_BYTES:
        return failed("free space", found, "nothing more can be kept", f"df -h {disk.folder}")
    if disk.free_bytes < LITTLE_BYTES:
        return warning("free space", found, "a queue takes up to 256 MiB, and its log as much again")
    return ok("free space", found)


def _sync(disk: DiskFacts) -> Finding:
    p50, p99 = (float(value) for value in np.quantile(disk.sync_s, [0.5, 0.99]))
    found = f"4 KiB on the storage in {_duration(p50)} (median), {_duration(p99)} (p99), {len(disk.sync_s)} times"
    if p50 < SUSPICIOUS_S and disk.kind not in MEMORY:
        return warning("sync", found, "faster than storage can be: it says that data are safe before they are, and power "
                       "loss can take records that were acknowledged")  # fmt: skip
    if p99 > SLOW_S:
        return warning("sync", found, "slow: frames wait in memory meanwhile, and are dropped when too many do. The "
                       "camera loop itself never waits for it")  # fmt: skip
    return ok("sync", found)


def _syncs(folder: Path) -> Iterator[float]:
    descriptor, name = tempfile.mkstemp(prefix=".alpose-doctor-", dir=folder)
    try:
        began = time.perf_counter()
        for _ in range(ROUNDS):
            before = time.perf_counter()
            os.write(descriptor, BLOCK)
            os.fsync(descriptor)
            yield time.perf_counter() - before
            if time.perf_counter() - began > MOST_S:
                break
    finally:
        os.close(descriptor)
        os.unlink(name)


def _kind(folder: Path) -> str:
    """The type of the file system that holds a folder: of the longest mount point above it."""
    try:
        mounts = Path("/proc/mounts").read_text(errors="replace").splitlines()
        folder = folder.resolve()
    except OSError:
        return ""
    best = ("", "")
    for line in mounts:
        parts = line.split()
        if len(parts) < 3:
            continue
        point = parts[1].replace("\\040", " ")
        if (folder == Path(point) or Path(point) in folder.parents) and len(point) >= len(best[0]):
            best = (point, parts[2])
    return best[1]


def _duration(seconds: float) -> str:
    return (
        f"{seconds * 1e6:.0f} µs"
        if seconds < 1e-3
        else f"{seconds * 1e3:.1f} ms"
        if seconds < 1
        else f"{seconds:.2f} s"
    )
