"""One trial: a process that does everything a queue can do is killed with SIGKILL, and the file is held against its word.

The writer tells through a pipe what it is about to do, and what the queue answered once it has. The pipe outlives the
writer, so whatever was acknowledged before the kill is known. Afterwards every acknowledged record has to be there,
whole, unless the writer erased it itself or the queue's own counters say that it was evicted.

Writers are forked off this process, which imports the queue once: a trial takes a fraction of a second, and every kill
is a real one. ``python -m bench.parts.crash`` runs trials and prints one JSON line for each; it imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from alpose.runtime.queue import Damage, Picture, Queue, Record, acknowledgements
from alpose.runtime.queue.acknowledgements import Acknowledgement

BOUNDED = 4 << 20
"""Bytes: so small that nearly every put has to evict."""
ROOMY = 256 << 20
"""So large that nothing is evicted, and whatever is missing was lost."""
KILLS_PER_FILE = 5
LONGEST_S = 0.12
"""The moment of the kill is uniform from the fork to this."""
NOISE = random.Random(0).randbytes(1 << 20)  # noqa: S311


@dataclass(slots=True)
class Told:
    """What the writers of one file said, over all their lives."""

    stored: dict[str, str] = field(default_factory=dict)
    """Id → sha256 of what was acknowledged as stored."""
    begun: set[str] = field(default_factory=set)
    """Ids of which a put was begun: they may be there."""
    erased: set[str] = field(default_factory=set)
    """Ids that were, or may have been, erased or superseded on purpose."""
    chunks: set[str] = field(default_factory=set)
    """sha256 of the chunks of the score log that were acknowledged."""
    tallied: int = 0
    """Frames whose tally was acknowledged."""
    tallying: int = 0
    """Frames whose tally was begun: they may be there."""
    doing: dict[int, str] = field(default_factory=dict)
    """Writer → what it was at when it was last heard."""

    def hear(self, writer: int, line: bytes) -> None:
        """One line of a pipe."""
        said = json.loads(line)
        self.doing[writer] = said.get("doing", "between two")
        self.begun.update(said.get("begun", ()))
        self.erased.update(said.get("erased", ()))
        self.stored.update(said.get("stored", {}))
        self.chunks.update(said.get("chunks", ()))
        self.tallied += said.get("tallied", 0)
        self.tallying += said.get("tallying", 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one kill left."""

    seed: int
    writers: int
    bounded: bool
    after_ms: float
    """From the fork to the kill."""
    killed_at: tuple[str, ...]
    """What each writer was at."""
    acknowledged: int
    """Records, over the life of the file so far."""
    there: int
    shared: int
    """Pictures that records share with one that came before, and that are not stored again."""
    evicted: int
    erased: int
    lost: int
    torn: int
    chunks: int
    """Of the score log, acknowledged over the life of the file so far."""
    chunks_lost: int
    tallied: int
    """Frames whose tally was acknowledged, likewise."""
    tallies_lost: int
    """Frames of these that no tally has."""
    over_bound: int
    """Bytes that file and log took beyond the bound."""
    problems: tuple[str, ...]


def write(path: Path, seed: int, bounded: bool, tell: Callable[..., None]) -> None:
    """Do everything, in random order, until somebody kills this process."""
    rng = random.Random(seed)  # noqa: S311
    tell(doing="open")
    with Queue(path, max_bytes=BOUNDED if bounded else ROOMY, busy_timeout_s=30) as queue:
        tell()
        mine = list[str]()
        while True:
            choice = rng.random()
            if choice < 0.45:
                _put(queue, rng, mine, 1, tell)
            elif choice < 0.65:
                _put(queue, rng, mine, rng.randint(2, 8), tell)
            elif choice < 0.75:
                _put(queue, rng, mine, rng.randint(2, 5), tell, one_frame=True)
            elif choice < 0.85:
                ids = rng.sample(mine, min(len(mine), 3))
                tell(doing="acknowledge")
                queue.acknowledge(ids)
                tell()
                if rng.random() < 0.5:
                    tell(doing="delete", erased=ids)
                    queue.delete(ids)
                    tell()
            elif choice < 0.9:
                _acknowledge_by_file(queue, rng, tell)
            elif choice < 0.95:
                tell(doing="tally", tallying=30)
                queue.tally(device="d", bundle="0" * 64, at_ns=time.time_ns(), frames=30)
                chunk = rng.randbytes(4000)
                tell(doing="scores", tallied=30)
                queue.add_scores(chunk, device="d", bundle="0" * 64, began_ns=0, ended_ns=1, frames=250)
                tell(chunks=[hashlib.sha256(chunk).hexdigest()])
            else:
                tell(doing="tidy")
                queue.tidy()
                tell()


def prefill(path: Path, told: Told) -> None:
    """So many records that the next ones have to evict."""
    rng = random.Random(0)  # noqa: S311
    with Queue(path, max_bytes=BOUNDED) as queue:
        while not queue.counters().get(("evicted_total", "full")):
            items = [(*_frame(queue.new_id(), rng), ()) for _ in range(8)]
            told.begun.update(record.id for record, _, _ in items)
            told.stored.update({one.id: one.sha256 for one in queue.put_many(items) if one.kept})


def _put(
    queue: Queue, rng: random.Random, mine: list[str], count: int, tell: Callable[..., None], one_frame: bool = False
) -> None:
    items, superseded = list[tuple[Record, list[Picture], list[str]]](), list[str]()
    for _ in range(count):
        old = [mine.pop(rng.randrange(len(mine)))] if mine and rng.random() < 0.15 else []
        superseded += old
        record, pictures = _frame(queue.new_id(), rng)
        if one_frame and items:  # another person on it: the same pictures, which are stored once
            first, pictures, _ = items[0]
            record = replace(record, camera=first.id)
        items.append((record, pictures, old))
    tell(doing="put" if count == 1 else "put_many", begun=[record.id for record, _, _ in items], erased=superseded)
    stored = queue.put_many(items)
    tell(stored={one.id: one.sha256 for one in stored if one.kept})
    mine += [one.id for one in stored if one.kept]


def _acknowledge_by_file(queue: Queue, rng: random.Random, tell: Callable[..., None]) -> None:
    chosen = {record.id: record.sha256 for record in queue.peek(3)}
    tell(doing="acknowledgement file", erased=list(chosen))
    acknowledgements.write(queue.path, f"{rng.randrange(10**9)}.json", Acknowledgement(rng.random() < 0.5, chosen))
    queue.apply_acknowledgements()
    tell()


def _frame(id: str, rng: random.Random) -> tuple[Record, list[Picture]]:
    """A record with up to three pictures; its id, or the one that it has as its camera, is in their data."""
    numbers = np.frombuffer(NOISE, np.uint8, 42, rng.randrange(1000)).astype(np.float32)
    control = rng.random() < 0.2
    record = Record(
        id=id,
        captured_ns=time.time_ns(),
        captured_monotonic_ns=time.monotonic_ns(),
        device="crash",
        bundle="0" * 64,
        frame_width=640,
        frame_height=480,
        box=(0.0, 0.0, 640.0, 480.0),
        place="box",
        keypoints_J2=numbers[:28].reshape(14, 2),
        scores_J=numbers[28:],
        predicted_loss=rng.random(),
        failure_probability=rng.random(),
        embedding_D=numbers[:16].astype(np.float16),
        flagged=not control,
        inclusion_probability=1.0,
        control_draw=rng.random() if control else None,
    )
    pictures = []
    for position in range(rng.choice((0, 1, 1, 1, 3))):
        start = rng.randrange(1 << 19)
        data = id.encode() + NOISE[start : start + rng.choice((200, 9_000, 60_000, 150_000))]
        pictures.append(Picture.of(data, width=640, height=480, captured_ns=0, position=position))
    return record, pictures


def trial(path: Path, seed: int, told: Told, *, writers: int, bounded: bool) -> Outcome:
    """Fork the writers, kill them all at a random moment, and look at what is left."""
    rng = random.Random(seed)  # noqa: S311
    pipes = dict[int, tuple[int, bytes]]()
    pids = list[int]()
    for number in range(writers):
        end, pid = _fork(path, 1000 * seed + number, bounded)
        pipes[end] = (number, b"")
        pids.append(pid)
    began = time.monotonic()
    told.doing = dict.fromkeys(range(writers), "start")
    moment = rng.uniform(0, LONGEST_S)
    while (left := moment - (time.monotonic() - began)) > 0:
        _listen(pipes, told, left)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    after_ms = (time.monotonic() - began) * 1000
    early = []
    for pid in pids:
        status = os.waitpid(pid, 0)[1]
        if not os.WIFSIGNALED(status):
            early.append("a writer ended by itself: see its traceback above")
    while pipes:
        _listen(pipes, told, 1.0)
    return examine(path, seed, told, early, writers=writers, bounded=bounded, after_ms=after_ms)


def _fork(path: Path, seed: int, bounded: bool) -> tuple[int, int]:
    """A writer: the end of its pipe, and its process."""
    end, other = os.pipe()
    pid = os.fork()
    if pid:
        os.close(other)
        return end, pid
    try:
        os.close(end)

        def tell(**said: Any) -> None:
            # One write below PIPE_BUF would be atomic; longer ones are cut at most at the end, where the kill was.
            line = json.dumps(said).encode() + b"\n"
            while line:
                line = line[os.write(other, line) :]

        write(path, seed, bounded, tell)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(3)


def _listen(pipes: dict[int, tuple[int, bytes]], told: Told, wait_s: float) -> None:
    ready, _, _ = select.select(list(pipes), [], [], wait_s) if pipes else ([], [], [])
    if not pipes:
        time.sleep(wait_s)
    for end in ready:
        number, rest = pipes[end]
        chunk = os.read(end, 1 << 16)
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            told.hear(number, line)
        pipes[end] = (number, rest)
        if not chunk:
            os.close(end)
            del pipes[end]


def examine(
    path: Path,
    seed: int,
    told: Told,
    early: Sequence[str] = (),
    *,
    writers: int = 1,
    bounded: bool = False,
    after_ms: float = 0.0,
) -> Outcome:
    """Hold a file against what its writers said."""
    limit = BOUNDED if bounded else ROOMY
    taken = sum(Path(f"{path}{end}").stat().st_size for end in ("", "-wal") if Path(f"{path}{end}").exists())
    problems = list(early)
    with Queue(path, max_bytes=limit, on_damage="raise") as queue:
        report = queue.check()
        if not report.ok:
            problems.append(f"check: {report}"[:500])
        there = {record.id: record for record in queue.peek(state=None)}
        torn = len(report.damaged) + report.orphans
        for id, sha256 in told.stored.items():
            if id in there and there[id].sha256 != sha256:
                torn += 1
                problems.append(f"record {id} is not the one that was acknowledged")
        listed = 0
        for record, pictures in queue.pull(list(there)):
            for picture in pictures:
                if not picture.data.startswith((record.camera or record.id).encode()):
                    torn += 1
                    problems.append(f"record {record.id} has a picture of another record")
                if hashlib.sha256(picture.data).hexdigest() != picture.sha256:
                    torn += 1
            listed += len(pictures)
        counters, shared = queue.counters(), listed - queue.info().pictures
        damaged = list[Damage]()
        chunks = {hashlib.sha256(chunk.data).hexdigest() for chunk in queue.scores(damaged.append)}
        torn += len(damaged)
        frames = sum(tally.frames for tally in queue.tallies())
    if frames > told.tallying:
        problems.append(f"{frames} frames are tallied, and {told.tallying} were")
    evicted_chunks = sum(n for (name, _), n in counters.items() if name == "evicted_scores_total")
    missing = told.stored.keys() - there.keys() - told.erased
    evicted = sum(n for (name, reason), n in counters.items() if name == "evicted_total" and reason != "episode")
    gone = sum(n for (name, _), n in counters.items() if name in ("evicted_total", "deleted_total"))
    if counters.get(("stored_total", ""), 0) - gone != len(there):
        problems.append(f"{len(there)} records are there, and the counters say otherwise: {counters}")
    if stray := there.keys() - told.begun:
        problems.append(f"{len(stray)} records are there that nobody put")
    return Outcome(
        seed=seed,
        writers=writers,
        bounded=bounded,
        after_ms=after_ms,
        killed_at=tuple(told.doing.values()),
        acknowledged=len(told.stored),
        there=len(there),
        shared=shared,
        evicted=evicted,
        erased=len(told.erased & told.stored.keys() - there.keys()),
        lost=max(0, len(missing) - evicted),
        torn=torn,
        chunks=len(told.chunks),
        chunks_lost=max(0, len(told.chunks - chunks) - evicted_chunks),
        tallied=told.tallied,
        tallies_lost=max(0, told.tallied - frames),
        over_bound=max(0, taken - limit),
        problems=tuple(problems),
    )


def run(trials: int, seed: int, folder: Path, report: Callable[[Outcome], None]) -> None:
    """So many kills; a file lives through a few of them, with one writer or two, with room or without."""
    done = number = 0
    while done < trials:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            told = Told()
            path = Path(scratch) / "flagged.db"
            writers, bounded = 1 + (number % 3 == 2), number % 2 == 0
            if bounded:
                prefill(path, told)
            for _ in range(min(KILLS_PER_FILE, trials - done)):
                report(trial(path, seed + done, told, writers=writers, bounded=bounded))
                done += 1
            number += 1


def main() -> None:
    """``python -m bench.parts.crash TRIALS SEED FOLDER``."""
    trials, seed, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    run(trials, seed, folder, lambda outcome: print(json.dumps(asdict(outcome)), flush=True))


if __name__ == "__main__":
    main()
