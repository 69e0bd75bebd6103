"""Queues behind real servers: sftp, S3 and HTTP, while their monitors write, over lines that break."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

from alpose.runtime.queue import Queue
from alpose.tools.inbox import Inbox
from alpose.tools.pull.pull import Pulled, pull
from alpose.tools.pull.remote import Log, Moved, Snapshot, connect, read_log
from alpose.tools.pull.sources import RemoteSource, find

from ..queues import fill, make_record

pytest.importorskip("apsw")
pytest.importorskip("fsspec")


def bring(inbox: Path, url: str, storage: dict[str, Any] | None = None, **options: Any) -> Pulled:
    (source,) = find((url,), storage)
    with Inbox(inbox, create=True) as opened:
        return pull(opened, source, **options)


def whole(inbox: Path) -> set[str]:
    with Inbox(inbox) as opened:
        return {id_ for id_ in map(bytes.decode, opened.columns().id_N) if opened.is_whole(id_)}


@pytest.fixture(autouse=True)
def _swept() -> Iterator[None]:
    """What servers and clients of others leave unclosed is collected in the test that made it, under its filters: found
    later, it would fail a test that has nothing to do with it."""
    yield
    gc.collect()


class Bytes:
    """A file in memory that counts nothing."""

    def __init__(self, content: bytes) -> None:
        self.content, self.size = content, len(content)

    def read(self, start: int, stop: int) -> bytes:
        return self.content[start:stop]


def test_a_snapshot_is_the_database_with_its_log(tmp_path: Path) -> None:
    """Against SQLite itself, after every kind of write; the log is cut at every place, too."""
    path = tmp_path / "q.db"
    ids = fill(path, 5)
    rng = np.random.default_rng(0)
    with Queue(path) as live:
        live.acknowledge(ids[:2])
        live.delete(ids[:1])
        live.put_many([(make_record(live, rng), (), ()) for _ in range(3)])
        expected = [(record.id, record.state) for record in live.iterate(state=None)]
        content, log = path.read_bytes(), Path(f"{path}-wal").read_bytes()
    assert log, "nothing was in the log: the test shows nothing"

    def rows(log: Log) -> list[tuple[str, str]]:
        database, close = connect(Snapshot(Bytes(content), log, Moved()))
        try:
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            return list(database.execute("SELECT id, state FROM record ORDER BY seq"))
        finally:
            close()

    assert rows(read_log(log)) == expected
    for stop in rng.integers(0, len(log), 12):
        # A log that breaks off is that of an earlier moment: a whole database, and nobody in it who never was.
        assert {id_ for id_, _ in rows(read_log(log[:stop]))} <= {*ids, *(id_ for id_, _ in expected)}
    spoiled = bytearray(log)
    spoiled[len(log) // 2] ^= 1
    assert len(read_log(bytes(spoiled)).pages) < len(read_log(log).pages)


@contextmanager
def sftp_server(root: Path) -> Iterator[int]:
    asyncssh = pytest.importorskip("asyncssh")
    pytest.importorskip("paramiko")
    loop = asyncio.new_event_loop()
    ready: list[int] = []
    started = threading.Event()

    async def serve() -> None:
        class Anybody(asyncssh.SSHServer):  # type: ignore[misc, name-defined]
            def begin_auth(self, username: str) -> bool:
                return True

            def password_auth_supported(self) -> bool:
                return True

            def validate_password(self, username: str, password: str) -> bool:
                return (username, password) == ("car", "secret")

        server = await asyncssh.listen(
            "127.0.0.1", 0, server_factory=Anybody, server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
            sftp_factory=partial(asyncssh.SFTPServer, chroot=os.fsencode(root)),
        )  # fmt: skip
        ready.append(server.get_port())
        started.set()
        while True:
            await asyncio.sleep(0.05)
            if stop.is_set():
                server.close()
                await server.wait_closed()
                others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
                for task in others:
                    task.cancel()
                await asyncio.gather(*others, return_exceptions=True)
                return

    stop = threading.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield ready[0]
    finally:
        stop.set()
        thread.join(5)
        loop.close()


@pytest.mark.filterwarnings("ignore")  # of paramiko's threads, when its server goes away
def test_sftp_page_by_page_and_the_acknowledgement_lies_beside_the_queue(tmp_path: Path) -> None:
    device = tmp_path / "device"
    device.mkdir()
    every = set(fill(device / "flagged.db", 60, picture_bytes=30_000))
    queue_bytes = (device / "flagged.db").stat().st_size
    with sftp_server(device) as port:
        url = f"sftp://car:secret@127.0.0.1:{port}/flagged.db"
        first = bring(tmp_path / "inbox", url, images=())
        assert (first.new, first.how, first.problem) == (60, "page by page", None)
        # Manifests are a small share of the file: that is the point of reading by pages.
        assert first.moved_bytes < 0.25 * queue_bytes
        chosen = set(sorted(every)[:7])
        second = bring(tmp_path / "inbox", url, images=chosen)
        assert second.fetched == 7
        third = bring(tmp_path / "inbox", url, images=(), delete=True)
        assert (third.acknowledged, third.asked_to_delete, third.deleted) == (7, 7, 0)
        assert whole(tmp_path / "inbox") == chosen
        with Inbox(tmp_path / "inbox") as inbox:
            assert not any("secret" in entry.source for entry in inbox.entries(chosen))
        # The monitor applies it in its own time; the next pull learns that it did.
        with Queue(device / "flagged.db") as queue:
            applied = queue.apply_acknowledgements()
            assert (applied.deleted, applied.refused, applied.mismatched) == (7, (), ())
        assert bring(tmp_path / "inbox", url, images=()).deleted == 7
        assert bring(tmp_path / "inbox", url).fetched == 53
    assert whole(tmp_path / "inbox") == every


def test_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server_module = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "x"),
        ("AWS_SECRET_ACCESS_KEY", "y"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    server = server_module.ThreadedMotoServer(port=0)
    server.start()
    with ExitStack() as opened:
        opened.callback(server.stop)
        host, port = server.get_host_and_port()
        storage = {"endpoint_url": f"http://{host}:{port}", "skip_instance_cache": True}
        files = opened.enter_context(closing_s3(s3fs.S3FileSystem(**storage)))
        files.mkdir("fleet")
        every = set()
        for car in ("car-1", "car-2"):
            every |= set(fill(tmp_path / f"{car}.db", 10, device=car, picture_bytes=20_000))
            files.put_file(str(tmp_path / f"{car}.db"), f"fleet/{car}/flagged.db")
        sources = find(("s3://fleet/*/flagged.db",), storage)
        opened.enter_context(closing_s3(sources[0].files))  # type: ignore[union-attr]
        assert [source.url for source in sources] == ["s3://fleet/car-1/flagged.db", "s3://fleet/car-2/flagged.db"]
        with Inbox(tmp_path / "inbox", create=True) as inbox:
            for source in sources:
                done = pull(inbox, source, acknowledge=True)
                assert (done.new, done.fetched, done.acknowledged, done.problem) == (10, 10, 10, None)
        assert whole(tmp_path / "inbox") == every
        (name,) = files.ls("fleet/car-1/flagged.db.ack", detail=False)
        assert name.endswith(".json")
        for number, key in enumerate(("car #1/q.db", "car[2]/q.db", "car?3/q.db", "car+4 %20/q.db", "Büro/q.db")):
            fill(tmp_path / f"odd-{number}.db", 1, seed=50 + number)
            files.put_file(str(tmp_path / f"odd-{number}.db"), f"fleet/odd/{key}")
            (source,) = find((f"s3://fleet/odd/{key}",), storage)
            assert source.url == f"s3://fleet/odd/{key}"
            with Inbox(tmp_path / "odd", create=True) as inbox:
                assert pull(inbox, source, acknowledge=True).acknowledged == 1
        assert len(find(("s3://fleet/odd/*/q.db",), storage)) == 5
        assert len(find(("s3://fleet/odd/car[2]/*.db",), storage)) == 1
        assert len(find(("s3://fleet/odd/car[2]",), storage)) == 1


@contextmanager
def closing_s3(files: Any) -> Iterator[Any]:
    """Its own finalizer waits a tenth of a second for the session to close: too short where the machine is busy."""
    from fsspec.asyn import sync

    yield files
    sync(files.loop, files._s3creator.__aexit__, None, None, None)


class Ranging(SimpleHTTPRequestHandler):
    """The stdlib's file server, with ranges, and a line that breaks as often as it is told to."""

    breaks = 0
    ranges = True

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(b"")

    def do_GET(self) -> None:
        self.answer(None)

    def answer(self, body: bytes | None) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        wanted = self.headers.get("Range") if self.ranges else None
        start, stop = 0, len(content)
        if wanted:
            first, last = wanted.removeprefix("bytes=").split("-")
            start, stop = int(first), min(int(last or len(content) - 1) + 1, len(content))
        self.send_response(206 if wanted else 200)
        if self.ranges:
            self.send_header("Accept-Ranges", "bytes")
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        self.send_header("Content-Length", str(stop - start))
        self.send_header("ETag", f'"{path.stat().st_mtime_ns:x}"')
        self.end_headers()
        if body is not None:
            return
        if type(self).breaks > 0 and stop - start > 4000:
            type(self).breaks -= 1
            self.wfile.write(content[start : start + (stop - start) // 2])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.wfile.write(content[start:stop])


@contextmanager
def http_server(
    root: Path, *, ranges: bool = True, breaks: int = 0, handler: type[Ranging] = Ranging
) -> Iterator[tuple[int, type[Ranging]]]:
    handler = type("Handler", (handler,), {"breaks": breaks, "ranges": ranges})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(root)))
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server.server_address[1], handler
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ranges", [True, False])
def test_http_with_and_without_ranges(ranges: bool, tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    device = tmp_path / "device"
    device.mkdir()
    every = set(fill(device / "flagged.db", 20, picture_bytes=20_000))
    with http_server(device, ranges=ranges) as (port, _):
        done = bring(tmp_path / "inbox", f"http://127.0.0.1:{port}/flagged.db?token=secret", acknowledge=True)
    assert (done.new, done.fetched, done.problem) == (20, 20, None)
    assert done.how == ("page by page" if ranges else "as a copy")
    # Nobody can write to a web server: the device is not told, and that is said.
    assert done.acknowledged == 0
    assert any("cannot be written" in note for note in done.notes)
    assert "secret" not in done.url
    assert "/flagged.db?token=…" in done.url
    assert whole(tmp_path / "inbox") == every


class Depot(Ranging):
    """Hands queues out by a query, as download endpoints and signed addresses do."""

    def translate_path(self, path: str) -> str:
        parts = urlsplit(path)
        (device,) = parse_qs(parts.query).get("device", ["none"])
        ending = parts.path.removeprefix("/download")
        return f"{self.directory}/{device}.db{ending}"


@pytest.mark.filterwarnings("ignore")
def test_queues_are_told_apart_by_the_query_of_their_address(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    depot = tmp_path / "depot"
    depot.mkdir()
    every = {
        car: set(fill(depot / f"{car}.db", 4, device=car, seed=seed)) for seed, car in enumerate(("car-1", "car-2"))
    }
    with http_server(depot, handler=Depot) as (port, _), Queue(depot / "car-1.db") as live:
        every["car-1"].add(live.put(make_record(live, np.random.default_rng(0), "car-1")).id)  # in the log alone
        urls = {car: f"http://127.0.0.1:{port}/download?device={car}" for car in every}
        assert [bring(tmp_path / "inbox", url, images=()).new for url in urls.values()] == [5, 4]
        again = [bring(tmp_path / "inbox", url) for url in urls.values()]
    assert [(one.known, one.gone, one.fetched) for one in again] == [(5, 0, 4), (4, 0, 4)]
    with Inbox(tmp_path / "inbox") as inbox:
        for car, ids in every.items():
            assert {entry.source for entry in inbox.entries(ids)} == {urls[car]}


@pytest.mark.filterwarnings("ignore")
def test_a_line_that_breaks_loses_nothing(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    device = tmp_path / "device"
    device.mkdir()
    every = set(fill(device / "flagged.db", 20, picture_bytes=20_000))
    with http_server(device, breaks=3) as (port, handler):
        url = f"http://127.0.0.1:{port}/flagged.db"
        done = bring(tmp_path / "inbox", url)
        assert done.problem is None
        assert handler.breaks == 0
        handler.breaks = 10**6
        fill(device / "flagged.db", 5, picture_bytes=20_000, seed=1)
        broken = bring(tmp_path / "inbox", url)
        assert broken.problem is not None
        handler.breaks = 0
        assert bring(tmp_path / "inbox", url).problem is None
    assert len(whole(tmp_path / "inbox")) == 25
    assert every < whole(tmp_path / "inbox")


@pytest.mark.filterwarnings("ignore")
def test_a_queue_that_is_checkpointed_under_the_reader_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("aiohttp")
    device = tmp_path / "device"
    device.mkdir()
    fill(device / "flagged.db", 30, picture_bytes=5000)
    rng = np.random.default_rng(0)
    with http_server(device) as (port, _), Queue(device / "flagged.db") as live:
        (source,) = find((f"http://127.0.0.1:{port}/flagged.db",))
        assert isinstance(source, RemoteSource)
        left = [2]
        real = Inbox.add_bundles

        def busy(self: Inbox, bundles: Any) -> None:
            real(self, bundles)
            if left[0]:
                left[0] -= 1
                live.put(make_record(live, rng))
                live.tidy()  # the log goes into the file

        monkeypatch.setattr(Inbox, "add_bundles", busy)
        with Inbox(tmp_path / "inbox", create=True) as inbox:
            done = pull(inbox, source)
    assert done.problem is None
    assert done.tries == 2
    assert len(whole(tmp_path / "inbox")) == 32


def test_what_is_no_queue_is_said(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/x/flagged.db", b"hello" * 100)
    done = bring(tmp_path / "inbox", "memory://x/flagged.db")

    assert done.problem is not None
    assert "not a SQLite database" in done.problem
